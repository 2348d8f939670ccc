"""``python -m stampy`` and the entry point of the command line."""

import gc
import sys
from collections.abc import Sequence

from stampy.cli import main as command_line

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command as `stampy.cli.main.main`, in a process that ends with it."""
    status = command_line.main(argv)
    gc.freeze()  # skip the final garbage collection, which takes up to a second after torch and matplotlib
    return status


if __name__ == "__main__":
    sys.exit(main())
