"""``python -m stampy`` and the entry point of the command line."""

import sys

from stampy.cli.main import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
