"""A release of the chart on a simulated AWS, and its machines: a NodePool of its own."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from distributed import Client, Event, Future
from known import known
from releases import Release
from waiting import wait_until

from rig.aws.account import PURPOSE
from rig.aws.instances import Instance
from rig.cloud import Cloud

#: Two of these fit on a machine of four CPUs, beside what the machine keeps for itself.
POOL: dict[str, Any] = {
    "threads": 2,
    "memory": "600Mi",
    "maximum": 6,
    "terminationGracePeriodSeconds": 60,
    "resources": {"requests": {"cpu": "1700m", "memory": "300Mi"}},
}
PER_MACHINE = 2
#: What a machine takes before it starts its kubelet; that and all else takes longer.
BOOT_S = 2.0
#: A machine that boots, a worker that starts, or a machine that goes, on a crowded machine of ours.
DEADLINE_S = 120.0
#: How soon somebody who asks is told why no machine comes.
TOLD_S = 60.0


def on_nodes(pool: str) -> dict[str, Any]:
    """What has pods run on the machines of a NodePool: values of the chart."""
    toleration = {"key": PURPOSE, "operator": "Equal", "value": pool, "effect": "NoSchedule"}
    return {"nodeSelector": {PURPOSE: pool}, "tolerations": [toleration]}


def values(node_pool: str, **pools: dict[str, Any]) -> dict[str, Any]:
    """Values of the chart: the scheduler on the machine that is always there, workers on a NodePool's.

    Parameters
    ----------
    node_pool
        The NodePool's name.
    pools
        What each pool of workers has that :data:`POOL` has not, or has otherwise; by default there is `cpu`.
    """
    return {
        "pools": {name: POOL | on_nodes(node_pool) | pool for name, pool in (pools or {"cpu": {}}).items()},
        "scheduler": {
            "nodeSelector": {PURPOSE: "system"},
            "resources": {"requests": {"cpu": "100m", "memory": "150Mi"}, "limits": {"memory": "1Gi"}},
        },
        "nodes": {"read": True},
    }


class Fleet(Release):
    """An installed release whose workers are on machines that a NodePool of its own makes.

    Parameters
    ----------
    cloud
        Where.
    namespace, name, folder
        As for :class:`releases.Release`.
    node_pool
        The NodePool's name.
    group
        The Auto Scaling group that its machines are of, where that makes them.
    """

    def __init__(
        self, cloud: Cloud, namespace: str, name: str, folder: Path, node_pool: str, group: str = ""
    ) -> None:
        super().__init__(cloud, namespace, name, folder)
        self.cloud = cloud
        self.node_pool = node_pool
        self.group = group

    def machines(self) -> dict[str, Instance]:
        """The machines that are paid for now, by their nodes' names."""
        return {each.node: each for each in self.cloud.instances(self.group or self.node_pool)}

    def bill(self) -> list[Instance]:
        """All machines that ever were, in the order of their launches."""
        paid = (each for each in self.cloud.bill() if each.pool == (self.group or self.node_pool))
        return sorted(paid, key=lambda each: each.launched_s)

    def where(self) -> dict[str, str]:
        """The node of each worker's pod that is not about to go; empty: it waits for one."""
        return {name: pod["spec"].get("nodeName", "") for name, pod in self.pods().items()}

    def waiting(self) -> list[str]:
        """The pods that wait for a machine."""
        return [name for name, node in self.where().items() if not node]

    def limit(self, cpus: int) -> None:
        """Give its NodePool another limit."""
        patch = json.dumps({"spec": {"limits": {"cpu": str(cpus)}}})
        self.cloud.kubectl("patch", "nodepool", self.node_pool, "--type=merge", f"--patch={patch}")

    def told(self, client: Client, words: str, deadline_s: float = TOLD_S) -> None:
        super().told(client, words, deadline_s)

    def at_work(self, client: Client) -> list[str]:
        """The pools of the workers that have a task, one for each."""
        busy = {address for address, keys in client.processing().items() if keys}
        infos = known(client)
        return sorted(str(info["name"]).split("-")[1] for address, info in infos.items() if address in busy)

    def all_at_work(self, client: Client, *pools: str) -> None:
        """Wait until workers of just these pools have tasks, one for each time that it is named."""
        wait_until(
            lambda: self.at_work(client) == sorted(pools), f"work on {pools}", DEADLINE_S, self.situation
        )

    def clear(self) -> None:
        """Wait until no worker is left, and end the machines, as Karpenter would half a minute later."""
        self.settled(0, "once nobody computes", DEADLINE_S)
        selector = f"--selector=karpenter.sh/nodepool={self.node_pool}"
        self.cloud.kubectl("delete", "nodeclaims", selector, "--wait=false")
        self.no_machines()

    def no_machines(self, what: str = "are left") -> None:
        """Wait until no machine is paid for, nor a volume, and none is known to Kubernetes."""
        path = f"/api/v1/nodes?labelSelector={quote(f'{PURPOSE}={self.node_pool}')}"
        api = self.cloud.api()

        def gone() -> bool:
            ours = {each.id for each in self.bill()} | {""}
            volumes = self.cloud.volumes().values()
            return not self.machines() and not api("GET", path)["items"] and ours.isdisjoint(volumes)

        wait_until(gone, f"no machines {what}", DEADLINE_S, self.situation)

    def situation(self) -> str:
        kubectl = self.cloud.kubectl
        logs = [self.cloud.folder / "logs" / f"{name}.log" for name in ("aws", self.cloud.sky.autoscaler)]
        ends = [line[:400] for log in logs if log.exists() for line in log.read_text().splitlines()[-15:]]
        seen = kubectl("get", "nodes" if self.group else "nodes,nodeclaims", "--output=wide")
        boot = [each.node for each in self.machines().values() if not each.joined]
        consoles = [f"{node}, which boots:\n{self.cloud.console(node)[-1000:]}" for node in boot]
        return "\n".join([seen, *map(str, self.bill()), *consoles, *ends, super().situation()])


def until_told(client: Client, count: int, **options: Any) -> list[Future[int]]:
    """Tasks that run until :func:`tell`; options as of ``client.map``."""

    def wait_for_it(number: int) -> int:
        from distributed import Event

        Event("told").wait()
        return number

    Event("told", client=client).clear()
    return list(client.map(wait_for_it, range(count), pure=False, **options))


def tell(client: Client, running: list[Future[int]]) -> None:
    """End these tasks, and see that each has its result."""
    Event("told", client=client).set()
    assert client.gather(running) == list(range(len(running)))


def most_at_once(bill: Iterable[Instance]) -> int:
    """How many machines were paid for at one time, at the most."""
    changes = [(each.launched_s, 1) for each in bill]
    changes += [(each.ended_s, -1) for each in bill if each.ended_s is not None]
    most = now = 0
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    return most
