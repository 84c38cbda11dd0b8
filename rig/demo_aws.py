"""``make demo-aws``: a simulated AWS, Karpenter, the image, the chart and the demo; machines ebb, too."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dask_tide.demo.job import STUDIED
from dask_tide.demo.recorder import Fleet
from dask_tide.demo.run import main as play
from rig import demo
from rig.arguments import at_least, seconds
from rig.aws.account import PURPOSE
from rig.aws.cluster_autoscaler import GROUP
from rig.cloud import AUTOSCALERS, Cloud, Sky, missing
from rig.folders import RigError

#: Two workers fit on a machine of four CPUs, beside what that keeps for itself.
PER_MACHINE = 2
POOL: dict[str, Any] = {
    "memory": "1Gi",
    "resources": {"requests": {"cpu": "1700m", "memory": "300Mi"}},
    "nodeSelector": {PURPOSE: "workers"},
    "tolerations": [{"key": PURPOSE, "operator": "Equal", "value": "workers", "effect": "NoSchedule"}],
}
SCHEDULER = demo.VALUES["scheduler"] | {"nodeSelector": {PURPOSE: "system"}}


def machines(cloud: Cloud) -> Callable[[], Fleet]:
    """Count the machines for workers."""

    def count() -> Fleet:
        there = [each.joined for each in cloud.instances() if each.pool in ("workers", GROUP)]
        return Fleet(booting=there.count(False), ready=there.count(True))

    return count


def show(cloud: Cloud, *, maximum: int, **options: Any) -> int:
    """Install the chart and play the story; return the exit code.

    Parameters
    ----------
    cloud
        Where.
    maximum
        Workers at the most.
    options
        More for :func:`dask_tide.demo.run.main`.
    """
    pools = {"default": POOL | {"maximum": maximum}}
    values = demo.VALUES | {"scheduler": SCHEDULER, "nodes": {"read": True}, "pools": pools}
    # The pool's first pod, which Kubernetes starts, would boot a machine, and the story wait for its end.
    with cloud.autoscaler_away():
        place = demo.install(cloud, values)
        scaled = ("scale", f"replicaset/{demo.RELEASE}-default", "--replicas=0")
        cloud.kubectl("--namespace", demo.NAMESPACE, *scaled)
    return play("kubernetes", place=place, fleet=machines(cloud), **options)


def _demo(arguments: argparse.Namespace) -> int:
    if reason := missing(arguments.autoscaler):
        raise RigError(reason)
    tar = demo.image("make demo-aws")
    print("A simulated AWS, and a control plane on it ...", flush=True)
    sky = Sky(autoscaler=arguments.autoscaler, boot_s=arguments.boot_s)
    with Cloud.start(sky=sky, tars=[tar]) as cloud:
        try:
            print(cloud.kubectl("get", "nodes"))
            code = show(cloud, maximum=arguments.maximum, size=arguments.size, out=arguments.out)
            print("\n$ python -m rig instances --all")
            for each in cloud.bill():
                print(f"{each.id}  {each.kind:10}  {each.market:9}  {each.pool:8}  {each.paid_s:6.0f} s")
        finally:
            print("Ending the cloud ...", flush=True)
    print("Nothing is left of it.")
    return code


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m rig.demo_aws", description="The demo on a simulated AWS."
    )
    parser.add_argument("--autoscaler", choices=AUTOSCALERS, default="karpenter", help="(%(default)s)")
    parser.add_argument(
        "--boot-s", type=seconds, default=8.0, help="how long machines boot, on average (%(default)s)"
    )
    parser.add_argument(
        "--maximum", type=at_least(PER_MACHINE + 1), default=6, help="workers at the most (%(default)s)"
    )
    parser.add_argument("--size", choices=STUDIED, default="long", help="of the job (%(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("demo-aws"), help="the pictures' name without ending"
    )
    demo.begin(_demo, parser)


if __name__ == "__main__":
    main()
