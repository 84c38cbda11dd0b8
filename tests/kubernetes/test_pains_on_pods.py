"""Pains that tests/pains shows gone with processes, on pods: those where pods are another matter."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from distributed import Client, wait
from known import known
from releases import DEADLINE_S, POOL, Release, addresses, ask, computed_once, hold, nap, workers
from waiting import wait_until

pytestmark = [pytest.mark.xdist_group("nodes"), pytest.mark.timeout(300, func_only=True)]

MIB = 2**20
#: One pod in ten never registers. Which ones: a node gives its pods one address after the other.
FLAW = """
import os, sys
if int(os.environ["POD_IP"].rpartition(".")[2]) % 10 == 3:
    print("the licence server said no", file=sys.stderr, flush=True)
    os._exit(3)
"""
FLAWED: dict[str, Any] = {
    "nodeSelector": {"kubernetes.io/hostname": "n1"},
    "volumes": [{"name": "flaw", "configMap": {"name": "flaw"}}],
    "volumeMounts": [{"name": "flaw", "mountPath": "/flaw"}],
    "env": [{"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
    "extraArgs": ["--preload-nanny", "/flaw/flaw.py"],
    "daskResources": {"FLAWED": 1},
}
#: No two on one machine, of which there are three.
NARROW: dict[str, Any] = {
    "affinity": {
        "podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {
                    "topologyKey": "kubernetes.io/hostname",
                    "labelSelector": {"matchLabels": {"dask-tide/pool": "narrow"}},
                }
            ]
        }
    },
    "nodeSelector": {"machines": "three"},
    "daskResources": {"NARROW": 1},
}
MACHINES = ("n1", "n2", "n3")
#: Plain tasks could run anywhere, and where they do is Dask's affair.
WIDE: dict[str, Any] = {"daskResources": {"WIDE": 1}}
#: The test decides how full a worker is of results; what its process takes beside is left out.
FULL: dict[str, Any] = {
    "extraArgs": ["--memory-limit", "20 MiB"],
    "env": [
        {"name": f"DASK_DISTRIBUTED__WORKER__MEMORY__{limit}", "value": "False"}
        for limit in ("TARGET", "SPILL", "PAUSE", "TERMINATE")
    ],
    "daskResources": {"FULL": 1},
}
POOLS = {"cpu": {}, "flawed": FLAWED, "narrow": NARROW, "wide": WIDE, "full": FULL}
MAXIMUM = 12


@pytest.fixture(scope="module")
def release(install_once: Callable[..., Release]) -> Iterator[Release]:
    # Kept for longer than any pause in here: who wants them gone says so.
    tide = {"release": {"keep": "1m", "tail": "1m"}}
    pools = {name: POOL | pool | {"maximum": MAXIMUM} for name, pool in POOLS.items()}
    release = install_once({"pools": pools, "tide": tide}, ready=False)
    release.kubectl("create", "configmap", "flaw", f"--from-literal=flaw.py={FLAW}")
    release.kubectl("label", "node", "--overwrite", *MACHINES, "machines=three")
    release.ready()
    yield release
    release.kubectl("label", "node", *MACHINES, "machines-")


@pytest.fixture
def client(release: Release) -> Iterator[Client]:
    """A client; there are no workers before the test nor after it."""
    with release.client() as client:
        emptied(release, client)
        yield client
        emptied(release, client)


def emptied(release: Release, client: Client) -> None:
    for pool in POOLS:
        ask(client, "tide_scale", n=0, pool=pool)
    release.settled(0)
    for pool in POOLS:
        ask(client, "tide_adapt", minimum=0, maximum=MAXIMUM, pool=pool)


def scaled(release: Release, client: Client, pool: str, n: int) -> set[str]:
    """Set a pool's number by hand; the workers' names once there are so many, and no pod more."""
    ask(client, "tide_scale", n=n, pool=pool)

    def names() -> set[str]:
        return {name for name in workers(client) if name.startswith(f"r-{pool}-")}

    wait_until(
        lambda: len(names()) == n == len(release.pods(pool)),
        f"{n} workers of {pool}",
        DEADLINE_S + 10 * n,  # they start together
        release.situation,
    )
    return names()


def test_p01_what_waits_for_a_machine_goes_before_what_is_busy(release: Release, client: Client) -> None:
    before = len(release.log())
    held = hold(client, 12, resources={"NARROW": 1})
    wait_until(
        lambda: len(release.pods("narrow")) == 12 and sum(map(bool, client.processing().values())) == 3,
        "three are busy, nine wait",
        DEADLINE_S,
        release.situation,
    )
    busy = set(workers(client))
    ask(client, "tide_scale", n=4, pool="narrow")
    wait_until(lambda: len(release.pods("narrow")) == 4, "four pods", DEADLINE_S, release.situation)
    assert busy < set(release.pods("narrow"))
    assert set(workers(client)) == busy
    assert "Pool narrow: drained" not in release.log()[before:]
    held.tell()
    assert client.gather(held.futures) == list(range(12))
    assert held.begun() == [1] * 12


def test_p02_bursts_that_come_soon_again_move_nothing_between_them(release: Release, client: Client) -> None:
    """With pauses that the controller notices, but shorter than `keep`."""
    before = len(release.log())
    for _ in range(3):
        client.gather(client.map(nap, [0.4] * 12, pure=False))
        wait_until(
            lambda: "kept for the moment" in ask(client, "tide_explain", lines=0),
            "the pause is noticed",
            DEADLINE_S,
            release.situation,
        )
    wait_until(
        lambda: set(workers(client)) == set(release.pods("cpu")),
        "all have come",
        DEADLINE_S,
        release.situation,
    )
    log = release.log()[before:]
    assert re.search("Pool cpu: asked for", log)
    assert not re.search("Pool cpu: (gave back|drained)", log), log
    came = re.findall(r"Register worker addr.* name: (r-cpu-\w+)", log)
    assert set(came) == set(workers(client))


def test_p03_an_evicted_worker_hands_over_its_results(release: Release, client: Client) -> None:
    names = scaled(release, client, "cpu", 2)
    futures = client.map(nap, [0.1] * 10, pure=False)
    wait(futures, timeout=DEADLINE_S)
    by_worker = client.gather(futures)
    victim = max(names, key=by_worker.count)
    assert by_worker.count(victim) >= 5
    release.evict(victim)
    wait_until(
        lambda: len(workers(client)) == 2 and victim not in workers(client),
        "another has come",
        DEADLINE_S,
        release.situation,
    )
    assert client.gather(futures) == by_worker
    computed_once(client)


def test_p05_p06_each_pool_has_exactly_what_its_tasks_can_use_and_only_it_gives_back(
    release: Release, client: Client
) -> None:
    log = len(release.log())
    wide, narrow = hold(client, 4, resources={"WIDE": 1}), hold(client, 2, resources={"NARROW": 1})
    on_wide, on_narrow = wide.placed(release), narrow.placed(release)

    def uids(pool: str) -> dict[str, str]:
        return {name: pod["metadata"]["uid"] for name, pod in release.pods(pool).items()}

    kept = uids("narrow")
    assert {pool: set(uids(pool)) for pool in POOLS} == {
        "cpu": set(),
        "flawed": set(),
        "narrow": set(on_narrow),
        "wide": set(on_wide),
        "full": set(),
    }
    assert set(workers(client)) == {*on_narrow, *on_wide}
    asked = re.findall(r"Pool (\w+): asked for (\d+) more", release.log()[log:])
    assert {pool: sum(int(n) for p, n in asked if p == pool) for pool, _ in asked} == {"wide": 4, "narrow": 2}

    wide.tell(0, 1, 2)
    wait(wide.futures[:3], timeout=DEADLINE_S)
    scaled(release, client, "wide", 1)
    assert set(uids("wide")) == {name for name, number in on_wide.items() if number == 3}
    assert uids("narrow") == kept
    assert narrow.placed(release) == on_narrow, "they are at work as before"
    wide.tell()
    narrow.tell()
    assert client.gather([wide.futures, narrow.futures]) == [[0, 1, 2, 3], [0, 1]]
    assert wide.begun() + narrow.begun() == [1] * 6
    assert not re.search("Pool narrow: (gave back|drained)", release.log()[log:])


def test_p15_from_twelve_pods_with_data_to_one(release: Release, client: Client) -> None:
    scaled(release, client, "cpu", 12)

    def data(number: int) -> bytes:
        return bytes([number]) * (2 * 2**20)

    futures = [
        client.submit(data, 4 * place + number, workers=[address], pure=False)
        for place, address in enumerate(sorted(addresses(client).values()))
        for number in range(4)
    ]
    wait(futures, timeout=DEADLINE_S)
    assert {len(keys) for keys in client.has_what().values()} == {4}
    (last,) = scaled(release, client, "cpu", 1)
    assert len(client.has_what()[addresses(client)[last]]) == 48
    for number, value in enumerate(client.gather(futures)):
        assert value == bytes([number]) * (2 * MIB)
    computed_once(client)


def test_p15_pods_that_are_60_percent_full_go_as_far_as_the_others_have_room(
    release: Release, client: Client
) -> None:
    """Five, each with 12 of 20 MiB; those that stay are never to have more than 14 (70 %) on average."""
    first = scaled(release, client, "full", 5)
    futures = {
        number: client.submit(lambda n: bytes([n]) * MIB, number, workers=[address], pure=False)
        for place, address in enumerate(sorted(addresses(client).values()))
        for number in range(12 * place, 12 * (place + 1))
    }
    wait(list(futures.values()), timeout=DEADLINE_S)
    ask(client, "tide_scale", n=1, pool="full")
    # 60 MiB are too much for four of them. 36 fit into three, and 12 into one.
    for wanted, n in ((60, 5), (36, 3), (12, 1)):
        numbers = list(futures)
        for number in {*numbers} - {numbers[len(numbers) * place // wanted] for place in range(wanted)}:
            del futures[number]
        release.settled(n)
        said = "results that somebody still wants" if n > 1 else ""
        wait_until(
            lambda said=said: said in ask(client, "tide_explain", lines=0),
            "it says why they stay",
            DEADLINE_S,
            release.situation,
        )
        assert set(workers(client)) == set(release.pods("full")) <= first
        assert len(workers(client)) == n
        held = [worker["metrics"]["managed_bytes"] for worker in known(client).values()]
        assert max(held) < 20 * MIB
    assert {number: bytes([number]) * MIB for number in futures} == client.gather(futures)
    computed_once(client)


def test_p17_where_one_start_in_ten_fails_the_number_is_reached(release: Release, client: Client) -> None:
    scaled(release, client, "flawed", 10)
    failures = re.findall(r"Unit (r-flawed-\w+) failed", release.log())
    assert failures
    assert not set(failures) & set(release.pods("flawed")), "they have been replaced"
    assert "(Error, exit code 3)" in release.explain()


def test_p27_scattered_data_survives_every_planned_exit(release: Release, client: Client) -> None:
    scaled(release, client, "cpu", 3)
    data = {f"k{number}": {"value": number} for number in range(9)}
    futures = client.scatter(data)
    assert sum(map(bool, client.has_what().values())) == 3, "each has some"
    (last,) = scaled(release, client, "cpu", 1)
    # Nobody could make them again: the last one with a copy stays, whatever it is told.
    ask(client, "tide_scale", n=0, pool="cpu")
    wait_until(
        lambda: "results that somebody still wants" in ask(client, "tide_explain", lines=0),
        "it says so",
        DEADLINE_S,
        release.situation,
    )
    assert set(release.pods()) == {last}
    assert client.gather(futures) == data


def test_p43_a_client_outside_of_the_pods_network_needs_one_port(release: Release, client: Client) -> None:
    """Pods' addresses lead nowhere from here: what is of workers comes by the scheduler."""
    future = client.submit(lambda data: data[::-1], client.scatter(b"there and back", timeout=DEADLINE_S))
    assert future.result(timeout=DEADLINE_S) == b"kcab dna ereht"
    (address,) = addresses(client).values()
    assert client.run(lambda: "here") == {address: "here"}
    assert client.get_worker_logs()[address]
