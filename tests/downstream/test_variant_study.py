"""The arithmetic of tools/variant_study.py, by hand."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from variant_study import Markov, auroc, insert_of, interval, select_alleles

from megadna.genome.records import read_genome

DATA = Path(__file__).parents[1] / "data"


def test_auroc_counts_pairs():
    rng = np.random.default_rng(2)
    value, positive = rng.integers(0, 6, 60).astype(float), rng.random(60) < 0.4
    pairs = [(a > b) + (a == b) / 2 for a in value[positive] for b in value[~positive]]
    assert auroc(value, positive) == np.mean(pairs)
    low, high = interval(auroc, value, positive, np.arange(60) // 3)
    assert low < np.mean(pairs) < high


def test_alleles_of_the_file_and_a_markov_model_that_does_not_see_them():
    vcf, genome = DATA / "human_GRCh37_chr20_1000G.vcf.gz", read_genome(DATA / "human_GRCh37_chr20_1000G.fa.gz")
    alleles = select_alleles(vcf, 40)
    assert alleles.common.sum() == 40 and len(alleles) == 80 and alleles.pos.is_monotonic_increasing
    markov = Markov(genome, alleles)
    bases = [genome.bases["z"]] * 80
    llr = markov.llr(bases, alleles)
    assert np.isfinite(llr).all()
    swapped = alleles.rename(columns={"ref": "alt", "alt": "ref"})
    np.testing.assert_allclose(markov.llr(bases, swapped), -llr)


def test_an_insert_is_spelled_by_its_rows():
    rows = [(12, "C", "A", 20), (10, "A", "G", 20), (10, "A", "-", 20), (13, "T", "G", 3)]
    table = pd.DataFrame(rows, columns=["Pos", "Ref", "Alt", "Barcodes"]).assign(Coefficient=[0.1, 0.2, 0.3, 0.4])
    insert, alleles = insert_of("e", table)
    assert insert == "ANCT"
    assert alleles.pos.tolist() == [3, 1] and alleles.effect.tolist() == [0.1, 0.2]
