"""p40: what the API server is asked, as it has written it down itself."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from replicasets import QUICK, PoolSet, provided
from waiting import until

from dask_tide.providers.kubernetes.provider import KubernetesProvider
from rig.plane import Options, Plane

pytestmark = [pytest.mark.xdist_group("plane"), pytest.mark.timeout(300, func_only=True)]

MANY = 1000
#: Ticks of a controller.
TICKS = 100
SCALE = "patch replicasets/scale"
#: Whether there are pods that nobody has seen: before the number is lowered.
LOOK = "get replicasets/scale"


@pytest.fixture(scope="module")
def audited() -> Iterator[Plane]:
    """A plane that writes down who asks for what."""
    options = Options(
        audit=True,
        node_grace_s=600,
        # The platform's own speed is not the point.
        controller_manager=("--kube-api-qps=500", "--kube-api-burst=500"),
    )
    with Plane.start(options=options) as plane:
        plane.add_kwok_nodes(5, prefix="audited")
        yield plane


class Asked:
    """What one user has asked for."""

    def __init__(self, plane: Plane, user: str) -> None:
        self._log = plane.folder / "logs" / "audit.log"
        self._user = user

    def requests(self) -> list[dict[str, Any]]:
        """All of them, each once."""
        found: dict[str, dict[str, Any]] = {}
        with self._log.open() as lines:
            for line in lines:
                if f'"{self._user}"' in line and line.endswith("\n"):
                    request = json.loads(line)
                    if request["user"]["username"] == self._user:
                        found.setdefault(request["auditID"], request)
        return list(found.values())

    def counts(self) -> Counter[str]:
        """By verb and resource: ``patch replicasets/scale``."""
        return Counter(
            " ".join(
                [one["verb"], "/".join(filter(None, map(one["objectRef"].get, ("resource", "subresource"))))]
            )
            for one in self.requests()
        )


async def counted(plane: Plane, namespace: str, number: int) -> Counter[str]:
    """What is asked from nothing to so many pods, while nothing happens, and back to nothing."""
    user = f"counted-{number}"
    kubeconfig = plane.user_kubeconfig(user, ["system:masters"], namespace)
    pool = PoolSet(plane.api(), namespace, cluster=f"c{number}").create()
    asked = Asked(plane, user)
    async with provided(plane, namespace, kubeconfig=kubeconfig, cluster=pool.cluster) as provider:
        await provider.observe()
        await provider.scale_up("cpu", number)
        await until(
            lambda: ready(provider) == number, f"{number} pods are ready", 120.0, lambda: ready(provider)
        )
        up = asked.counts()
        for _ in range(TICKS):
            assert len((await provider.observe()).units) == number
            await asyncio.sleep(0.01)
        assert not_watching(asked.counts() - up) == {}
        assert not await provider.scale_down(sorted(provider._known()))
        await until(lambda: not provider.scales["cpu"].active(), "all are to go", 120.0)
        assert not_watching(asked.counts() - up) == {LOOK: 1, SCALE: 1}
    return up


def not_watching(counts: Counter[str]) -> dict[str, int]:
    # The API server may end a watch of a client that was slow; it goes on where that ended.
    return {what: count for what, count in counts.items() if not what.startswith("watch")}


def ready(provider: KubernetesProvider) -> int:
    return sum(pod.ready for pod in provider._known().values())


async def test_p40_a_thousand_pods_are_as_many_calls_as_ten(audited: Plane) -> None:
    audited.kubectl("create", "namespace", "counted")
    few = await counted(audited, "counted", 10)
    many = await counted(audited, "counted", MANY)
    assert few[SCALE] == 1
    assert not_watching(few) == not_watching(many)
    # A busy machine's client is slow, and has hundreds of changes told by one watch even then.
    assert many["watch pods"] <= MANY / 50, many


async def test_p40_marks_of_many_pods_are_not_a_burst(audited: Plane) -> None:
    audited.kubectl("create", "namespace", "marked")
    kubeconfig = audited.user_kubeconfig("marking", ["system:masters"], "marked")
    PoolSet(audited.api(), "marked").create()
    asked = Asked(audited, "marking")
    async with provided(audited, "marked", kubeconfig=kubeconfig, patience=QUICK) as provider:
        await provider.observe()
        await provider.scale_up("cpu", 100)
        await until(lambda: ready(provider) == 100, "100 pods", 120.0)
        provider.mark(dict.fromkeys(provider._known(), False))
        await until(lambda: asked.counts()["patch pods"] >= 20, "some have been marked")
    times = [
        datetime.fromisoformat(one["requestReceivedTimestamp"]).timestamp()
        for one in asked.requests()
        if one["verb"] == "patch" and one["objectRef"]["resource"] == "pods"
    ]
    # Ten a second at the most, over all of them: on a busy machine one is late, and the next one in time.
    assert max(times) - min(times) > 0.1 * (len(times) - 2)
