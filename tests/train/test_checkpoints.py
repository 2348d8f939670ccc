"""Checkpoints are complete or skipped, never partial."""

import shutil
import zipfile

import numpy as np
import pytest
import torch

from stampy.train._loop import checkpoints


def state(step):
    weights = torch.arange(2000, dtype=torch.float32).reshape(40, 50) + step
    return {"model": {"w": weights}, "optimizer": {"state": {0: {"m": weights / 2}}}, "step": step}


def same(a, b):
    return a["step"] == b["step"] and torch.equal(a["model"]["w"], b["model"]["w"])


@pytest.fixture
def out(tmp_path):
    for step in (1, 2):
        checkpoints.save_state(tmp_path / f"checkpoint-{step:08d}.ckpt", state(step))
    return tmp_path


def damaged(content, rng):
    content = bytearray(content)
    kind = rng.integers(4)
    if kind == 0:
        return bytes(content[: rng.integers(len(content))])
    if kind == 1:
        start = int(rng.integers(len(content) - 50))
        content[start : start + 50] = bytes(50)
        return bytes(content)
    first = len(content) // 2 if kind == 2 else len(content) - 900  # the directory is at the end
    for _ in range(int(rng.integers(1, 4))):
        content[int(rng.integers(first, len(content)))] ^= 1 << int(rng.integers(8))
    return bytes(content)


@pytest.mark.filterwarnings("ignore:.*is damaged")
def test_any_damage_leaves_a_saved_state(out):
    rng = np.random.default_rng(0)
    newest = out / "checkpoint-00000002.ckpt"
    whole = newest.read_bytes()
    for _ in range(150):
        newest.write_bytes(damaged(whole, rng))
        found = checkpoints.newest(out)
        assert same(found, state(found["step"]))
        assert set(found["optimizer"]["state"][0]) == {"m"}


def test_flipped_bit_warns_and_the_previous_checkpoint_is_used(out):
    newest = out / "checkpoint-00000002.ckpt"
    content = bytearray(newest.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 24] ^= 1  # the size that torch would allocate
    newest.write_bytes(content)
    with pytest.warns(UserWarning, match=r"is damaged; continuing from the checkpoint before it \(its SHA-256"):
        assert same(checkpoints.newest(out), state(1))


@pytest.mark.parametrize("at", [10, 16, 20, 24, 28, 42])
def test_flipped_bit_in_a_checkpoint_without_hashes(out, at):
    newest = out / "checkpoint-00000002.ckpt"
    torch.save(state(2), newest)
    assert same(checkpoints.newest(out), state(2))  # whole, it is still read
    content = bytearray(newest.read_bytes())
    content[content.rindex(b"PK\x01\x02") + at] ^= 1
    newest.write_bytes(content)
    with pytest.warns(UserWarning, match="is damaged; continuing from the checkpoint before it"):
        assert same(checkpoints.newest(out), state(1))


def test_run_without_intact_checkpoint_starts_anew_with_a_warning(out):
    (out / "checkpoint-00000002.ckpt").unlink()
    (out / "checkpoint-00000001.ckpt").write_bytes(b"")
    with pytest.warns(UserWarning, match="the run starts again"):
        assert checkpoints.newest(out) is None


@pytest.mark.parametrize("content", [[1, 2], {"model": {}}, {"weights": torch.zeros(3)}])
def test_other_file_is_not_a_state(out, content):
    torch.save(content, out / "checkpoint-00000003.ckpt")
    with pytest.warns(UserWarning, match="it contains no state of a run"):
        assert same(checkpoints.newest(out), state(2))


def test_checksum_does_not_hinder_other_readers(out):
    path = out / "checkpoint-00000002.ckpt"
    assert same(torch.load(path, weights_only=True), state(2))
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    shutil.copy(path, out / "checkpoint-00000004.ckpt")
    assert same(checkpoints.newest(out), state(2))
