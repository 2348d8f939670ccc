"""What `import stampy` costs, over a bare interpreter."""

import subprocess
import sys
import time


def run(code, times=9):
    took = []
    for _ in range(times):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        took.append(time.perf_counter() - start)
    return sorted(took)[times // 2]


def track_import_stampy():
    """Median of several fresh interpreters, less that of `pass`."""
    return 1000 * (run("import stampy") - run("pass"))


track_import_stampy.unit = "ms"
