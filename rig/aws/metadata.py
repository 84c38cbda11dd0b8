"""Instance metadata at 169.254.169.254: one server for all instances, which it knows by who asks."""

from __future__ import annotations

import datetime as dt
import json
import secrets
import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from rig.aws.instances import Instance
from rig.aws.machines import Machines
from rig.network import POD_RANGE, node_address

ADDRESS = "169.254.169.254"


class Metadata(ThreadingHTTPServer):
    """The server, version 2 only: no answer without a token.

    Parameters
    ----------
    machines
        The instances.
    """

    daemon_threads = True

    def __init__(self, machines: Machines) -> None:
        super().__init__((ADDRESS, 80), _Handler)
        self.machines = machines
        self.tokens: set[str] = set()

    def hop_limit(self, instance: Instance) -> int:
        """How far a token may travel: 1 is the instance itself, its pods are one further."""
        with self.machines.lock:
            moto = self.machines.ec2.get_instance(instance.id)
            return int(moto.metadata_options.http_put_response_hop_limit)


class _Handler(BaseHTTPRequestHandler):
    server: Metadata

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the base's name
        pass

    def _instance(self) -> Instance | None:
        address = self.client_address[0]
        if address.startswith(POD_RANGE[:7]):  # a pod's: the third number is its node's
            address = node_address(int(address.split(".")[2]))
        return next((each for each in self.server.machines.alive() if each.address == address), None)

    def do_PUT(self) -> None:
        instance = self._instance()
        asked = self.path == "/latest/api/token" and self.headers.get("X-aws-ec2-metadata-token-ttl-seconds")
        if instance is None or not asked:
            return self._answer(400)
        token = secrets.token_urlsafe(32)
        self.server.tokens.add(token)
        hops = self.server.hop_limit(instance)
        self.connection.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, hops)
        return self._answer(200, token)

    def do_GET(self) -> None:
        instance = self._instance()
        if self.headers.get("X-aws-ec2-metadata-token") not in self.server.tokens:
            return self._answer(401)
        path = self.path.removeprefix("/latest/meta-data/").strip("/")
        if instance is None or (value := told(instance).get(path)) is None:
            return self._answer(404)
        return self._answer(200, value)

    def _answer(self, status: int, text: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


def told(instance: Instance) -> dict[str, str]:
    """What an instance is told about itself, by path."""
    data = {
        "instance-id": instance.id,
        "instance-life-cycle": instance.market,
        "instance-type": instance.kind,
        "local-hostname": instance.node,
        "local-ipv4": instance.address,
        "placement/availability-zone": instance.zone,
        "placement/region": instance.zone[:-1],
    }
    if instance.notice_s is not None:
        at = dt.datetime.fromtimestamp(instance.notice_s, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        data["spot/instance-action"] = json.dumps({"action": "terminate", "time": at})
        data["spot/termination-time"] = at
    return data
