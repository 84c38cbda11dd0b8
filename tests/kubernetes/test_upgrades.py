"""Upgrades of a release that is at work; what Helm does by itself: see test_chart.py."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, Security, wait
from distributed.client import FutureCancelledError
from releases import DEADLINE_S, POOL, Release, ask, computed_once, hold, nap, workers
from waiting import wait_until

from dask_tide.providers.kubernetes.manifests import make_certificates

pytestmark = [pytest.mark.xdist_group("nodes"), pytest.mark.timeout(400, func_only=True)]

TEMPLATE = "dask-tide/template"
#: Where a release's pods have its certificates, and all that is there.
TLS, FILES = "/etc/dask-tide-tls", ["ca.crt", "tls.crt", "tls.key"]
#: Idle workers go soon, unless a test says otherwise.
SOON = {"release": {"keep": "1s", "tail": "1s"}}
FIRST: dict[str, Any] = {"pools": {"cpu": POOL}, "tide": SOON}
SECOND: dict[str, Any] = {
    "pools": {"cpu": POOL | {"env": [{"name": "LICENCE", "value": "renewed"}]}},
    "tide": SOON,
}


@pytest.fixture(scope="module")
def release(install_once: Callable[..., Release]) -> Release:
    release = install_once(FIRST)
    release.settled(0)
    return release


def template(release: Release) -> str:
    """What tells today's pods from older ones."""
    (replicaset,) = release.objects("replicasets", "app.kubernetes.io/component=worker")
    return str(replicaset["spec"]["template"]["metadata"]["labels"][TEMPLATE])


def made_from(release: Release) -> dict[str, str]:
    """From which template each pod was made."""
    return {name: pod["metadata"]["labels"][TEMPLATE] for name, pod in release.pods().items()}


def at_work(release: Release, client: Client) -> list[str]:
    """Workers that take tasks; there is always one."""
    found = [name for name, worker in workers(client).items() if worker["status"] == "running"]
    assert found, release.situation()
    return found


def test_an_upgrade_of_the_pods_disturbs_no_task_and_neither_does_a_rollback_nor_force(
    release: Release,
) -> None:
    scheduler, first = release.scheduler_pod(), template(release)
    with release.client() as client:
        ask(client, "tide_adapt", minimum=2)
        wait_until(lambda: len(workers(client)) == 2, "two workers", DEADLINE_S, release.situation)
        results = client.map(nap, [0.1] * 8, pure=False)
        wait(results, timeout=DEADLINE_S)
        long = hold(client, 1)
        (busy,) = long.placed(release)
        release.settled(2, "and none that came for the results")

        release.apply("upgrade", SECOND)
        second = template(release)
        assert second != first
        skew = f"made from template {first}, which is {second} now"
        release.told(client, skew)
        assert made_from(release) == dict.fromkeys(workers(client), first), "nobody has gone for it"
        ask(client, "tide_adapt", minimum=0)
        wait_until(
            lambda: list(workers(client)) == [busy], "the idle one goes", DEADLINE_S, release.situation
        )
        more = hold(client, 2)
        newcomers = dict.fromkeys(more.placed(release), second)
        assert len(newcomers) == 2
        assert made_from(release) == {busy: first} | newcomers
        long.tell()
        assert client.gather(long.futures) == [0]
        wait_until(
            lambda: busy not in release.all_pods(), "idle, it goes as well", DEADLINE_S, release.situation
        )
        assert made_from(release) == newcomers

        release.helm("rollback", release.name, "1")
        assert template(release) == first
        release.told(client, f"template {second}, which is {first} now")
        assert made_from(release) == newcomers, "they have work"
        ask(client, "tide_adapt", minimum=2)
        # `--force` sets the number of pods to 1, so that one of them is told to go.
        release.apply("upgrade", SECOND, "--force")
        gone = wait_until(
            lambda: len(release.pods()) == 2 and set(newcomers) - set(release.pods()),
            "another one comes",
            DEADLINE_S,
            release.situation,
        )
        assert gone < set(release.all_pods()), "the one that goes has its task"
        more.tell()
        assert client.gather(more.futures) == [0, 1]
        assert long.begun() + more.begun() == [1] * 3, "nothing was started twice"
        assert len(client.gather(results)) == 8
        computed_once(client)
        assert set(made_from(release).values()) == {second}

        # Two that are always there, with no task and no result.
        long.forget()
        more.forget()
        del results
        release.settled(2)
        wait_until(lambda: len(workers(client)) == 2, "two workers", DEADLINE_S, release.situation)
        release.apply("upgrade", FIRST)
        wait_until(
            lambda: (
                made_from(release) == dict.fromkeys(at_work(release, client), first)
                and len(release.all_pods()) == 2
            ),
            "one after the other is replaced",
            DEADLINE_S,
            release.situation,
        )
        ask(client, "tide_adapt", minimum=0)
        release.settled(0)
        assert ask(client, "tide_status")["errors"] == 0
    assert release.scheduler_pod() == scheduler


def put_certificates(release: Release) -> None:
    """Certificates that we made, as a company's own authority would, in a Secret that has more of theirs."""
    made = make_certificates(release.name, release.namespace)
    files = {"ca.crt": made.ca, "tls.crt": made.certificate, "tls.key": made.key, "ca.key": "theirs"}
    metadata = {"name": f"{release.name}-tls", "namespace": release.namespace}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": files}
    release.cluster.kubectl.apply(secret)


def test_certificates_are_rotated_under_workers_that_hold_results(release: Release, tmp_path: Path) -> None:
    rotate(release, tmp_path, SECOND)


def test_ones_own_certificates_are_rotated_by_another_secret(
    install: Callable[..., Release], tmp_path: Path
) -> None:
    own = {"security": {"tls": {"source": "secret", "secretName": "own-tls"}}}
    release = install(FIRST | own, name="own", ready=False)
    put_certificates(release)
    release.ready()
    rotate(release, tmp_path, SECOND | own, change=put_certificates)


def rotate(
    release: Release,
    tmp_path: Path,
    values: dict[str, Any],
    change: Callable[[Release], None] = lambda release: None,
) -> None:
    """The scheduler starts anew, so work in hand is lost, as the chart's page says; nothing else is."""

    def certificates(folder: Path) -> Security:
        return Security(
            tls_ca_file=str(folder / "ca.crt"),
            tls_client_cert=str(folder / "tls.crt"),
            tls_client_key=str(folder / "tls.key"),
            require_encryption=True,
        )

    scheduler = release.scheduler_pod()
    with release.client() as client:
        ask(client, "tide_scale", n=2)
        wait_until(lambda: len(workers(client)) == 2, "two workers", DEADLINE_S, release.situation)
        held = [client.run_on_scheduler(os.listdir, TLS), *client.run(os.listdir, TLS).values()]
        assert [sorted(name for name in files if not name.startswith("..")) for files in held] == [FILES] * 3
        results = client.map(nap, [0.1] * 8, pure=False)
        wait(results, timeout=DEADLINE_S)
        running = hold(client, 2)
        before = set(running.placed(release))
        older = template(release)
        old = Path(shutil.copytree(release.folder, tmp_path / "old"))
        change(release)
        release.apply("upgrade", values, "--set", "security.tls.rotate=once")
        with pytest.raises(FutureCancelledError, match="scheduler-connection-lost"):
            running.futures[0].result(timeout=DEADLINE_S)
    release.close()
    release.ready()
    assert scheduler not in release.schedulers()
    newer = template(release)
    assert newer != older

    port = release.forward(f"service/{release.name}-scheduler", 8786)
    with pytest.raises(OSError, match=r"Timed out trying to connect|certificate does not match"):
        Client(f"tls://127.0.0.1:{port}", security=certificates(old), timeout=5)
    with release.client() as client:
        futures = client.map(nap, [0.2] * 8, pure=False)
        assert len(client.gather(futures)) == 8
        wait_until(
            lambda: before.isdisjoint(release.all_pods()), "they are replaced", DEADLINE_S, release.situation
        )
        assert set(made_from(release).values()) <= {newer}
        wait_until(
            lambda: set(workers(client)) <= set(release.pods()),
            "each worker has its pod",
            DEADLINE_S,
            release.situation,
        )
        del futures
        release.settled(0)
