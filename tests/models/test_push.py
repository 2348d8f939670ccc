"""Sharing weights: uploads and rejections. A record of calls replaces the hub."""

import json
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalTokenNotFoundError

from stampy import models


@pytest.fixture
def hub(monkeypatch):
    calls = SimpleNamespace(repositories=[], files={}, tags=[])

    class Api:
        def __init__(self, token=None):
            if token == "none":
                raise LocalTokenNotFoundError("no token")

        def create_repo(self, repository, *, private, exist_ok):
            calls.repositories.append((repository, private, exist_ok))

        def create_commit(self, repository, operations, *, commit_message):
            for operation in operations:
                content = operation.path_or_fileobj
                content = content if isinstance(content, bytes) else Path(content).read_bytes()
                calls.files[operation.path_in_repo] = content
            return SimpleNamespace(oid="0123abc")

        def create_tag(self, repository, *, tag, revision):
            calls.tags.append((tag, revision))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return calls


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "mine"
    models.save(models.load("stampy-mini", device="cpu"), path, card="# Mine")
    return path


def test_a_folder_is_uploaded_with_its_card(hub, folder, tmp_path):
    assert models.push(folder, "my-lab/mine", tag="v1") == "hf-hub:my-lab/mine@0123abc"
    assert hub.repositories == [("my-lab/mine", True, True)]
    assert hub.tags == [("v1", "0123abc")]
    assert hub.files["README.md"] == b"# Mine"
    for name, content in hub.files.items():  # the uploaded model can be loaded
        (tmp_path / name).write_bytes(content)
    assert models.load(tmp_path, device="cpu").config == models.load(folder, device="cpu").config


def test_a_loaded_model_needs_a_card(hub, folder):
    model = models.load(folder, device="cpu")
    with pytest.raises(ValueError, match="card is empty"):
        models.push(model, "my-lab/mine")
    models.push(model, "my-lab/mine", card="# Other", private=False)
    assert hub.files["README.md"] == b"# Other"
    assert json.loads(hub.files["config.json"])["format"] == 1


def test_invalid_models_are_not_uploaded(hub, folder, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "genes.tsv").write_text("gene_id\tsymbol\tdivisor\n")
    with pytest.raises(ValueError, match="sha256 differs"):
        models.push(tmp_path, "my-lab/mine", card="# Damaged")
    with pytest.raises(ValueError, match="organisation/name"):
        models.push(folder, "mine")
    assert not hub.repositories
    assert not hub.files


def test_rejection_explains_what_to_do(hub, folder):
    with pytest.raises(ConnectionError, match="hf auth login"):
        models.push(folder, "my-lab/mine", token="none")
