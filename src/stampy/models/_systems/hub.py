"""Weights of other systems: from the user's disk or, with the user's own token, from the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stampy import _checks

if TYPE_CHECKING:
    from stampy.models._systems.cards import Card

__all__ = ["find_weights", "require"]

_EXTRAS = {"transformers": "transformers>=4.40", "open_clip": "open-clip-torch>=2.24"}


def find_weights(card: Card, path: str | Path | None) -> tuple[Path, str]:
    """The file (or folder) of a system's weights, and where it is from, for the record.

    Raises
    ------
    FileNotFoundError
        There is nothing at `path`, or the system is not on the hub and no path was given.
    PermissionError
        The hub asks for a token or for access.
    ConnectionError
        The hub can't be reached.
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
    return _download(card)


def _in_folder(card: Card, folder: Path) -> Path:
    for name in card.files:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"The folder {str(folder)!r} holds none of {list(card.files)}, the weights of {card.title}."
    )


def _download(card: Card) -> tuple[Path, str]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    for name in card.files:
        try:
            path = Path(hf_hub_download(card.repository, name))
        except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
            raise ConnectionError(
                f"The hub can't be reached, and {name!r} of {card.repository!r} is not in the local cache. "
                f"{_by_hand(card)}"
            ) from error
        except EntryNotFoundError:
            continue  # under another name, see `Card.files`
        except RepositoryNotFoundError as error:  # also a closed gate: GatedRepoError is one
            raise PermissionError(_closed(card)) from error
        except HfHubHTTPError as error:
            if getattr(error.response, "status_code", None) in (401, 403):
                raise PermissionError(_closed(card)) from error
            raise ConnectionError(
                f"The hub did not give {name!r} of {card.repository!r}: {error}. Try again."
            ) from error
        except OSError as error:
            raise ConnectionError(
                f"{name!r} of {card.repository!r} can't be fetched: {error}. {_by_hand(card)}"
            ) from error
        return path, f"hf-hub:{card.repository}@{path.parent.name}"
    raise FileNotFoundError(
        f"{card.repository!r} holds none of {list(card.files)}: its authors changed it. {_by_hand(card)}"
    )


def _closed(card: Card) -> str:
    return (
        f"The hub does not give you the weights of {card.title}. Ask for access at "
        f"https://huggingface.co/{card.repository} (licence: {card.licence}), then log in by `hf auth login` or set "
        f"the environment variable HF_TOKEN. {_by_hand(card)}"
    )


def _by_hand(card: Card) -> str:
    return f"Or download the file elsewhere and name it: model='{card.name}:/path/to/{card.files[-1]}'."


def require(module: str, card: Card) -> None:
    """ImportError with the command that mends it, unless the library that builds the system is there."""
    import importlib.util

    if importlib.util.find_spec(module) is None:
        raise ImportError(
            f"{card.title} is built by the library {module!r}, which is not installed. Install it by "
            f'`pip install "{_EXTRAS[module]}"` or `pip install "stampy-st[systems]"`.'
        )
