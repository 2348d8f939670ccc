"""The tests of the readers share `small_section`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
