"""The loader: the same global batches whatever the ranks, workers, micro-batch and stops; what a batch holds."""

import gzip
import pickle
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from loader_config import make_config

from megadna.alphabet import dna_of, reverse_complement
from megadna.commands import preprocess
from megadna.config import (
    BlendConfig,
    Config,
    MaskingConfig,
    ModelConfig,
    ParallelConfig,
    RateChange,
    TokenizerConfig,
    TrainConfig,
)
from megadna.data.batch import IGNORE_INDEX, Batch
from megadna.data.dataset import blend_groups, open_chunks
from megadna.data.loader import resolve_sequence_length, train_batches
from megadna.data.samples import Samples, masking_fraction, resolve_schedule
from megadna.errors import UserError
from megadna.tokenizer.build import build_tokenizer

DATA = Path(__file__).parents[1] / "data"
GLOBAL = 16
STEPS = 20


def global_batches(config: Config, *, size: int, start: int = 0, steps: int = STEPS, length: int = 128, skipped=()):
    """Tokens, labels and weights of `steps` global batches from step `start` on, put together from `size` ranks."""
    tokenizer = build_tokenizer(config.tokenizer)
    micro = config.train.micro_batch_size
    per_rank = GLOBAL // (micro * size)
    ranks = [
        list(
            islice(
                train_batches(
                    config, tokenizer, sequence_length=length, rank=rank, size=size,
                    consumed_samples=start * GLOBAL, skipped=skipped,
                ),
                steps * per_rank,
            )
        )
        for rank in range(size)
    ]  # fmt: skip
    batches = [ranks[rank][number] for number in range(steps * per_rank) for rank in range(size)]
    return [
        torch.cat([getattr(batch, name) for batch in batches]) for name in ("tokens_BS", "labels_BS", "weights_BS")
    ], torch.cat([batch.samples_B for batch in batches])


def first_batch(config: Config, length: int) -> Batch:
    tokenizer = build_tokenizer(config.tokenizer)
    return next(train_batches(config, tokenizer, sequence_length=length, rank=0, size=1, consumed_samples=0))


def samples_of(config: Config, length: int = 128) -> Samples:
    pool = open_chunks(config.data.path, "train")
    return Samples(config, build_tokenizer(config.tokenizer), pool, sequence_length=length)


@pytest.fixture(scope="module")
def reference(two_genomes: list[str]):
    return global_batches(make_config(two_genomes, micro_batch=1), size=1)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("micro", [1, 2, 4])
def test_ranks_and_micro_batches_do_not_change_the_global_batches(two_genomes, reference, size, micro) -> None:
    tensors, samples = global_batches(make_config(two_genomes, micro_batch=micro), size=size)
    assert samples.tolist() == list(range(STEPS * GLOBAL))
    assert all(torch.equal(left, right) for left, right in zip(tensors, reference[0], strict=True))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("workers", "size", "micro"), [(1, 1, 4), (3, 1, 2), (1, 2, 4), (3, 4, 4), (3, 2, 1)])
def test_workers_do_not_change_the_global_batches(two_genomes, reference, workers, size, micro) -> None:
    tensors, _ = global_batches(make_config(two_genomes, micro_batch=micro, workers=workers), size=size)
    assert all(torch.equal(left, right) for left, right in zip(tensors, reference[0], strict=True))


@pytest.mark.parametrize("stop", range(1, STEPS))
def test_a_stop_at_any_step_resumes_under_another_layout(two_genomes, reference, stop) -> None:
    size, micro = [(2, 4), (4, 2), (1, 1), (2, 1)][stop % 4]
    workers = 1 if stop in (3, 12) else 0
    config = make_config(two_genomes, micro_batch=micro, workers=workers)
    tensors, samples = global_batches(config, size=size, start=stop, steps=STEPS - stop)
    assert samples[0] == stop * GLOBAL
    for left, right in zip(tensors, reference[0], strict=True):
        assert torch.equal(left, right[stop * GLOBAL :])


def test_skipped_ranges_leave_the_rest_bit_identical(two_genomes, reference) -> None:
    tensors, samples = global_batches(make_config(two_genomes), size=2, steps=10, skipped=[(32, 48), (64, 80)])
    assert samples.tolist() == [*range(32), *range(48, 64), *range(80, 192)]
    for left, right in zip(tensors, reference[0], strict=True):
        assert torch.equal(left, right[samples])


def test_samples_may_be_pickled_for_spawned_workers(two_genomes) -> None:
    samples = samples_of(make_config(two_genomes))
    copy = pickle.loads(pickle.dumps(samples))
    left, right = samples.rows(np.arange(8)), copy.rows(np.arange(8))
    assert np.array_equal(left.tokens_BS, right.tokens_BS) and np.array_equal(left.targets_M, right.targets_M)


def test_another_seed_gives_other_batches(two_genomes, reference) -> None:
    tensors, _ = global_batches(replace(make_config(two_genomes), seed=12), size=1, steps=1)
    assert not torch.equal(tensors[0], reference[0][0][:GLOBAL])


def test_a_row_is_cls_sequence_sep(toy_dataset: Path) -> None:
    config = make_config(str(toy_dataset), reverse_complement=0.0)
    tokenizer = build_tokenizer(config.tokenizer)
    pool = open_chunks(str(toy_dataset), "train")
    genome = b"".join(bytes(pool[chunk]) for chunk in range(len(pool)))
    batch = first_batch(config, 512)
    assert batch.tokens_BS.dtype == batch.labels_BS.dtype == torch.int64 and batch.weights_BS.dtype == torch.float32
    assert (batch.tokens_BS[:, 0] == tokenizer.cls_id).all()
    lengths = torch.full((4,), 512) if batch.lengths_B is None else batch.lengths_B.long()
    for row in range(4):
        length = int(lengths[row])
        asked = batch.labels_BS[row] != IGNORE_INDEX
        assert batch.tokens_BS[row, length - 1] == tokenizer.sep_id
        assert (batch.tokens_BS[row, length:] == tokenizer.pad_id).all() and not asked[length - 1 :].any()
        assert torch.equal(batch.weights_BS[row] > 0, asked)
        original = torch.where(asked, batch.labels_BS[row], batch.tokens_BS[row])[1 : length - 1]
        assert tokenizer.decode(original).encode() in genome


def test_full_rows_carry_no_lengths_and_short_ones_do(toy_dataset: Path) -> None:
    samples = samples_of(make_config(str(toy_dataset)), 512)
    sizes = samples.groups[0].windows.lengths()
    rows = samples.rows(np.arange(len(sizes)))
    short = rows.lengths_B < 512
    assert short.sum() == (sizes < 510).sum()
    full = samples.rows(np.flatnonzero(~short)[:4]).batch()
    assert full.lengths_B is None and full.positions_BS is None
    mixed = samples.rows(np.append(np.flatnonzero(short)[:1], np.flatnonzero(~short)[:3])).batch()
    assert mixed.lengths_B is not None and mixed.lengths_B.tolist()[1:] == [512] * 3


def test_half_of_the_samples_come_from_the_other_strand(toy_dataset: Path) -> None:
    forward = samples_of(make_config(str(toy_dataset), reverse_complement=0.0))
    both = samples_of(make_config(str(toy_dataset), reverse_complement=0.5))
    tokenizer = build_tokenizer(TokenizerConfig())
    turned = 0
    for index in range(300):
        left, right = (_letters(samples, index, tokenizer) for samples in (forward, both))
        if left != right:
            assert bytes(reverse_complement(dna_of(left))).decode() == right
            turned += 1
    assert abs(turned - 150) < 4 * np.sqrt(300 / 4)


def _letters(samples: Samples, index: int, tokenizer) -> str:
    rows = samples.rows(np.array([index]))
    tokens = rows.tokens_BS[0].copy()
    tokens[rows.positions_M] = rows.targets_M
    return tokenizer.decode(tokens[1 : rows.lengths_B[0] - 1])


def test_an_epoch_reads_every_base_once(two_genomes: list[str]) -> None:
    samples = samples_of(make_config(two_genomes, reverse_complement=0.0), 128)
    rows = samples.rows(np.arange(len(samples.groups[0])))
    pool = open_chunks(two_genomes, "train")
    total = sum(len(pool[chunk]) for chunk in range(len(pool)))
    assert int((rows.lengths_B - 2).sum()) == samples.groups[0].group.bases == total


def test_k_mer_batches_pad_and_mask(two_genomes: list[str]) -> None:
    config = make_config(two_genomes, tokenizer=TokenizerConfig(kind="kmer", k=6))
    tokenizer = build_tokenizer(config.tokenizer)
    rows = samples_of(config, 512).rows(np.arange(64))
    assert rows.tokens_BS.shape == (64, 512) and set(rows.lengths_B.tolist()) >= {512}
    assert abs(len(rows.positions_M) / rows.lengths_B.sum() - 0.15) < 0.02
    assert rows.tokens_BS.max() < tokenizer.vocab_size


def test_variable_length_is_half_full_half_uniform(two_genomes: list[str]) -> None:
    rows = samples_of(make_config(two_genomes, variable_length=0.5), 502).rows(np.arange(2000))  # halves of chunks
    full = (rows.lengths_B == 502).mean()
    assert abs(full - 0.5) < 0.05
    cut = rows.lengths_B[rows.lengths_B < 502]
    assert abs(cut.mean() - 252) < 15 and cut.min() >= 7


def test_packed_rows_have_positions_and_cumulative_lengths(two_genomes: list[str]) -> None:
    samples = samples_of(make_config(two_genomes, packing=True), 600)
    assert samples.groups[0].packed is not None
    plain = samples_of(make_config(two_genomes), 600)
    assert len(samples.groups[0]) < len(plain.groups[0])
    rows = samples.rows(np.arange(len(samples.groups[0])))
    batch = rows.batch()
    starts = batch.cumulative_lengths.long()
    assert starts[0] == 0 and starts[-1] == batch.tokens_BS.numel() and (starts.diff() > 0).all()
    assert (batch.positions_BS.flatten()[starts[:-1]] == 0).all()
    expected = torch.cat([torch.arange(count) for count in starts.diff().tolist()])
    assert torch.equal(batch.positions_BS.flatten(), expected)
    flat = batch.tokens_BS.flatten()
    tokenizer = build_tokenizer(TokenizerConfig())
    ends = flat[starts[1:] - 1]
    assert torch.isin(flat[starts[:-1]], torch.tensor([tokenizer.cls_id, tokenizer.pad_id])).all()
    assert torch.isin(ends, torch.tensor([tokenizer.sep_id, tokenizer.pad_id])).all()
    specials = 2 * int((flat == tokenizer.cls_id).sum())
    assert int(rows.lengths_B.sum()) - specials == samples.groups[0].group.bases


def test_loss_weights_of_lower_case(tmp_path: Path) -> None:
    (tmp_path / "a.fa").write_text(">a\n" + ("ACGTacgtac" * 10 + "\n") * 200)
    preprocess.main(["--input", str(tmp_path / "a.fa"), "--output", str(tmp_path / "d"), "--chunk_length", "500"])
    config = make_config(str(tmp_path / "d"), lower_case_weight=0.1, reverse_complement=0.0)
    rows = samples_of(config, 502).rows(np.arange(30))
    place_in_repeat = (rows.positions_M % 502 - 1) % 10
    assert np.allclose(rows.weights_M, np.where(place_in_repeat < 4, 1.0, 0.1))
    kmers = replace(config, tokenizer=TokenizerConfig(kind="kmer", k=3))
    rows = samples_of(kmers, 500).rows(np.arange(30))
    lower = [sum((place + offset) % 10 >= 4 for offset in range(3)) for place in range(10)]
    expected = 1 - 0.9 * np.array(lower)[(rows.positions_M % 500 - 1) % 10] / 3
    assert np.allclose(rows.weights_M, expected)


def test_the_masking_rate_changes_at_its_sample(two_genomes: list[str]) -> None:
    masking = MaskingConfig(fraction=0.15, schedule=[RateChange(step=10, fraction=0.4)])
    config = resolve_schedule(make_config(two_genomes, masking=masking))
    assert config.data.masking.schedule[0].sample == 160
    assert [masking_fraction(config, sample) for sample in (0, 159, 160, 10**9)] == [0.15, 0.15, 0.4, 0.4]
    moved = replace(config, train=TrainConfig(global_batch_size=64))
    assert resolve_schedule(moved).data.masking.schedule[0].sample == 160
    rows = samples_of(config, 502).rows(np.arange(320))
    asked = np.bincount(rows.positions_M // 502, minlength=320) / 500
    assert abs(asked[:160].mean() - 0.15) < 0.01 and abs(asked[160:].mean() - 0.4) < 0.01


def test_blending_by_source_and_dataset(two_genomes: list[str]) -> None:
    weights = {"mgenitalium_G37": 1.0, "lambda": 3.0}
    config = make_config(two_genomes, blend=BlendConfig(by="source", weights=weights))
    samples = samples_of(config)
    assert [(rows.group.name, rows.group.share) for rows in samples.groups] == [
        ("mgenitalium_G37", 0.25),
        ("lambda", 0.75),
    ]
    pool = open_chunks(two_genomes, "train")
    by_bases = blend_groups(pool, "train", BlendConfig(by="dataset"))
    total = sum(group.bases for group in by_bases)
    assert all(abs(group.share - group.bases / total) < 1e-12 for group in by_bases)
    with pytest.raises(UserError, match="no source 'yeast'"):
        blend_groups(pool, "train", BlendConfig(by="source", weights={"yeast": 1.0}))
    with pytest.raises(UserError, match=r"data\.blend\.by kingdom"):
        blend_groups(pool, "train", BlendConfig(by="kingdom"))


def test_blending_by_a_column_passes_through_each_group_before_it_repeats(tmp_path: Path) -> None:
    files = {"g37": "mgenitalium_G37.fa.gz", "mt": "human_mt.fa.gz", "lambda": "lambda.fa.gz"}
    clades = {"g37": "bacteria", "mt": "organelle", "lambda": "bacteria"}
    lines = ["path\tgenome\tspecies\tclade"] + [f"{DATA / files[n]}\t{n}\t{n}\t{clades[n]}" for n in files]
    (tmp_path / "sheet.tsv").write_text("\n".join(lines) + "\n")
    sheet = ["--sample_sheet", str(tmp_path / "sheet.tsv"), "--output", str(tmp_path / "d"), "--chunk_length", "500"]
    preprocess.main([*sheet, "--valid_fraction", "0", "--test_fraction", "0"])
    blend = BlendConfig(by="clade", weights={"bacteria": 0.4, "organelle": 0.6})
    samples = samples_of(make_config(str(tmp_path / "d"), blend=blend, reverse_complement=0.0), 502)
    sizes = {rows.group.name: len(rows) for rows in samples.groups}
    assert sizes == {"bacteria": -(-580_076 // 500) + -(-48_502 // 500), "organelle": -(-16_569 // 500)}
    mitochondrion = gzip.decompress((DATA / files["mt"]).read_bytes()).decode()
    mitochondrion = "".join(mitochondrion.splitlines()[1:]).upper()
    tokenizer = build_tokenizer(TokenizerConfig())
    places = []
    for index in range(200):
        text = _letters(samples, index, tokenizer)
        if text in mitochondrion:
            places.append(mitochondrion.index(text) // 500)
    assert len(places) == 120
    size = sizes["organelle"]
    assert sorted(places[:size]) == sorted(places[size : 2 * size]) == list(range(size))


def test_metrics_count_epochs_bases_and_padding(two_genomes: list[str]) -> None:
    config = make_config(two_genomes)
    tokenizer = build_tokenizer(config.tokenizer)
    batches = train_batches(config, tokenizer, sequence_length=512, rank=0, size=1, consumed_samples=0)
    size = len(samples_of(config, 512).groups[0])
    seen = [next(batches) for _ in range(50)]
    padding = sum(512 * 4 - int(batch.lengths_B.sum()) for batch in seen if batch.lengths_B is not None)
    metrics = batches.metrics(2 * size)
    assert metrics["epoch"] == pytest.approx(2.0) and metrics["masking_fraction"] == 0.15
    assert metrics["consumed_bases"] == 2 * samples_of(config, 512).groups[0].group.bases
    assert metrics["padded_fraction"] == pytest.approx(padding / (50 * 4 * 512)) and padding > 0


@pytest.mark.parametrize(
    ("chunk", "asked", "tokenizer", "length"),
    [
        (4000, "auto", {}, 4000),
        (4000, 4002, {}, 4002),
        (512, "auto", {}, 512),
        (100, "auto", {}, 102),
        (4000, "auto", {"kind": "kmer", "k": 6}, 3968),
        (4000, "auto", {"kind": "kmer", "k": 6, "stride": 6}, 668),
        (4000, 512, {"kind": "kmer", "k": 6}, 512),
    ],
)
def test_sequence_length(chunk: int, asked, tokenizer: dict, length: int) -> None:
    config = make_config("d", sequence_length=asked, tokenizer=TokenizerConfig(**tokenizer))
    assert resolve_sequence_length(config, chunk, build_tokenizer(config.tokenizer)) == length


def test_sequence_length_follows_the_layout() -> None:
    config = replace(make_config("d", sequence_length=4002), parallel=ParallelConfig(tensor=4, sequence=True))
    assert resolve_sequence_length(config, 4000, build_tokenizer(config.tokenizer)) == 4004
    with pytest.raises(UserError, match=r"4003 is larger .* 4000 bases give 4002"):
        resolve_sequence_length(make_config("d", sequence_length=4003), 4000, build_tokenizer(TokenizerConfig()))


def test_rows_never_pass_learned_positions() -> None:
    """auto takes what a chunk gives: a mistake where the table of positions is shorter."""
    config = Config(model=ModelConfig(positions="learned", max_positions=512))
    with pytest.raises(UserError, match=r"makes rows of 4000 tokens, model\.max_positions is 512"):
        resolve_sequence_length(config, 4000, build_tokenizer(config.tokenizer))
    short = replace(config, data=replace(config.data, sequence_length=512))
    assert resolve_sequence_length(short, 4000, build_tokenizer(config.tokenizer)) == 512
