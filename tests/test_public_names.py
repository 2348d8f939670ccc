"""Names that earlier versions documented still work.

`public_names.txt` lists functions with their arguments, commands with their options, and keys of AnnData. Lines are
added; none is removed without a deprecation.
"""

import argparse
import importlib
import inspect
import warnings
from pathlib import Path

import pytest

from stampy import StampyWarning, _keys
from stampy.cli.main import _parser

LINES = [line.split(":") for line in Path(__file__).with_name("public_names.txt").read_text().splitlines()]
NAMES = [(name, arguments.split()) for name, arguments in LINES]
FUNCTIONS = [n for n in NAMES if not n[0].startswith(("stampy", "_keys."))]
ROOMS = sorted({name.split(".")[0] for name, _ in FUNCTIONS if "." in name})


def found(name):
    value = importlib.import_module("stampy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StampyWarning)  # deprecated names work
        for part in name.split("."):
            value = getattr(value, part)
    return value


@pytest.mark.parametrize("room", ROOMS)
def test_functions_and_their_arguments(room):
    lost = []
    for name, arguments in FUNCTIONS:
        if name.startswith(room + "."):
            value = found(name)
            known = set(inspect.signature(value).parameters) if arguments else set()
            lost += [f"{name}({argument})" for argument in arguments if argument not in known]
    assert lost == []


def test_commands_and_their_options():
    options = {}

    def walk(parser, name):
        options[name] = set(parser._option_string_actions)
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for sub, parser_of_sub in action.choices.items():
                    walk(parser_of_sub, f"{name} {sub}")

    walk(_parser(), "stampy")
    old = {name: set(known) for name, known in NAMES if name == "stampy" or name.startswith("stampy ")}
    assert {name: known - options.get(name, set()) for name, known in old.items()} == {name: set() for name in old}


def test_keys_of_anndata():
    old = {name.removeprefix("_keys."): value[0] for name, value in NAMES if name.startswith("_keys.")}
    assert {name: getattr(_keys, name) for name in old} == old
