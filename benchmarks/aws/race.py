"""One workload on all arms at the same time, each driven by a thread of its own, until nothing is left."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from typing import Any

from benchmarks.kubernetes import jobs
from benchmarks.kubernetes.figures import note
from rig.cloud import Cloud
from rig.folders import RigError, wait_for

from . import reckoning
from .arms import Arm
from .watch import Watch
from .workloads import User

__all__ = ["run"]

#: For how long nothing to be left is waited for. Our policy keeps idle workers for 5 min at the most.
END_S = 420.0
PAUSE_S = 0.5


def run(
    cloud: Cloud, arms: Sequence[Arm], name: str, workload: Callable[[User], Any], pace: float
) -> dict[str, dict[str, Any]]:
    """Run it; what it took by arm. An arm on which it failed has an ``error``, and how far it came.

    Parameters
    ----------
    cloud, arms
        Where. There is no worker and no worker's machine.
    name, workload, pace
        What is run, as a :class:`User` has it.
    """
    start = threading.Barrier(len(arms))
    found: dict[str, dict[str, Any]] = {}
    with Watch(cloud, {arm.name: arm.place for arm in arms}) as watch:

        def drive(arm: Arm) -> None:
            try:
                found[arm.name] = _Driver(cloud, arm, watch).drive(
                    User(arm.client, name, pace), workload, start
                )
            except Exception as error:  # noqa: BLE001 - the table says that it failed; the others' figures stay
                note(f"{arm.name}: {error!r}")
                found[arm.name] = {"error": repr(error)}

        # Daemons: nobody waits for them when this is interrupted.
        threads = [threading.Thread(target=drive, args=(arm,), daemon=True) for arm in arms]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return found


class _Driver:
    def __init__(self, cloud: Cloud, arm: Arm, watch: Watch) -> None:
        self.cloud = cloud
        self.arm = arm
        self.watch = watch

    def drive(self, user: User, workload: Callable[[User], Any], start: threading.Barrier) -> dict[str, Any]:
        start.wait(60)
        began_s = time.time()
        failure = ""
        try:
            workload(user)
        except Exception as error:  # noqa: BLE001 - the other arms go on, and the table says that it failed
            failure = repr(error)
        answered_s = time.time()
        keep_s = self.arm.keep_s()
        left_s = self._nothing_left(answered_s)
        found = self._reckon(began_s, answered_s, left_s) | {"keep_s": keep_s, "spans": user.told()}
        found["first_task_s"] = reckoning.first_task_s(user.told(), found["runs"])
        if failure:
            note(f"{self.arm.name}: {failure}")
            return {"error": failure, "until": found}
        found["makespan_s"] = user.makespan_s()
        note(
            f"{self.arm.name}: {found['makespan_s']:.0f} s, {found['launched']} machines for "
            f"{found['machine_s']:.0f} s, {len(found['evicted_busy'])} busy workers evicted, "
            + ("not at nothing" if left_s is None else f"nothing left {left_s - answered_s:.0f} s later")
        )
        return found

    def _nothing_left(self, since_s: float) -> float | None:
        """Wait for it; None: not in time, and it was made so by force."""
        while time.time() < since_s + END_S:
            if self._is_nothing(since_s):
                return time.time()
            time.sleep(PAUSE_S)
        claims = f"--selector=karpenter.sh/nodepool={self.arm.place.node_pool}"
        for _ in range(3):
            self.cloud.kubectl("delete", "nodeclaims", claims, "--wait=false")
            with suppress(RigError):
                wait_for(lambda: self._is_nothing(since_s), "nothing is left", 60)
                break
        return None

    def _is_nothing(self, since_s: float) -> bool:
        if not self.watch.none_left(self.arm.name, since_s):
            return False
        with suppress(OSError, ValueError):  # a busy cloud
            bill = [each for each in self.cloud.bill() if each.pool == self.arm.place.node_pool]
            volumes = set(self.cloud.volumes().values())
            return not any(each.alive or each.id in volumes for each in bill)
        return False

    def _reckon(self, began_s: float, answered_s: float, left_s: float | None) -> dict[str, Any]:
        bill = [
            each
            for each in self.cloud.bill()
            if each.pool == self.arm.place.node_pool and each.launched_s >= began_s
        ]
        noted, pods = jobs.log(self.arm.client), self.watch.pods(self.arm.name)
        runs = [each for each in noted["runs"] if each["to_s"] >= began_s]
        stays = [each for each in noted["stays"] if each["to_s"] is None or each["to_s"] >= began_s]
        first_s = min((pod.seen_s for pod in pods), default=None)
        asked_s = reckoning.requested_s(self.cloud.api_calls(), bill)
        told_s = max((pod.told_s for pod in pods if pod.told_s), default=None)
        return {
            **reckoning.machines(bill),
            **reckoning.run_twice(runs),
            "worker_s": reckoning.worker_s(stays, began_s, time.time()),
            "evicted_busy": reckoning.evicted_busy(pods, runs),
            "evicted": sum(pod.evicted_s is not None for pod in pods),
            "events": self._events(began_s),
            "began_s": began_s,
            "to_pod_s": None if first_s is None else first_s - began_s,
            "pod_to_request_s": None if first_s is None or asked_s is None else asked_s - first_s,
            "left_after_s": None if left_s is None else left_s - answered_s,
            "last_told_after_s": None if told_s is None else told_s - answered_s,
            "pods": [asdict(pod) for pod in pods],
            "stays": stays,
            "runs": runs,
        }

    def _events(self, since_s: float) -> list[str]:
        """What Kubernetes' events tell of evictions and preemptions, for raw numbers."""
        api, path = self.cloud.api(), f"/api/v1/namespaces/{self.arm.place.namespace}/events"
        return [
            f"{event['involvedObject']['name']}: {reason}: {event['message']}"
            for reason in ("Evicted", "Preempted")
            for event in api("GET", f"{path}?fieldSelector=reason%3D{reason}")["items"]
            if datetime.fromisoformat(event["lastTimestamp"] or event["eventTime"]).timestamp() >= since_s
        ]
