"""The transformers model against the formulas of its architecture, on phage lambda, in fp32."""

import math

import pytest
import torch

from megadna.hf.configuration_megadna import MegaDnaConfig
from megadna.hf.modeling_megadna import (
    MegaDnaForMaskedLM,
    MegaDnaForSequenceClassification,
    MegaDnaForTokenClassification,
    MegaDnaModel,
)

TINY = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 80}


def randomized(model):
    """Weights far from their initial values, so that no bias is 0, no norm is 1 and the logits spread."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if parameter.ndim == 1 else 1.5 / parameter.shape[-1] ** 0.5
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
            if name.endswith(("ln.weight", "LayerNorm.weight")):
                parameter += 1
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return randomized(MegaDnaForMaskedLM(MegaDnaConfig(**TINY)))


def norm(vector, weight, bias, eps=1e-5):
    centred = vector - vector.sum() / vector.numel()
    return centred / torch.sqrt((centred * centred).sum() / vector.numel() + eps) * weight + bias


def turned(vector, position, base=10000.0):
    """Pair (i, i + D/2) as a complex number times exp(1j * position * base ** (-2 i / D))."""
    half = vector.numel() // 2
    angle = torch.tensor([position * base ** (-2 * i / vector.numel()) for i in range(half)], dtype=torch.float64)
    pairs = torch.complex(vector[:half].double(), vector[half:].double()) * torch.exp(1j * angle)
    return torch.cat((pairs.real, pairs.imag)).float()


def reference_states(weights, ids, heads):
    """States of one sequence, token by token and head by head: the input of each layer and the final norm's output."""
    stream = [weights["bert.embeddings.word_embeddings.weight"][i] for i in ids]
    states, layer = [torch.stack(stream)], 0
    while f"bert.encoder.layer.{layer}.ln.weight" in weights:
        w = {k.split(f"layer.{layer}.")[1]: v for k, v in weights.items() if f"encoder.layer.{layer}." in k}
        inputs = [norm(x, w["attention.ln.weight"], w["attention.ln.bias"]) for x in stream]
        q, k, v = (
            [
                (w[f"attention.self.{part}.weight"] @ x + w[f"attention.self.{part}.bias"]).view(heads, -1)
                for x in inputs
            ]
            for part in ("query", "key", "value")
        )
        q, k = ([torch.stack([turned(h, t) for h in x]) for t, x in enumerate(xs)] for xs in (q, k))
        for t in range(len(stream)):
            context = []
            for n in range(heads):
                scores = torch.stack([q[t][n] @ k[s][n] for s in range(len(stream))]) / math.sqrt(q[t][n].numel())
                share = torch.exp(scores - scores.max())
                context.append(sum(p * v[s][n] for s, p in enumerate(share / share.sum())))
            out = w["attention.output.dense.weight"] @ torch.cat(context) + w["attention.output.dense.bias"]
            x = stream[t] + out
            y = norm(x, w["ln.weight"], w["ln.bias"])
            gate = w["mlp.gate_proj.weight"] @ y + w["mlp.gate_proj.bias"]
            up = w["mlp.up_proj.weight"] @ y + w["mlp.up_proj.bias"]
            stream[t] = x + w["mlp.down_proj.weight"] @ (gate / (1 + torch.exp(-gate)) * up) + w["mlp.down_proj.bias"]
        states.append(torch.stack(stream))
        layer += 1
    final = [norm(x, weights["bert.encoder.ln.weight"], weights["bert.encoder.ln.bias"]) for x in stream]
    return [*states[:-1], torch.stack(final)]


def reference_logits(weights, state):
    head = "cls.predictions.transform."
    rows = []
    for x in state:
        y = weights[head + "dense.weight"] @ x + weights[head + "dense.bias"]
        y = 0.5 * y * (1 + torch.erf(y / math.sqrt(2)))
        y = norm(y, weights[head + "LayerNorm.weight"], weights[head + "LayerNorm.bias"])
        rows.append(weights["bert.embeddings.word_embeddings.weight"] @ y + weights["cls.predictions.bias"])
    return torch.stack(rows)


@pytest.fixture(scope="module")
def reference(model, lambda_ids):
    with torch.no_grad():
        states = reference_states(dict(model.named_parameters()), lambda_ids[1, :40].tolist(), 4)
        return states, reference_logits(dict(model.named_parameters()), states[-1])


def test_logits_and_hidden_states_equal_the_formulas(model, lambda_ids, reference):
    states, logits = reference
    with torch.no_grad():
        output = model(lambda_ids[1:2, :40], output_hidden_states=True)
    assert logits.std() > 0.5  # a comparison of near-zeros would prove nothing
    assert (output.logits[0] - logits).abs().max() < 1e-5
    assert len(output.hidden_states) == len(states) == TINY["num_hidden_layers"] + 1
    for ours, theirs in zip(output.hidden_states, states, strict=True):
        assert (ours[0] - theirs).abs().max() < 1e-5 * max(1.0, theirs.abs().max())


def test_explicit_attention_gives_the_same_logits_and_weights_that_sum_to_one(model, lambda_ids):
    with torch.no_grad():
        plain, explicit = model(lambda_ids), model(lambda_ids, output_attentions=True)
    assert plain.attentions is None and plain.hidden_states is None
    assert (plain.logits - explicit.logits).abs().max() < 1e-5
    assert len(explicit.attentions) == TINY["num_hidden_layers"]
    for weights in explicit.attentions:
        assert weights.shape == (3, 4, 128, 128)
        assert torch.allclose(weights.sum(-1), torch.ones(3, 4, 128), atol=1e-5)


@pytest.mark.parametrize("context", ["none", "both"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_padded_sequences_come_out_as_alone(lambda_ids, attention, side, context):
    symbols = [5, 4, 5, 5, 4, 0, 2, 1, 3, *[4] * 7]
    config = MegaDnaConfig(**TINY, attn_implementation=attention, local_context=context, context_symbols=symbols)
    model = randomized(MegaDnaForMaskedLM(config))
    assert model.config._attn_implementation == attention
    lengths = [128, 31, 77]
    ids, mask = torch.zeros_like(lambda_ids), torch.zeros_like(lambda_ids)
    for row, length in enumerate(lengths):
        where = slice(0, length) if side == "right" else slice(128 - length, 128)
        ids[row, where], mask[row, where] = lambda_ids[row, :length], 1
    with torch.no_grad():
        batch = model(ids, attention_mask=mask).logits
        for row, length in enumerate(lengths):
            alone = model(lambda_ids[row : row + 1, :length]).logits[0]
            assert (batch[row][mask[row].bool()] - alone).abs().max() < 2e-5
        assert model(ids, attention_mask=torch.zeros_like(mask)).logits.isfinite().all()


def test_a_mask_of_ones_builds_no_bias(model, lambda_ids, monkeypatch):
    biases = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def spy(*args, attn_mask=None, **kwargs):
        biases.append(attn_mask)
        return attend(*args, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    with torch.no_grad():
        model(lambda_ids, attention_mask=torch.ones_like(lambda_ids))
        assert biases == [None] * TINY["num_hidden_layers"]
        mask = torch.ones_like(lambda_ids)
        mask[0, -1] = 0
        model(lambda_ids, attention_mask=mask)
    assert biases[-1].shape == (3, 1, 1, 128)  # one row of keys, never S x S


def test_loss_is_the_mean_over_labelled_positions(model, lambda_ids):
    labels = torch.full_like(lambda_ids, -100)
    labels[0, 5], labels[2, 77] = lambda_ids[0, 5], lambda_ids[2, 77]
    with torch.no_grad():
        output = model(lambda_ids, labels=labels)
    log_p = output.logits.double().log_softmax(-1)
    expected = -(log_p[0, 5, lambda_ids[0, 5]] + log_p[2, 77, lambda_ids[2, 77]]) / 2
    assert abs(output.loss.item() - expected.item()) < 1e-5


@pytest.mark.parametrize(
    ("hidden", "layers", "heads", "ffn", "parameters", "tensors"),
    [(4352, 32, 32, 11584, 7_285_036_304, 584), (1024, 24, 16, 2688, 300_264_464, 440)],
    ids=["7B", "300M"],
)
def test_parameter_totals_of_aido_dna(hidden, layers, heads, ffn, parameters, tensors):
    config = MegaDnaConfig(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=ffn
    )
    with torch.device("meta"):
        model = MegaDnaForMaskedLM(config)
    model.tie_weights()  # transformers 5.0 leaves that out on the meta device
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert len(list(model.parameters())) == tensors


def test_gradient_checkpointing_gives_equal_gradients(lambda_ids):
    gradients = []
    for checkpointing in (False, True):
        model = randomized(MegaDnaForMaskedLM(MegaDnaConfig(**TINY))).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(lambda_ids, labels=lambda_ids).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert all(torch.equal(gradients[0][name], gradient) for name, gradient in gradients[1].items())


def test_rotary_frequencies_survive_meta_construction_and_casts(model, lambda_ids):
    with torch.device("meta"):
        hollow = MegaDnaForMaskedLM(model.config)
    hollow = hollow.to_empty(device="cpu").eval()
    hollow.load_state_dict(model.state_dict())
    hollow.tie_weights()
    with torch.no_grad():
        assert torch.equal(hollow(lambda_ids).logits, model(lambda_ids).logits)
        back = hollow.bfloat16().float()
    assert back.bert.rotary.inv_freq.dtype == torch.float32
    assert torch.equal(back.bert.rotary.inv_freq, model.bert.rotary.inv_freq)


def test_bf16_stays_near_fp32(model, lambda_ids, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    half = MegaDnaForMaskedLM.from_pretrained(tmp_path / "saved", torch_dtype=torch.bfloat16).eval()
    assert half.dtype == torch.bfloat16 and half.bert.rotary.inv_freq.dtype == torch.float32
    with torch.no_grad():
        rough, exact = half(lambda_ids).logits, model(lambda_ids).logits
        assert rough.dtype == torch.bfloat16
        assert (rough.float() - exact).std() < 0.05 * exact.std()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert (model(lambda_ids).logits.float() - exact).std() < 0.05 * exact.std()


def test_a_base_model_reads_a_masked_lm_folder_and_back(model, lambda_ids, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    with torch.no_grad():
        expected = model(lambda_ids, output_hidden_states=True).hidden_states[-1]
        base = MegaDnaModel.from_pretrained(tmp_path / "saved").eval()
        assert torch.equal(base(lambda_ids).last_hidden_state, expected)
        base.save_pretrained(tmp_path / "base")
        again = MegaDnaForMaskedLM.from_pretrained(tmp_path / "base").eval()
        assert torch.equal(again(lambda_ids, output_hidden_states=True).hidden_states[-1], expected)
    assert torch.equal(again.cls.predictions.bias, torch.zeros(16))
    assert torch.equal(again.cls.predictions.transform.LayerNorm.weight, torch.ones(48))
    assert again.cls.predictions.decoder.weight is again.bert.embeddings.word_embeddings.weight


def test_classifiers_pool_real_tokens_only_and_train(lambda_ids):
    config = MegaDnaConfig(**TINY, num_labels=3)
    sequence, token = randomized(MegaDnaForSequenceClassification(config)), MegaDnaForTokenClassification(config)
    mask = torch.ones_like(lambda_ids)
    mask[:, 64:] = 0
    with torch.no_grad():
        padded, alone = sequence(lambda_ids, attention_mask=mask).logits, sequence(lambda_ids[:, :64]).logits
        assert (padded - alone).abs().max() < 1e-5
        sequence.config.classifier_pooling = "cls"
        assert (sequence(lambda_ids[:, :64]).logits - alone).abs().max() > 1e-3
    for labels in (torch.tensor([0, 2, 1]), torch.tensor([[1.0, 0, 0]] * 3)):
        loss = sequence(lambda_ids, labels=labels).loss
        loss.backward()
        assert loss.isfinite() and sequence.bert.embeddings.word_embeddings.weight.grad.abs().sum() > 0
    output = token(lambda_ids, labels=(lambda_ids == 5).long())
    assert output.logits.shape == (3, 128, 3) and abs(output.loss.item() - math.log(3)) < 0.5
    one = MegaDnaForSequenceClassification(MegaDnaConfig(**TINY, num_labels=1)).eval()
    output = one(lambda_ids, labels=torch.tensor([0.5, 1.5, -2.0]))
    expected = (output.logits[:, 0] - torch.tensor([0.5, 1.5, -2.0])).square().mean()
    assert torch.allclose(output.loss, expected)


def test_bad_arguments_are_named(lambda_ids, model):
    with pytest.raises(ValueError, match="hidden_size"):
        MegaDnaConfig(hidden_size=50, num_attention_heads=4)
    with pytest.raises(ValueError, match="classifier_pooling"):
        MegaDnaConfig(classifier_pooling="max")
    with pytest.raises(ValueError, match="input_ids or inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="attention_mask"):
        model(lambda_ids, attention_mask=torch.ones(3, 1, 128, 128))


def test_kernels_of_the_attention_interface_get_the_padding_mask_and_give_the_same(lambda_ids):
    """What flash-attn's kernels of transformers are called with: heads apart, the mask [B, S] or None, not causal."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    masks = []

    def kernel(module, query, key, value, attention_mask, *, dropout, scaling, is_causal):
        assert not is_causal and not module.is_causal and scaling == query.shape[-1] ** -0.5
        masks.append(attention_mask)
        bias = None if attention_mask is None else attention_mask[:, None, None, :].bool()
        context = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return context.transpose(1, 2), None

    ALL_ATTENTION_FUNCTIONS.register("probe", kernel)
    model = randomized(MegaDnaForMaskedLM(MegaDnaConfig(**TINY)))
    mask = torch.ones_like(lambda_ids)
    mask[1, 100:] = 0
    with torch.no_grad():
        expected = model(lambda_ids, attention_mask=mask).logits
        model.config._attn_implementation = "probe"
        found = model(lambda_ids, attention_mask=mask).logits
        model(lambda_ids, attention_mask=torch.ones_like(mask))
    assert (found - expected)[mask.bool()].abs().max() < 1e-5
    assert [None if m is None else tuple(m.shape) for m in masks] == [(3, 128)] * 3 + [None] * 3
