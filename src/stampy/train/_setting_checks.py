"""Check settings by their annotations: first type, then range."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import fields
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from stampy._checks import one_of

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["NumberRange", "checked", "no_effect_error"]


class NumberRange(NamedTuple):
    """Range of a number."""

    least: float
    most: float = math.inf
    above: bool = False  # exclude `least`
    below: bool = False  # exclude `most`

    def __str__(self) -> str:
        low = f"above {self.least:g}" if self.above else f"at least {self.least:g}"
        if self.most == math.inf:
            return low
        return f"{low} and {f'below {self.most:g}' if self.below else f'at most {self.most:g}'}"

    def holds(self, value: float) -> bool:
        """Whether a number is in the range; False for NaN and infinity."""
        low = value > self.least if self.above else value >= self.least
        return math.isfinite(value) and low and (value < self.most if self.below else value <= self.most)


def checked(settings: DataclassInstance, ranges: Mapping[str, NumberRange]) -> dict[str, object]:
    """Values of a dataclass in canonical types: whole numbers as int, lists as tuples.

    Raises
    ------
    TypeError
        A value does not have the annotated type.
    ValueError
        A value is not one of the choices, or is out of range.
    """
    hints = get_type_hints(type(settings))
    return {f.name: _value(f.name, getattr(settings, f.name), hints[f.name], ranges) for f in fields(settings)}


def _value(name: str, value: Any, hint: Any, ranges: Mapping[str, NumberRange]) -> Any:
    if get_origin(hint) is UnionType:
        if value is None:
            return None
        (hint,) = (h for h in get_args(hint) if h is not NoneType)
    kind = get_origin(hint) or hint
    if kind is Literal:
        if not isinstance(value, str):
            raise TypeError(f"`{name}` must be one of {list(get_args(hint))}, found {value!r}.")
        one_of(name, value, get_args(hint))
        return value
    if kind in (int, float):
        return _number(name, value, kind, ranges[name])
    if kind is tuple:
        return _names(name, value)
    if not isinstance(value, kind):
        what = {bool: "True or False", str: "text", Mapping: "a mapping of names to values"}[kind]
        raise TypeError(f"`{name}` must be {what}, found {value!r}.")
    return value


def _number(name: str, value: Any, kind: type, allowed: NumberRange) -> float:
    accepted = numbers.Integral if kind is int else numbers.Real
    if isinstance(value, bool) or not isinstance(value, accepted):
        raise TypeError(f"`{name}` must be {'an integer' if kind is int else 'a number'} {allowed}, found {value!r}.")
    if not allowed.holds(float(value)):
        raise ValueError(f"`{name}` must be {allowed}, found {value!r}.")
    return kind(value)


def _names(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
        raise TypeError(f"`{name}` must be a sequence of names, such as ('a', 'b'), found {value!r}.")
    if len(set(value)) < len(value):
        raise ValueError(f"`{name}` has a name twice: {list(value)}.")
    return tuple(value)


def no_effect_error(what: str, why: str, remedy: str) -> ValueError:
    """Return an error for a setting that would have no effect."""
    return ValueError(f"{what} has no effect: {why}. {remedy}")
