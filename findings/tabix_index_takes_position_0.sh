#!/usr/bin/env bash
# pysam 0.24.1 (htslib): a VCF record at POS 0, the telomere, is indexed with a warning, and found at the first base.
#
# VCF 4.3 (1.6.1) gives POS 0 to variants before the first base of a contig. `tabix_index(preset="vcf")` writes to standard
# error "... Did you forget to use the -0 option?", raises nothing, and indexes the record. A query of the first base
# returns it together with the record at POS 1: the two cannot be told apart by region. VariantFile reads its start as -1,
# which Python takes as the last base of a sequence.
#
# Seen on Linux x86-64 with Python 3.11, 2026-11-29. Exits non-zero where that has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pysam==0.24.1
cd "$folder"
venv/bin/python - <<'PYTHON' 2> errors.txt
import pysam

HEADER = """##fileformat=VCFv4.3
##contig=<ID=z,length=1000>
#CHROM	POS	ID	REF	ALT	QUAL	FILTER	INFO
"""
ROWS = ["z\t0\ttelomere\tN\t]z:500]N\t.\t.\t.", "z\t1\tfirst\tA\tC\t.\t.\t.", "z\t300\tlater\tA\tC\t.\t.\t."]
with open("a.vcf", "w") as file:
    file.write(HEADER + "\n".join(ROWS) + "\n")
pysam.tabix_compress("a.vcf", "a.vcf.gz")
pysam.tabix_index("a.vcf.gz", preset="vcf")
with pysam.TabixFile("a.vcf.gz") as file:
    seen = [row.split("\t")[2] for row in file.fetch("z", 0, 1)]
with pysam.VariantFile("a.vcf.gz") as file:
    start = next(iter(file)).start
print(seen, start)
assert (seen, start) == (["telomere", "first"], -1)
PYTHON
grep -q -- "-0 option" errors.txt
