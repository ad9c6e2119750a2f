"""What the options of every command here share."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args, get_origin

from megadna.errors import require


@dataclass(frozen=True, kw_only=True)
class Options:
    """A caller from Python may give paths as text; a value that is none of the choices is an error there too."""

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if "Path" in str(entry.type) and isinstance(value, str):
                object.__setattr__(self, entry.name, Path(value))
            if get_origin(entry.type) is Literal:
                choices = get_args(entry.type)
                require(value in choices, f"--{entry.name} must be one of {', '.join(choices)}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Options):
    """How a Hugging Face folder is loaded and run."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on a GPU, fp32 on a CPU."""
    max_tokens: int = 0
    """Context in tokens, special tokens included; 0: what the model states."""
    trust_remote_code: bool = False
    """Run Python files of the model's folder that megadna did not write."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.max_tokens >= 0, f"--max_tokens must not be negative, got {self.max_tokens}")
