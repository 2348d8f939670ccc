"""Weights of other systems, from disk or, with the user's token, from the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stampy import _checks
from stampy._files import sha256_of

if TYPE_CHECKING:
    from stampy.models._systems.cards import Card

__all__ = ["download", "find_weights", "require"]

_EXTRAS = {"transformers": "transformers>=4.53", "open_clip": "open-clip-torch>=2.24"}


def find_weights(card: Card, path: str | Path | None, revision: str | None = None) -> tuple[Path, str]:
    """Path of a system's weights (file or folder), and their origin for the record.

    Raises
    ------
    ValueError
        The commit or hash of the file is unknown and no `revision` is given, or the hash differs.
    FileNotFoundError
        `path` does not exist, or the system is not on the hub and no path was given.
    PermissionError
        The hub requires a token or approved access.
    ConnectionError
        The hub cannot be reached.
    """
    if path is not None:
        found = _checks.existing(path, what=f"weights of {card.title}")
        if found.is_dir() and card.repository:
            found = _in_folder(card, found)
        return found, str(found)
    if card.repository is None:
        raise FileNotFoundError(
            f"The weights of {card.title} are not on the hub. Get them from {card.address} and name the path: "
            f"model='{card.name}:/path/to/weights'."
        )
    return download(card, revision)


def _in_folder(card: Card, folder: Path) -> Path:
    for name in card.files:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"The folder {str(folder)!r} contains none of {list(card.files)}, the weights of {card.title}."
    )


def download(card: Card, revision: str | None = None) -> tuple[Path, str]:
    """Download a weights file from the hub, at the commit of the card and checked against its hash.

    With a `revision` given by the user, that commit is downloaded, with a warning that it is unverified.
    """
    wanted = revision or card.revision
    if wanted is None or (revision is None and not card.sha256):
        known = f" (commit {card.revision}, but no hash of its file)" if card.revision else ""
        raise ValueError(
            f"stampy does not know which file of {card.repository!r} on the hub is the right one{known}, so it is not "
            f"downloaded unasked. {_manual_download(card)} To take what the hub has, name the commit, or a branch: "
            f"model='{card.name}@{card.revision or 'main'}'."
        )
    path, source = _fetched(card, wanted)
    expected = card.sha256.get(path.name)
    if revision in (None, card.revision) and expected is not None:
        _check_hash(path, expected, card)
    else:
        _checks.warn(
            f"{path.name} of {card.repository!r} at {path.parent.name}, SHA-256 {sha256_of(path)}, was not verified: "
            "stampy knows no hash of it."
        )
    return path, source


def _check_hash(path: Path, expected: str, card: Card) -> None:
    """Delete a download whose hash differs from the card's, and raise."""
    found = sha256_of(path)
    if found == expected:
        return
    path.resolve().unlink(missing_ok=True)  # the hub's cache contains a link to the file
    path.unlink(missing_ok=True)
    raise ValueError(
        f"{path.name} of {card.repository!r} came with SHA-256 {found}, expected {expected}: it is not the file that "
        "stampy knows, and was removed from the cache. Try again; if the error persists, report it."
    )


def _fetched(card: Card, revision: str) -> tuple[Path, str]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    names = [name for name in card.files if name in card.sha256] if revision == card.revision else []
    for name in names or card.files:
        try:
            path = Path(hf_hub_download(card.repository, name, revision=revision))
        except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
            raise ConnectionError(
                f"The hub cannot be reached, and {name!r} of {card.repository!r} is not in the local cache. "
                f"{_manual_download(card)}"
            ) from error
        except EntryNotFoundError:
            continue  # it may exist under another name, see `Card.files`
        except RepositoryNotFoundError as error:  # includes GatedRepoError
            raise PermissionError(_access_denied(card)) from error
        except HfHubHTTPError as error:
            if getattr(error.response, "status_code", None) in (401, 403):
                raise PermissionError(_access_denied(card)) from error
            raise ConnectionError(
                f"The hub did not give {name!r} of {card.repository!r}: {error}. Try again."
            ) from error
        except OSError as error:
            raise ConnectionError(
                f"{name!r} of {card.repository!r} cannot be fetched: {error}. {_manual_download(card)}"
            ) from error
        return path, f"hf-hub:{card.repository}@{path.parent.name}"
    raise FileNotFoundError(
        f"{card.repository!r} contains none of {list(card.files)}: its authors changed it. {_manual_download(card)}"
    )


def _access_denied(card: Card) -> str:
    return (
        f"The hub does not give you the weights of {card.title}. Request access at "
        f"https://huggingface.co/{card.repository} (licence: {card.licence}), then log in with `hf auth login` or set "
        f"the environment variable HF_TOKEN. {_manual_download(card)}"
    )


def _manual_download(card: Card) -> str:
    return f"Or download the file elsewhere and name it: model='{card.name}:/path/to/{card.files[-1]}'."


def require(module: str, card: Card) -> None:
    """Raise ImportError with the install command unless the library that builds the system is installed."""
    import importlib.util

    if importlib.util.find_spec(module) is None:
        raise ImportError(
            f"{card.title} is built by the library {module!r}, which is not installed. Install it by "
            f'`pip install "{_EXTRAS[module]}"` or `pip install "stampy-st[systems]"`.'
        )
