"""The loss of the predicted tokens alone is the loss over all of them: value and every gradient."""

import pytest
import torch
from ranks import run_ranks

from megadna.config import Config, EngineConfig, ModelConfig, TokenizerConfig
from megadna.data.batch import IGNORE_INDEX, Batch
from megadna.train.step import MULTIPLE, chosen_rows

SHAPE = ModelConfig(num_layers=2, hidden_size=64, num_attention_heads=4, ffn_hidden_size=128, init_std=0.1)


def test_every_part_names_its_chosen_rows_and_is_filled_up() -> None:
    weights_PT = torch.zeros(3, 200)
    weights_PT[0, [3, 7]] = 1.0
    weights_PT[1, :70] = 0.5
    rows_PM, counted_PM = chosen_rows(weights_PT)
    assert rows_PM.shape == (3, 2 * MULTIPLE)
    assert counted_PM.sum(1).tolist() == [2, 70, 0]
    assert rows_PM[0].tolist() == [3, 7] + [0] * (2 * MULTIPLE - 2)
    assert rows_PM[1, :70].tolist() == list(range(70))


def batch_of(vocab_size: int, share: float) -> Batch:
    generator = torch.Generator().manual_seed(5)
    tokens_BS = torch.randint(5, vocab_size, (3, 50), generator=generator)
    chosen_BS = torch.rand(3, 50, generator=generator) < share
    weights_BS = torch.rand(3, 50, generator=generator) * chosen_BS
    return Batch(tokens_BS, tokens_BS.masked_fill(~chosen_BS, IGNORE_INDEX), weights_BS, None, torch.arange(3))


def losses_and_gradients(share: float) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(loss, gradients) of a micro-batch from its predicted tokens, then from all logits by torch's formula."""
    from megadna.engine.distributed import parallel_world
    from megadna.model.encoder import build_encoder
    from megadna.tokenizer.build import build_tokenizer
    from megadna.train.step import _training_step

    config = Config(
        model=SHAPE, tokenizer=TokenizerConfig(kind="kmer", k=3), engine=EngineConfig(device="cpu", precision="fp32")
    )
    size = build_tokenizer(config.tokenizer).vocab_size
    batch, found = batch_of(size, share), []
    with parallel_world(config.engine, config.parallel) as world:
        model = build_encoder(config, size, world.device)
        totals = torch.zeros(2, dtype=torch.float64)
        logits, loss_of = _training_step(iter([batch]), model, world=world, num_parts=1, totals=totals)
        assert logits.shape[0] < 150
        all_logits_BSV = model(batch.tokens_BS).transpose(0, 1)
        loss_BS = torch.nn.functional.cross_entropy(
            all_logits_BSV.flatten(0, 1), batch.labels_BS.flatten(), ignore_index=IGNORE_INDEX, reduction="none"
        )
        for loss in (loss_of(logits)[0], (loss_BS * batch.weights_BS.flatten()).sum()):
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            found.append((loss.detach(), torch.cat([gradient.flatten() for gradient in gradients])))
        assert totals.tolist() == pytest.approx([found[1][0].item(), batch.weights_BS.sum().item()], rel=1e-6)
    return found


def test_a_micro_batch_has_the_loss_and_gradients_of_all_its_tokens() -> None:
    (loss, gradients), (expected_loss, expected_gradients) = run_ranks(losses_and_gradients, 1, 0.15)[0]
    torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=0)
    assert (gradients - expected_gradients).norm() < 1e-6 * expected_gradients.norm()


def test_a_micro_batch_without_predicted_tokens_adds_nothing() -> None:
    (loss, gradients), _ = run_ranks(losses_and_gradients, 1, 0.0)[0]
    assert loss == 0 and not gradients.any()
