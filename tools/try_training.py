"""What a training idea is worth before it is built: a bare PyTorch loop of the exported encoder, a line of JSON a run.

    python tools/try_training.py tests/data/ecoli_K12_MG1655.fna.gz --steps 300 --optimizer muon --lr 0.01 --seed 1

AdamW or Muon (torch.optim.Muon with q, k and v apart; tables, embeddings, convolutions, head and norms by AdamW at
2e-3); a fixed share of hidden bases or one that falls over the steps (`--hidden 0.3 0.15`); a cosine to 1 %, or a
linear rise, plateau and fall of 10, 70 and 20 % of the steps; a weight of lower-case bases in the loss; an exponential
average of the weights. Every tenth block of 4,000 bases is held out: masked bits per base of docs/evaluation.md (15 %
hidden, A, C, G, T renormalised), over all, upper-case and lower-case bases, with the standard error over blocks; CPU
seconds of the training.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from megadna.alphabet import COMPLEMENT, base_codes
from megadna.genome.records import read_genome
from megadna.hf.configuration_megadna import MegaDnaConfig
from megadna.hf.modeling_megadna import MegaDnaForMaskedLM
from megadna.tokenizer.base import NucleotideTokenizer, context_symbols

# Shapes: N blocks, B rows of a batch, L bases of a row, S tokens.

BLOCK, ROW, BATCH = 4000, 250, 24
TOKENS = NucleotideTokenizer()
IDS_4 = torch.from_numpy(TOKENS.base_ids)


def main() -> None:
    """One training and its evaluation."""
    options = arguments()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    train, valid = blocks(options.genomes)
    model = encoder(options)
    start = time.process_time()
    averaged = training(model, train, options)
    found = vars(options) | {
        "genomes": [path.name for path in options.genomes],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "cpu_s": round(time.process_time() - start, 1),
    }
    found |= evaluation(model, valid)
    if averaged is not None:
        found |= {f"averaged_{name}": value for name, value in evaluation(averaged, valid).items()}
    print(json.dumps(found), flush=True)


def arguments() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("genomes", type=Path, nargs="+")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--schedule", choices=("cosine", "trapezoid"), default="cosine")
    parser.add_argument("--hidden", type=float, nargs="+", default=[0.3])
    parser.add_argument("--lower_case_weight", type=float, default=1.0)
    parser.add_argument("--average", type=float, help="decay a step")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--local_context", default="both")
    parser.add_argument("--bf16", action="store_true", help="products of the training in bf16")
    return parser.parse_args()


def blocks(genomes: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Letters [N, 4000] of the training and the held-out blocks."""
    found = []
    for path in genomes:
        for bases in read_genome(path).bases.values():
            found.append(bases[: len(bases) // BLOCK * BLOCK].reshape(-1, BLOCK))
    all_NL = np.concatenate(found)
    held_out = np.arange(len(all_NL)) % 10 == 9
    return all_NL[~held_out], all_NL[held_out]


def encoder(options: argparse.Namespace) -> MegaDnaForMaskedLM:
    """A model of random weights in the shape of configs/demo.yaml, or wider."""
    feed_forward = round(options.width * 8 / 3 / 32 + 0.01) * 32
    config = MegaDnaConfig(
        vocab_size=16, hidden_size=options.width, num_hidden_layers=options.layers, intermediate_size=feed_forward,
        num_attention_heads=max(2, options.width // 64), max_position_embeddings=ROW + 2,
        local_context=options.local_context, context_symbols=context_symbols(TOKENS),
    )  # fmt: skip
    return MegaDnaForMaskedLM(config)


def training(model: MegaDnaForMaskedLM, train_NL: np.ndarray, options: argparse.Namespace) -> MegaDnaForMaskedLM | None:
    """Train in place; a copy with the averaged weights where those are asked for."""
    rng = np.random.default_rng(options.seed)
    optimizers = build_optimizers(model, options)
    rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    averaged = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(options.average)
    ) if options.average else None  # fmt: skip
    for step in range(options.steps):
        share = options.hidden[0] + (options.hidden[-1] - options.hidden[0]) * step / options.steps
        letters_BL = sample(train_NL, rng)
        hidden_BL = rng.random(letters_BL.shape) < share
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=options.bf16):
            loss = masked_loss(model, letters_BL, hidden_BL, options.lower_case_weight)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        factor = rate_factor(step, options.steps, options.schedule)
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * factor
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if averaged:
            averaged.update_parameters(model)
    return averaged.module if averaged else None


def build_optimizers(model: MegaDnaForMaskedLM, options: argparse.Namespace) -> list[torch.optim.Optimizer]:
    """AdamW, or Muon for the matrices of the layers and AdamW at 2e-3 for all else."""
    matrices = [
        p for name, p in model.named_parameters() if p.ndim == 2 and ".layer." in name and "convolution" not in name
    ]
    if options.optimizer == "adamw":
        matrices = []
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    adamw_rate = options.lr if options.optimizer == "adamw" else 2e-3
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=adamw_rate, betas=(0.9, 0.98), weight_decay=0.01)
    ]
    if matrices:
        found.append(torch.optim.Muon(matrices, lr=options.lr, weight_decay=0.01))
    return found


def rate_factor(step: int, steps: int, schedule: str) -> float:
    """Share of the top rate: warm-up over 5 % (trapezoid: 10 %), then a cosine to 1 % or a plateau and a fall to 0."""
    if schedule == "trapezoid":
        return min(1.0, (step + 1) / (0.1 * steps), (steps - step) / (0.2 * steps))
    warm_up = 0.05 * steps
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.01 + 0.99 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up))) / 2


def sample(train_NL: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Letters [B, L] from random positions, on either strand."""
    rows = rng.integers(0, len(train_NL), BATCH)
    starts = rng.integers(0, BLOCK - ROW + 1, BATCH)
    letters_BL = train_NL[rows[:, None], starts[:, None] + np.arange(ROW)]
    return np.where(rng.random((BATCH, 1)) < 0.5, COMPLEMENT[letters_BL[:, ::-1]], letters_BL)


def hidden_log_p(model: MegaDnaForMaskedLM, letters_BL: np.ndarray, hidden_BL: np.ndarray) -> torch.Tensor:
    """Natural log-probabilities of A, C, G, T [hidden bases, 4]."""
    ids_BS = np.full((len(letters_BL), letters_BL.shape[1] + 2), TOKENS.cls_id)
    ids_BS[:, -1] = TOKENS.sep_id
    ids_BS[:, 1:-1] = np.where(hidden_BL, TOKENS.mask_id, TOKENS.encode(letters_BL))
    logits_BSV = model(input_ids=torch.from_numpy(ids_BS)).logits.float()
    return F.log_softmax(logits_BSV[:, 1:-1][torch.from_numpy(hidden_BL)][:, IDS_4], -1)


def masked_loss(
    model: MegaDnaForMaskedLM, letters_BL: np.ndarray, hidden_BL: np.ndarray, lower_case_weight: float
) -> torch.Tensor:
    """Weighted mean of -ln p of the hidden bases (N is never hidden)."""
    hidden_BL &= base_codes(letters_BL) < 4
    letters = letters_BL[hidden_BL]
    weight = torch.from_numpy(np.where(letters >= ord("a"), lower_case_weight, 1.0)).float()
    loss = F.nll_loss(
        hidden_log_p(model, letters_BL, hidden_BL),
        torch.from_numpy(base_codes(letters).astype(np.int64)),
        reduction="none",
    )
    return (loss * weight).sum() / weight.sum()


@torch.no_grad()
def evaluation(model: MegaDnaForMaskedLM, valid_NL: np.ndarray) -> dict[str, float]:
    """Bits per hidden base of at most 200 held-out blocks: all, upper case, lower case; standard error over blocks."""
    model.eval()
    rng = np.random.default_rng(0)
    sums = []
    for block in valid_NL[:: max(1, len(valid_NL) // 200)]:
        letters_BL = block.reshape(-1, ROW)
        hidden_BL = (rng.random(letters_BL.shape) < 0.15) & (base_codes(letters_BL) < 4)
        letters = letters_BL[hidden_BL]
        truth = torch.from_numpy(base_codes(letters).astype(np.int64))
        bits = -hidden_log_p(model, letters_BL, hidden_BL).gather(1, truth[:, None])[:, 0].numpy() / math.log(2)
        lower = letters >= ord("a")
        sums.append([bits.sum(), len(bits), bits[~lower].sum(), (~lower).sum(), bits[lower].sum(), lower.sum()])
    all_N6 = np.array(sums)
    total = all_N6.sum(0)
    means = [row[0] / row[1] for row in all_N6 if row[1]]
    found = {"bits": total[0] / total[1], "se_bits": float(np.std(means, ddof=1) / math.sqrt(len(means)))}
    for name, column in (("upper", 2), ("lower", 4)):
        if total[column + 1]:
            found[f"{name}_case_bits"] = total[column] / total[column + 1]
    return {key: round(float(value), 4) for key, value in found.items()}


if __name__ == "__main__":
    main()
