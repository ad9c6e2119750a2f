#!/usr/bin/env bash
# pyBigWig 0.3.29: the default mean of few values on a long chromosome is 0, and header() cuts decimals off.
#
# `stats` without exact=True reads the zoom levels. On a file with values on 15 of 100,000 bases (2, 3 and 4) it gives a
# mean of 0.0 for the first 200 bases and for the whole chromosome, where exact=True gives 3.0: a sparse track (methylation,
# CAGE, peaks) looks empty. `header()` returns whole numbers: values 0.2 and 0.7 come back as minVal 0 and maxVal 0.
#
# Seen on Linux x86-64 with Python 3.11 and NumPy 2.4.6, 2026-11-28:
#   default mean 0.0, exact mean 3.0; minVal 0, maxVal 0, sumData 4 (the sum is 4.5)
# Exits non-zero where that has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pyBigWig==0.3.29 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import pyBigWig


def write(name, size, values):
    file = pyBigWig.open(name, "w")
    file.addHeader([("chr1", size)])
    file.addEntries("chr1", 50, values=values, span=5, step=10)
    file.close()
    return pyBigWig.open(name)


few = write("few.bw", 100_000, [2.0, 3.0, 4.0])
default = [few.stats("chr1", 0, end, type="mean")[0] for end in (200, 100_000)]
exact = [few.stats("chr1", 0, end, type="mean", exact=True)[0] for end in (200, 100_000)]
print("default mean", default, "exact mean", exact)
assert default == [0.0, 0.0] and exact == [3.0, 3.0]
header = write("fractions.bw", 1000, [0.2, 0.7]).header()
print(header)
assert (header["minVal"], header["maxVal"], header["sumData"]) == (0, 0, 4)
PYTHON
