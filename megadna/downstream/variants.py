"""Scores of the ALT alleles of a VCF by a masked language model, as a DataFrame or a file.

In:  VCF or BCF, the genome, a Hugging Face folder; the scores of megadna/downstream/variant_scores.py.
Out: a row per ALT in the order of the file: contig, pos, ref, alt as the VCF has them, method, the scores, status; or
     the VCF with the same as INFO tags (megadna/downstream/variant_files.py).
     method: llr (a substitution, if that is asked for), pll (an insertion, deletion or the like), else empty.
     status: ok, or why the allele has no score at all (UNSCORED here and in megadna/genome/vcf.py).
Computed in parts of about a thousand alleles: memory does not grow with the file. Neutral sites, which calibrate llr,
are the first parts.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from megadna.alphabet import BASES, OTHER, base_codes
from megadna.downstream.interpretation_options import DEFAULT_WINDOW, VariantOptions
from megadna.downstream.outputs import Work, grouped
from megadna.downstream.stated import most_bases, read_config, require_window
from megadna.downstream.variant_files import (
    Survey,
    calibrated,
    check_header,
    described,
    header_lines,
    neutral_means,
    survey,
    write_table,
    write_vcf,
)
from megadna.downstream.variant_scores import Change, VariantScorer
from megadna.errors import require
from megadna.genome.bed import locate, read_regions
from megadna.genome.records import read_genome
from megadna.genome.vcf import OK, Allele, Record, read_records
from megadna.log import counted, get_logger
from megadna.progress import Progress

log = get_logger(__name__)

PART_ALLELES = 1024
"""Alleles of a saved part: 15 s of a small model on a CPU."""
PART_RECORDS = 1 << 16
"""Records of a saved part, where few have an allele to score (gVCF)."""
GROUP_BASES = 1 << 18
"""Bases of the windows that are compared at once."""
UNSCORED = {
    "too_long": "the allele takes more than half of a window",
    "not_chosen": "none of --scores is for such an allele: llr and influence for substitutions, pll for others, "
    "distance for both",
    "no_prediction": "no token of A, C, G and T alone covers a changed base",
}
"""Why an allele has no score, by model and options."""
SUBSTITUTION_SCORES, LENGTH_SCORES = ("llr", "influence", "distance"), ("pll", "distance")
"""Which --scores are for substitutions, and which for changes of length."""
MAIN_COLUMNS = ("llr", "pll", "influence", "l2")
"""A number in one of them: the allele has a score. (One strand alone gives none.)"""
_TEXT_COLUMNS = ("ref", "alt", "method", "status")
_ROWS = pa.schema([("contig", pa.string()), ("pos", pa.int64()), *((name, pa.string()) for name in _TEXT_COLUMNS)])


class NeutralSite(NamedTuple):
    """A base of a neutral region."""

    contig: str
    start: int
    end: int


def variants(model: Path | str, vcf: Path | str, genome: Path | str, **options: Any) -> pd.DataFrame:
    """Scores of every ALT allele of `vcf`, in memory; keyword arguments are the fields of VariantOptions."""
    chosen = VariantOptions(model=str(model), vcf=Path(vcf), genome=Path(genome), **options)
    chosen.must_exist()
    scorer = Variants(chosen)
    scorer.load()
    return scorer.frame()


def _check_scores(options: VariantOptions, found: Survey) -> None:
    """UserError if there are alleles to score and --scores are for none of them; the log says which kind gets none."""
    indels = found.counts["indel"]
    kinds = (
        (found.counts[OK] - indels, ("substitution",), SUBSTITUTION_SCORES),
        (indels, ("insertion, deletion or the like", "insertions, deletions and the like"), LENGTH_SCORES),
    )
    left_out = [kind for kind in kinds if kind[0] and not set(kind[2]) & set(options.chosen)]
    hints = [f"for {counted(count, *names)} add --scores {' or '.join(scores)}" for count, names, scores in left_out]
    scored = found.counts[OK] - sum(count for count, *_ in left_out)
    require(scored > 0 or not hints, f"{options.vcf}: --scores are for no allele of it: {'; '.join(hints)}")
    for hint in hints:
        log.warning("%s: written without a score; %s", options.vcf, hint)


class Variants(Work):
    """A genome, a VCF, the options and a model."""

    what, unit = "scoring", "records"
    options: VariantOptions

    def __init__(self, options: VariantOptions) -> None:
        """UserError for what can be wrong before the model is loaded: --scores are for no allele, --window exceeds the
        context, --neutral is not on the genome, the header has the tags already."""
        super().__init__(options)
        self.genome = read_genome(options.genome)
        self.survey = survey(options.vcf, self.genome)
        _check_scores(options, self.survey)
        if options.ending == ".vcf.gz":
            check_header(options.vcf, self.survey.header)
        require_window(options.window, most_bases(read_config(options.model), options.model), options.model)
        self.neutral = self._neutral_sites()

    def load(self) -> None:
        """UserError if the window does not fit the model's context."""
        from megadna.downstream.masked_bases import load_masked_bases

        options = self.options
        with Progress(f"loading {options.model}"):
            self.model = load_masked_bases(options, options.precision)
        most = self.model.max_bases
        require_window(options.window, most, options.model)
        self.window = options.window or min(most - 1 + most % 2, DEFAULT_WINDOW)
        self.scorer = VariantScorer(self.model, self.genome, self.window)

    def frame(self) -> pd.DataFrame:
        """The rows of the whole file, in memory."""
        tables = self.tables()
        first = self._num_neutral_parts
        means = neutral_means(tables[:first]) if first else None
        return calibrated(pa.concat_tables(tables[first:]), means).to_pandas()

    def settings(self) -> dict[str, Any]:
        """The options, the size of a part, the weights."""
        return super().settings() | {"part": PART_ALLELES, "weights": self.model.digest}

    def blocks(self) -> Iterator[list[Record] | list[NeutralSite]]:
        """Neutral sites, then the records; at least one block of records, which may be empty."""
        for first in range(0, len(self.neutral), PART_ALLELES // 3):
            yield self.neutral[first : first + PART_ALLELES // 3]
        records = read_records(self.options.vcf)
        yield from grouped(records, (_num_alleles, PART_ALLELES), (lambda _: 1, PART_RECORDS))
        if not self.survey.num_records:
            yield []

    @property
    def _num_neutral_parts(self) -> int:
        return -(-len(self.neutral) // (PART_ALLELES // 3))

    def table(self, block: Sequence[Any]) -> pa.Table:
        """The rows of a block, llr not calibrated yet."""
        is_neutral = bool(block) and isinstance(block[0], NeutralSite)
        table = self._neutral_table(block) if is_neutral else self._table(block)
        self.progress.advance(len(block))
        return table

    def _table(self, records: Sequence[Record]) -> pa.Table:
        rows: list[dict[str, Any]] = []
        changes: list[Change | None] = []
        for record in records:
            contig = self.survey.contigs.get(record.contig, "")
            for alt in record.alts:
                status, allele = described(record, alt, self.genome.bases.get(contig))
                if allele is not None:
                    status = self._reason(allele)
                change = Change(contig, allele) if allele is not None and status == OK else None
                texts = {"contig": record.contig, "ref": _text(record.ref), "alt": _text(alt), "status": status}
                rows.append({**texts, "pos": record.position, "method": _method(change, self.options.chosen)})
                changes.append(change)
        columns = self._scored(changes)
        known = np.any([~np.isnan(columns[name]) for name in set(MAIN_COLUMNS).intersection(columns)], axis=0)
        for row, is_known in zip(rows, known.tolist(), strict=True):
            if row["status"] == OK and not is_known:
                row["status"] = "no_prediction"
        table = pa.Table.from_pylist(rows, _ROWS)
        for name, values in columns.items():
            table = table.add_column(table.num_columns - 1, name, pa.array(values, from_pandas=True))
        return table

    def _reason(self, allele: Allele) -> str:
        wanted = SUBSTITUTION_SCORES if allele.is_substitution else LENGTH_SCORES
        if not set(wanted) & set(self.options.chosen):
            return "not_chosen"
        return OK if self.scorer.fits(allele) else "too_long"

    def _scored(self, changes: Sequence[Change | None]) -> dict[str, np.ndarray]:
        """The columns of scores, fp64 and NaN where there is none, and `context` for calibration."""
        columns: dict[str, np.ndarray] = {}
        substitutions = [n for n, c in enumerate(changes) if c is not None and c.allele.is_substitution]
        others = [n for n, c in enumerate(changes) if c is not None and not c.allele.is_substitution]
        for score in self.options.chosen:
            if score in ("llr", "pll"):
                chosen = substitutions if score == "llr" else others
                values_N2 = self._filled(getattr(self.scorer, score), changes, chosen, (2,))
                names = (f"{score}_forward", f"{score}_reverse", score)
                columns |= dict(zip(names, (*values_N2.T, values_N2.mean(axis=1)), strict=True))
            elif score == "influence":
                columns["influence"] = self._filled(self.scorer.influence, changes, substitutions, (2,)).mean(axis=1)
            else:
                values_N22 = self._filled(self.scorer.distance, changes, sorted(substitutions + others), (2, 2))
                columns |= dict(zip(("l2", "cosine"), values_N22.mean(axis=1).T, strict=True))
        if self.neutral:
            columns["context"] = np.array([-1 if c is None else self.scorer.context(c) for c in changes], np.int64)
        return columns

    def _filled(self, score: Any, changes: Sequence[Any], chosen: list[int], shape: tuple[int, ...]) -> np.ndarray:
        found = np.full((len(changes), *shape), np.nan)
        size = max(1, GROUP_BASES // self.window)
        for first in range(0, len(chosen), size):
            group = chosen[first : first + size]
            found[group] = score([changes[number] for number in group])
        return found

    def _neutral_sites(self) -> list[NeutralSite]:
        """At most --neutral_sites bases, evenly spread over the regions, where five bases are A, C, G or T."""
        path = self.options.neutral
        if path is None:
            return []
        regions = read_regions(path)
        names = locate(path, regions.first_lines, self.genome.bases, str(self.genome.path))
        for name, contig in names.items():
            regions.check_ends(name, self.genome.lengths[contig])
        sites = []
        spans = [(names[name], *span) for name, spans in regions.merged.items() for span in spans]
        ends = np.cumsum([end - start for _, start, end in spans])
        count = min(self.options.neutral_sites, int(ends[-1]))
        for offset in ((2 * np.arange(count) + 1) * int(ends[-1]) // (2 * count)).tolist():
            number = int(np.searchsorted(ends, offset, "right"))
            contig, _, end = spans[number]
            position = end - int(ends[number]) + offset
            around = base_codes(self.genome.bases[contig][max(0, position - 2) : position + 3])
            if len(around) == 5 and (around != OTHER).all():
                sites.append(NeutralSite(contig, position, position + 1))
        require(bool(sites), f"{path}: none of its bases is between A, C, G and T of {self.genome.path}")
        log.info("llr is calibrated by %s", counted(len(sites), "neutral site"))
        return sites

    def _neutral_table(self, sites: Sequence[NeutralSite]) -> pa.Table:
        changes = []
        for contig, start, _ in sites:
            ref = self.genome.bases[contig][start : start + 1].tobytes().upper()
            changes += [Change(contig, Allele(start, ref, alt.encode())) for alt in BASES if alt.encode() != ref]
        context = np.array([self.scorer.context(change) for change in changes], np.int64)
        return pa.table({"context": context, "llr": self.scorer.llr(changes).mean(axis=1)})

    def join(self, parts: list[Path], path: Path) -> None:
        """Write --output from the parts, those of neutral sites first."""
        first = self._num_neutral_parts
        means = neutral_means(parts[:first]) if first else None
        if self.options.ending == ".vcf.gz":
            scores, found = calibrated(parquet.read_table(parts[first]), means), self.survey
            header = header_lines(self.options, found.header, scores, self.window, self.model.digest, UNSCORED)
            write_vcf(self.options.vcf, header, parts[first:], means, path)
            self._index(path)
        else:
            write_table(parts[first:], means, path)

    def _index(self, path: Path) -> None:
        if not self.survey.is_sorted:
            log.warning("%s: not sorted, so it gets no index; sort it (bcftools sort)", self.options.output)
            return
        import pysam

        pysam.set_verbosity(0)  # it would warn of POS 0, which it indexes as position 1
        pysam.tabix_index(str(path), preset="vcf", csi=self.survey.needs_csi, keep_original=True)


def _num_alleles(record: Record) -> int:
    return sum(alt[:1] not in b"<*." for alt in record.alts)


def _method(change: Change | None, chosen: tuple[str, ...]) -> str:
    if change is None:
        return ""
    method = "llr" if change.allele.is_substitution else "pll"
    return method if method in chosen else ""


def _text(bases: bytes) -> str:
    return bases.decode(errors="replace")
