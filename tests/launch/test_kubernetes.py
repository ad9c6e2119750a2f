"""The kubectl commands of docs/cluster.md, by the real client: the manifest is sent whole, its log is read."""

import shutil
from pathlib import Path

import pytest
import yaml
from cluster_page import command
from documented import ROOT, run_blocks
from kubernetes_api import Api, api_server

MISSING = "" if shutil.which("kubectl") else "not installed: kubectl (apt-get install kubernetes-client)"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=MISSING)]
LINES = [command("^kubectl apply"), command("^kubectl logs"), command("^kubectl cordon")]


def kubectl(api: Api, folder: Path) -> list[str]:
    """What each of LINES prints, given to `api`."""
    (folder / "config").write_text(api.kubeconfig())
    (folder / "launch").symlink_to(ROOT / "launch")
    settings = {"KUBECONFIG": str(folder / "config"), "HOME": str(folder)}  # kubectl keeps a cache in HOME
    return [run_blocks([("bash", line)], folder, **settings) for line in LINES]


def test_the_manifest_is_sent_whole_its_log_is_read_and_a_node_is_taken_out(tmp_path: Path) -> None:
    node = LINES[2].split()[-1]
    with api_server() as api:
        stored = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}, "spec": {}}
        api.objects[f"/api/v1/nodes/{node}"] = stored
        applied, log, cordoned = kubectl(api, tmp_path)
    documents = list(yaml.safe_load_all((ROOT / "launch" / "kubernetes.yaml").read_text()))
    for sent in api.created:  # what kubectl adds to any object
        assert sent["metadata"].pop("namespace") == "default"
        assert list(sent["metadata"].pop("annotations")) == ["kubectl.kubernetes.io/last-applied-configuration"]
    assert api.created == documents and [sent["kind"] for sent in documents] == ["Service", "Job"]
    assert applied == "service/megadna created\njob.batch/megadna created\n"
    assert log == "log of megadna-0\n"
    assert cordoned == f"node/{node} cordoned\n" and stored["spec"] == {"unschedulable": True}
