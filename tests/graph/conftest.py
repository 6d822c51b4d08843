import pathlib
import sys

# Test modules are imported each by itself, so their shared helper must be found by its own name.
sys.path.insert(0, str(pathlib.Path(__file__).parent))
