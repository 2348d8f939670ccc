"""Weights on disk (config.json, genes.tsv, model.safetensors), sharing on the hub, record of training sections."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode

import stampy
from stampy._files import atomic, atomic_folder, make_ordinary, recover, sha256_of
from stampy._utils import device_of

from ._stamp import Stamp, StampConfig
from ._tensors import check_shapes, load_strictly, shapes_of

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = [
    "DATA",
    "TrainedOn",
    "from_hub",
    "push",
    "read_folder",
    "read_genes",
    "save",
    "trained_on",
    "write_trained_on",
]

logger = logging.getLogger(__name__)

FORMAT = 1
CONFIG, GENES, TENSORS = "config.json", "genes.tsv", "model.safetensors"
ADAPTED = "adapted"  # key of the config: settings of `train.adapt`, part of the provenance of embeddings
_MAX_GENES = 2**20
_MAX_LINE = 4096  # bytes per gene
# Errors of the libraries that build models, for settings that conflict.
_NOT_BUILT = (ValueError, TypeError, KeyError, RuntimeError, ArithmeticError, AttributeError, LookupError)
_RANDOM = (torch.Tensor.normal_, torch.Tensor.uniform_)
_GENE_COLUMNS = ["gene_id", "symbol", "divisor"]


def save(model: Stamp, path: str | Path, *, dtype: torch.dtype = torch.float32, card: str | None = None) -> None:
    """Write a model to a folder that `load` reads.

    The folder is written under a temporary name and renamed, so it is never incomplete.

    Parameters
    ----------
    model
        The model, with its vocabulary in ``model.genes``.
    path
        The folder; an existing folder of weights is replaced.
    dtype
        Type of the tensors on disk; ``torch.float16`` halves them.
    card
        Text of a model card, written as ``README.md``.

    Raises
    ------
    ValueError
        The model has no vocabulary.
    FileExistsError
        `path` exists and is not a folder of weights.

    Examples
    --------
    >>> import tempfile, stampy
    >>> model = stampy.models.load("stampy-mini", device="cpu")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(model, f"{folder}/mine", dtype=torch.float16)
    ...     sorted(path.name for path in Path(folder, "mine").iterdir())
    ['config.json', 'genes.tsv', 'model.safetensors']
    """
    StampConfig.from_dict(model.config.to_dict())  # raises for settings that could not be loaded again
    if model.genes is None:
        raise ValueError("The model has no vocabulary (`model.genes`): without it the weights cannot be used.")
    path = Path(path).expanduser()
    recover(path)
    if os.path.lexists(path) and not (path / CONFIG).is_file() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(
            f"{str(path)!r} exists and contains no stampy weights; it is not changed. Choose another."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(path) as folder:
        folder.mkdir()
        _write(model, model.genes, folder, dtype, card)


def _write(model: Stamp, genes: pd.DataFrame, folder: Path, dtype: torch.dtype, card: str | None) -> None:
    tensors = {
        k: v.detach().to("cpu", dtype if v.is_floating_point() else v.dtype).contiguous()
        for k, v in model.state_dict().items()
    }
    save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
    make_ordinary(folder / TENSORS)  # safetensors creates a private file
    genes[_GENE_COLUMNS].to_csv(folder / GENES, sep="\t", index=False, lineterminator="\n")
    config = {
        "format": FORMAT,
        "stampy": stampy.__version__,
        **model.config.to_dict(),
        **({} if model.adapted is None else {ADAPTED: dict(model.adapted)}),
        "sha256": {name: sha256_of(folder / name) for name in (GENES, TENSORS)},
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    if card is not None:
        (folder / "README.md").write_text(card)


def read_folder(folder: Path, name: str, device: str | torch.device | None) -> Stamp:
    config = _read_config(folder)
    for file in (GENES, TENSORS):  # fixed names, so that a config cannot refer to other files
        expected = config["sha256"][file]
        if not (folder / file).is_file():
            raise FileNotFoundError(f"The weights in {str(folder)!r} lack `{file}`. Copy or download them again.")
        if sha256_of(folder / file) != expected:
            raise ValueError(
                f"`{file}` in {str(folder)!r} is not the file that its {CONFIG} describes (sha256 differs): it is "
                "damaged or was replaced. Copy or download the entire folder again."
            )
    try:
        settings = StampConfig.from_dict(config)
        genes = read_genes(folder / GENES, at_most=settings.gene.n_genes)
        with torch.device("meta"), _SkipInit():  # allocates no memory before the file is compared
            model = Stamp(settings, genes)
    except _NOT_BUILT as error:
        raise ValueError(f"{str(folder)!r} does not describe a model that can be built: {error}") from error
    try:
        check_shapes(model, shapes_of(folder / TENSORS), where=str(folder))
        tensors = load_file(folder / TENSORS)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"`{TENSORS}` in {str(folder)!r} cannot be read as safetensors: {error}.") from error
    load_strictly(model, tensors, where=str(folder), assign=True)
    model.name, model.adapted = name, _adaptation(config)
    return model.to(device_of(device)).eval()


def _adaptation(config: Mapping[str, object]) -> dict[str, str | float | int] | None:
    """Settings of `train.adapt` in a config; None for other models and for values of other types."""
    found = config.get(ADAPTED)
    if not isinstance(found, dict):
        return None
    return found if all(isinstance(v, str | float | int) for v in found.values()) else None


class _SkipInit(TorchFunctionMode):
    """Skip initialisation: random numbers on the meta device would make torch import its compiler (1.3 s)."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Collection[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        named = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init" or func in _RANDOM:
            return args[0] if args else named["tensor"]
        if func is torch.eye and "out" in named:
            return named["out"]
        return func(*args, **named)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"No `{CONFIG}` in {str(folder)!r}; a folder written with `stampy.models.save` was expected. "
            "For the published checkpoint use `stampy.models.load_published(path)`."
        )
    try:
        config = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(path)!r} is not a JSON: {error}.") from error
    if not isinstance(config, dict) or {"format", "gene", "embedding", "sha256"} - set(config):
        raise ValueError(f"{str(path)!r} does not describe a stampy model (keys missing).")
    if type(config["format"]) is not int:
        raise ValueError(f"{str(path)!r} has format {config['format']!r}; an integer was expected.")
    if config["format"] > FORMAT:
        raise ValueError(
            f"{str(folder)!r} has weights of format {config['format']}, written by stampy {config.get('stampy')}; this "
            f"is stampy {stampy.__version__}, which reads up to format {FORMAT}. Update stampy."
        )
    if not isinstance(config["sha256"], dict) or set(config["sha256"]) != {GENES, TENSORS}:
        raise ValueError(
            f"{str(path)!r} must have the sha256 of `{GENES}` and `{TENSORS}` only, found "
            f"{config['sha256']!r:.200}. Copy or download the entire folder again."
        )
    return config


def read_genes(path: Path, *, at_most: int = _MAX_GENES) -> pd.DataFrame:
    """Vocabulary of the weights as a table; reads at most the rows of a model with `at_most` genes."""
    if (size := path.stat().st_size) > _MAX_LINE * (at_most + 1):
        raise ValueError(f"`{path.name}` has {size:,} bytes, far more than a vocabulary of {at_most:,} genes.")
    try:
        genes = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, nrows=at_most + 1)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"`{path.name}` cannot be read as a table: {error}") from error
    if absent := [column for column in _GENE_COLUMNS if column not in genes]:
        raise ValueError(f"`{path.name}` lacks the columns {absent}, found {list(genes)[:10]}.")
    if len(genes) > at_most:
        raise ValueError(f"`{path.name}` has more than the {at_most:,} genes of the model.")
    genes = genes[_GENE_COLUMNS]
    genes = genes.assign(divisor=[float(divisor) for divisor in genes["divisor"]])  # exact, unlike pandas' parser
    wrong = genes.loc[~(np.isfinite(genes["divisor"]) & (genes["divisor"] > 0)), "gene_id"]
    if len(wrong):
        raise ValueError(
            f"`{path.name}` has a divisor that is not a finite number above 0 for {len(wrong)} genes, first "
            f"{wrong.iloc[0]!r}."
        )
    return genes


def from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    repository, _, revision = name.removeprefix("hf-hub:").partition("@")
    if not revision:
        raise ValueError(
            f"{name!r} names no revision, so its contents may change. Name a commit, {name}@<commit>, or, to "
            f"take the newest weights, a branch: {name}@main."
        )
    try:
        folder = snapshot_download(repository, revision=revision, allow_patterns=[CONFIG, GENES, TENSORS])
    except (OSError, ValueError) as error:  # no network, repository, revision, access or disk space
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConnectionError(
            f"{name!r} cannot be fetched from the Hugging Face hub, and it is not in its cache: {reason} Without a "
            "network, copy the folder of weights here and give its path."
        ) from error
    if Path(folder).name != revision:
        logger.warning("%s is at commit %s now; name it: hf-hub:%s@%s", name, Path(folder).name, repository,
                       Path(folder).name)  # fmt: skip
    return Path(folder)


README = "README.md"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def push(
    model: str | Path | Stamp,
    repository: str,
    *,
    card: str | None = None,
    private: bool = True,
    tag: str | None = None,
    token: str | None = None,
) -> str:
    """Upload weights and their card to the Hugging Face Hub, for `stampy.models.load`.

    The weights are first read and checked as in `load`, so unusable weights are not uploaded.

    Parameters
    ----------
    model
        A folder written by `save` or training, or a loaded model.
    repository
        Name on the hub, ``"organisation/name"``. It is created if it does not exist.
    card
        Text of the model card (Markdown): training data, results, limits and licence. None: the folder's ``README.md``.
    private
        Whether a new repository is private. An existing repository is not changed.
    tag
        Name for this version, such as ``"v1.0"``.
    token
        Token with write access; by default that of ``hf auth login``.

    Returns
    -------
    The name to load exactly these weights, ``"hf-hub:organisation/name@commit"``.

    Raises
    ------
    ValueError
        The card is missing, the repository is not named ``organisation/name``, or the weights cannot be loaded.
    ConnectionError
        The hub cannot be reached or refuses the upload.

    Examples
    --------
    >>> import stampy
    >>> model = stampy.models.load("stampy-mini", device="cpu")
    >>> stampy.models.push(model, "my-lab/breast", card="")
    Traceback (most recent call last):
        ...
    ValueError: The model card is empty. Give its text with `card=`: training data, results, limits and licence.
    """
    import tempfile

    if not _REPOSITORY.fullmatch(repository):
        raise ValueError(f"`repository` must be 'organisation/name', found {repository!r}.")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model" if isinstance(model, Stamp) else Path(model).expanduser()
        text = _card(None if isinstance(model, Stamp) else folder, card)
        if isinstance(model, Stamp):
            save(model, folder)
        else:
            read_folder(folder, str(folder), "cpu")
        return _upload(folder, text, repository, private, tag, token)


def _card(folder: Path | None, card: str | None) -> str:
    if card is None and folder is not None and (folder / README).is_file():
        card = (folder / README).read_text(encoding="utf-8")
    if not (card or "").strip():
        raise ValueError(
            "The model card is empty. Give its text with `card=`: training data, results, limits and licence."
        )
    return str(card)


def _upload(folder: Path, card: str, repository: str, private: bool, tag: str | None, token: str | None) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    try:
        api = HfApi(token=token)
        api.create_repo(repository, private=private, exist_ok=True)
        commit = _commit(api, folder, card, repository)
        if tag is not None:
            api.create_tag(repository, tag=tag, revision=commit)
    except (HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise ConnectionError(
            f"{repository!r} cannot be uploaded: {error}\nLog in with a token that may write (`hf auth login`, or "
            "`token=`), and check that the organisation is yours."
        ) from error
    return f"hf-hub:{repository}@{commit}"


def _commit(api: HfApi, folder: Path, card: str, repository: str) -> str:
    """Make one commit with all files, so that a partial upload can never be loaded."""
    from huggingface_hub import CommitOperationAdd

    files: list[tuple[str, Path | bytes]] = [(name, folder / name) for name in (CONFIG, GENES, TENSORS)]
    files.append((README, card.encode()))
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in files]
    return str(api.create_commit(repository, operations, commit_message="Weights for stampy").oid)


DATA = "data.json"  # in the folder of a run


class TrainedOn(NamedTuple):
    """Names of the sections of a run and of the runs of its start model."""

    sections: frozenset[str]
    complete: bool  # False if the start model has no record


def trained_on(model: object) -> TrainedOn | None:
    """Record of a run's folder, or of its subfolder ``model``; None for anything else."""
    if not isinstance(model, str | Path):
        return None
    folder = Path(model).expanduser()
    for place in (folder, folder.parent):
        try:
            found = json.loads((place / DATA).read_text())
            before = found.get("before", [])  # stage 1 has no start model
            names = [*found["spots"], *(before or [])]
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            continue
        return TrainedOn(frozenset(map(str, names)), before is not None)
    return None


def write_trained_on(folder: Path, spots: dict[str, int], before: Iterable[str] | None) -> None:
    """Write data.json: number of spots by section, and the sections of the start model (None: unknown)."""
    known = {"spots": spots, "before": None if before is None else sorted(before)}
    with atomic(folder / DATA) as temporary:
        temporary.write_text(json.dumps(known, indent=1) + "\n")
