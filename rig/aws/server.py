"""The process: AWS's endpoint, instance metadata, the instances, and a socket to control them.

``rig.cloud`` starts it, in the cluster's network: ``python -m rig.aws.server CLUSTER real|kwok BOOT_S``.
Requests to the socket are JSON, one line each way.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import socketserver
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

from moto.ec2.models import ec2_backends

from rig.aws import account, moto_gaps
from rig.aws.calls import Calls
from rig.aws.cloud_controller import CloudController
from rig.aws.control import at_socket
from rig.aws.faults import Faults
from rig.aws.hardware import Kubelets, Kwok
from rig.aws.instances import Instance
from rig.aws.machines import Machines, say, told
from rig.aws.metadata import ADDRESS, Metadata
from rig.clients import Api
from rig.folders import RigError
from rig.nodes import Cluster

TICK_S = 0.2


class Control:
    """What tests and people may ask for; each public method is a request.

    Parameters
    ----------
    machines
        The instances.
    faults
        What goes wrong on purpose.
    """

    def __init__(self, machines: Machines, faults: Faults) -> None:
        self.machines = machines
        self.faults = faults

    def instances(self) -> list[dict[str, Any]]:
        """All instances that ever were."""
        return [asdict(instance) for instance in list(self.machines.instances.values())]

    def volumes(self) -> dict[str, str]:
        """The volumes that there are, and the instance that each is attached to; empty: to none."""
        volumes = list(ec2_backends[account.ACCOUNT][account.REGION].volumes.values())
        attached = [(each.id, each.attachment) for each in volumes]
        return {id_: to.instance.id if to else "" for id_, to in attached}

    def call(self, service: str, operation: str, **arguments: Any) -> Any:
        """Call AWS, as boto3 does."""
        return getattr(account.clients(account.URL)[service], operation)(**arguments)

    def interrupt(self, named: str, notice_s: float) -> None:
        """Take a spot instance back after a notice."""
        instance = self._find(named)
        if instance.market != "spot":
            raise RigError(f"{instance.id} is {instance.market}: only spot instances are interrupted")
        now = dt.datetime.now(dt.UTC)
        instance.notice_s = now.timestamp() + notice_s
        message = {
            "version": "0",
            "id": str(uuid.uuid4()),
            "detail-type": "EC2 Spot Instance Interruption Warning",
            "source": "aws.ec2",
            "account": account.ACCOUNT,
            "time": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "region": account.REGION,
            "resources": [f"arn:aws:ec2:{account.REGION}:{account.ACCOUNT}:instance/{instance.id}"],
            "detail": {"instance-id": instance.id, "instance-action": "terminate"},
        }
        sqs = account.clients(account.URL)["sqs"]
        queue = sqs.get_queue_url(QueueName=account.CLUSTER)["QueueUrl"]
        sqs.send_message(QueueUrl=queue, MessageBody=json.dumps(message))

    def terminate(self, named: str) -> None:
        """Terminate an instance without a word to anybody."""
        self.machines.terminate(self._find(named).id)

    def change(self, **faults: Any) -> dict[str, Any]:
        """Change faults; return those that are on now."""
        for name, value in faults.items():
            setattr(self.faults, name, value)
        return {name: value for name, value in vars(self.faults).items() if name != "chance"}

    def _find(self, named: str) -> Instance:
        for instance in self.machines.alive():
            if named in (instance.id, instance.node, instance.node.partition(".")[0]):
                return instance
        raise RigError(f"no instance {named!r} runs")


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        try:
            request = json.loads(self.rfile.readline())
            control: Any = self.server.control  # type: ignore[attr-defined]
            reply = {"value": getattr(control, request.pop("do"))(**request)}
        except Exception as error:  # noqa: BLE001 - the asker is told
            reply = {"error": f"{error}" if isinstance(error, RigError) else repr(error)}
        self.wfile.write(json.dumps(reply, default=str).encode() + b"\n")


class _Socket(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


def _forever(tick: Any, pause_s: float) -> None:
    while True:
        told(tick)
        time.sleep(pause_s)


def _serve_aws(calls: Calls) -> None:
    from moto.moto_server.werkzeug_app import MotoRequestHandler
    from werkzeug.serving import make_server

    class Handler(MotoRequestHandler):
        protocol_version = "HTTP/1.1"  # connections are kept

        def log(self, *arguments: Any) -> None:
            pass

    server = make_server("127.0.0.1", account.PORT, calls, threaded=True, request_handler=Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def main() -> None:
    os.environ["MOTO_EC2_LOAD_DEFAULT_AMIS"] = "false"
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

    name, kind, boot_s = sys.argv[1:]
    cluster = Cluster.attach(name)
    kubeconfig = cluster.folder / "pki" / "admin.kubeconfig"
    lock, faults = threading.RLock(), Faults(float(boot_s))
    moto_gaps.mend(faults)
    hardware = Kwok(Api(kubeconfig)) if kind == "kwok" else Kubelets(cluster)
    machines = Machines(hardware, faults, lock)
    record = Path(cluster.folder, "logs", "aws-calls.jsonl")
    _serve_aws(Calls(DomainDispatcherApplication(create_backend_app), faults, record, lock))
    subnet = account.seed(account.URL, dict(zip(account.ZONES, hardware.blocks, strict=True)))
    account.run_system_node(account.URL, subnet)
    subprocess.run(["ip", "addr", "add", f"{ADDRESS}/32", "dev", "lo"], check=True, timeout=30)
    threads = [lambda: _forever(machines.tick, TICK_S), Metadata(machines).serve_forever]
    if kind != "kwok":  # Nodes that are objects only come and go with their instances
        controller = CloudController(Api(kubeconfig), machines)
        threads.append(lambda: _forever(controller.tick, TICK_S))
    for serve in threads:
        threading.Thread(target=serve, daemon=True).start()
    with at_socket(cluster.folder) as address:
        server = _Socket(address, _Handler)
    server.control = Control(machines, faults)  # type: ignore[attr-defined]
    say("ready")
    server.serve_forever()


if __name__ == "__main__":
    main()
