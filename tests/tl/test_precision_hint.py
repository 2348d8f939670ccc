"""The hint that bfloat16 would be faster."""

import logging

import pytest
from torch import nn

from stampy.tl._embedding import encoders


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setattr(encoders, "_hinted", False)
    monkeypatch.setattr(encoders, "MIN_PARAMETERS", 10)
    monkeypatch.setattr(encoders, "_cpu_has_bfloat16", lambda: True)


def told(caplog, *calls):
    with caplog.at_level(logging.WARNING, logger="stampy"):
        for call in calls:
            encoders.hint_bfloat16(*call)
    return [record.getMessage() for record in caplog.records if record.name == encoders.__name__]


def test_hint_is_given_once(caplog):
    large = nn.Linear(4, 4), 500, None
    (message,) = told(caplog, large, large)
    assert 'precision="bfloat16"' in message


@pytest.mark.parametrize(
    "call",
    [
        (nn.Linear(2, 2), 500, None),
        (nn.Linear(4, 4), 499, None),
        (nn.Linear(4, 4), 500, "float32"),
        (nn.Identity(), 500, None),
    ],
    ids=["small model", "few tiles", "asked for", "no parameters, as pixels"],
)
def test_no_hint_if_it_does_not_help(caplog, call):
    assert told(caplog, call) == []


def test_no_hint_if_the_cpu_lacks_the_instructions(caplog, monkeypatch):
    monkeypatch.setattr(encoders, "_cpu_has_bfloat16", lambda: False)
    assert told(caplog, (nn.Linear(4, 4), 500, None)) == []
