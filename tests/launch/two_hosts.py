"""Two 'hosts' on this machine: network namespaces with an address each and one wire between them, for one `with`.

Needs root, iproute2 and procps. The namespaces and the wire are gone at the end, whatever happened.
"""

import os
import shlex
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster_page import command


@dataclass(frozen=True)
class Host:
    """A namespace, and its end of the wire."""

    namespace: str
    card: str
    address: str
    names: str
    """File that is /etc/hosts there: without it each look-up of an address waits for a name server."""

    def command(self, *words: str) -> list[str]:
        """`words`, to be run on this host."""
        bind = f'mount --bind {self.names} /etc/hosts; exec "$@"'
        return ["ip", "netns", "exec", self.namespace, "sh", "-c", bind, "sh", *words]

    def plug(self, state: str) -> None:
        """Pull the wire out (`down`) or put it back (`up`)."""
        _ip("-n", self.namespace, "link", "set", self.card, state)


def missing() -> str:
    """Why there can be no two hosts here; empty where there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not (shutil.which("ip") and shutil.which("sysctl")):
        return "not installed: ip or sysctl (apt-get install iproute2 procps)"
    name = f"md{os.getpid()}t"
    allowed = subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode == 0
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return "" if allowed else "the kernel allows no network namespaces here"


@contextmanager
def two_hosts(folder: Path) -> Iterator[tuple[Host, Host]]:
    """Make the hosts (10.0.0.1 and 10.0.0.2) and connect them; their file of names goes to `folder`."""
    names = folder / "hosts"
    lines = [f"{prefix}10.0.0.{side} host{side}\n" for side in (1, 2) for prefix in ("", "::ffff:")]
    names.write_text(f"127.0.0.1 localhost {socket.gethostname()}\n{''.join(lines)}")
    prefix = f"md{os.getpid()}"
    first, second = (Host(f"{prefix}{side}", f"{prefix}{side}", f"10.0.0.{side}", str(names)) for side in (1, 2))
    hosts = (first, second)
    try:
        for host in hosts:
            _ip("netns", "add", host.namespace)
        ends = [["name", host.card, "netns", host.namespace] for host in hosts]
        _ip("link", "add", *ends[0], "type", "veth", "peer", *ends[1])
        for host in hosts:
            _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", host.card)
            _ip("-n", host.namespace, "link", "set", "lo", "up")
            host.plug("up")
            # torchrun on a host that is cut off waits for the kernel.
            subprocess.run(host.command(*shlex.split(command("^sysctl"))), check=True)
        yield hosts
    finally:
        for host in hosts:
            subprocess.run(["ip", "netns", "del", host.namespace], check=False)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
