"""Scale: from nothing to 2,000 pods on 250 machines and back, with pods and machines that are objects only.

A real scheduler process is told by hand (``tide_scale``) to have so many units, and then none; its policy
decides, its provider scales the ReplicaSet, the real Karpenter asks the simulated AWS for machines of
kwok. Eight pods fit on a machine. No worker ever registers: it is about the platform's side.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

from fleet import most_at_once, on_nodes

from benchmarks.kubernetes.clusters import namespace
from benchmarks.kubernetes.figures import Figures, note
from benchmarks.kubernetes.schedulers import Pool
from rig.aws.karpenter import node_pool
from rig.cloud import Cloud, Sky
from rig.folders import wait_for

from .settings import Settings

PER_MACHINE, CPU = 8, "480m"
NODE_POOL = "many"
GROW_S, SHRINK_S = 900.0, 900.0
BOOT_S = 30.0
#: Machines at one time, of those that are needed.
MACHINES_RATIO = 1.1


def run(settings: Settings) -> Iterator[Figures]:
    """Up and down once."""
    needed = math.ceil(settings.many / PER_MACHINE)
    with Cloud.start(sky=Sky(machines="kwok", boot_s=BOOT_S)) as cloud, namespace(cloud.kubectl) as name:
        cloud.kubectl.apply(node_pool(NODE_POOL, cpus=4 * settings.many))
        requests = {"requests": {"cpu": CPU, "memory": "64Mi"}}
        pool = Pool(cloud, name, memory="64Mi", resources=requests, **on_nodes(NODE_POOL))
        with pool.scheduler() as process:
            began_s = time.time()
            process.scale(settings.many)
            pool.ready(settings.many, GROW_S)
            up_s = time.time() - began_s
            calls = sum(process.calls().values())
            note(f"{settings.many} pods on {len(cloud.instances(NODE_POOL))} machines in {up_s:.0f} s")
            began_s = time.time()
            process.scale(0)
            pool.gone(SHRINK_S)
            pods_s = time.time() - began_s
            wait_for(lambda: not cloud.instances(NODE_POOL), "no machines are left", SHRINK_S)
            down_s = time.time() - began_s
            note(f"no pods after {pods_s:.0f} s, no machines after {down_s:.0f} s")
            bill = [each for each in cloud.bill() if each.pool == NODE_POOL]
    found = Figures(
        raw={
            "pods": settings.many,
            "needed": needed,
            "up_s": up_s,
            "calls": calls,
            "pods_down_s": pods_s,
            "down_s": down_s,
            "launched": len(bill),
            "most": most_at_once(bill),
            "machine_s": sum(each.paid_s for each in bill),
        }
    )
    what = f"{settings.many} pods"
    found.alone(f"0 to {what}: all of them ready after", up_s)
    found.alone(f"{what} to 0: no pods after", pods_s)
    found.alone(f"{what} to 0: no machines after", down_s)
    found.against("machines at one time; needed", most_at_once(bill), needed, MACHINES_RATIO, "")
    found.against("machines launched; needed", len(bill), needed, None, "")
    found.alone("machines left", sum(each.alive for each in bill), 0, unit="")
    yield found
