"""Tiny encoders as Hugging Face folders: a model as `megadna export` writes it, and BERTs of overlapping k-mers."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, processors, trainers
from transformers import BertConfig, BertForMaskedLM, BertTokenizer, PreTrainedTokenizerFast

import megadna.hf
from megadna.hf.configuration_megadna import MegaDnaConfig
from megadna.hf.modeling_megadna import MegaDnaForMaskedLM
from megadna.hf.tokenizers import write_tokenizer
from megadna.tokenizer.base import NucleotideTokenizer
from megadna.tokenizer.kmer import KmerTokenizer

transformers.logging.disable_progress_bar()  # tests read standard error
CODE = ("configuration_megadna", "modeling_megadna")


def megadna_folder(folder: Path, context: int = 128) -> Path:
    """Two layers of single nucleotides, weights far from zero."""
    torch.manual_seed(5)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    model = MegaDnaForMaskedLM(MegaDnaConfig(vocab_size=16, max_position_embeddings=context, **sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    for name in CODE:
        shutil.copy(Path(megadna.hf.__path__[0], f"{name}.py"), folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "configuration_megadna.MegaDnaConfig",
        "AutoModel": "modeling_megadna.MegaDnaModel",
        "AutoModelForMaskedLM": "modeling_megadna.MegaDnaForMaskedLM",
    }
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(NucleotideTokenizer(), folder, context)
    return folder


def kmer_folder(folder: Path, k: int = 3, context: int = 64) -> Path:
    """A random BertForMaskedLM with megadna's overlapping k-mer tokenizer."""
    tokenizer = KmerTokenizer(k, stride=1, layout="dnabert")
    torch.manual_seed(6)
    config = BertConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=context, hidden_dropout_prob=0.0,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder)
    write_tokenizer(tokenizer, folder, context)
    return folder


def bpe_folder(folder: Path, context: int = 64) -> Path:
    """A random BertForMaskedLM with byte-pair pieces of 1 to 5 bases."""
    fast = Tokenizer(models.BPE(unk_token="[UNK]"))
    pieces = trainers.BpeTrainer(
        vocab_size=60, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], initial_alphabet=list("ACGNT")
    )
    rng = np.random.default_rng(7)
    fast.train_from_iterator(["".join(rng.choice(list("AACGTT"), 2000)) for _ in range(5)], pieces)
    fast.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    torch.manual_seed(8)
    config = BertConfig(
        vocab_size=fast.get_vocab_size(), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=context, hidden_dropout_prob=0.0,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=fast, model_max_length=context, **names).save_pretrained(folder)
    return folder


def dnabert_folder(folder: Path, k: int = 3) -> Path:
    """The same encoder with transformers' own BertTokenizer, which reads blank-separated k-mers, as DNABERT does."""
    kmer_folder(folder, k)
    for name in ("tokenizer_config.json", "tokenization_megadna.py"):
        (folder / name).unlink()
    BertTokenizer(str(folder / "vocab.txt"), do_lower_case=False, model_max_length=64).save_pretrained(folder)
    return folder
