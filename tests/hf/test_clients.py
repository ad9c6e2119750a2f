"""The programs that people already use load megadna's exports, and megadna imports what they save.

Numbers: the largest absolute difference between a client's logits and those of the megatron model on phage lambda.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from checkpoints import random_checkpoint
from clients import client, run_client
from test_export import run_as_stranger

from megadna.config import Config, DataConfig, ModelConfig, TokenizerConfig
from megadna.hf.checkpoints import CheckpointTensors
from megadna.hf.export import export
from megadna.hf.formats import name_table, target_tokenizer
from megadna.hf.gate import real_sequence, reference_states
from megadna.hf.importing import import_folder
from megadna.tokenizer.build import build_tokenizer
from megadna.train.checkpoint import read_config

pytestmark = pytest.mark.slow
LIMIT = 1e-4
MODERN = ModelConfig(num_layers=2, hidden_size=48, num_attention_heads=4, ffn_hidden_size=80)
NATIVE = replace(MODERN, num_query_groups=2, normalization="rmsnorm", qk_norm=True, linear_bias=False)
BERT = replace(
    MODERN, activation="gelu", norm_placement="post", positions="learned", max_positions=512, token_types=2,
    layernorm_epsilon=1e-12,
)  # fmt: skip
TRIMERS = TokenizerConfig(kind="kmer", k=3)
CONFIGS = {
    "aido": Config(model=MODERN, data=DataConfig(sequence_length=512)),
    "megadna": Config(model=NATIVE, data=DataConfig(sequence_length=512)),
    "bert": Config(model=BERT, tokenizer=TRIMERS, data=DataConfig(sequence_length=512)),
    "megatron_bert": Config(
        model=replace(BERT, norm_placement="pre", token_types=0, layernorm_epsilon=1e-5),
        tokenizer=replace(TRIMERS, layout="bionemo"),
        data=DataConfig(sequence_length=512),
    ),
}
CONFIGS["multimolecule"] = CONFIGS["bert"]


def megadna_logits(checkpoint):
    """Ids and logits [2, S, V] of the gate's sequence by the megatron model, padding columns cut off."""
    config, tensors = read_config(checkpoint), CheckpointTensors(checkpoint, master=True)
    tokenizer = build_tokenizer(config.tokenizer)
    ids, _, _ = real_sequence(tokenizer, 512)
    *_, logits = reference_states(tensors.read, config, tokenizer, ids, "fp32")
    return ids, logits[..., : tokenizer.vocab_size]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """format -> folder, checkpoint, ids and megadna's logits in the format's own vocabulary."""
    found = {}
    for target, config in CONFIGS.items():
        work = tmp_path_factory.mktemp(target)
        checkpoint, _ = random_checkpoint(work / "checkpoint", config)
        export(checkpoint, work / "model", wanted=target, check=False)
        ids, logits = megadna_logits(checkpoint)
        if target == "multimolecule":
            rows = torch.tensor(name_table(target, config).vocab_rows)
            column = {row: at for at, row in enumerate(rows.tolist())}
            ids = torch.from_numpy(np.vectorize(column.__getitem__)(ids.numpy()))
            logits = logits[..., rows.clamp_min(0)]
            logits[..., rows < 0] = -torch.inf
        np.save(work / "ids.npy", ids.numpy())
        np.save(work / "logits.npy", logits.numpy())
        found[target] = work / "model", checkpoint, ids, logits
    return found


LOGITS = """
import sys, numpy as np, torch
folder, ids, expected = sys.argv[1], torch.from_numpy(np.load(sys.argv[2])), torch.from_numpy(np.load(sys.argv[3]))
def report(model):
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    real = expected.isfinite()
    assert (logits.argmax(-1) == expected.argmax(-1)).all()
    print("DIFFERENCE", (logits - expected)[real].abs().max().item())
"""


def difference(output):
    """What the client's script printed; within the limit."""
    value = float(output.split("DIFFERENCE ")[1].split()[0])
    assert value < LIMIT
    return value


def arguments(exported, target):
    folder = exported[target][0]
    return folder, folder.parent / "ids.npy", folder.parent / "logits.npy"


@pytest.mark.parametrize("name", ["transformers-oldest", "transformers-newest"])
def test_every_auto_class_by_remote_code(name, exported, tmp_path, record_property, lambda_ids):
    from megadna.hf.modeling_megadna import MegaDnaForMaskedLM

    with torch.no_grad():
        logits = MegaDnaForMaskedLM.from_pretrained(exported["aido"][0]).eval()(lambda_ids).logits
    run_as_stranger(client(name), exported["aido"][0], lambda_ids, logits, tmp_path)


STOCK = (
    LOGITS
    + """
import json
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer
remote = "auto_map" in json.load(open(folder + "/config.json"))
model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=remote).eval()
report(model)
base = AutoModel.from_pretrained(folder, trust_remote_code=remote).eval()
assert base(ids, output_hidden_states=True).hidden_states[-1].shape == (*ids.shape, 48)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=remote)
if type(model).__module__.startswith("transformers.models"):
    order = "ATCG" if type(model).__name__ == "BertForMaskedLM" else "ACGT"
    assert tokenizer("AAA AAT GGG NNN")["input_ids"] == [2, 5, 5 + order.index("T"),
        5 + 21 * order.index("G"), 1, 3], tokenizer("AAA AAT GGG NNN")
"""
)


@pytest.mark.parametrize("name", ["transformers-oldest", "transformers-newest"])
@pytest.mark.parametrize("target", ["aido", "megadna", "bert", "megatron_bert"])
def test_transformers_computes_megadnas_logits(name, target, exported, tmp_path, record_property):
    output = run_client(name, STOCK, *arguments(exported, target), work=tmp_path)
    record_property("difference", difference(output))


MULTIMOLECULE = (
    LOGITS
    + """
import multimolecule
from multimolecule import (DnaBertForContactPrediction, DnaBertForMaskedLM, DnaBertForSequencePrediction,
                           DnaBertForTokenPrediction, DnaTokenizer)
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline
model, loading = DnaBertForMaskedLM.from_pretrained(folder, output_loading_info=True)
assert not loading["missing_keys"] and not loading["unexpected_keys"], loading
report(model.eval())
assert type(AutoModelForMaskedLM.from_pretrained(folder)) is DnaBertForMaskedLM
tokenizer = AutoTokenizer.from_pretrained(folder)
assert isinstance(tokenizer, DnaTokenizer), type(tokenizer)
assert tokenizer("ACGTA")["input_ids"] == [1, 6 + 6, 6 + 27, 6 + 44, 2], tokenizer("ACGTA")
batch = tokenizer("ACGTACGT", return_tensors="pt")
for kind, shape in ((DnaBertForSequencePrediction, (1, 1)), (DnaBertForTokenPrediction, (1, 6, 1)),
                    (DnaBertForContactPrediction, (1, 6, 6, 1))):
    logits = kind.from_pretrained(folder).eval()(**batch).logits
    assert tuple(logits.shape) == shape, (kind, logits.shape)
best = pipeline("fill-mask", model=folder, tokenizer=tokenizer)("ACGTAC<mask>ACGTAC")
assert best[0]["token_str"] in tokenizer.get_vocab() and best[0]["token"] > 5, best[0]
"""
)


def test_multimolecule(exported, tmp_path, record_property):
    output = run_client("multimolecule", MULTIMOLECULE, *arguments(exported, "multimolecule"), work=tmp_path)
    record_property("difference", difference(output))


MODELGENERATOR = (
    LOGITS
    + """
from pathlib import Path
import modelgenerator.huggingface_models.rnabert as rnabert
from modelgenerator.huggingface_models.rnabert import (RNABertConfig, RNABertForMaskedLM, RNABertModel,
                                                       RNABertTokenizer)
tokenizer = RNABertTokenizer(str(Path(rnabert.__file__).with_name("vocab.txt")), version="v2")
assert tokenizer("ACGTUN")["input_ids"] == [2, 5, 7, 6, 8, 9, 10, 3]
model, loading = RNABertForMaskedLM.from_pretrained(folder, output_loading_info=True)
assert not any(loading.values()), loading
report(model.eval())
RNABertModel.from_pretrained(folder)

torch.manual_seed(5)
config = RNABertConfig.from_pretrained(folder)
drawn = RNABertForMaskedLM(config).eval()
with torch.no_grad():
    for parameter in drawn.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    np.save("drawn.npy", drawn(ids, attention_mask=torch.ones_like(ids)).logits.numpy())
drawn.save_pretrained("drawn")
drawn.save_pretrained("drawn-bin", safe_serialization=False)
"""
)


def test_modelgenerator_and_back(exported, tmp_path, record_property):
    output = run_client("modelgenerator", MODELGENERATOR, *arguments(exported, "aido"), work=tmp_path)
    record_property("difference", difference(output))
    expected = torch.from_numpy(np.load(tmp_path / "drawn.npy"))
    for name in ("drawn", "drawn-bin"):  # as published: no tokenizer files, no code
        import_folder(tmp_path / name, tmp_path / f"{name}-checkpoint", check=False)
        _, logits = megadna_logits(tmp_path / f"{name}-checkpoint")
        assert (logits - expected).abs().max() < LIMIT
        record_property(f"{name} and back", (logits - expected).abs().max().item())


BACK = """
import sys, numpy as np, torch
from transformers import BertConfig, BertForMaskedLM, MegatronBertConfig, MegatronBertForMaskedLM
ids = torch.from_numpy(np.load(sys.argv[1]))
torch.manual_seed(6)
sizes = dict(vocab_size=69, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=80)
for name, config, kind in (("bert", BertConfig, BertForMaskedLM),
                           ("megatron", MegatronBertConfig, MegatronBertForMaskedLM)):
    model = kind(config(**sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        np.save(name + ".npy", model(ids).logits.numpy())
    model.save_pretrained(name)
"""


@pytest.mark.parametrize("name", ["transformers-oldest", "transformers-newest"])
def test_what_transformers_drew_and_saved_comes_back(name, exported, tmp_path, record_property):
    """The two vocabularies have their k-mers in other orders: the ids are the same numbers to either class."""
    run_client(name, BACK, exported["bert"][0].parent / "ids.npy", work=tmp_path)
    for kind in ("bert", "megatron"):
        import_folder(tmp_path / kind, tmp_path / f"{kind}-checkpoint", check=False)
        config = read_config(tmp_path / f"{kind}-checkpoint")
        assert config.tokenizer.layout == {"bert": "dnabert", "megatron": "bionemo"}[kind]
        tensors = CheckpointTensors(tmp_path / f"{kind}-checkpoint", master=True)
        tokenizer = target_tokenizer("bert", config.tokenizer)
        *_, logits = reference_states(tensors.read, config, tokenizer, exported["bert"][2], "fp32")
        worst = np.abs(logits[..., :69].numpy() - np.load(tmp_path / f"{kind}.npy")).max()
        assert worst < LIMIT
        record_property(f"{kind} and back", float(worst))


PEFT = (
    LOGITS
    + """
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer
remote = {"trust_remote_code": True}
tokenizer = AutoTokenizer.from_pretrained(folder, **remote)
batch = tokenizer(["ACGTACGTNN", "GGCA", "TTTTTTT"], padding=True, return_tensors="pt")
batch = {key: batch[key] for key in ("input_ids", "attention_mask")}
model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, **remote)
lora = LoraConfig(r=4, lora_alpha=8, target_modules=["query", "value"], modules_to_save=["classifier"])
model = get_peft_model(model, lora)
trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
assert len([name for name in trained if "lora" in name]) == 2 * 2 * 2 and any("classifier" in n for n in trained)
optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
losses = []
for _ in range(30):
    loss = model(**batch, labels=torch.tensor([0, 1, 1])).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
assert losses[-1] < 0.3 * losses[0], losses
model.eval().save_pretrained("adapter")
again = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, **remote)
again = PeftModel.from_pretrained(again, "adapter").eval()
with torch.no_grad():
    assert torch.allclose(again(**batch).logits, model(**batch).logits, atol=1e-6)
    encoder = AutoModel.from_pretrained(folder, **remote).eval()
    mask = batch["attention_mask"][:, :, None]
    pooled = (encoder(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
    alone = encoder(**{k: v[1:2, :6] for k, v in batch.items()}).last_hidden_state.mean(1)
assert (pooled[1] - alone[0]).abs().max() < 1e-5
"""
)


def test_peft_lora_and_mean_pooling(exported, tmp_path):
    run_client("transformers-newest", PEFT, *arguments(exported, "aido"), work=tmp_path)


ONNX = (
    LOGITS
    + """
import onnxruntime
from transformers import AutoModelForMaskedLM
model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True).eval()
class Logits(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = model
    def forward(self, input_ids, attention_mask):
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits
mask = torch.ones_like(ids)
mask[1, 400:] = 0
batch, length = torch.export.Dim("batch"), torch.export.Dim("length", min=2)
program = torch.export.export(
    Logits(), (ids, mask), dynamic_shapes=({0: batch, 1: length}, {0: batch, 1: length}), strict=False
)
torch.onnx.export(program, dynamo=True).save("model.onnx")
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
for rows in (slice(0, 2), slice(1, 2)):
    given = dict(zip((entry.name for entry in session.get_inputs()), (ids[rows].numpy(), mask[rows].numpy())))
    (logits,) = session.run(None, given)
    with torch.no_grad():
        whole = model(ids[rows], attention_mask=mask[rows]).logits
    real = mask[rows].bool()
    assert (torch.from_numpy(logits) - whole)[real].abs().max() < 1e-4
given["attention_mask"] = torch.ones_like(ids).numpy()
given["input_ids"] = ids.numpy()
(logits,) = session.run(None, given)
print("DIFFERENCE", (torch.from_numpy(logits) - expected).abs().max().item())
"""
)


def test_onnx(exported, tmp_path, record_property):
    output = run_client("transformers-newest", ONNX, *arguments(exported, "aido"), work=tmp_path)
    record_property("difference", difference(output))
