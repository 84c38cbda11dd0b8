"""``make demo-kubernetes``: a cluster, the image, the chart and the demo, by one command; nothing is left."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from dask_tide.demo.job import STUDIED
from dask_tide.demo.place import Place
from dask_tide.demo.run import main as play
from rig import binaries, image_build, packages
from rig.arguments import at_least
from rig.folders import CHECKOUT, RigError
from rig.nodes import Cluster

NAMESPACE, RELEASE = "dask", "tide"
_REPOSITORY, _, _TAG = image_build.TAG.rpartition(":")
HELM_S = 120.0
#: So small that the smallest machine has room for all, on nodes that each claim to be the whole of it.
VALUES: dict[str, Any] = {
    "image": {"repository": _REPOSITORY, "tag": _TAG, "pullPolicy": "Never"},
    "scheduler": {"resources": {"requests": {"cpu": "100m", "memory": "200Mi"}}},
    "poolDefaults": {
        "memory": "512Mi",
        "resources": {"requests": {"cpu": "100m", "memory": "200Mi"}},
    },
}


def install(cluster: Cluster, values: dict[str, Any]) -> Place:
    """``helm install`` into a namespace that lets in only what is harmless.

    Parameters
    ----------
    cluster
        Where.
    values
        The chart's.
    """
    cluster.kubectl("create", "namespace", NAMESPACE)
    cluster.kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
    file = cluster.folder / "values.json"
    file.write_text(json.dumps(values))
    chart = CHECKOUT / "charts" / "dask-tide"
    command = ["helm", "install", RELEASE, str(chart), "--namespace", NAMESPACE, "--values", str(file)]
    print(f"$ {' '.join(command[:3])} {chart.relative_to(CHECKOUT)} {' '.join(command[4:])}", flush=True)
    # Nothing of it in the user's own helm.
    homes = {f"HELM_{kind}_HOME": str(cluster.folder / "helm") for kind in ("CACHE", "CONFIG", "DATA")}
    done = subprocess.run(
        [str(binaries.ensure("helm")["helm"]), *command[1:]],
        env=os.environ | cluster.kubectl.environment() | homes,
        capture_output=True,
        text=True,
        timeout=HELM_S,
        check=False,
    )
    if done.returncode != 0:
        raise RigError(f"helm: {done.stderr.strip()}")
    print(done.stdout, flush=True)
    return Place(namespace=NAMESPACE, kubeconfig=str(cluster.kubeconfig), release=RELEASE)


def image(command: str) -> Path:
    """This project's image, built if need be, or why that cannot be.

    Parameters
    ----------
    command
        What the user has typed.
    """
    if reason := packages.impossible():
        raise RigError(
            f"{reason}. Try: sudo {command}. Or, with a cluster of your own and this project's "
            "image in it: .venv/bin/dask tide demo --provider kubernetes --image REFERENCE"
        )
    packages.install()
    print("The programs of Kubernetes and this project's image: minutes if they are new ...", flush=True)
    return image_build.build()


def _demo(arguments: argparse.Namespace) -> int:
    tar = image("make demo-kubernetes")
    with Cluster.start(tars=[tar]) as cluster:
        try:
            cluster.nodes_up(*(f"n{number + 1}" for number in range(arguments.nodes)))
            print(cluster.kubectl("get", "nodes"))
            place = install(cluster, VALUES | {"pools": {"default": {"maximum": arguments.maximum}}})
            code = play("kubernetes", size=arguments.size, out=arguments.out, place=place)
            print(f"\n$ kubectl --namespace {NAMESPACE} get deployments,replicasets,pods")
            print(cluster.kubectl("--namespace", NAMESPACE, "get", "deployments,replicasets,pods"))
        finally:
            print("Ending the cluster ...", flush=True)
    print("Nothing is left of it.")
    return code


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def begin(demo: Callable[[argparse.Namespace], int], parser: argparse.ArgumentParser) -> NoReturn:
    """Run a demo as a program: what it refuses is one sentence, and nothing is left however it ends.

    Parameters
    ----------
    demo
        What to run with the arguments; it returns the exit code.
    parser
        Of these.
    """
    arguments = parser.parse_args()
    for name in (signal.SIGTERM, signal.SIGHUP):  # a closed window is an end like any other
        signal.signal(name, _interrupt)
    try:
        raise SystemExit(demo(arguments))
    except RigError as error:
        print(f"rig: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        raise SystemExit(130) from None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m rig.demo", description="The demo on a real Kubernetes.")
    parser.add_argument("--nodes", type=at_least(1), default=3, help="how many (%(default)s)")
    parser.add_argument("--maximum", type=at_least(2), default=4, help="workers at the most (%(default)s)")
    parser.add_argument("--size", choices=STUDIED, default="full", help="of the job (%(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("demo-kubernetes"), help="the pictures' name without its ending"
    )
    begin(_demo, parser)


if __name__ == "__main__":
    main()
