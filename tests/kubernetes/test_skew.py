"""p44: Dask of other versions, with nothing in the cluster that would have to be upgraded with it.

The other Dask is the oldest one that is supported. No image has it: when Python starts, it is put before the
image's own, out of a ConfigMap.
"""

from __future__ import annotations

import subprocess
import tarfile
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from distributed import KilledWorker
from releases import DEADLINE_S, POOL, VALUES, Release, nap

from rig.folders import CHECKOUT
from rig.nodes import Cluster

pytestmark = [pytest.mark.xdist_group("nodes"), pytest.mark.timeout(300, func_only=True)]

PYTHON = CHECKOUT / ".venv-oldest" / "bin" / "python"
#: What no worker needs and a ConfigMap has no room for.
LEFT_OUT = ("tests", "__pycache__", "dataframe", "static")
_AT_START = """
    import os, sys, tarfile

    if not os.path.exists("/tmp/oldest"):
        with tarfile.open("/oldest/dask.tar.xz") as tar:
            tar.extractall("/tmp/partial")
        os.replace("/tmp/partial", "/tmp/oldest")
    sys.path.insert(0, "/tmp/oldest")
    sys.dont_write_bytecode = False
"""
#: For a pool or the scheduler: run it with the oldest Dask.
OLDEST: dict[str, Any] = {
    "volumes": [{"name": "oldest", "configMap": {"name": "oldest"}}],
    "volumeMounts": [{"name": "oldest", "mountPath": "/oldest"}],
    "env": [{"name": "PYTHONPATH", "value": "/oldest"}],
}
#: When idle workers go.
SOON = {"release": {"keep": "1s", "tail": "1s"}}
_CLIENT = """
    import sys
    import distributed

    def dask_of_worker(_):
        return distributed.__version__

    address, folder = sys.argv[1:]
    security = distributed.Security(
        tls_ca_file=folder + "/ca.crt", tls_client_cert=folder + "/tls.crt",
        tls_client_key=folder + "/tls.key", require_encryption=True,
    )
    with distributed.Client(address, security=security, timeout=30) as client:
        print("connected", distributed.__version__, flush=True)
        print("computed", *client.gather(client.map(dask_of_worker, range(6))), flush=True)
"""


@pytest.fixture(scope="module")
def oldest() -> str:
    """The version of the oldest Dask, which ``.venv-oldest`` has."""
    subprocess.run(
        ["make", "--directory", str(CHECKOUT), ".venv-oldest/stamp"],
        check=True,
        timeout=280,
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    command = [str(PYTHON), "-c", "import distributed; print(distributed.__version__)"]
    return subprocess.run(command, check=True, timeout=60, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def release(
    install_once: Callable[..., Release], oldest: str, tmp_path_factory: pytest.TempPathFactory
) -> Release:
    """Of today's Dask, but for one pool; what is marked ``OLD`` runs there."""
    # One worker's death is enough to tell a task's end.
    env = [{"name": "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES", "value": "0"}]
    pools = {"cpu": POOL, "old": POOL | OLDEST | {"daskResources": {"OLD": 1}}}
    values = {"pools": pools, "scheduler": VALUES["scheduler"] | {"env": env}, "tide": SOON}
    release = install_once(values, ready=False)
    folder = tmp_path_factory.mktemp("oldest")
    (folder / "sitecustomize.py").write_text(textwrap.dedent(_AT_START))
    (site,) = (PYTHON.parents[1] / "lib").glob("python*/site-packages")
    with tarfile.open(folder / "dask.tar.xz", "w:xz") as tar:
        for name in (
            "dask",
            "distributed",
            *(f"{each}-{oldest}.dist-info" for each in ("dask", "distributed")),
        ):
            tar.add(site / name, name, filter=lambda file: None if Path(file.name).name in LEFT_OUT else file)
    release.kubectl("create", "configmap", "oldest", f"--from-file={folder}")
    release.ready()
    return release


def old_client(release: Release) -> subprocess.CompletedProcess[str]:
    """Compute something with a client of the oldest Dask."""
    script = release.folder / "client.py"
    script.write_text(textwrap.dedent(_CLIENT))
    release.security()  # writes the certificates
    port = release.forward(f"service/{release.name}-scheduler", 8786)
    command = [str(PYTHON), str(script), f"tls://127.0.0.1:{port}", str(release.folder)]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )


def test_p44_the_same_chart_runs_an_old_dask(
    install_once: Callable[..., Release], release: Release, oldest: str
) -> None:
    """Scheduler, workers and client are old; nothing else is there that could be too new."""
    values = {"pools": {"cpu": POOL | OLDEST}, "scheduler": VALUES["scheduler"] | OLDEST, "tide": SOON}
    old = install_once(values, name="old")
    done = old_client(old)
    assert f"connected {oldest}" in done.stdout, done.stderr
    assert f"computed{f' {oldest}' * 6}" in done.stdout, done.stderr + old.situation()
    old.settled(0)


def test_p44_a_client_too_old_for_its_scheduler_is_told_so_and_disturbs_nobody(
    release: Release, oldest: str
) -> None:
    """Dask's own answer: a warning at once, and its tasks are cancelled."""
    scheduler = release.scheduler_pod()
    with release.client() as client:
        before = client.submit(nap, 0.1, pure=False)
        done = old_client(release)
        assert f"connected {oldest}" in done.stdout
        assert "computed" not in done.stdout
        assert "VersionMismatchWarning: Mismatched versions found" in done.stderr
        assert "FutureCancelledError" in done.stderr
        assert before.result(timeout=DEADLINE_S)
        assert client.submit(nap, 0.1, pure=False).result(timeout=DEADLINE_S)
    assert release.scheduler_pod() == scheduler
    release.settled(0)


def test_p44_workers_too_old_for_their_scheduler_are_no_end_of_the_others(
    release: Release, oldest: str
) -> None:
    """They end at their first task, and why is told; the controller asks for others, ever more rarely."""
    with release.client() as client:
        future = client.submit(nap, 0.1, resources={"OLD": 1}, pure=False)
        with pytest.raises(KilledWorker):
            future.result(timeout=DEADLINE_S)
        names = client.gather(client.map(nap, [0.1] * 6, pure=False))
        assert {name.startswith("r-cpu-") for name in names} == {True}
        release.told(client, "Pool old: gave back")
        cause = f"has distributed {oldest} and the scheduler "
        release.told(client, cause)
        assert release.log().count(cause) == 1, "however many there were"
        del future
        release.settled(0)


def test_p44_there_is_no_resource_definition_and_no_operator(release: Release, nodes: Cluster) -> None:
    definitions = nodes.kubectl.json("get", "crd")["items"]
    assert not [one for one in definitions if "dask" in one["spec"]["group"]]
    workloads = release.objects("deployments,statefulsets,daemonsets,jobs,cronjobs")
    assert [one["metadata"]["name"] for one in workloads] == ["r-scheduler"]
