"""Both training stages on toy sections."""

import functools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import stampy
from stampy import datasets, models, train
from stampy._io.sections import SectionInput, as_sections
from stampy.models._gene import MASK_ID, PAD_ID
from stampy.pp import Vocabulary
from stampy.train import _pretrain_step
from stampy.train._align_step import _turn, augment
from stampy.train._data import TrainingData, prepare
from stampy.train._loop import loop
from stampy.train._pretrain_step import mask_tokens
from stampy.train._samplers import GroupSampler, PairSampler

GENE = {"width": 16, "depth": 1, "heads": 2, "feedforward": 16, "max_tokens": 48, "tied_heads": True}
STAGE1 = GENE | {
    "groups_per_batch": 4,
    "epochs_igr": 1,
    "epochs_cgr": 1,
    "lr": 1e-2,
    "checkpoint_every": 2,
    "embedding": 12,
}
VIT = {"patch_size": 32, "embed_dim": 16, "depth": 1, "num_heads": 2}
STAGE2 = {
    "backbone": "vit_tiny_patch16_224",
    "backbone_kwargs": VIT,
    "epochs": 1,
    "pairs_per_batch": 24,
    "lr": 1e-2,
    "warmup_steps": 2,
    "checkpoint_every": 3,
}
QUIET = {"device": "cpu", "progress": False}


@pytest.fixture(scope="module")
def pretrained(toy, tmp_path_factory):
    out = tmp_path_factory.mktemp("stage1")
    return train.pretrain(toy, out, config=STAGE1, **QUIET), out


@pytest.fixture(scope="module")
def aligned(toy, pretrained, tmp_path_factory):
    out = tmp_path_factory.mktemp("stage2")
    return train.align(toy, out, model=pretrained[1] / "model", config=STAGE2, **QUIET), out


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_pretrain_writes_a_model_and_a_record(pretrained, toy):
    model, out = pretrained
    lines = metrics(out)
    assert [line["step"] for line in lines] == list(range(len(lines)))
    assert "cgr" not in lines[0]
    assert {"loss", "igr", "cgr", "lr", "spots_per_s", "data_wait_s"} <= set(lines[-1])
    assert lines[-1]["loss"] == pytest.approx(lines[-1]["igr"] + lines[-1]["cgr"], rel=1e-5)
    assert lines[-1]["igr"] < lines[0]["igr"]
    assert json.loads((out / "config.json").read_text())["config"]["width"] == 16
    assert len(list(out.glob("checkpoint-*.ckpt"))) == 2
    again = models.load(out / "model", device="cpu")
    assert equal(model, again)
    assert Vocabulary(again.genes) == Vocabulary.from_sections([toy])


def test_align_trains_both_towers(aligned, pretrained):
    model, out = aligned
    lines = metrics(out)
    assert {"patch_gene", "region_gene", "patch_region", "localization"} <= set(lines[0])
    assert not torch.equal(model.gene.embeddings.weight, pretrained[0].gene.embeddings.weight)
    assert torch.equal(model.gene.igr_head.weight, pretrained[0].gene.igr_head.weight)
    assert equal(model, models.load(out / "model", device="cpu"))
    assert model.config.image.backbone_kwargs == VIT


class Stopped(Exception):
    pass


@pytest.mark.parametrize("stage", [1, 2])
def test_stopped_run_equals_uninterrupted_run(stage, toy, pretrained, aligned, tmp_path, monkeypatch):
    whole = (pretrained if stage == 1 else aligned)[0]

    def run():
        if stage == 1:
            return train.pretrain(toy, tmp_path, config=STAGE1, **QUIET)
        return train.align(toy, tmp_path, model=pretrained[1] / "model", config=STAGE2, **QUIET)

    rate = loop._learning_rate

    def stop_at_step_4(config, step, steps):
        if step == 4:
            raise Stopped
        return rate(config, step, steps)

    monkeypatch.setattr(loop, "_learning_rate", stop_at_step_4)
    with pytest.raises(Stopped):
        run()
    monkeypatch.setattr(loop, "_learning_rate", rate)
    first = sorted(p.name for p in tmp_path.glob("*.ckpt"))[-1]
    assert first == ("checkpoint-00000004.ckpt" if stage == 1 else "checkpoint-00000003.ckpt")
    torch.manual_seed(99)  # the global generator has no part in it
    assert equal(run(), whole)
    steps = [line["step"] for line in metrics(tmp_path)]
    assert steps == list(range(len(steps)))


def test_a_folder_of_another_run_is_refused(pretrained, toy):
    with pytest.raises(ValueError, match=r"other settings: \['lr'\]"):
        train.pretrain(toy, pretrained[1], config=STAGE1 | {"lr": 1e-3}, **QUIET)
    with pytest.raises(ValueError, match="other data"):
        train.pretrain(datasets.toy(n_spots=50), pretrained[1], config=STAGE1, **QUIET)


def test_a_loss_that_is_nan_stops_with_step_and_section(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(_pretrain_step.losses, "igr", lambda *a: torch.tensor(float("nan"), requires_grad=True))
    with pytest.raises(FloatingPointError, match=r"at step 0, sections \['section 0'\]"):
        train.pretrain(toy, tmp_path, config=STAGE1, **QUIET)


KILLED = """
import os, signal, sys, warnings
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(1)
import test_train as t
from stampy.train._loop import checkpoints, loop

rate, save = loop._learning_rate, checkpoints.torch.save
toy = t.datasets.toy(n_spots=120, rng=0)

def run(out, where, step):
    def at_a_step(config, now, steps):
        return os.kill(os.getpid(), signal.SIGKILL) if now == step else rate(config, now, steps)

    def while_writing(state, file):
        if state["step"] >= step:
            save(state, file)
            os.truncate(file.file.fileno(), 1000)
            os.kill(os.getpid(), signal.SIGKILL)
        save(state, file)

    if where == "step":
        loop._learning_rate = at_a_step
    else:
        checkpoints.torch.save = while_writing
    t.train.pretrain(toy, out, config=t.LONG, **t.QUIET)

for out, where, step in zip(sys.argv[1::3], sys.argv[2::3], map(int, sys.argv[3::3])):
    child = os.fork()
    if not child:
        run(out, where, step)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
LONG = STAGE1 | {"epochs_cgr": 4, "dropout": 0.1, "checkpoint_every": 3}


@pytest.fixture(scope="module")
def unbroken(toy, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken")
    return train.pretrain(toy, out, config=LONG, **QUIET), metrics(out)


@pytest.fixture(scope="module")
def killed(unbroken, tmp_path_factory):
    """Two runs, killed at some step and while they write a checkpoint: folder and step of each."""
    steps = np.random.default_rng().integers(4, len(unbroken[1]) - 1, size=2)
    runs = {
        where: (tmp_path_factory.mktemp(where), int(step))
        for where, step in zip(("step", "checkpoint"), steps, strict=True)
    }
    command = [sys.executable, "-c", KILLED]
    for where, (out, step) in runs.items():
        command += [str(out), where, str(step)]
    here = str(pathlib.Path(__file__).parent)
    path = os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [str(-signal.SIGKILL.value)] * 2, done.stderr
    return runs


@pytest.mark.parametrize("where", ["step", "checkpoint"])
def test_killed_run_equals_uninterrupted_run(where, unbroken, killed, toy):
    whole, lines = unbroken
    out, step = killed[where]
    assert where == "step" or list(out.glob(".checkpoint-*"))
    left = [f for f in out.glob("checkpoint-*.ckpt") if int(f.stem[-8:]) > (step if where == "step" else step - 1)]
    assert not left
    assert equal(train.pretrain(toy, out, config=LONG, **QUIET), whole), step
    assert not list(out.glob(".checkpoint-*"))
    times = {"spots_per_s", "step_s", "data_wait_s"}
    found = [{k: v for k, v in x.items() if k not in times} for x in metrics(out)]
    assert found == [{k: v for k, v in x.items() if k not in times} for x in lines]


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_damaged_checkpoint_is_skipped(damage, pretrained, toy, tmp_path):
    whole, done = pretrained
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    newest = sorted(tmp_path.glob("checkpoint-*.ckpt"))[-1]
    content = bytearray(newest.read_bytes())
    if damage == "flipped":
        middle = len(content) // 2
        content[middle : middle + 500] = bytes(x ^ 255 for x in content[middle : middle + 500])
    newest.write_bytes(content if damage == "flipped" else content[: len(content) // 2])
    with pytest.warns(UserWarning, match="is damaged; continuing from the checkpoint before it"):
        assert equal(train.pretrain(toy, tmp_path, config=STAGE1, **QUIET), whole)


def test_a_state_that_failed_is_kept(toy, tmp_path, monkeypatch):
    igr = _pretrain_step.losses.igr
    count = iter(range(100))
    monkeypatch.setattr(_pretrain_step.losses, "igr", lambda *a: igr(*a) * (float("inf") if next(count) == 2 else 1))
    with pytest.raises(FloatingPointError, match=r"at step 2, sections \['section 0'\].*failed-00000002.ckpt"):
        train.pretrain(toy, tmp_path, config=STAGE1 | {"checkpoint_every": 1}, **QUIET)
    state = torch.load(tmp_path / "failed-00000002.ckpt", weights_only=True)
    assert state["step"] == 2
    assert state["rows"].shape == (36,)
    before = torch.load(tmp_path / "checkpoint-00000002.ckpt", weights_only=True)
    assert all(torch.equal(v, before["model"][k]) for k, v in state["model"].items())


def test_settings_that_do_not_affect_the_result_may_change(pretrained, toy, tmp_path):
    shutil.copytree(pretrained[1], tmp_path, dirs_exist_ok=True)
    config = STAGE1 | {"checkpoint_every": 1, "keep": 1, "prefetch": 3}
    assert equal(train.pretrain(toy, tmp_path, config=config, **QUIET), pretrained[0])


def test_data_that_changed_is_refused(pretrained, toy):
    changed = toy.copy()
    changed.obsm["spatial"] = changed.obsm["spatial"] + 1
    with pytest.raises(ValueError, match="other data"):
        train.pretrain(changed, pretrained[1], config=STAGE1, **QUIET)


def test_error_names_the_batch_that_failed(toy, tmp_path, monkeypatch):
    def lost(self, step):
        raise FileNotFoundError("No shard.")

    monkeypatch.setattr(GroupSampler, "batch", lost)
    with pytest.raises(FileNotFoundError) as caught:
        train.pretrain(toy, tmp_path, config=STAGE1, **QUIET)
    assert caught.value.__notes__ == ["This was in the batch of step 0."]


def test_logs(toy, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")

    class Wandb:
        def __init__(self, **settings):
            self.lines, self.settings = {}, settings
            made.append(self)

        def log_hyperparams(self, config):
            self.config = config

        def log_metrics(self, line, step):
            self.lines[step] = line

        def finalize(self, status):
            self.status = status

    made = []
    monkeypatch.setattr("lightning.pytorch.loggers.WandbLogger", Wandb)
    monkeypatch.setattr("stampy.train._launch_checks.find_spec", lambda name: True)
    train.pretrain(toy, tmp_path, config=STAGE1, loggers=("csv", "tensorboard", "wandb"), **QUIET)
    lines = metrics(tmp_path)
    table = pd.read_csv(tmp_path / "metrics.csv")
    assert table["igr"].tolist() == [line["igr"] for line in lines]
    assert table["cgr"].isna().tolist() == ["cgr" not in line for line in lines]
    assert list((tmp_path / "tensorboard").glob("events*"))
    assert list(made[0].lines) == [line["step"] for line in lines]
    assert (made[0].status, made[0].config["width"]) == ("success", 16)


def test_invalid_loggers_raise(toy, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="Did you mean 'tensorboard'"):
        train.pretrain(toy, tmp_path, loggers=("tensorbord",))
    with pytest.raises(TypeError, match="sequence of names"):
        train.pretrain(toy, tmp_path, loggers="csv")
    monkeypatch.setattr("stampy.train._launch_checks.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install wandb"):
        train.align(toy, tmp_path, loggers=("wandb",))


# Fine-tuning


def changed(model, other):
    return {k for (k, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True)
            if not torch.equal(a, b)}  # fmt: skip


def test_fine_tuning_of_the_packaged_model(toy, tmp_path):
    config = {"epochs": 1, "pairs_per_batch": 32, "trainable": ("*_head.*", "image.base_model.blocks.5.*")}
    tuned = train.align(toy[:40].copy(), tmp_path, config=config, **QUIET)
    parts = {
        name.removeprefix("image.base_model.").split(".")[0] for name in changed(tuned, models.load("stampy-mini"))
    }
    assert parts == {"gene_head", "patch_head", "region_head", "localization_head", "blocks"}
    assert equal(tuned, models.load(tmp_path / "model", device="cpu"))


@pytest.mark.parametrize("tower", ["lora", "frozen"])
def test_an_image_tower_that_is_not_trained_in_full(tower, toy, aligned, tmp_path):
    config = STAGE2 | {"image_tower": tower} | ({"lora_rank": 2} if tower == "lora" else {})
    tuned = train.align(toy[:48].copy(), tmp_path, model=aligned[0], config=config, **QUIET)
    names = {k.removeprefix("image.base_model.") for k in changed(tuned, aligned[0]) if "base_model" in k}
    linear = {f"blocks.0.{name}.weight" for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    assert names == (linear if tower == "lora" else set())
    assert equal(tuned, models.load(tmp_path / "model", device="cpu"))
    assert all(p.requires_grad for p in tuned.parameters())


def test_own_backbone(toy, aligned, tmp_path, monkeypatch):
    """It brings its weights, and the mean and deviation that it was trained with."""
    import timm

    create = timm.create_model

    def with_weights(name, pretrained=False, **kwargs):
        vit = create(name, pretrained=False, **kwargs)
        if pretrained:
            vit.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.4, 0.5)}
            torch.nn.init.constant_(vit.cls_token, 3.0)
        return vit

    monkeypatch.setattr(timm, "create_model", with_weights)
    config = STAGE2 | {"image_tower": "frozen", "backbone_kwargs": VIT | {"embed_dim": 32}}
    with pytest.raises(ValueError, match=r"that of the settings 'vit_tiny_patch16_224'\. Give one of them"):
        train.align(toy, tmp_path, model=aligned[0], backbone="vit_small_patch16_224", config=config, **QUIET)
    del config["backbone"]
    tuned = train.align(
        toy[:48].copy(), tmp_path, model=aligned[0], backbone="vit_small_patch16_224", config=config, **QUIET
    )
    assert (tuned.config.image.backbone, tuned.config.image.std) == ("vit_small_patch16_224", (0.5, 0.4, 0.5))
    assert (tuned.image.base_model.cls_token == 3).all()
    assert tuned.image.width == 32
    assert aligned[0].image.width == 16  # the model to start from is left as it is


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"trainable": ("image.blocks.*",)}, "no parameter is named like 'image.blocks"),
        ({"trainable": ("gene.*",), "frozen": ("gene.",)}, "All parameters are frozen"),
        ({"image_tower": "lorra"}, "Did you mean 'lora'"),
        ({"accumulate": 0}, "`accumulate` must be at least 1"),
    ],
)
def test_invalid_fine_tuning_raises(toy, aligned, tmp_path, config, message):
    with pytest.raises(ValueError, match=message):
        train.align(toy, tmp_path, model=aligned[0], config=STAGE2 | config, **QUIET)


@pytest.mark.slow
def test_compiled_layers(toy, pretrained, tmp_path):
    model = train.pretrain(toy, tmp_path, config=STAGE1 | {"compile": True}, **QUIET)
    for line, other in zip(metrics(tmp_path), metrics(pretrained[1]), strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-3)
    assert list(model.state_dict()) == list(pretrained[0].state_dict())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"widht": 3}, "Did you mean 'width'"),
        ({"width": 10, "heads": 4}, "`heads` must divide `width`"),
        ({"mask_fraction": 0.0}, "`mask_fraction` must be above 0 and below 1"),
        ({"group_size": 1}, "`group_size` must be at least 2"),
    ],
)
def test_invalid_settings_raise(toy, tmp_path, config, message):
    with pytest.raises(ValueError, match=message):
        train.pretrain(toy, tmp_path, config=config, **QUIET)


def test_config_from_a_file(tmp_path):
    (tmp_path / "c.json").write_text('{"width": 64}')
    assert train.PretrainConfig.of(tmp_path / "c.json").width == 64
    assert train.PretrainConfig.of(None) == train.PretrainConfig()
    with pytest.raises(TypeError, match="Expected a PretrainConfig"):
        train.PretrainConfig.of(3)


@pytest.mark.parametrize("named", [False, True])
def test_the_default_tower_is_announced(toy, pretrained, tmp_path, monkeypatch, named):
    """A ViT-L with random weights takes days on a CPU."""
    from stampy.train import _align_run

    class BuiltError(Exception):
        pass

    def built(start, config, *, afresh):
        raise BuiltError

    monkeypatch.setattr(_align_run, "_both_towers", built)
    said = r"no image encoder.*vit_large_patch16_224 \(304 million parameters, random weights\).*on cpu.*--backbone"
    config = {"backbone": "vit_large_patch16_224"} if named else {}
    with nullcontext() if named else pytest.warns(stampy.StampyWarning, match=said), pytest.raises(BuiltError):
        train.align(toy, tmp_path, model=pretrained[0], config=config, **QUIET)


@pytest.mark.parametrize(("scale", "skips"), [(65536.0, True), (1.0, True), (0.5, False)])
def test_only_overflow_is_skipped_in_float16(scale, skips):
    """Gradients that are NaN at any scale stop the run, instead of skipping all of its steps."""
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    assert loop._skips(SimpleNamespace(scaler=scaler)) is skips
    assert not loop._skips(SimpleNamespace())


def test_losses_that_do_not_exist(toy, pretrained, tmp_path):
    with pytest.raises(ValueError, match="Did you mean 'patch_gene'"):
        train.align(toy, tmp_path, model=pretrained[0], config={"losses": ("patch_genes",)}, **QUIET)


def test_image_only_sections_and_frozen_parts(toy, pretrained, tmp_path):
    toy = toy[:48].copy()
    only_image = toy[:, :0].copy()
    config = STAGE2 | {"frozen": ("gene.",), "losses": ("patch_gene", "patch_region", "localization"), "epochs": 2}
    model = train.align([toy, only_image], tmp_path, model=pretrained[0], config=config, **QUIET)
    assert equal(model.gene, pretrained[0].gene)
    assert metrics(tmp_path)[-1]["step"] == 2 * (96 // 12) - 1  # each spot once among the shuffled half of the batches
    assert "region_gene" not in metrics(tmp_path)[0]


def test_align_needs_an_image(toy, pretrained, tmp_path):
    blind = toy.copy()
    del blind.uns["spatial"]
    with pytest.raises(KeyError, match="`spatial` not found"):
        train.align(blind, tmp_path, model=pretrained[0], config=STAGE2, **QUIET)


def test_no_sections(tmp_path):
    with pytest.raises(ValueError, match=r"There are no sections\. Give AnnData objects"):
        train.pretrain([], tmp_path)
    with pytest.raises(TypeError, match="found int"):
        train.pretrain([3], tmp_path)
    with pytest.raises(FileNotFoundError, match="section or manifest"):
        train.pretrain(tmp_path / "none.h5ad", tmp_path)


def test_manifest(toy, tmp_path):
    toy.write_h5ad(tmp_path / "a.h5ad")
    table = pd.DataFrame({"path": ["a.h5ad", "a.h5ad"], "name": ["first", ""], "um_per_px": ["", "1.6"]})
    table.to_csv(tmp_path / "m.tsv", sep="\t", index=False)
    first, second = as_sections(tmp_path / "m.tsv")
    assert (first.name, first.um_per_px) == ("first", None)
    assert (second.name, second.um_per_px) == ("a", 1.6)
    assert second.read().shape == toy.shape
    table.rename(columns={"um_per_px": "um_per_pixel"}).to_csv(tmp_path / "m.tsv", sep="\t", index=False)
    with pytest.raises(ValueError, match="Did you mean 'um_per_px'"):
        as_sections(tmp_path / "m.tsv")


# Samplers, masks, views


@pytest.fixture(scope="module")
def prepared(toy, vocabulary):
    other = datasets.toy(n_spots=60, rng=1)
    read = functools.partial(prepare, vocabulary=vocabulary, max_tokens=48, tower=models.ImageConfig())
    return TrainingData([read(SectionInput(data=a, name=n)) for a, n in ((toy, "a"), (other, "b"))], vocabulary, 48)


def test_groups_stay_within_their_section_and_are_drawn_anew(prepared):
    sampler = GroupSampler(prepared, train.PretrainConfig.of(STAGE1))
    n = prepared.sections[0].n_spots
    seen = []
    for step in range(sampler.steps_per_epoch):
        rows = sampler.batch(step)["rows"].numpy()
        assert rows.shape == (4, 9)
        assert ((rows < n).all(axis=1) | (rows >= n).all(axis=1)).all()
        seen.append(rows)
    later = sampler.batch(sampler.steps_per_epoch)["rows"].numpy()
    assert not np.array_equal(later, seen[0])
    assert torch.equal(sampler.batch(1)["tokens"], sampler.batch(1)["tokens"])


def test_positions_of_a_step(prepared):
    sampler = GroupSampler(prepared, train.PretrainConfig.of(STAGE1 | {"positions_per_step": 10}))
    batch, full = sampler.batch(3), GroupSampler(prepared, train.PretrainConfig.of(STAGE1)).batch(3)
    assert batch["tokens"].shape == (4, 9, 10)
    assert torch.equal(batch["tokens"], full["tokens"][..., batch["positions"]])


def test_pairs(prepared):
    sampler = PairSampler(prepared, train.AlignConfig.of(STAGE2))
    batch = sampler.batch(2)
    rows = batch["rows"].numpy()
    n = prepared.sections[0].n_spots
    assert ((rows[:12] < n) == (rows[12:] < n)).all()  # the partners are of the same section
    for i in (0, 15):
        section, row = prepared.sections[int(rows[i] >= n)], rows[i] - n * int(rows[i] >= n)
        assert (batch["patches"][i].numpy() == section.tiles.read(np.array([row]))[0]).all()
        assert (batch["tokens"][i].numpy() == section.tokens[row]).all()
        if batch["cells"][i] >= 0:
            assert section.tiles.region_cells()[row, batch["cells"][i]]


def test_masking():
    tokens = torch.randint(30, 1030, (200, 300), generator=torch.Generator().manual_seed(0))
    tokens[:, 250:] = 0
    inputs, selected = mask_tokens(tokens, 1030, fraction=0.15, rng=np.random.default_rng(0))
    assert (inputs[tokens == 0] == PAD_ID).all()
    assert not selected[tokens == 0].any()
    assert torch.equal(inputs[~selected & (tokens != 0)], tokens[~selected & (tokens != 0)])
    share = selected[:, :250].float().mean().item()
    masked = (inputs[selected] == MASK_ID).float().mean().item()
    kept = (inputs[selected] == tokens[selected]).float().mean().item()
    assert share == pytest.approx(0.15, abs=0.01)
    assert masked == pytest.approx(0.8, abs=0.02)
    assert kept == pytest.approx(0.1, abs=0.02)


def test_views_move_the_cell_with_the_patch():
    """A region whose nine cells have nine values: the patch must show the value of its cell."""
    values = torch.arange(9.0).view(3, 3)
    region = values.repeat_interleave(20, 0).repeat_interleave(20, 1).expand(3, 60, 60)
    cells = torch.arange(9).repeat(8)
    regions = region.expand(len(cells), 3, 60, 60).clone()
    patches = cells.float().view(-1, 1, 1, 1).expand(-1, 3, 60, 60).clone()
    generator = torch.Generator().manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "stampy.train._align_step._colours", lambda n, g: (torch.ones(n, 1, 1, 1), torch.zeros(n, 3, 1, 1))
        )
        patch.setattr("stampy.train._align_step._coarsen", lambda images, px, chosen: None)
        _, turned, moved = augment(patches, regions, cells, generator)
    shown = turned[:, 0].view(-1, 3, 20, 3, 20).mean(dim=(2, 4)).flatten(1)
    assert torch.equal(shown[torch.arange(len(cells)), moved], cells.float())
    assert (moved != cells).any()
    assert torch.equal(_turn(values, 0, mirror=False), values)


def test_spots_without_a_region_keep_no_cell():
    images = torch.zeros(4, 3, 56, 56)
    cells = torch.tensor([-1, 2, -1, 8])
    moved = augment(images, images, cells, torch.Generator().manual_seed(1))[2]
    assert ((moved < 0) == (cells < 0)).all()


def test_training_does_not_change_the_section(toy, pretrained, aligned):
    fresh = datasets.toy(n_spots=120, rng=0)
    assert (toy.X != fresh.X).nnz == 0
    assert list(toy.obsm) == list(fresh.obsm)
    assert isinstance(toy, ad.AnnData)
