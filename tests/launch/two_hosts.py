"""Two 'hosts' on this machine: network namespaces with an address each and one wire between them, for one `with`.

Needs root and iproute2. The namespaces and the wire are gone at the end, whatever happened.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Host:
    """A namespace, and its end of the wire."""

    namespace: str
    card: str
    address: str

    def command(self, *words: str) -> list[str]:
        """`words`, to be run on this host."""
        return ["ip", "netns", "exec", self.namespace, *words]

    def plug(self, state: str) -> None:
        """Pull the wire out (`down`) or put it back (`up`)."""
        _ip("-n", self.namespace, "link", "set", self.card, state)


def missing() -> str:
    """Why there can be no two hosts here; empty where there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not shutil.which("ip"):
        return "not installed: ip (apt-get install iproute2)"
    name = f"md{os.getpid()}t"
    allowed = subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode == 0
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return "" if allowed else "the kernel allows no network namespaces here"


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Make the hosts and connect them."""
    hosts = tuple(Host(f"md{os.getpid()}{side}", f"md{os.getpid()}{side}", f"10.77.0.{side}") for side in (1, 2))
    try:
        for host in hosts:
            _ip("netns", "add", host.namespace)
        ends = [["name", host.card, "netns", host.namespace] for host in hosts]
        _ip("link", "add", *ends[0], "type", "veth", "peer", *ends[1])
        for host in hosts:
            _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", host.card)
            _ip("-n", host.namespace, "link", "set", "lo", "up")
            host.plug("up")
        yield hosts  # type: ignore[misc]
    finally:
        for host in hosts:
            subprocess.run(["ip", "netns", "del", host.namespace], check=False)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
