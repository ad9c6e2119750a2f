"""What has no Hugging Face layout yet is refused by the name of the setting."""

from pathlib import Path

import pytest

from megadna.arguments import load_config
from megadna.errors import UserError
from megadna.hf.export import check_exportable

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("preset", ["demo", "megadna-86m", "aido-dna-300m", "aido-dna-7b", "megadna-7b-hd128"])
def test_modern_presets_can_be_exported(preset: str) -> None:
    check_exportable(load_config(CONFIGS / f"{preset}.yaml"))


@pytest.mark.parametrize("preset", ["dnabert-3mer", "dnabert-6mer", "bionemo-dnabert-86m"])
def test_bert_presets_cannot_yet(preset: str) -> None:
    with pytest.raises(UserError, match=r"model\.(norm_placement post|activation gelu) cannot be exported yet"):
        check_exportable(load_config(CONFIGS / f"{preset}.yaml"))
