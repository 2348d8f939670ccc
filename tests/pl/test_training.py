"""Curves of a run."""

import itertools
import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from stampy import pl


@pytest.fixture
def run(tmp_path):
    rng = np.random.default_rng(0)
    lines = []
    for step in range(300):
        igr = 5 + 4 * np.exp(-step / 80) + 0.2 * rng.normal()
        line = {"step": step, "loss": igr, "igr": igr, "lr": 1e-4 * (300 - step) / 300}
        if step >= 150:
            line |= {"cgr": igr + 1, "loss": 2 * igr + 1}
        line |= {"grad_norm": 1 + rng.random(), "spots_per_s": 700 + 30 * rng.normal(), "data_wait_s": 1e-3}
        lines.append(json.dumps(line))
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 300, "lo')  # being written
    yield tmp_path
    plt.close("all")


def test_panels_of_a_run(run):
    axes = pl.training(run)
    assert [ax.get_title() for ax in axes] == [
        "loss",
        "igr",
        "cgr",
        "learning rate",
        "gradient norm",
        "spots per second",
    ]
    cgr = axes[2].get_lines()[-1]
    assert cgr.get_xdata()[0] == 150
    assert np.isfinite(cgr.get_ydata()).all()
    assert axes[0].get_lines()[-1].get_xdata()[-1] == 299
    axes[0].figure.draw_without_rendering()


def test_runs_side_by_side(run):
    table = pd.read_json(run / "metrics.jsonl", lines=True, nrows=300)
    axes = pl.training({"a": run, "b $x$": table.assign(igr=table.igr + 1)}, which=("igr",), log=True, smooth=1)
    assert [len(ax.get_lines()) for ax in axes] == [2]
    assert axes[0].get_yscale() == "log"
    assert [t.get_text() for t in axes[0].figure.legends[0].get_texts()] == ["a", "b $x$"]


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("levels", [(6.0, 6.01, 6.02), (6.0, 6.15, 8.0), (5.2, 8.0, 8.01), (6.0, 6.3, 6.61)])
def test_names_of_close_lines_do_not_overlap(run, levels, log):
    keys = ("section_frequency_unseen", "section_frequency", "corpus_frequency")
    (run / "data.json").write_text(json.dumps({"references": dict(zip(keys, levels, strict=True))}))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()[:300]]
    (run / "metrics.jsonl").write_text("".join(json.dumps(x | {"igr_masked": x["igr"]}) + "\n" for x in lines))
    (ax,) = pl.training(run, which=("igr_masked",), log=log)
    ax.figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in sorted(ax.texts, key=lambda t: t.xy[1])]
    assert len(boxes) == 3
    for low, high in itertools.pairwise(boxes):
        assert low.y1 < high.y0 + 1  # pixel
    for text, level in zip(sorted(ax.texts, key=lambda t: t.xy[1]), levels, strict=True):
        height = ax.get_window_extent().height
        y = ax.transData.transform([(0, level), (0, text.xy[1])])[:, 1]
        assert abs(y[1] - y[0]) < 0.13 * height
        assert text.get_text().endswith(f"{level:.2f}")


def test_smoothing_keeps_the_mean():
    table = pd.DataFrame({"step": range(100), "loss": np.arange(100.0)})
    (ax,) = pl.training(table, which=("losses",), smooth=5)
    np.testing.assert_allclose(ax.get_lines()[-1].get_ydata()[2:-2], np.arange(2.0, 98))
    plt.close("all")


def test_invalid_runs_raise(tmp_path, run):
    with pytest.raises(FileNotFoundError, match="No run at"):
        pl.training(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="No log of a run"):
        pl.training(tmp_path / "empty")
    (tmp_path / "empty" / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="no steps yet"):
        pl.training(tmp_path / "empty")
    with pytest.raises(KeyError, match="`loss` not found"):
        pl.training(pd.DataFrame({"step": [1]}))
    with pytest.raises(KeyError, match="`igrr` not found"):
        pl.training(run, which=("igrr",))
    with pytest.raises(TypeError, match="sequence of panels"):
        pl.training(run, which="losses")
    with pytest.raises(ValueError, match="`run` is empty"):
        pl.training({})
    with pytest.raises(ValueError, match="`smooth` must be at least 1"):
        pl.training(run, smooth=0)
