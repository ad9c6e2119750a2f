"""How fast megadna trains beside a bare PyTorch loop and Hugging Face's Trainer, on one architecture.

    python tools/bench_train.py [--precision bf16] [--rounds 15] [--threads 1]
    python tools/bench_train.py --device cuda --config configs/megadna-86m.yaml --precision bf16 [--output FILE.json]
    python tools/bench_train.py --dnabert [--rounds 5]
    python tools/bench_train.py --local_context --config configs/megadna-86m.yaml --batch 1 --precision bf16

All three train one encoder (pre-LN, rotary, SwiGLU, tied head) on the same batches in one process, a step of each
in turn; the figure is tokens per CPU-second (time.process_time; on a GPU tokens per second, all its work done), the
ratio the median over the rounds. `--config` takes shape, length and rows of a preset, without local context, which the
others lack. `--dnabert` times DNABERT-6mer at 512 tokens beside transformers' BERT, in sequences per CPU-second;
`--local_context` a preset with its local context beside the same without. Prints Markdown.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention, silu

from megadna.arguments import load_config
from megadna.config import Config, EngineConfig, ModelConfig, ParallelConfig, TokenizerConfig, TrainConfig
from megadna.data.batch import IGNORE_INDEX, Batch
from megadna.engine.distributed import parallel_world
from megadna.files import write_json
from megadna.tokenizer.build import build_tokenizer
from megadna.train.step import build_state, train_step

# Shapes: B batch, S sequence, H hidden, N heads, D head dimension, F feed-forward width, V vocabulary.

NUM_BATCHES = 8
LR, DECAY, CLIP = 1e-4, 0.01, 1.0
PREDICTED = 0.15
"""Share of the tokens that are asked for."""


class BareLayer(torch.nn.Module):
    """Pre-LN attention with rotary positions, pre-LN SwiGLU, as anyone would write it."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        h, f, self.heads = model.hidden_size, model.ffn_hidden_size, model.num_attention_heads
        self.norm1, self.norm2 = torch.nn.LayerNorm(h), torch.nn.LayerNorm(h)
        self.qkv, self.proj = torch.nn.Linear(h, 3 * h), torch.nn.Linear(h, h)
        self.up, self.down = torch.nn.Linear(h, 2 * f), torch.nn.Linear(f, h)

    def forward(self, hidden_BSH: Tensor, cos_SD: Tensor, sin_SD: Tensor) -> Tensor:
        """Hidden states [B, S, H] after the layer."""
        b, s, _ = hidden_BSH.shape
        q, k, v = self.qkv(self.norm1(hidden_BSH)).view(b, s, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = (x * cos_SD + torch.cat([-x.chunk(2, -1)[1], x.chunk(2, -1)[0]], -1) * sin_SD for x in (q, k))
        context_BNSD = scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)
        hidden_BSH = hidden_BSH + self.proj(context_BNSD.transpose(1, 2).flatten(2))
        gate, up = self.up(self.norm2(hidden_BSH)).chunk(2, -1)
        return hidden_BSH + self.down(silu(gate) * up)


class BareEncoder(torch.nn.Module):
    """The same architecture as megadna's default, nothing parallel."""

    def __init__(self, model: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        h, d = model.hidden_size, model.head_size
        self.embedding = torch.nn.Embedding(vocab_size, h)
        torch.nn.init.normal_(self.embedding.weight, std=model.init_std)
        self.layers = torch.nn.ModuleList(BareLayer(model) for _ in range(model.num_layers))
        self.norm, self.dense, self.head_norm = torch.nn.LayerNorm(h), torch.nn.Linear(h, h), torch.nn.LayerNorm(h)
        self.bias = torch.nn.Parameter(torch.zeros(vocab_size))
        inverse = 1.0 / model.rotary_base ** (torch.arange(0, d, 2) / d)
        self.register_buffer("inverse", inverse)

    def forward(self, tokens_BS: Tensor) -> Tensor:
        """Logits [B, S, V]."""
        positions_S = torch.arange(tokens_BS.shape[1], device=tokens_BS.device)
        angles_SD = torch.outer(positions_S, self.inverse).repeat(1, 2)
        cos_SD, sin_SD = angles_SD.cos(), angles_SD.sin()
        hidden_BSH = self.embedding(tokens_BS)
        for layer in self.layers:
            hidden_BSH = layer(hidden_BSH, cos_SD, sin_SD)
        hidden_BSH = self.head_norm(gelu(self.dense(self.norm(hidden_BSH))))
        return torch.nn.functional.linear(hidden_BSH, self.embedding.weight, self.bias)


def clock(device: str) -> float:
    """Seconds: CPU time of this process, or on a GPU of the wall once it has done all its work."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def synthetic_batches(config: Config, vocab_size: int) -> list[Batch]:
    """Random tokens, 15 % of them asked for; the numbers do not matter for speed."""
    shape = (config.train.micro_batch_size, int(config.data.sequence_length))
    generator = torch.Generator().manual_seed(config.seed)
    batches = []
    for _ in range(NUM_BATCHES):
        tokens_BS = torch.randint(vocab_size, shape, generator=generator)
        chosen_BS = torch.rand(shape, generator=generator) < PREDICTED
        labels_BS = tokens_BS.masked_fill(~chosen_BS, IGNORE_INDEX)
        batches.append(Batch(tokens_BS, labels_BS, chosen_BS.float(), None, torch.arange(shape[0])))
    return batches


def bare_step(config: Config, vocab_size: int, batches: Iterator[Batch]) -> Callable[[], None]:
    """One training step of the bare loop."""
    device = config.engine.device
    model = BareEncoder(config.model, vocab_size).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=DECAY, fused=True)
    low = config.engine.precision == "bf16"

    def step() -> None:
        batch = next(batches)
        tokens_BS, labels_BS = (x_BS.to(device) for x_BS in (batch.tokens_BS, batch.labels_BS))
        with torch.autocast(device, torch.bfloat16, enabled=low):
            logits_BSV = model(tokens_BS)
        loss = cross_entropy(logits_BSV.flatten(0, 1).float(), labels_BS.flatten(), ignore_index=IGNORE_INDEX)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return step


def megadna_step(config: Config, vocab_size: int, batches: Iterator[Batch], world: Any) -> Callable[[], None]:
    """One step of megadna's training loop."""
    state, length = build_state(config, vocab_size, world), int(config.data.sequence_length)
    return lambda: train_step(state, batches, config, world, sequence_length=length) and None


def run_trainer(
    config: Config, vocab_size: int, batches: list[Batch], rounds: int, others: dict[str, Callable[[], None]]
) -> dict[str, list[float]]:
    """Seconds of each step of Trainer, and of the others' steps, which run between two of its own."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from megadna.hf.configuration_megadna import MegaDnaConfig
    from megadna.hf.modeling_megadna import MegaDnaForMaskedLM

    seconds: dict[str, list[float]] = {"trainer": [], **{name: [] for name in others}}
    device = config.engine.device

    class Interleave(TrainerCallback):
        start = 0.0

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds["trainer"].append(clock(device) - self.start)
            for name, step in others.items():
                start = clock(device)
                step()
                seconds[name].append(clock(device) - start)
            self.start = clock(device)

    model, train = config.model, config.train
    hf = MegaDnaForMaskedLM(
        MegaDnaConfig(
            vocab_size=vocab_size,
            hidden_size=model.hidden_size,
            num_hidden_layers=model.num_layers,
            num_attention_heads=model.num_attention_heads,
            intermediate_size=model.ffn_hidden_size,
        )
    )
    rows = [
        {"input_ids": tokens_S, "labels": labels_S}
        for batch in batches
        for tokens_S, labels_S in zip(batch.tokens_BS, batch.labels_BS, strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=train.micro_batch_size,
            max_steps=rounds + 2,
            learning_rate=LR,
            weight_decay=DECAY,
            max_grad_norm=CLIP,
            bf16=config.engine.precision == "bf16",
            use_cpu=device == "cpu",
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            optim="adamw_torch_fused",
        )
        Trainer(model=hf, args=arguments, train_dataset=rows, callbacks=[Interleave()]).train()  # type: ignore[arg-type]
    return {name: times[2:] for name, times in seconds.items()}  # the first steps allocate


def compare(config: Config, rounds: int) -> tuple[str, dict[str, Any]]:
    """Markdown table of tokens per second and ratios; the same as numbers, with a line that names them."""
    vocab_size = build_tokenizer(config.tokenizer).vocab_size
    batches = synthetic_batches(config, vocab_size)
    tokens = batches[0].tokens_BS.numel()
    with parallel_world(config.engine, config.parallel) as world:
        others = {
            "bare": bare_step(config, vocab_size, cycle(batches)),
            "megadna": megadna_step(config, vocab_size, cycle(batches), world),
        }
        seconds = run_trainer(config, vocab_size, batches, rounds, others)
    ours, model = seconds["megadna"], config.model
    unit = "tokens per CPU-second" if config.engine.device == "cpu" else "tokens per second"
    rates, ratios = {}, {}
    lines = [
        f"{model.num_layers} x {model.hidden_size}, {config.data.sequence_length} tokens, batch "
        f"{config.train.micro_batch_size}, {config.engine.precision}, {torch.get_num_threads()} thread(s), "
        f"{rounds} rounds",
        "",
        f"| | {unit} | megadna / this |",
        "|---|---|---|",
    ]
    for name, title in (("megadna", "megadna"), ("bare", "bare PyTorch loop"), ("trainer", "transformers Trainer")):
        ratios[name] = statistics.median(theirs / mine for theirs, mine in zip(seconds[name], ours, strict=True))
        rates[name] = tokens / statistics.median(seconds[name])
        lines.append(f"| {title} | {rates[name]:,.0f} | {ratios[name]:.2f} |")
    beside = f"{ratios['bare']:.2f} of the bare loop's, {ratios['trainer']:.2f} of Trainer's"
    line = f"{lines[0]}: megadna {rates['megadna']:,.0f} {unit}, {beside}"
    return "\n".join(lines), {"line": line, "unit": unit, "rates": rates, "ratios": ratios}


def bert_step(config: Config, vocab_size: int, batches: Iterator[Batch]) -> Callable[[], None]:
    """One training step of transformers' BertForMaskedLM in its eager form, which the original DNABERT code is."""
    from transformers import BertConfig, BertForMaskedLM

    shape = config.model
    bert = BertConfig(
        vocab_size=vocab_size,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_attention_heads,
        intermediate_size=shape.ffn_hidden_size,
        hidden_dropout_prob=shape.dropout,
        attention_probs_dropout_prob=shape.dropout,
        attn_implementation="eager",
    )
    model = BertForMaskedLM(bert).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=DECAY, fused=True)
    low = config.engine.precision == "bf16"

    def step() -> None:
        batch = next(batches)
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            loss = model(input_ids=batch.tokens_BS, labels=batch.labels_BS).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def dnabert(rounds: int, precision: str) -> str:
    """DNABERT-6mer at 512 tokens, dropout as the preset has it: sequences per CPU-second beside transformers' BERT."""
    config = load_config(Path(__file__).parents[1] / "configs" / "dnabert-6mer.yaml")
    config = replace(
        config,
        data=replace(config.data, sequence_length=512),
        engine=EngineConfig(device="cpu", precision=precision),  # type: ignore[arg-type]
        train=TrainConfig(micro_batch_size=4, global_batch_size=4, lr=LR),
    )
    vocab_size = build_tokenizer(config.tokenizer).vocab_size
    batches = synthetic_batches(config, vocab_size)
    with parallel_world(config.engine, config.parallel) as world:
        steps = {
            "megadna": megadna_step(config, vocab_size, cycle(batches), world),
            "transformers BERT, eager": bert_step(config, vocab_size, cycle(batches)),
        }
        seconds = in_turn(steps, rounds)
    rows = config.train.micro_batch_size
    lines = [f"DNABERT-6mer, 512 tokens, batch {rows}, {precision}, sequences per CPU-second:"]
    lines += [f"{name} {rows / statistics.median(times):.2f}" for name, times in seconds.items()]
    ours, theirs = seconds.values()
    lines.append(f"ratio {statistics.median(b / a for a, b in zip(ours, theirs, strict=True)):.2f}")
    return "\n".join(lines)


def local_context(config: Config, rounds: int) -> str:
    """CPU seconds of a step of a preset with its local context and without it, and their ratio."""
    vocab_size = build_tokenizer(config.tokenizer).vocab_size
    batches = synthetic_batches(config, vocab_size)
    plain = replace(config, model=replace(config.model, local_context="none"))
    with parallel_world(config.engine, config.parallel) as world:
        steps = {
            one.model.local_context: megadna_step(one, vocab_size, cycle(batches), world) for one in (config, plain)
        }
        seconds = in_turn(steps, rounds)
    lines = [f"{name}: {statistics.median(times):.2f} CPU seconds a step" for name, times in seconds.items()]
    ratios = sorted(a / b for a, b in zip(*seconds.values(), strict=True))
    lines.append(f"ratio {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}, {rounds} rounds)")
    return "\n".join(lines)


def in_turn(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of the steps, one of each in turn; a first round, which allocates, is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for name, step in steps.items():
            start = time.process_time()
            step()
            seconds[name].append(time.process_time() - start)
    return {name: times[1:] for name, times in seconds.items()}


def main() -> None:
    """Run the benchmark that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dnabert", action="store_true")
    parser.add_argument("--local_context", action="store_true", help="with --config and --batch")
    parser.add_argument("--config", type=Path, help="a preset, in place of the sizes below")
    parser.add_argument("--output", type=Path, help="JSON file for the numbers")
    for name, value in (("layers", 6), ("hidden", 256), ("heads", 4), ("ffn", 704), ("length", 512), ("batch", 4)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: torch sees no GPU here")
    torch.set_num_threads(options.threads)
    if options.dnabert:
        print(dnabert(options.rounds, options.precision))
        return
    if options.local_context:
        print(local_context(asked(options), options.rounds))
        return
    table, numbers = compare(asked(options), options.rounds)
    print(table)
    if options.output:
        write_json(options.output, numbers)


def asked(options: argparse.Namespace) -> Config:
    """The model, batch and device of the command line."""
    if options.config:
        config = load_config(options.config)
        model, length = config.model, config.data.sequence_length
        rows = options.batch if options.local_context else config.train.micro_batch_size
    else:
        sizes = {"num_attention_heads": options.heads, "ffn_hidden_size": options.ffn}
        model = ModelConfig(num_layers=options.layers, hidden_size=options.hidden, **sizes)
        config, length, rows = Config(tokenizer=TokenizerConfig(), model=model), options.length, options.batch
    return replace(
        config,
        data=replace(config.data, sequence_length=length),
        model=model if options.local_context else replace(model, local_context="none"),
        parallel=ParallelConfig(),
        engine=EngineConfig(device=options.device, precision=options.precision),
        train=TrainConfig(micro_batch_size=rows, global_batch_size=rows, lr=LR, clip_grad=CLIP),
    )


if __name__ == "__main__":
    main()
