#!/usr/bin/env bash
# pyBigWig 0.3.29: one stored NaN makes the mean of every window that touches it None, and counts as covered.
#
# bigWig files of ratios and of mappability-masked signal store NaN. `stats(type="mean")` of a window with one NaN gives
# None, with exact=True and without, as if the window had no value at all; `coverage` says that the NaN's bases are
# covered; `values` gives NaN for them and for bases without an entry alike. Means over windows have to be taken from
# `values` (or `intervals`) with the NaN left out.
#
# Seen on Linux x86-64 with Python 3.11 and NumPy 2.4.6, 2026-11-28:
#   mean None, exact mean None, mean before the NaN 1.0, coverage 0.2 (15 of 100 bases have a number: 0.15)
# Exits non-zero where that has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pyBigWig==0.3.29 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import math

import pyBigWig

file = pyBigWig.open("signal.bw", "w")
file.addHeader([("chr1", 1000)])
file.addEntries(["chr1"] * 3, [10, 20, 30], ends=[15, 25, 40], values=[1.0, math.nan, 3.0])
file.close()
file = pyBigWig.open("signal.bw")
seen = {
    "mean": file.stats("chr1", 0, 100, type="mean")[0],
    "exact mean": file.stats("chr1", 0, 100, type="mean", exact=True)[0],
    "exact mean before the NaN": file.stats("chr1", 0, 15, type="mean", exact=True)[0],
    "coverage": file.stats("chr1", 0, 100, type="coverage", exact=True)[0],
}
print(seen)
assert seen == {"mean": None, "exact mean": None, "exact mean before the NaN": 1.0, "coverage": 0.2}
assert all(map(math.isnan, file.values("chr1", 18, 22)))  # two bases without an entry, two with a NaN
PYTHON
