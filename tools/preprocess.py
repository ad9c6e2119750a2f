"""The same command as `megadna preprocess`, for a checkout that is not installed: python tools/preprocess.py --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megadna.cli import main

if __name__ == "__main__":
    main(["preprocess", *sys.argv[1:]])
