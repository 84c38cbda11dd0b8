"""Scale: hundreds of pods and their machines, which are objects only; `make bench-aws` does it with 2,000."""

from __future__ import annotations

import math
from typing import Any

import pytest
from fleet import most_at_once, on_nodes
from leftovers import Traces, machine_state
from waiting import wait_until

from benchmarks.kubernetes.clusters import namespace
from benchmarks.kubernetes.schedulers import REPLICASET, Pool, SchedulerProcess
from rig.aws.karpenter import node_pool
from rig.cloud import Cloud, Sky

pytestmark = [pytest.mark.xdist_group("nodes"), pytest.mark.timeout(400)]

PODS, PER_MACHINE = 400, 8
NEEDED = math.ceil(PODS / PER_MACHINE)
#: Machines at one time, of those that are needed.
MACHINES_RATIO = 1.1
NODE_POOL = "many"
PHASE_S = 180.0


def units(process: SchedulerProcess) -> int:
    """How many the controller knows, those that have no name yet included."""

    def count(dask_scheduler: Any) -> int:
        return len(dask_scheduler.extensions["tide"].snapshot.units)

    return int(process.client.run_on_scheduler(count))


def test_hundreds_of_pods_find_no_machine_too_many_and_nothing_is_left() -> None:
    """A real scheduler, told by hand: no worker ever registers from a pod that is only an object."""
    before = machine_state()
    with Cloud.start(sky=Sky(machines="kwok", boot_s=5.0)) as cloud, namespace(cloud.kubectl) as name:
        traces = Traces(cloud.folder.name).take()
        cloud.kubectl.apply(node_pool(NODE_POOL))
        requests = {"requests": {"cpu": "480m", "memory": "64Mi"}}
        pool = Pool(cloud, name, memory="64Mi", resources=requests, **on_nodes(NODE_POOL))
        with pool.scheduler() as process:
            process.scale(PODS)
            pool.ready(PODS, PHASE_S)
            assert len(cloud.instances(NODE_POOL)) >= NEEDED
            wait_until(lambda: units(process) == PODS, "the controller knows them")
            process.scale(0)
            pool.gone(PHASE_S)
            wait_until(lambda: not units(process), "the controller knows that they have gone")
            replicaset = cloud.kubectl.json("--namespace", name, "get", "replicaset", REPLICASET)
            assert replicaset["spec"]["replicas"] == 0
            wait_until(lambda: not cloud.instances(NODE_POOL), "all machines go", PHASE_S)
            bill = [each for each in cloud.bill() if each.pool == NODE_POOL]
        assert most_at_once(bill) <= MACHINES_RATIO * NEEDED
    traces.wait_gone()
    assert machine_state() == before
