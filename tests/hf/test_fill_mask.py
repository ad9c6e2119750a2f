"""tools/fill_mask.py prints what the model says about a real sequence."""

import importlib.util
import math
import re
import sys
from pathlib import Path

import pytest
import torch

from megadna.config import Config, ModelConfig
from megadna.hf.configuration_megadna import MegaDnaConfig
from megadna.hf.formats import config_json
from megadna.hf.modeling_megadna import MegaDnaForMaskedLM
from megadna.hf.tokenizers import write_tokenizer
from megadna.tokenizer.base import NucleotideTokenizer

LAMBDA = Path(__file__).parents[1] / "data" / "lambda.fa.gz"
SCRIPT = Path(__file__).parents[2] / "tools" / "fill_mask.py"
CODES = {"A": 5, "C": 7, "G": 6, "T": 8}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(13)
    config = Config(model=ModelConfig(num_layers=1, hidden_size=32, num_attention_heads=2, ffn_hidden_size=48))
    model = MegaDnaForMaskedLM(MegaDnaConfig(**config_json("megadna", config, max_length=512, dtype="float32")))
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    write_tokenizer(NucleotideTokenizer(), folder, 512)
    return folder


@pytest.fixture
def fill_mask(monkeypatch, capsys):
    """Run the script with the given arguments; return what it printed."""
    specification = importlib.util.spec_from_file_location("fill_mask", SCRIPT)
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["fill_mask.py", *map(str, arguments)])
        script.main()
        output, call.errors = capsys.readouterr()
        return output

    return call


def rows_of(output):
    return [line.split() for line in output.splitlines() if line[:8].strip().isdigit() and "." in line]


def test_window_positions_bases_and_probabilities(folder, model, fill_mask, lambda_genome):
    arguments = (folder, "--input", LAMBDA, "--length", 90, "--masks", 7, "--seed", 3, "--windows", 1)
    output = fill_mask(*arguments)
    assert fill_mask(*arguments) == output
    assert output.startswith("gi|9626243|ref|NC_001416.1|:")
    start = int(output.split(",")[0].split(":")[-1].split("-")[0]) - 1
    window = lambda_genome[start : start + 90]
    assert output.splitlines()[2].split()[1].upper() == window[:60]
    rows = rows_of(output)
    positions = [int(row[0]) for row in rows]  # 1-based in the window, which is also the position after [CLS]
    assert len(rows) == 7 and [row[1] for row in rows] == [window[position - 1] for position in positions]
    ids = torch.tensor([[2, *(CODES[base] for base in window), 3]])
    ids[0, positions] = 1
    with torch.no_grad():
        expected = model(ids).logits[0, positions][:, [CODES[base] for base in "ACGT"]].softmax(-1)
    assert torch.allclose(torch.tensor([[float(x) for x in row[2:6]] for row in rows]), expected, atol=6e-4)
    right = sum("ACGT"[shares.argmax()] == row[1] == row[6] for row, shares in zip(rows, expected, strict=True))
    assert f"\n{right} of 7 right" in output
    bits = (
        -torch.stack([shares["ACGT".index(row[1])] for row, shares in zip(rows, expected, strict=True)]).log2().mean()
    )
    assert f"{bits:.3f} bits a base" in output


def test_the_totals_are_those_of_all_windows(folder, fill_mask):
    arguments = (folder, "--input", LAMBDA, "--length", 50, "--masks", 40)
    output = fill_mask(*arguments, "--windows", 3)
    assert len(rows_of(output)) == 40 and "of 120 right in 3 windows (" in output
    assert "of 800 right in 20 windows (" in fill_mask(*arguments)
    one = fill_mask(*arguments, "--windows", 1)
    bits = torch.tensor([-math.log2(float(row["ACGT".index(row[1]) + 2])) for row in rows_of(one)])
    printed = re.search(r"right \(.*\), ([\d.]+) bits a base \(standard error ([\d.]+);", one)
    expected = [float(bits.mean()), float(bits.std()) / 40**0.5]
    assert [float(value) for value in printed.groups()] == pytest.approx(expected, rel=0.02)


def test_a_window_beyond_the_context_is_warned_about(folder, fill_mask):
    assert "of 2 right" in fill_mask(folder, "--sequence", "ACGT" * 127 + "AC", "--masks", 2)  # 510 + [CLS] and [SEP]
    assert fill_mask.errors == ""
    fill_mask(folder, "--sequence", "ACGT" * 127 + "ACG", "--masks", 2)
    errors = fill_mask.errors
    assert errors.count("\n") == 1 and "511 bases are longer than what the model was trained on (510 bases)" in errors


def test_a_sequence_given_by_hand_may_hold_n_which_is_never_hidden(folder, fill_mask):
    rows = rows_of(fill_mask(folder, "--sequence", "acgtnnACGT", "--masks", 8))
    assert [(int(row[0]), row[1]) for row in rows] == list(zip([1, 2, 3, 4, 7, 8, 9, 10], "ACGTACGT", strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere", "--sequence", "ACGT"), "no Hugging Face folder"),
        (("{folder}", "--sequence", "ACGT", "--masks", "9"), r"--masks must lie in 1\.\.4"),
        (("{folder}", "--input", "missing.fa"), "missing.fa is not a file"),
        (("{folder}", "--input", str(LAMBDA), "--length", "60000"), "smaller --length"),
    ],
)
def test_mistakes_end_in_one_line(folder, fill_mask, arguments, message):
    with pytest.raises(SystemExit, match=message):
        fill_mask(*(argument.format(folder=folder) for argument in arguments))
