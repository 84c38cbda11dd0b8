"""The network of a cluster with nodes: a namespace with a switch and router, and a card for each node.

Addresses are the same in each cluster; no two clusters' networks, nor the machine's own, know of each other.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rig.folders import RigError
from rig.keeper import Kept
from rig.servers import SERVICE_RANGE

ROUTER = "10.66.0.1"
POD_RANGE = "10.244.0.0/16"
#: The process that holds the network.
HOLDER = "network"
#: The switch's address is its own. Else it is the lowest of its cards', which come and go, and nodes would go
#: on sending to the former one: that takes TCP a minute or two.
_SWITCH = f"""set -eu
ip link set lo up
ip link add br0 address 0a:66:00:00:00:01 type bridge
ip addr add {ROUTER}/24 dev br0
ip link set br0 up
cd /proc/sys/net
echo 1 > ipv4/ip_forward
for of in all default br0; do echo 0 > ipv4/conf/$of/send_redirects; done
# br0 is a plain switch: no address translation on what it passes on.
if [ -e bridge/bridge-nf-call-iptables ]; then echo 0 > bridge/bridge-nf-call-iptables; fi
"""


def node_address(index: int) -> str:
    """A node's address."""
    return f"10.66.0.{10 + index}"


def pod_range(index: int) -> str:
    """The addresses of a node's pods."""
    return f"10.244.{index}.0/24"


class Network:
    """A cluster's network.

    Parameters
    ----------
    enter
        The command's first words that bring a process into it.
    """

    def __init__(self, enter: Sequence[str]) -> None:
        self.enter = tuple(enter)

    @classmethod
    def make(cls, kept: Kept) -> Network:
        """Make a network that ends with the cluster."""
        pid = kept.start(HOLDER, ["unshare", "--net", "--", "sleep", "infinity"])
        mine = Path("/proc/self/ns/net").readlink()

        def moved() -> bool:
            try:
                return Path(f"/proc/{pid}/ns/net").readlink() != mine
            except OSError:
                return False

        kept.wait_for(moved, "the cluster's network", 30)
        network = cls(["nsenter", f"--net=/proc/{pid}/ns/net", "--"])
        network._done(["bash", "-c", f"PATH=$PATH:/usr/sbin:/sbin\n{_SWITCH}"])
        return network

    def run(self, command: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command in it; ``options`` as of :func:`subprocess.run`."""
        return run([*self.enter, *map(str, command)], **options)

    def plug_in(self, index: int, pid: int) -> None:
        """Give a node its card, and the way to its pods.

        Parameters
        ----------
        index
            The node's number.
        pid
            A process on it.
        """
        # Both ends are made where they belong: the machine's own network never sees them.
        self._ip(
            f"link add v-{index} type veth peer name eth0 netns {pid}",
            f"link set v-{index} master br0 up",
            f"route replace {pod_range(index)} via {node_address(index)}",
        )
        self.route_services(index)

    def route_services(self, index: int) -> None:
        """Reach Services from the switch by way of this node; any node knows the way."""
        self._ip(f"route replace {SERVICE_RANGE} via {node_address(index)}")

    def pull_out(self, index: int) -> None:
        """Remove a node's card and routes, as far as they are there."""
        # The card would be there for a moment after its node: the end of a network namespace is asynchronous.
        self._ip(f"link delete v-{index}", f"route delete {pod_range(index)}", forced=True)

    def switch(self, index: int, state: str) -> None:
        """Turn a node's card ``"up"`` or ``"down"``."""
        self._ip(f"link set v-{index} {state}")

    def _ip(self, *lines: str, forced: bool = False) -> None:
        command = ["ip", *(["-force"] if forced else []), "-batch", "-"]
        self._done(command, check=not forced, stdin=None, input="\n".join(lines) + "\n")

    def _done(self, command: Sequence[str], **options: Any) -> None:
        try:
            self.run(command, **options)
        except subprocess.CalledProcessError as error:
            raise RigError(f"the cluster's network: {error.stderr}") from error


def run(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end: within a minute, its output kept, raising if it fails; or as told."""
    given = {"capture_output": True, "text": True, "timeout": 60, "check": True, "stdin": subprocess.DEVNULL}
    done: subprocess.CompletedProcess[str] = subprocess.run(command, **(given | options))  # noqa: PLW1510 - above
    return done
