"""Was a system trained on a data set? From its card, from the registry of sections, or from the config."""

from __future__ import annotations

from stampy import datasets, models

from ._config import DataSet, System

__all__ = ["seen"]

ANSWERS = {True: "yes", False: "no", None: "unknown"}


def seen(system: System, data: DataSet) -> str:
    """``"yes"``, ``"no"`` or ``"unknown"``.

    What the config says comes first. For models that come with the package the registry knows which sections were kept
    out of training; for all others the card answers, as far as it does.

    >>> seen(System(name="PCA", model="pca"), DataSet(name="mine"))
    'no'
    """
    for name in (data.name, data.known_as):
        if name is not None and name in system.seen:
            return ANSWERS[bool(system.seen[name])]
    if system.model in models.packaged():
        return ANSWERS[_in_training(data)]
    named = models.split_name(system.model)
    if named is None:
        return "unknown"
    card = models.card(named[0])
    if card.trained_on.startswith("nothing"):  # fitted to the section, or not at all
        return "no"
    return ANSWERS[card.has_seen(data.known_as) if data.known_as else None]


def _in_training(data: DataSet) -> bool | None:
    """Whether the packaged models were trained on any of the sections; None where one is not in the registry."""
    sources = [section.entry or section.source for section in data.sections]
    if sources and all(source.split(":")[0] == "toy" for source in sources):
        return False
    uses = [datasets.info(source).use if source in datasets.names() else None for source in sources]
    if "train" in uses:
        return True
    return None if None in uses or not uses else False
