"""Runs the README's `bash` blocks, in order, each in a shell at the repository's root.

Blocks that need data or hardware of one's own are marked `console` there and are not run.
"""

import pathlib
import re
import subprocess
import sys
import time

readme = pathlib.Path("README.md").read_text()
blocks = re.findall(r"^```bash\n(.*?)^```", readme, flags=re.DOTALL | re.MULTILINE)
if not blocks:
    sys.exit("error: README.md has no bash block")
for block in blocks:
    print(block, end="", flush=True)
    started = time.monotonic()
    result = subprocess.run(["bash", "-euo", "pipefail", "-c", block], check=False)
    print(f"-> {result.returncode} after {time.monotonic() - started:.0f} s", flush=True)
    if result.returncode:
        sys.exit(f"error: a command of the README failed:\n{block}")
