"""megatron-core imported without what a run does not use: half of the CPU seconds of a start.

`import megatron.core` imports wandb if it is installed (2 s, for its inference engine) and TensorBoard; on a machine
without a GPU its decorators load torch's compiler (1.6 s), which engine/cpu.py then disables. `install` adds an import
hook that leaves them out, whichever module imports megatron first. On a machine with a GPU the compiler is loaded.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

UNUSED = ("wandb", "torch.utils.tensorboard")
"""Imported by megatron for its inference engine and its timers."""


def install() -> None:
    """Watch for the first import of megatron.core in this process, at no cost until then."""
    if "megatron.core" not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "megatron.core":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                with _without(*UNUSED), _without_compiler():
                    load(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


@contextmanager
def _without(*packages: str) -> Iterator[None]:
    """To megatron these optional packages look not installed; later imports of them work as usual."""
    hidden = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


@contextmanager
def _without_compiler() -> Iterator[None]:
    """torch.compile returns functions unchanged if there is no GPU."""
    import torch

    if torch.cuda.is_available():
        yield
        return
    compiler = torch.compile
    torch.compile = _unchanged  # type: ignore[assignment]
    try:
        yield
        sys.modules["megatron.core.jit"].disable_jit_fuser()  # for modules that megatron imports later
    finally:
        torch.compile = compiler


def _unchanged(function: Callable | None = None, **_options: Any) -> Callable:
    return (lambda decorated: decorated) if function is None else function
