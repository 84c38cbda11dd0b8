"""Size of a scheduler process that watches 1,000 pods: memory and CPU, while they come and afterwards.

The peer is a stock ``dask scheduler`` that has nothing to do.
"""

from __future__ import annotations

import functools
import time
from typing import Any

from .clusters import Clusters, namespace
from .figures import Figures, Sizes
from .schedulers import Pool, SchedulerProcess, scheduler_process

SETTLE_S = 3.0


def _idle(process: SchedulerProcess, watch_s: float) -> dict[str, float]:
    time.sleep(SETTLE_S)
    began_s, used_s = time.perf_counter(), process.cpu_s()
    time.sleep(watch_s)
    share = (process.cpu_s() - used_s) / (time.perf_counter() - began_s)
    return {"cores": share, "MiB": process.rss_mib()}


@functools.cache
def grown(clusters: Clusters, sizes: Sizes) -> dict[str, Any]:
    """Grow to many pods and watch; the part `plane` takes its figures of many pods from here, too."""
    from .plane import grow

    plane = clusters.plane
    with namespace(plane.kubectl) as name:
        pool = Pool(plane, name)
        with pool.scheduler() as process:
            before = _idle(process, sizes.idle_s / 2)
            used_s = process.cpu_s()
            growth = grow(pool, process, sizes.many)
            growth["cpu_s"] = process.cpu_s() - used_s
            after = _idle(process, sizes.idle_s)
        # Later, the namespace is gone sooner.
        pool.empty()
    return {"growth": growth, "no pods": before, "all pods": after}


def run(clusters: Clusters, sizes: Sizes) -> Figures:
    """Ours, then the stock one."""
    ours = grown(clusters, sizes)
    with scheduler_process({}) as process:
        stock = _idle(process, sizes.idle_s / 2)
    found = Figures(raw={"pods": sizes.many, "dask-tide": ours, "stock": stock})
    found.against("memory without pods; stock scheduler", ours["no pods"]["MiB"], stock["MiB"], None, "MiB")
    found.against(
        f"memory with {sizes.many} pods; stock scheduler", ours["all pods"]["MiB"], stock["MiB"], None, "MiB"
    )
    found.alone("CPU, idle without pods", ours["no pods"]["cores"], unit="cores")
    found.alone(f"CPU, idle with {sizes.many} pods", ours["all pods"]["cores"], unit="cores")
    found.alone("CPU, idle stock scheduler", stock["cores"], unit="cores")
    found.alone(f"CPU time while {sizes.many} pods come", ours["growth"]["cpu_s"])
    return found
