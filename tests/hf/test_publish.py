"""Uploads to a fake hub that listens on this machine."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

from megadna.errors import UserError
from megadna.hf import export


class Hub(BaseHTTPRequestHandler):
    """The calls of the hub's API that an upload of small files makes."""

    private = True
    log: list = []  # noqa: RUF012
    files: dict = {}  # noqa: RUF012

    def log_message(self, *arguments):
        pass

    def _answer(self, content, status=200):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self._answer({"id": "lab/dna", "private": type(self).private, "siblings": [], "sha": "0" * 40})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        address = f"http://{self.headers['Host']}/lab/dna"
        Hub.log.append((self.path, self.headers["Authorization"], body))
        if self.path.endswith("/repos/create"):
            self._answer({"url": address, "id": "lab/dna", "name": "lab/dna"})
        elif "/preupload/" in self.path:
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            self._answer({"files": [file | {"shouldIgnore": False, "oid": None} for file in files]})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    Hub.files[line["value"]["path"]] = line["value"]["content"]
            self._answer({"commitUrl": f"{address}/commit/1", "commitOid": "1" * 40})
        else:
            self._answer({"valid": True})


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(export, "HfApi", lambda **options: real(endpoint=address, token="hf_test", **options))
    Hub.log, Hub.files, Hub.private = [], {}, True
    yield Hub
    server.shutdown()


real = export.HfApi


@pytest.fixture
def folder(tmp_path):
    for name in ("config.json", "README.md"):
        (tmp_path / name).write_text("{}")
    return tmp_path


def test_a_private_repository_gets_every_file(hub, folder):
    assert export.upload(folder, "lab/dna", public=False).endswith("/lab/dna")
    created = next(json.loads(body) for path, _, body in hub.log if path.endswith("/repos/create"))
    assert created["name"] == "dna" and created["organization"] == "lab"
    assert created.get("private") is True or created.get("visibility") == "private"
    assert set(hub.files) == {"config.json", "README.md"}
    assert {token for _, token, _ in hub.log} == {"Bearer hf_test"}


def test_public_is_said_and_an_existing_public_one_needs_it(hub, folder):
    hub.private = False
    with pytest.raises(UserError, match="exists and is public"):
        export.upload(folder, "lab/dna", public=False)
    assert hub.files == {}
    export.upload(folder, "lab/dna", public=True)
    created = [json.loads(body) for path, _, body in hub.log if path.endswith("/repos/create")][-1]
    assert created.get("private") is False or created.get("visibility") == "public"


def test_without_a_licence_nothing_is_uploaded():
    with pytest.raises(UserError, match="needs --license"):
        export.check_upload("lab/dna", "", public=False)
    with pytest.raises(UserError, match=re.escape("--public belongs to --push_to_hub")):
        export.check_upload("", "mit", public=True)
    export.check_upload("lab/dna", "mit", public=True)


def test_a_hub_that_cannot_be_reached_is_named(monkeypatch, folder):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(export, "HfApi", lambda **options: real(endpoint="http://127.0.0.1:9", token="t", **options))
    with pytest.raises(UserError, match=r"is written, but was not uploaded to lab/dna"):
        export.upload(folder, "lab/dna", public=False)
