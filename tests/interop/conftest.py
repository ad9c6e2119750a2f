"""The fixtures of tests/hf, and its helpers on the path."""

import importlib.util
import sys
from pathlib import Path

HF = Path(__file__).parents[1] / "hf"
sys.path.append(str(HF))
_spec = importlib.util.spec_from_file_location("hf_conftest", HF / "conftest.py")
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
lambda_genome, lambda_ids = _module.lambda_genome, _module.lambda_ids
single_threaded = _module.single_threaded
