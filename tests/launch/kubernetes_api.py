"""A fake API server of a Kubernetes cluster, on the loopback: as much of it as kubectl asks for.

It names its resources, keeps what is created, and does what the controller of a job does: a pod for each completion,
each with a log. It schedules nothing and checks nothing (test_files.py holds the manifest against the schemas).
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

KINDS = {"api/v1": {"services": "Service", "pods": "Pod", "nodes": "Node"}, "apis/batch/v1": {"jobs": "Job"}}


class Api(ThreadingHTTPServer):
    """The server, and what it was sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.created: list[dict[str, Any]] = []
        """Each body of a POST, as it came."""
        self.objects: dict[str, dict[str, Any]] = {}
        """What can be asked for, by path."""

    def kubeconfig(self) -> str:
        """The file that KUBECONFIG names."""
        cluster = {"name": "test", "cluster": {"server": f"http://127.0.0.1:{self.server_port}"}}
        context = {"name": "test", "context": {"cluster": "test", "user": "test"}}
        kind = {"apiVersion": "v1", "kind": "Config", "current-context": "test"}
        users = [{"name": "test", "user": {}}]
        return json.dumps({**kind, "clusters": [cluster], "contexts": [context], "users": users})

    def create(self, collection: str, sent: dict[str, Any]) -> dict[str, Any]:
        """Keep `sent`, a job with its pods; returns the object as the server has it."""
        name = sent["metadata"]["name"]
        stored = json.loads(json.dumps(sent))
        self.created.append(sent)
        self.objects[f"{collection}/{name}"] = stored
        if stored["kind"] == "Job":
            labels = {"job-name": name}
            stored["spec"]["selector"] = {"matchLabels": labels}
            for index in range(stored["spec"]["completions"]):
                metadata = {"name": f"{name}-{index}", "namespace": "default", "labels": labels}
                pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": {"phase": "Running"}}
                path = f"/api/v1/namespaces/default/pods/{name}-{index}"
                self.objects[path] = {**pod, "spec": stored["spec"]["template"]["spec"]}
        return stored

    def pods(self, selector: str) -> dict[str, Any]:
        """The pods with the labels that `selector` (name=value, by commas) names."""
        wanted = set(selector.split(",")) - {""}
        pods = [value for value in self.objects.values() if value["kind"] == "Pod"]
        kept = [pod for pod in pods if wanted <= {f"{k}={v}" for k, v in pod["metadata"]["labels"].items()}]
        return {"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": kept}


@contextmanager
def api_server() -> Iterator[Api]:
    """The fake server, serving."""
    with Api() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


def _discovery() -> dict[str, dict[str, Any]]:
    """Responses to what kubectl asks of any server, by path: its version, resources, and that it knows their fields."""
    batch = {"groupVersion": "batch/v1", "version": "v1"}
    group = {"name": "batch", "versions": [batch], "preferredVersion": batch}
    responses: dict[str, dict[str, Any]] = {
        "/version": {"major": "1", "minor": "32", "gitVersion": "v1.32.0"},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": [group]},
        "/openapi/v3": {"paths": {path: {"serverRelativeURL": f"/openapi/v3/{path}"} for path in KINDS}},
    }
    parameters = [{"name": "fieldValidation", "in": "query"}]
    for path, kinds in KINDS.items():
        resources = [
            {"name": name, "singularName": kind.lower(), "kind": kind, "namespaced": kind != "Node", "verbs": ["get"]}
            for name, kind in kinds.items()
        ]
        version = path.partition("/")[2]
        responses[f"/{path}"] = {"kind": "APIResourceList", "groupVersion": version, "resources": resources}
        group_name = version.rpartition("/")[0]
        patches = {
            f"/{path}/{name}": {
                "patch": {
                    "parameters": parameters,
                    "x-kubernetes-group-version-kind": {"group": group_name, "version": "v1", "kind": kind},
                }
            }
            for name, kind in kinds.items()
        }
        responses[f"/openapi/v3/{path}"] = {"openapi": "3.0.0", "info": {"title": "", "version": ""}, "paths": patches}
    return responses


class _Handler(BaseHTTPRequestHandler):
    server: Api
    protocol_version = "HTTP/1.1"
    discovery = _discovery()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if found := self.discovery.get(url.path) or self.server.objects.get(url.path):
            self._answer(200, found)
        elif url.path.endswith("/pods"):
            self._answer(200, self.server.pods(parse_qs(url.query).get("labelSelector", [""])[0]))
        elif url.path.removesuffix("/log") in self.server.objects:
            self._send(200, f"log of {url.path.split('/')[-2]}\n".encode(), "text/plain")
        elif url.path == "/openapi/v2":
            self._send(200, b"", "application/octet-stream")  # a document without definitions, as protobuf
        else:
            status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
            self._answer(404, status)

    def do_POST(self) -> None:
        self._answer(201, self.server.create(urlsplit(self.path).path, self._body()))

    def do_PATCH(self) -> None:
        stored = self.server.objects[urlsplit(self.path).path]
        for key, value in self._body().items():
            stored.setdefault(key, {}).update(value)
        self._answer(200, stored)

    def log_message(self, *words: Any) -> None:
        """Say nothing: the tests' output is theirs."""

    def _body(self) -> dict[str, Any]:
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        self._send(status, json.dumps(content).encode(), "application/json")

    def _send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
