"""Training, one step after the other; and, called as `megadna.train(...)`, the function megadna.api.train.

The function that a user imports and this folder share a name, so the folder's module can be called.
"""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Path:
        """Train a run and return its folder: help(megadna.api.train)."""
        from megadna.api import train

        return train(*args, **options)


sys.modules[__name__].__class__ = _Callable
