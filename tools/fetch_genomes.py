"""Download genomes and write the sample sheet that `megadna preprocess --sample_sheet` reads.

    python tools/fetch_genomes.py --sheet accessions.tsv --output genomes          # NCBI and Ensembl
    python tools/fetch_genomes.py --nt_urls urls.txt --replacements new.tsv --output genomes

In:  accessions.tsv, a TSV with a column `accession` (GCF_... or GCA_..., or `ensembl:homo_sapiens`), optionally
     genome, species and more columns, which are handed on; or --nt_urls, the user's copy of the Nucleotide
     Transformer's list, of which every line with a GCF_/GCA_ accession counts, in order. --replacements: TSV,
     vanished accession, new accession.
Out: genomes/ACCESSION/ with the FASTA and its assembly report (NCBI) or the FASTA and GFF3 (Ensembl),
     genomes/sheet.tsv in the order of the list, with an empty path where an assembly is gone, and
     genomes/missing.tsv, which says why.

A download goes on where it stopped (.part files), is checked against the server's checksums, and is tried again after
a cut connection or a wrong checksum. Run it again to get what failed; what is there and whole is not fetched again.
Exit status 1 if anything is missing.
"""

import argparse
import csv
import hashlib
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

NCBI = "https://ftp.ncbi.nlm.nih.gov/genomes/all"
ENSEMBL = "https://ftp.ensembl.org/pub"
ACCESSION = re.compile(r"GC[AF]_\d{9}\.\d+")
_BLOCK = 1 << 18


class Missing(Exception):
    """An assembly or file that the server has not got, or never delivered whole."""


@dataclass(frozen=True)
class Remote:
    """A file to fetch."""

    url: str
    check: Callable[[Path], bool]
    """Whether a downloaded file is whole."""

    @property
    def name(self) -> str:
        """The file's name."""
        return self.url.rsplit("/", 1)[-1]


class Fetcher:
    """HTTP with resume and retries."""

    def __init__(self, *, tries: int = 4, pause: float = 2.0, timeout: float = 60.0) -> None:
        self._tries, self._pause, self._timeout = tries, pause, timeout

    def text(self, url: str) -> str:
        """A small text, such as a folder's listing; Missing where the server says 404."""
        return self._with_retries(url, lambda: self._open(url).read().decode("utf-8", "replace"))

    def file(self, remote: Remote, target: Path) -> None:
        """Fetch into `target`, going on from its .part file; Missing where it cannot be had whole."""
        if target.exists() and remote.check(target):
            return
        part = target.with_name(target.name + ".part")

        def attempt() -> None:
            self._append(remote.url, part)
            if not remote.check(part):
                part.unlink()
                raise OSError("wrong checksum")
            part.replace(target)

        self._with_retries(remote.url, attempt)

    def _open(self, url: str, start: int = 0):  # noqa: ANN202 - urllib's response has no public type
        request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
        return urllib.request.urlopen(request, timeout=self._timeout)

    def _append(self, url: str, part: Path) -> None:
        start = part.stat().st_size if part.exists() else 0
        try:
            response = self._open(url, start)
        except urllib.error.HTTPError as error:
            if error.code == 416:  # the part is already whole, or longer than the file: the checksum tells
                return
            raise
        with response, part.open("ab") as file:
            if start and response.status != 206:  # the server knows no ranges
                file.truncate(0)
            expected = response.headers.get("Content-Length")
            received = 0
            while block := response.read(_BLOCK):
                file.write(block)
                received += len(block)
        if expected is not None and received < int(expected):
            raise OSError(f"connection cut after {received} of {expected} bytes")

    def _with_retries(self, url: str, action: Callable) -> object:  # type: ignore[type-arg]
        problem = ""
        for attempt in range(self._tries):
            if attempt:
                time.sleep(self._pause * 2 ** (attempt - 1))
            try:
                return action()
            except urllib.error.HTTPError as error:
                if error.code in (403, 404, 410):
                    raise Missing(f"{url}: {error.code} {error.reason}") from error
                problem = f"{error.code} {error.reason}"
            except (OSError, HTTPException) as error:
                problem = str(error) or type(error).__name__
        raise Missing(f"{url}: {problem} ({self._tries} tries)")


def listing(fetcher: Fetcher, url: str) -> list[str]:
    """Names in a folder, from the links of its HTML page."""
    return [link.rstrip("/") for link in re.findall(r'href="([^"?/]+/?)"', str(fetcher.text(url)))]


def md5_check(expected: str) -> Callable[[Path], bool]:
    """Check by MD5, as in NCBI's md5checksums.txt."""

    def check(path: Path) -> bool:
        digest = hashlib.md5()
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
        return digest.hexdigest() == expected

    return check


def sum_check(expected: int, blocks: int) -> Callable[[Path], bool]:
    """Check by the 16-bit BSD sum and the count of 1024-byte blocks, as in Ensembl's CHECKSUMS (`sum` of coreutils)."""

    def check(path: Path) -> bool:
        if -(-path.stat().st_size // 1024) != blocks:
            return False
        total = 0
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                for byte in block:
                    total = (((total >> 1) | (total << 15)) + byte) & 0xFFFF
        return total == expected

    return check


def ncbi_files(fetcher: Fetcher, base: str, accession: str) -> list[Remote]:
    """FASTA and assembly report of an accession; Missing where the assembly is gone."""
    digits = accession[4:13]
    parent = f"{base}/{accession[:3]}/{digits[:3]}/{digits[3:6]}/{digits[6:]}/"
    folders = [name for name in listing(fetcher, parent) if name.startswith(f"{accession}_")]
    if not folders:
        raise Missing(f"{accession}: no longer in {parent}")
    folder = folders[0]
    sums = dict(
        reversed(line.replace("./", "").split(None, 1))
        for line in str(fetcher.text(f"{parent}{folder}/md5checksums.txt")).splitlines()
        if line.strip()
    )
    names = [f"{folder}_genomic.fna.gz", f"{folder}_assembly_report.txt"]
    absent = [name for name in names if name not in sums]
    if absent:
        raise Missing(f"{accession}: {absent[0]} is not in its md5checksums.txt")
    return [Remote(f"{parent}{folder}/{name}", md5_check(sums[name])) for name in names]


def ensembl_files(fetcher: Fetcher, base: str, species: str, release: int) -> list[Remote]:
    """FASTA (primary assembly if there is one, else toplevel) and GFF3 of a species."""
    dna = f"{base}/release-{release}/fasta/{species}/dna/"
    gff = f"{base}/release-{release}/gff3/{species}/"
    patterns = [
        (dna, (r"\.dna_sm\.primary_assembly\.fa\.gz$", r"\.dna_sm\.toplevel\.fa\.gz$")),
        (gff, (rf"\.{release}\.gff3\.gz$",)),
    ]
    found = []
    for folder, choices in patterns:
        sums = _ensembl_sums(str(fetcher.text(f"{folder}CHECKSUMS")))
        names = [name for pattern in choices for name in sorted(sums) if re.search(pattern, name)]
        if not names:
            raise Missing(f"{species}: nothing like {choices[0]} in {folder}")
        found.append(Remote(folder + names[0], sum_check(*sums[names[0]])))
    return found


def _ensembl_sums(text: str) -> dict[str, tuple[int, int]]:
    rows = (line.split() for line in text.splitlines())
    return {row[2]: (int(row[0]), int(row[1])) for row in rows if len(row) == 3}


@dataclass(frozen=True)
class Wanted:
    """One line of the list."""

    accession: str
    columns: dict[str, str]


def read_sheet(path: Path) -> list[Wanted]:
    """Rows of a sample sheet of accessions."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    if not rows or "accession" not in rows[0]:
        raise SystemExit(f"{path}: a TSV with a header line and a column `accession` is needed")
    return [Wanted(row["accession"].strip(), {k: v for k, v in row.items() if k != "accession"}) for row in rows]


def read_urls(path: Path) -> list[Wanted]:
    """Accessions in the order of a list of URLs (or of any text with an accession a line)."""
    found = [ACCESSION.search(line) for line in path.read_text(encoding="utf-8-sig").splitlines()]
    wanted = [Wanted(match.group(), {}) for match in found if match]
    if not wanted:
        raise SystemExit(f"{path}: no line holds a GCF_ or GCA_ accession")
    return wanted


def read_replacements(path: Path | None) -> dict[str, str]:
    """New accession by vanished one."""
    if path is None:
        return {}
    rows = [line.split("\t") for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    return {row[0].strip(): row[1].strip() for row in rows if len(row) >= 2}


def fetch_one(fetcher: Fetcher, accession: str, options: argparse.Namespace) -> Path:
    """Fetch an assembly's files; path of its FASTA."""
    if accession.startswith("ensembl:"):
        files = ensembl_files(fetcher, options.ensembl, accession.removeprefix("ensembl:"), options.ensembl_release)
    elif ACCESSION.fullmatch(accession):
        files = ncbi_files(fetcher, options.ncbi, accession)
    else:
        raise Missing(f"{accession}: neither GCF_/GCA_ with a version nor ensembl:species")
    folder = options.output / accession.replace(":", "_")
    folder.mkdir(parents=True, exist_ok=True)
    for remote in files:
        fetcher.file(remote, folder / remote.name)
    return folder / files[0].name


def fetch_all(wanted: list[Wanted], options: argparse.Namespace) -> Iterator[tuple[Wanted, str, Path | None, str]]:
    """(line, accession used, FASTA or None, problem) of each line of the list, in order."""
    fetcher = Fetcher(tries=options.tries, pause=options.pause)
    replacements = read_replacements(options.replacements)
    for line in wanted:
        problem, used = "", line.accession
        for accession in filter(None, (line.accession, replacements.get(line.accession))):
            try:
                path = fetch_one(fetcher, accession, options)
            except Missing as error:
                problem = f"{problem}; {error}" if problem else str(error)
                continue
            used = accession
            yield line, used, path, problem
            break
        else:
            yield line, used, None, problem


def main(arguments: list[str] | None = None) -> int:
    """Fetch everything, write sheet.tsv and missing.tsv; 1 if something is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--sheet", type=Path, help="TSV with a column accession")
    group.add_argument("--nt_urls", type=Path, help="the Nucleotide Transformer's list of genomes")
    parser.add_argument("--replacements", type=Path, help="TSV: vanished accession, new accession")
    parser.add_argument("--output", type=Path, required=True, help="folder")
    parser.add_argument("--ensembl_release", type=int, default=112)
    parser.add_argument("--tries", type=int, default=4, help="per file")
    parser.add_argument("--pause", type=float, default=2.0, help="seconds before the second try; doubles")
    parser.add_argument("--ncbi", default=NCBI, help="another mirror")
    parser.add_argument("--ensembl", default=ENSEMBL, help="another mirror")
    options = parser.parse_args(arguments)
    for name, header in (("sheet.tsv", "path\tgenome"), ("missing.tsv", "accession\tused\tproblem")):
        file = options.output / name
        if file.exists() and not file.read_text(encoding="utf-8", errors="replace").startswith(header):
            raise SystemExit(f"{file}: exists and was not written by this script; choose another --output, or move it")
    wanted = read_sheet(options.sheet) if options.sheet else read_urls(options.nt_urls)
    options.output.mkdir(parents=True, exist_ok=True)
    extra = [name for name in wanted[0].columns if name not in ("genome", "path")]
    sheet = ["\t".join(["path", "genome", *extra])]
    missing = ["accession\tused\tproblem"]
    absent = 0
    for line, used, path, problem in fetch_all(wanted, options):
        relative = str(path.relative_to(options.output)) if path else ""
        genome = line.columns.get("genome") or line.accession
        sheet.append("\t".join([relative, genome, *(line.columns[name] or "" for name in extra)]))
        if problem:
            missing.append(f"{line.accession}\t{used if path else ''}\t{problem}")
        absent += path is None
        print(f"{line.accession}: {relative or 'MISSING: ' + problem}", flush=True)
    (options.output / "sheet.tsv").write_text("\n".join(sheet) + "\n")
    (options.output / "missing.tsv").write_text("\n".join(missing) + "\n")
    print(f"{len(wanted) - absent} of {len(wanted)} genomes; sheet: {options.output / 'sheet.tsv'}")
    return 1 if absent else 0


if __name__ == "__main__":
    sys.exit(main())
