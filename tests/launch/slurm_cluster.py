"""A real Slurm of two virtual nodes on the loopback of this machine, for as long as a `with` lasts.

Needs root and the Debian packages slurm-wlm and munge (.ci/run installs them). Its own munge socket and key, its own
ports, its own /etc/hosts in a mount namespace: nothing of the machine changes. Daemons end by their pid files.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

NODES = ("n1", "n2")
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool_%n
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/slurmd_%n.pid
SlurmctldLogFile={folder}/ctld.log
SlurmdLogFile={folder}/slurmd_%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobRequeue=1
ReturnToService=2
MpiDefault=none
GresTypes=gpu
{nodes}
PartitionName=gpu Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why no Slurm can be started here; empty where one can."""
    absent = [name for name in ("munged", "slurmctld", "slurmd", "sbatch", "unshare") if not shutil.which(name)]
    if os.geteuid() != 0:
        return "a Slurm of its own needs root"
    return f"not installed: {', '.join(absent)} (apt-get install slurm-wlm munge)" if absent else ""


@contextmanager
def cluster() -> Iterator[Path]:
    """Start munge, the controller and two nodes, point SLURM_CONF at them; yields the folder of their logs."""
    folder = Path(tempfile.mkdtemp(prefix="megadna-slurm-"))
    folder.chmod(0o755)  # munge runs as its own user
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    try:
        _start_munge(folder / "munge")
        _start_slurm(folder)
        wait(lambda: _output("sinfo", "--noheader", "--format=%T %D").strip() == f"idle {len(NODES)}", 60)
        yield folder
    finally:
        for pattern in ("slurmd_*.pid", "ctld.pid", "munge/pid"):
            for file in folder.glob(pattern):
                _end(int(file.read_text()))
        if before is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = before
        shutil.rmtree(folder, ignore_errors=True)


def job_fields(job: str) -> dict[str, str]:
    """What `scontrol show job` says, by name."""
    words = _output("scontrol", "--oneliner", "show", "job", job).split()
    return dict(word.split("=", 1) for word in words if "=" in word)


def wait(condition: Callable[[], bool], seconds: float) -> None:
    """Return when `condition` holds; AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(0.5)


def _start_munge(folder: Path) -> None:
    folder.mkdir(mode=0o755)
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o600)
    for path in (folder, folder / "key"):
        shutil.chown(path, "munge", "munge")
    files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    options = [f"--{option}={folder / name}" for option, name in files.items()]
    subprocess.run(["setpriv", "--reuid=munge", "--regid=munge", "--clear-groups", "munged", *options], check=True)


def _start_slurm(folder: Path) -> None:
    ports = _free_ports(1 + len(NODES))
    host = socket.gethostname().split(".")[0]
    nodes = "\n".join(
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=8 RealMemory=2000 Gres=gpu:8"
        for name, port in zip(NODES, ports[1:], strict=True)
    )
    (folder / "slurm.conf").write_text(CONFIG.format(host=host, folder=folder, controller=ports[0], nodes=nodes))
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-7]\n")  # in name only
    for number in range(8):
        (folder / f"gpu{number}").touch()
    (folder / "hosts").write_text(f"127.0.0.1 localhost {host} {' '.join(NODES)}\n")
    (folder / "state").mkdir()
    private = ["unshare", "--mount", "sh", "-c", f'mount --bind {folder}/hosts /etc/hosts; exec "$@"', "sh"]
    for command in (["slurmctld"], *(["slurmd", "-N", name] for name in NODES)):
        subprocess.run([*private, *command], check=True)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


def _output(*command: str) -> str:
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout


def _end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGTERM)
        for _ in range(100):
            time.sleep(0.1)
            os.kill(pid, 0)
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
