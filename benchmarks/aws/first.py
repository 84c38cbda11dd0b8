"""First: how long somebody's first task waits, where no machine is there and where one is kept warm.

Two releases of the chart at the same time on one cloud, both as `ours` of :mod:`benchmarks.aws.arms`: `cold`
as it is, `warm` with placeholders (``buffer``) that fill one machine. Each has a user who submits one task,
fetches its result, and comes again when all is at rest: no worker, and no machine or all placeholders at
their places. What counts is the time from the submission to the task's first moment.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from fleet import PER_MACHINE

from benchmarks.kubernetes.figures import Figures, note
from rig.cloud import Cloud
from rig.folders import wait_for
from rig.images import PAUSE

from .arms import Arm, release
from .bursty import started
from .race import END_S
from .reckoning import WAITS
from .settings import Settings
from .workloads import DEADLINE_S

COLD, WARM = "cold", "warm"
_BUFFER: dict[str, Any] = {"buffer": {"image": PAUSE, "pools": {"cpu": {"units": PER_MACHINE}}}}
#: How many placeholders run when an arm is at rest.
_PLACEHOLDERS = {COLD: 0, WARM: PER_MACHINE}


def run(settings: Settings) -> Iterator[Figures]:
    """For each boot time, so many first tasks on each arm."""
    found = Figures()
    with started() as cloud:
        for boot_s in settings.boots:
            cloud.boots(boot_s)
            with ExitStack() as stack:
                arms = [
                    stack.enter_context(release(cloud, name, {"packing": True}, more))
                    for name, more in ((COLD, {}), (WARM, _BUFFER))
                ]
                with ThreadPoolExecutor() as threads:
                    waits = dict(
                        zip(
                            _PLACEHOLDERS,
                            threads.map(lambda arm: _ask(cloud, arm, settings), arms),
                            strict=True,
                        )
                    )
            found.raw[f"boot {boot_s:g} s"] = waits
            _tell(found, f"boot {boot_s:g} s", waits)
            yield found


def _ask(cloud: Cloud, arm: Arm, settings: Settings) -> list[float]:
    """Seconds that each first task has waited."""
    waits: list[float] = []
    for _ in range(settings.first):
        wait_for(lambda: _at_rest(cloud, arm), f"{arm.name} is at rest", END_S)
        submitted_s = time.time()
        # Its clock is ours: the worker runs on this machine.
        began_s = arm.client.submit(time.time, pure=False).result(timeout=DEADLINE_S)
        waits.append(began_s - submitted_s)
        note(f"{arm.name}: {waits[-1]:.1f} s")
    return waits


def _at_rest(cloud: Cloud, arm: Arm) -> bool:
    there = cloud.api()("GET", f"/api/v1/namespaces/{arm.place.namespace}/pods")["items"]
    kinds = {"worker": 0, "buffer": 0}
    for pod in there:
        kind = pod["metadata"]["labels"].get("app.kubernetes.io/component")
        if kind == "worker" or pod["status"]["phase"] == "Running":
            kinds[kind] = kinds.get(kind, 0) + 1
    machines = cloud.instances(arm.place.node_pool)
    warm = _PLACEHOLDERS[arm.name]
    return not kinds["worker"] and kinds["buffer"] == warm and bool(machines) == bool(warm)


def _tell(found: Figures, boot: str, waits: dict[str, list[float]]) -> None:
    for what, of in WAITS.items():
        label = f"{boot}, submission to first task, {what}: a warm machine; none"
        found.against(label, of(waits[WARM]), of(waits[COLD]), None)
