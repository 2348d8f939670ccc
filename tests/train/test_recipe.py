"""The recipe of the paper: settings, job scripts and rehearsal."""

import importlib.util
import json
import os
import subprocess
from pathlib import Path

import pytest

from stampy.train import AlignConfig, PretrainConfig

RECIPE = Path(__file__).parents[2] / "recipes" / "stamp"
SPOTS, PAIRS, GPUS = 5_750_000, 697_000, 4


def test_stage_1_has_the_papers_settings():
    config = PretrainConfig.of(RECIPE / "pretrain.json")
    assert (config.width, config.depth, config.heads, config.feedforward, config.max_tokens) == (
        512,
        12,
        16,
        1024,
        1500,
    )
    assert (config.epochs_igr, config.epochs_cgr, config.group_size, config.mask_fraction) == (1, 1, 9, 0.15)
    assert (config.lr, config.min_lr, config.weight_decay) == (1e-4, 1e-5, 1e-4)
    steps = 2 * SPOTS // (config.group_size * config.groups_per_batch * GPUS)
    assert config.warmup(steps) == 100


@pytest.mark.parametrize("name", ["align.json", "align-open.json"])
def test_stage_2_has_the_papers_settings(name):
    config = AlignConfig.of(RECIPE / name)
    assert (config.epochs, config.lr, config.weight_decay, config.pairs_per_batch) == (30, 1e-4, 1e-3, 2 * 128)
    assert set(config.losses) == {"patch_gene", "region_gene", "patch_region", "localization"}
    assert config.pretrained
    steps = config.epochs * PAIRS // (config.pairs_per_batch // 2 * GPUS)
    assert config.warmup(steps) == 5000


def test_both_backbones_are_vit_large():
    timm = pytest.importorskip("timm")
    open_one = AlignConfig.of(RECIPE / "align-open.json").backbone
    assert timm.is_model(open_one)
    assert open_one.startswith("vit_large_patch16_224")
    assert AlignConfig.of(RECIPE / "align.json").backbone == "hf-hub:MahmoodLab/UNI"
    differ = {
        key
        for key, value in json.loads((RECIPE / "align.json").read_text()).items()
        if json.loads((RECIPE / "align-open.json").read_text())[key] != value
    }
    assert differ == {"backbone"}


def test_the_expected_cost_is_computed_from_settings_and_measured_speeds():
    pytest.importorskip("timm")
    specification = importlib.util.spec_from_file_location("cost", RECIPE / "cost.py")
    cost = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(cost)
    assert (cost.SPOTS, cost.PAIRS) == (SPOTS, PAIRS)
    rows = {what: (one, two) for what, one, two in cost.table(GPUS, cost.SPOTS_PER_S, cost.PAIRS_PER_S)}
    assert rows["warm-up, steps"] == ("100", "5,000")
    # 11.5 million spots at 1,001 to 855 a second, 41.82 million pairs at 378
    assert rows["GPU hours, H100"] == ("3 to 4", "31")
    measured = (RECIPE.parents[1] / "docs" / "performance.md").read_text().split("## On a GPU")[1].split("\n## ")[0]
    for speed in (*cost.SPOTS_PER_S, *cost.PAIRS_PER_S):
        assert f"| {speed:,.0f} |" in measured
    readme = (RECIPE / "README.md").read_text()
    again = rows["GPU hours, H100, checkpoint_activations"][1], rows["GPU hours, A100, checkpoint_activations"][1]
    for line in (
        "| steps on 4 GPUs | {} | {} |".format(*rows["steps on 4 GPUs"]),
        "| checkpoints, 2 kept | {} | {} |".format(*rows["checkpoints, 2 kept"]),
        "| **GPU hours, H100** | **{}** | **{}; {} with `".format(*rows["GPU hours, H100"], again[0]),
        "| GPU hours, A100 or A800 | {} | {}; {} with `".format(*rows["GPU hours, A100, by nominal peaks"], again[1]),
    ):
        assert line in readme


def test_settings_of_the_rehearsal():
    PretrainConfig.of(RECIPE / "rehearsal" / "pretrain.json")
    AlignConfig.of(RECIPE / "rehearsal" / "align.json")


@pytest.mark.parametrize("script", sorted(path.name for path in RECIPE.glob("*.sh")))
def test_scripts_are_well_formed(script):
    subprocess.run(["bash", "-n", RECIPE / script], check=True)


@pytest.mark.parametrize("script", ["slurm-pretrain.sh", "slurm-align.sh"])
def test_jobs_are_queued_again_after_a_signal(script, tmp_path):
    text = (RECIPE / script).read_text()
    assert "#SBATCH --requeue" in text
    assert "#SBATCH --signal=TERM@" in text
    called = tmp_path / "called"
    for name, body in {"srun": "exit 143", "scontrol": f'echo "$@" > {called}'}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash", RECIPE / script], cwd=RECIPE.parents[1], env=env)
    assert done.returncode == 143
    assert called.read_text() == "requeue 7\n"


@pytest.mark.parametrize(("status", "expected"), [(0, 0), (1, 1)])
def test_jobs_that_end_otherwise_are_not_queued_again(status, expected, tmp_path):
    for name, body in {"srun": f"exit {status}", "scontrol": f"touch {tmp_path}/called"}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash", RECIPE / "slurm-align.sh"], cwd=RECIPE.parents[1], env=env)
    assert done.returncode == expected
    assert not (tmp_path / "called").exists()


@pytest.mark.slow
def test_rehearsal_recovers_the_planted_structure(tmp_path):
    done = subprocess.run(["bash", RECIPE / "rehearse.sh", tmp_path / "out"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "NOT BETTER" not in done.stdout
    page = (tmp_path / "out" / "page.html").read_text()
    for name in ("planted sections, kept out", "DLPFC", "HBC", "HER2+", "PSC", "HHK", "TCGA-LUAD"):
        assert name in page
