"""Downloads from a local server that serves small real genomes with faults: 404, cut connections, wrong checksums."""

import hashlib
import importlib.util
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from megadna.data.builder import build_dataset
from megadna.data.options import PreprocessOptions

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("fetch_genomes", ROOT / "tools" / "fetch_genomes.py")
fetch_genomes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fetch_genomes)

REPORT = b"# Assembly name: x\nL\tassembled-molecule\t1\tChromosome\tna\t=\tNC_001416.1\tPrimary\t48502\tna\n"
ASSEMBLIES = {
    "GCF_000840245.1": ("ViralProj14204", "lambda.fa.gz"),
    "GCF_000027325.1": ("ASM2732v1", "mgenitalium_G37.fa.gz"),
    "GCF_000001405.9": ("new", "human_mt.fa.gz"),
}


class Server:
    """Files by path; `faults` holds what the next requests of a path get: cut, wrong, or a status."""

    def __init__(self):
        self.files, self.faults, self.requests = {}, {}, []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def answer(self, handler):
        path, span = handler.path, handler.headers.get("Range")
        self.requests.append((path, span))
        fault = self.faults.get(path, []).pop(0) if self.faults.get(path) else None
        if path.endswith("/"):
            names = sorted({name[len(path) :].split("/")[0] for name in self.files if name.startswith(path)})
            body = "".join(f'<a href="{name}/">{name}</a>\n' for name in names).encode() if names else None
        else:
            body = self.files.get(path)
        if isinstance(fault, int) or body is None:
            handler.send_error(fault or 404)
            return
        start = int(span[6:].rstrip("-")) if span else 0
        body = bytes([body[0] ^ 255]) + body[1:] if fault == "wrong" else body
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(body) - start))
        handler.end_headers()
        handler.wfile.write(body[start : start + 7000] if fault == "cut" else body[start:])


@pytest.fixture
def server():
    server = Server()
    for accession, (name, file) in ASSEMBLIES.items():
        digits = accession[4:13]
        folder = f"/ncbi/GCF/{digits[:3]}/{digits[3:6]}/{digits[6:]}/{accession}_{name}/{accession}_{name}"
        data = (ROOT / "tests" / "data" / file).read_bytes()
        sums = f"{hashlib.md5(data).hexdigest()}  ./{folder.rsplit('/', 1)[1]}_genomic.fna.gz\n"
        sums += f"{hashlib.md5(REPORT).hexdigest()}  ./{folder.rsplit('/', 1)[1]}_assembly_report.txt\n"
        server.files[f"{folder}_genomic.fna.gz"] = data
        server.files[f"{folder}_assembly_report.txt"] = REPORT
        server.files[f"{folder.rsplit('/', 1)[0]}/md5checksums.txt"] = sums.encode()
    yield server
    server.close()


def _fetch(server, tmp_path, *arguments):
    places = ["--ncbi", f"{server.url}/ncbi", "--ensembl", f"{server.url}/ensembl", "--pause", "0.01"]
    return fetch_genomes.main([*arguments, *places, "--output", str(tmp_path / "genomes")])


def _fasta_path(server, accession):
    return next(path for path in server.files if accession in path and path.endswith(".fna.gz"))


def test_faults_resume_and_build(server, tmp_path):
    sheet = tmp_path / "accessions.tsv"
    sheet.write_text(
        "accession\tspecies\tclade\nGCF_000840245.1\tlambda\tphage\nGCF_000027325.1\tM. genitalium\tbacteria\n"
    )
    cut, wrong = (_fasta_path(server, accession) for accession in list(ASSEMBLIES)[:2])
    server.faults = {cut: ["cut", 503, "cut"], wrong: ["wrong"]}
    assert _fetch(server, tmp_path, "--sheet", str(sheet)) == 0
    spans = [span for path, span in server.requests if path == cut]
    assert spans == [None, "bytes=7000-", "bytes=7000-", "bytes=14000-"]  # it went on where it was cut
    for accession, (_, file) in list(ASSEMBLIES.items())[:2]:
        fetched = next((tmp_path / "genomes" / accession).glob("*_genomic.fna.gz"))
        assert fetched.read_bytes() == (ROOT / "tests" / "data" / file).read_bytes()
        assert len(list((tmp_path / "genomes" / accession).iterdir())) == 2
    server.requests.clear()
    assert _fetch(server, tmp_path, "--sheet", str(sheet)) == 0
    assert not [path for path, _ in server.requests if path.endswith(".gz")]  # nothing twice
    options = PreprocessOptions(
        sample_sheet=tmp_path / "genomes" / "sheet.tsv", output=tmp_path / "out", chunk_length=400
    )
    manifest = build_dataset(options)[0]
    assert [(s.name, s.species, s.bases) for s in manifest.sources] == [
        ("GCF_000027325.1", "M. genitalium", 580_076),
        ("GCF_000840245.1", "lambda", 48_502),
    ]


def test_vanished_and_replaced_accessions(server, tmp_path):
    urls = tmp_path / "urls.txt"
    lines = ["GCF_000840245.1", "GCF_000001405.1", "GCF_999999999.1", "GCF_000027325.1"]
    urls.write_text(
        "".join(f"https://ftp.ncbi.nlm.nih.gov/genomes/all/x/{name}_y/{name}_y_genomic.fna.gz\n" for name in lines)
    )
    new = tmp_path / "new.tsv"
    new.write_text("GCF_000001405.1\tGCF_000001405.9\n")
    server.faults = {_fasta_path(server, "GCF_000027325.1"): ["wrong"] * 9}
    status = _fetch(server, tmp_path, "--nt_urls", str(urls), "--replacements", str(new), "--tries", "3")
    assert status == 1
    rows = [line.split("\t") for line in (tmp_path / "genomes" / "sheet.tsv").read_text().splitlines()]
    assert [row[1] for row in rows] == ["genome", *lines]  # the list's order and length stay
    assert [bool(row[0]) for row in rows[1:]] == [True, True, False, False]
    problems = (tmp_path / "genomes" / "missing.tsv").read_text()
    assert "GCF_000001405.1\tGCF_000001405.9\t" in problems and "GCF_999999999.1\t\t" in problems
    assert "wrong checksum (3 tries)" in problems
    assert not list((tmp_path / "genomes").rglob("*.part"))


def test_ensembl(server, tmp_path):
    data = (ROOT / "tests" / "data" / "human_mt.fa.gz").read_bytes()
    files = {
        "fasta/homo_sapiens/dna/Homo_sapiens.GRCh38.dna_sm.primary_assembly.fa.gz": data,
        "fasta/homo_sapiens/dna/Homo_sapiens.GRCh38.dna_sm.toplevel.fa.gz": data * 2,
        "gff3/homo_sapiens/Homo_sapiens.GRCh38.112.gff3.gz": b"##gff-version 3\n" * 99,
    }
    sums = {}
    for name, content in files.items():
        server.files[f"/ensembl/release-112/{name}"] = content
        (tmp_path / "file").write_bytes(content)
        printed = subprocess.run(
            ["sum", str(tmp_path / "file")], capture_output=True, text=True, check=True
        ).stdout.split()
        sums.setdefault(name.rsplit("/", 1)[0], []).append(f"{printed[0]} {printed[1]} {name.rsplit('/', 1)[1]}\n")
    for folder, lines in sums.items():
        server.files[f"/ensembl/release-112/{folder}/CHECKSUMS"] = "".join(lines).encode()
    (tmp_path / "a.tsv").write_text("accession\nensembl:homo_sapiens\n")
    assert _fetch(server, tmp_path, "--sheet", str(tmp_path / "a.tsv")) == 0
    names = sorted(path.name for path in (tmp_path / "genomes" / "ensembl_homo_sapiens").iterdir())
    assert names == ["Homo_sapiens.GRCh38.112.gff3.gz", "Homo_sapiens.GRCh38.dna_sm.primary_assembly.fa.gz"]


def test_a_sheet_of_others_is_not_replaced(server, tmp_path):
    sheet = tmp_path / "genomes" / "sheet.tsv"  # the user's list, where the script's would go
    sheet.parent.mkdir()
    sheet.write_text("accession\nGCF_000840245.1\n")
    with pytest.raises(SystemExit, match=r"sheet\.tsv: exists and was not written by this script"):
        _fetch(server, tmp_path, "--sheet", str(sheet))
    assert sheet.read_text() == "accession\nGCF_000840245.1\n" and not server.requests
