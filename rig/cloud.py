"""Level *cloud*: the level *nodes* on a simulated AWS, with a node autoscaler: machines come and go.

The autoscaler is the real one. An instance that it launches becomes a real node after a while, or one of
kwok's for thousands of pods; a terminated one is off at once.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

from rig import binaries
from rig.aws import account, cluster_autoscaler, control, karpenter
from rig.aws.instances import Instance
from rig.folders import CHECKOUT, RigError, root
from rig.nodes import Cluster
from rig.plane import Options

AUTOSCALERS = ("karpenter", "cluster-autoscaler")
START_S = 120.0


@dataclass(frozen=True)
class Sky:
    """What was chosen about a cloud.

    Attributes
    ----------
    autoscaler
        Which one runs: one of :data:`AUTOSCALERS`; for the second, ``CLUSTER_AUTOSCALER`` names its binary.
    machines
        What instances become: ``"real"`` nodes, or ``"kwok"``'s, which are objects only.
    boot_s
        How long they take for it at first, on average.
    batch_idle_s
        How long Karpenter waits for more pods; 1 s is its default.
    """

    autoscaler: Literal["karpenter", "cluster-autoscaler"] = "karpenter"
    machines: Literal["real", "kwok"] = "real"
    boot_s: float = 5.0
    batch_idle_s: float = 1.0


def missing(autoscaler: str = "karpenter") -> str:
    """What this machine lacks for a cloud beyond what nodes need; empty if nothing."""
    if importlib.util.find_spec("moto") is None:
        return "the simulated AWS needs moto: the dependency group `cloud`"
    if autoscaler == "cluster-autoscaler" and not given_autoscaler():
        return "cluster-autoscaler is in no package index: CLUSTER_AUTOSCALER must name its binary"
    return ""


def given_autoscaler() -> str:
    """The binary that ``CLUSTER_AUTOSCALER`` names, as an absolute path; empty: none.

    It is started in another folder than this one.
    """
    found = shutil.which(os.environ.get("CLUSTER_AUTOSCALER", ""))
    return str(Path(found).absolute()) if found else ""


class Cloud(Cluster):
    """A cluster on a simulated AWS: ``with Cloud.start() as cloud: …``.

    Parameters
    ----------
    kept, place, options
        As those of :class:`rig.plane.Plane`.
    """

    @classmethod
    def start(
        cls,
        name: str | None = None,
        *,
        bound: bool = True,
        options: Options | None = None,
        tars: Sequence[Path] = (),
        sky: Sky | None = None,
    ) -> Self:
        """Start a cluster with one machine on demand, and wait until that is Ready.

        Parameters
        ----------
        name, bound, options, tars
            As those of :meth:`rig.nodes.Cluster.start`.
        sky
            What else can be chosen.

        Raises
        ------
        RigError
            If this machine cannot, or something does not start; with the reason.
        """
        sky = sky or Sky()
        if reason := missing(sky.autoscaler):
            raise RigError(reason)
        if sky.autoscaler == "karpenter":
            binaries.ensure("karpenter", "karpenter-resources")
        if options is None and sky.machines == "kwok":
            # On a busy machine hundreds of kwok's nodes would count as dead.
            options = Options(node_grace_s=600)
        cloud = super().start(name, bound=bound, options=options, tars=tars)
        try:
            (cloud.folder / "sky.json").write_text(json.dumps(asdict(sky)))
            cloud._open()
        except BaseException:
            cloud.stop()
            raise
        return cloud

    @property
    def sky(self) -> Sky:
        """What was chosen."""
        return Sky(**json.loads((self.folder / "sky.json").read_text()))

    def _open(self) -> None:
        sky = self.sky
        if sky.machines == "kwok":
            self._start_kwok()
        server = [sys.executable, "-m", "rig.aws.server", self.folder.name, sky.machines]
        environment = {"PYTHONPATH": str(CHECKOUT), "DASK_TIDE_RIG": str(root())}
        self.run("aws", [*server, str(sky.boot_s)], environment)
        if sky.autoscaler == "karpenter":
            self._teach_karpenters_kinds()
        self.kept.wait_for(self._serves, "AWS serves", START_S)
        self._start_autoscaler()
        self.kept.wait_for(self.ready_nodes, "the system's machine is Ready", START_S)

    def _serves(self) -> bool:
        try:
            control.ask(self.folder, "instances")
        except (OSError, ValueError):
            return False
        return True

    def _teach_karpenters_kinds(self) -> None:
        self.kubectl("create", "-f", str(binaries.ensure("karpenter-resources")["karpenter-resources"]))
        self.kubectl("wait", "--for=condition=Established", "crd", "--all")
        self.kubectl.apply(karpenter.node_class(), karpenter.node_pool())

    def _start_autoscaler(self) -> None:
        kubeconfig = self.folder / "pki" / "admin.kubeconfig"
        if self.sky.autoscaler == "karpenter":
            told = karpenter.environment(
                kubeconfig, account.URL, self.place.inside, batch_idle_s=self.sky.batch_idle_s
            )
            self.run("karpenter", [binaries.ensure("karpenter")["karpenter"]], told)
            return
        config = self.folder / "cloud.conf"
        config.write_text(cluster_autoscaler.cloud_config(account.URL, account.REGION))
        command = [given_autoscaler(), *cluster_autoscaler.arguments(kubeconfig, config, account.CLUSTER)]
        self.run("cluster-autoscaler", command, cluster_autoscaler.environment(account.REGION))

    def restart_autoscaler(self) -> None:
        """Kill the autoscaler and start it again, as when its pod moves."""
        with self.autoscaler_away():
            pass

    @contextmanager
    def autoscaler_away(self) -> Iterator[None]:
        """Run the body without an autoscaler."""
        self.kept.stop(self.sky.autoscaler, signal.SIGKILL)
        try:
            yield
        finally:
            self._start_autoscaler()

    def bill(self) -> list[Instance]:
        """All instances that ever were: type, market, and what is paid for each (see :class:`Instance`)."""
        return [Instance(**each) for each in control.ask(self.folder, "instances")]

    def instances(self, pool: str | None = None) -> list[Instance]:
        """The instances that run now.

        Parameters
        ----------
        pool
            Only this one's; ``"system"`` is the machine that is always there.
        """
        return [each for each in self.bill() if each.alive and pool in (None, each.pool)]

    def volumes(self) -> dict[str, str]:
        """The EBS volumes that are paid for, and the instance that each is attached to; empty: to none."""
        volumes: dict[str, str] = control.ask(self.folder, "volumes")
        return volumes

    def aws(self, service: str, operation: str, **arguments: Any) -> Any:
        """Call AWS: ``cloud.aws("ec2", "describe_volumes")``.

        Parameters
        ----------
        service
            One of those of :func:`rig.aws.account.clients`.
        operation, arguments
            As boto3's client has them; of the answer, moments are text.
        """
        return control.ask(self.folder, "call", service=service, operation=operation, **arguments)

    def interrupt(self, named: str, notice_s: float = 120.0) -> None:
        """Have EC2 take a spot instance back: a notice now, the end of its power after ``notice_s``.

        The notice is a message in the queue that Karpenter reads, and in instance metadata.

        Parameters
        ----------
        named
            An instance, or its node.
        notice_s
            How long before; always 120 s on AWS.
        """
        control.ask(self.folder, "interrupt", named=named, notice_s=notice_s)

    def terminate(self, named: str) -> None:
        """Terminate an instance (or that of a node) with no notice to anybody: a machine dies."""
        control.ask(self.folder, "terminate", named=named)

    def stock_out(self, *globs: str) -> None:
        """Have EC2 run out of what matches ``type/zone/market`` too, such as ``"*/*/spot"``."""
        out = self.faults()["stock_outs"]
        self._change(stock_outs=list(dict.fromkeys([*out, *globs])))

    def in_stock(self) -> None:
        """Have everything in stock again."""
        self._change(stock_outs=[])

    def throttle(self, on: bool = True, operations: str = "ec2:*") -> None:
        """Have AWS refuse calls for there being too many, or no longer.

        Parameters
        ----------
        on
            Whether it does.
        operations
            Which: a glob of ``service:Operation``.
        """
        self._change(throttled=[operations] if on else [])

    def boots(self, delay_s: float | None = None, *, joins: bool | None = None) -> None:
        """Say how instances that are launched from now on boot.

        Parameters
        ----------
        delay_s
            How long it takes until their kubelet starts, on average; unchanged by default.
        joins
            Whether it ever does; unchanged by default.
        """
        changed = {"boot_s": delay_s, "joins": joins}
        self._change(**{name: value for name, value in changed.items() if value is not None})

    def faults(self) -> dict[str, Any]:
        """The faults that are on: the fields of :class:`rig.aws.faults.Faults`."""
        return self._change()

    def _change(self, **faults: Any) -> dict[str, Any]:
        changed: dict[str, Any] = control.ask(self.folder, "change", **faults)
        return changed

    def api_calls(self) -> list[dict[str, Any]]:
        """All calls of AWS so far: ``at_s``, ``took_s``, ``service``, ``operation``, ``status``, ``said``."""
        lines = (self.folder / "logs" / "aws-calls.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]
