#!/usr/bin/env bash
# pysam 0.24.1 (htslib): a tabix index of a VCF places a record by INFO/END, whatever POS and REF say.
#
# A VCF that was cut out of a chromosome and renumbered, or lifted over, often keeps END in the coordinates of the old
# sequence. In its index such a symbolic allele reaches from POS to that END, so a query far away returns it, while a
# scan of POS and the length of REF would not. Who compares what a query
# returns with POS and REF, or counts records of a region, has to look at END (or leave it out before indexing).
#
# Seen on Linux x86-64 with Python 3.11, 2026-11-29: fetch("z", 900, 1000) gives the record at POS 101 with END=5000.
# Exits non-zero where that has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pysam==0.24.1
cd "$folder"
venv/bin/python - <<'PYTHON'
import pysam

HEADER = """##fileformat=VCFv4.2
##contig=<ID=z,length=1000>
##INFO=<ID=END,Number=1,Type=Integer,Description="end">
##ALT=<ID=DEL,Description="deletion">
#CHROM	POS	ID	REF	ALT	QUAL	FILTER	INFO
"""
ROWS = ["z\t101\tcut\tA\t<DEL>\t.\tPASS\tEND=5000", "z\t201\tplain\tA\tC\t.\tPASS\t."]
with open("cut.vcf", "w") as file:
    file.write(HEADER + "\n".join(ROWS) + "\n")
pysam.tabix_compress("cut.vcf", "cut.vcf.gz")
pysam.tabix_index("cut.vcf.gz", preset="vcf")
with pysam.TabixFile("cut.vcf.gz") as file:
    seen = {region: [row.split("\t")[2] for row in file.fetch("z", *region)] for region in ((0, 250), (900, 1000))}
print(seen)
assert seen == {(0, 250): ["cut", "plain"], (900, 1000): ["cut"]}
PYTHON
