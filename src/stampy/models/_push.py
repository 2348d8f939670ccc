"""Share weights on the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from ._stamp import Stamp
from ._weights import CONFIG, GENES, TENSORS, read_folder, save

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["push"]

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
    ValueError: The model card is empty. Give its text by `card=`: training data, results, limits and licence.
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
            "The model card is empty. Give its text by `card=`: training data, results, limits and licence."
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
            f"{repository!r} can't be uploaded: {error}\nLog in with a token that may write (`hf auth login`, or "
            "`token=`), and check that the organisation is yours."
        ) from error
    return f"hf-hub:{repository}@{commit}"


def _commit(api: HfApi, folder: Path, card: str, repository: str) -> str:
    """One commit with all files, so that no partial upload can be loaded."""
    from huggingface_hub import CommitOperationAdd

    files: list[tuple[str, Path | bytes]] = [(name, folder / name) for name in (CONFIG, GENES, TENSORS)]
    files.append((README, card.encode()))
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in files]
    return str(api.create_commit(repository, operations, commit_message="Weights for stampy").oid)
