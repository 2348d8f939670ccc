"""`small_section`, shared by the tests of the readers."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
