"""The EC2 that boots: an instance becomes a node after a while, and its end pulls the plug."""

from __future__ import annotations

import datetime as dt
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from moto.autoscaling.models import autoscaling_backends
from moto.ec2.models import ec2_backends
from moto.ec2.models.instance_types import INSTANCE_TYPES

from rig.aws.account import ACCOUNT, REGION
from rig.aws.faults import Faults
from rig.aws.instances import Instance
from rig.aws.user_data import Kubelet

#: EC2 shows terminated instances for an hour; each one makes moto's answers longer.
REMEMBERED_S = 60.0
#: How often an Auto Scaling group tries to have its desired capacity.
REFILL_S = 5.0


class Hardware(Protocol):
    """What instances run on: :class:`rig.aws.hardware.Kubelets` or :class:`rig.aws.hardware.Kwok`."""

    def boot(self, instance: Instance, kubelet: Kubelet, kind: dict[str, Any]) -> None: ...

    def cut(self, instance: Instance) -> None: ...


class Machines:
    """All instances, and what happens to them.

    Parameters
    ----------
    hardware
        What they run on.
    faults
        What goes wrong on purpose.
    lock
        Held while moto's models are read or changed.
    """

    def __init__(self, hardware: Hardware, faults: Faults, lock: threading.RLock) -> None:
        self.hardware = hardware
        self.faults = faults
        self.lock = lock
        self.instances: dict[str, Instance] = {}
        self._boot_at_s: dict[str, float] = {}
        self._booted: dict[str, Future[None]] = {}
        self._refilled_s = 0.0
        self._boots = ThreadPoolExecutor(4, "boot")
        self._cuts = ThreadPoolExecutor(8, "cut")

    @property
    def ec2(self) -> Any:
        return ec2_backends[ACCOUNT][REGION]

    def alive(self) -> list[Instance]:
        """The instances that are not terminated."""
        return [instance for instance in list(self.instances.values()) if instance.alive]

    def tick(self) -> None:
        """See what was launched and terminated since the last time, and do what is due."""
        now_s = time.time()
        with self.lock:
            running = {each.id: each for each in self.ec2.all_instances() if each.state != "terminated"}
            self._refill(now_s)
        for id_, each in running.items():
            if id_ not in self.instances:
                self._launched(each)
        for instance in self.alive():
            if instance.id not in running:
                self._ended(instance, now_s)
            elif instance.notice_s is not None and now_s >= instance.notice_s:
                self.terminate(instance.id)
            elif now_s >= self._boot_at_s.get(instance.id, now_s + 1):
                del self._boot_at_s[instance.id]
                moto = running[instance.id]
                self._booted[instance.id] = self._boots.submit(
                    told, self._boot, instance, str(moto.user_data)
                )
        self._forget(now_s)

    def terminate(self, id_: str) -> None:
        """Terminate an instance, as its owner or EC2 would: it is off at once."""
        with self.lock:
            self.ec2.terminate_instances([id_])

    def _launched(self, moto: Any) -> None:
        tags = {tag["key"]: tag["value"] for tag in moto.get_tags()}
        pool = tags.get("karpenter.sh/nodepool") or tags.get("aws:autoscaling:groupName") or "system"
        launched_s = moto.launch_time.replace(tzinfo=dt.UTC).timestamp()
        market, zone = moto.lifecycle or "on-demand", moto.placement.zone
        instance = Instance(
            *(moto.id, moto.instance_type, zone, market, pool, moto.private_dns_name, moto.private_ip),
            launched_s,
        )
        self.instances[moto.id] = instance
        if pool == "system":
            self._boot_at_s[moto.id] = launched_s
        elif self.faults.joins:
            self._boot_at_s[moto.id] = launched_s + self.faults.sample_boot_s()
        say(f"launched {instance}")

    def _boot(self, instance: Instance, user_data: str) -> None:
        try:
            self.hardware.boot(instance, Kubelet.parse(user_data), INSTANCE_TYPES[instance.kind])
        except Exception as error:
            instance.trouble = str(error) or repr(error)  # nobody else would say why it never joins
            raise
        say(f"booted {instance.id}")

    def _ended(self, instance: Instance, now_s: float) -> None:
        instance.ended_s = now_s
        self._boot_at_s.pop(instance.id, None)
        say(f"ended {instance}")
        if booted := self._booted.pop(instance.id, None):
            self._cuts.submit(told, self._cut, instance, booted)

    def _cut(self, instance: Instance, booted: Future[None]) -> None:
        booted.result()
        self.hardware.cut(instance)

    def _refill(self, now_s: float) -> None:
        if now_s - self._refilled_s < REFILL_S:
            return
        self._refilled_s = now_s
        for group in autoscaling_backends[ACCOUNT][REGION].autoscaling_groups.values():
            if len(group.active_instances()) < (group.desired_capacity or 0):
                group.set_desired_capacity(group.desired_capacity)

    def _forget(self, now_s: float) -> None:
        with self.lock:
            for name, reservation in list(self.ec2.reservations.items()):
                ended = [self.instances.get(each.id) for each in reservation.instances]
                if all(each and each.ended_s and now_s - each.ended_s > REMEMBERED_S for each in ended):
                    del self.ec2.reservations[name]


def say(line: str) -> None:
    """Write a line into the server's log."""
    print(f"{dt.datetime.now(dt.UTC):%H:%M:%S.%f} {line}", flush=True)


def told(work: Callable[..., None], *arguments: Any) -> None:
    """Do something in a thread whose errors nobody else would see."""
    try:
        work(*arguments)
    except Exception:  # noqa: BLE001 - it is written down, and the cloud goes on
        print(traceback.format_exc(), file=sys.stderr, flush=True)
