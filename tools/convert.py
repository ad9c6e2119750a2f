"""Convert between megadna checkpoints and Hugging Face folders: `megadna export` and `megadna import` in one script.

    python tools/convert.py CHECKPOINT_OR_RUN HF_FOLDER [options of megadna export]
    python tools/convert.py HF_FOLDER CHECKPOINT [options of megadna import]

The direction follows from what the first folder holds.
"""

import sys
from pathlib import Path

from megadna.cli import main

if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    source, target, *options = sys.argv[1:]
    verb, name = ("import", "--model") if (Path(source) / "config.json").is_file() else ("export", "--checkpoint")
    main([verb, name, source, "--output", target, *options])
