"""Time of `import stampy` and `stampy --help`: median of several runs, each in a new process.

The time of an empty interpreter is subtracted. Usage: python benchmarks/imports.py [--runs 11]
"""

import argparse
import statistics
import subprocess
import sys
import time

LIMITS = {"import stampy": 0.1, "stampy --help": 0.5}  # seconds
COMMANDS = {
    "empty": [sys.executable, "-c", "pass"],
    "import stampy": [sys.executable, "-c", "import stampy"],
    "stampy --help": [sys.executable, "-m", "stampy", "--help"],
}


def seconds(command: list[str], runs: int) -> float:
    """Median wall time."""
    found = []
    for _ in range(runs):
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=11)
    runs = parser.parse_args().runs
    for command in COMMANDS.values():  # compile, and fill the disk cache
        seconds(command, 1)
    empty = seconds(COMMANDS["empty"], runs)
    for name, limit in LIMITS.items():
        found = seconds(COMMANDS[name], runs) - empty
        print(f"{name}: {found:.3f} s (limit {limit} s)")
        if found > limit:
            sys.exit(f"{name} is too slow")


if __name__ == "__main__":
    main()
