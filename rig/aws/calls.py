"""Every call of AWS: written down, and refused where that is asked for."""

from __future__ import annotations

import io
import json
import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rig.aws.faults import Faults

_SCOPE = re.compile(r"Credential=[^/]*/\d+/[^/]*/([^/]*)/")


class Calls:
    """A WSGI application around AWS's.

    One call runs at a time: moto's models are not made for threads. Only who waits for messages does not hold
    up the others.

    Parameters
    ----------
    application
        AWS.
    faults
        What goes wrong on purpose.
    path
        The file to write calls into, a JSON object a line.
    lock
        Held during a call.
    """

    def __init__(self, application: Any, faults: Faults, path: Path, lock: threading.RLock) -> None:
        self.application = application
        self.faults = faults
        self.record = path.open("a", buffering=1)
        self.lock = lock

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_s = time.time()
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        found = _SCOPE.search(environ.get("HTTP_AUTHORIZATION", ""))
        service, operation = found[1] if found else "", _operation(environ, body)
        said: list[str] = []

        def start(status: str, headers: Any, *error: Any) -> Any:
            said.append(status)
            return start_response(status, headers, *error)

        if self.faults.throttles(service, operation):
            answer = [_refusal(service, start)]
        elif operation == "ReceiveMessage":
            answer = [b"".join(self.application(environ, start))]
        else:
            with self.lock:
                answer = [b"".join(self.application(environ, start))]
        status = int(said[0].partition(" ")[0]) if said else 500
        call: dict[str, Any] = {"at_s": round(start_s, 3), "took_s": round(time.time() - start_s, 3)}
        call |= {"service": service, "operation": operation, "status": status}
        if status >= 400:
            call["said"] = answer[0].decode(errors="replace")[:1000]
        self.record.write(json.dumps(call) + "\n")
        return answer


def _operation(environ: dict[str, Any], body: bytes) -> str:
    if target := environ.get("HTTP_X_AMZ_TARGET"):
        return str(target).rpartition(".")[2]
    asked = urllib.parse.parse_qs(body.decode("latin1")).get("Action")
    return asked[0] if asked else f"{environ['REQUEST_METHOD']} {environ.get('PATH_INFO', '')}"


def _refusal(service: str, start: Callable[..., Any]) -> bytes:
    """As EC2 refuses who asks too often; its JSON services say it in their way."""
    if service in ("ec2", "autoscaling", "iam"):
        start("503 Service Unavailable", [("Content-Type", "text/xml")])
        return (
            b"<Response><Errors><Error><Code>RequestLimitExceeded</Code><Message>Request limit exceeded."
            b"</Message></Error></Errors><RequestID>throttled</RequestID></Response>"
        )
    start("400 Bad Request", [("Content-Type", "application/x-amz-json-1.0")])
    return b'{"__type": "ThrottlingException", "message": "Rate exceeded"}'
