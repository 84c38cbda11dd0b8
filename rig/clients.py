"""A cluster's clients: kubectl, and the bare API for what kubectl is too slow or too clever for."""

from __future__ import annotations

import base64
import http.client
import json
import os
import ssl
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import yaml

from rig.binaries import ensure
from rig.folders import RigError

DEADLINE_S = 60.0


class KubectlError(RigError):
    """kubectl failed; the message is what it said."""


class ApiError(RigError):
    """The API server refused.

    Attributes
    ----------
    status
        HTTP's status.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class Kubectl:
    """kubectl with a cluster's kubeconfig.

    Parameters
    ----------
    kubeconfig
        Who to be, and where.
    """

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig

    def environment(self) -> dict[str, str]:
        """The variables that kubectl and helm read."""
        # What kubectl remembers of a server must not outlive it: ports are used again.
        return {
            "KUBECONFIG": str(self.kubeconfig),
            "KUBECACHEDIR": str(self.kubeconfig.parent / "kubectl-cache"),
        }

    def command(self, *arguments: str) -> list[str]:
        """The command line, for those who start it themselves."""
        return [str(ensure("kubectl")["kubectl"]), "--kubeconfig", str(self.kubeconfig), *arguments]

    def __call__(self, *arguments: str, stdin: str | None = None, deadline_s: float = DEADLINE_S) -> str:
        """Run ``kubectl ARGUMENTS`` and return what it prints; raise :exc:`KubectlError` if it fails."""
        try:
            done = subprocess.run(
                self.command(*arguments),
                env=os.environ | self.environment(),
                input=stdin or "",
                capture_output=True,
                text=True,
                timeout=deadline_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise KubectlError(f"kubectl {' '.join(arguments)}: not done in {deadline_s:g} s") from error
        if done.returncode != 0:
            raise KubectlError(f"kubectl {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def json(self, *arguments: str) -> Any:
        """The same with ``-o json``, parsed."""
        return json.loads(self(*arguments, "-o", "json"))

    def apply(self, *manifests: dict[str, Any]) -> None:
        """Apply manifests."""
        self("apply", "-f", "-", stdin="\n---\n".join(map(json.dumps, manifests)))


class Api:
    """The API server's REST interface, over one connection that is kept.

    Parameters
    ----------
    kubeconfig
        Who to be, and where: a client's certificate or a token.
    """

    def __init__(self, kubeconfig: Path) -> None:
        text = kubeconfig.read_text()
        # The rig's own are JSON, which is read a hundred times faster.
        config = json.loads(text) if text.startswith("{") else yaml.safe_load(text)
        context = _named(config["contexts"], config["current-context"])["context"]
        cluster = _named(config["clusters"], context["cluster"])["cluster"]
        user = _named(config["users"], context["user"])["user"]
        self._headers = {"Accept": "application/json"}
        if token := user.get("token"):
            self._headers["Authorization"] = f"Bearer {token}"
        authority = _content(cluster, "certificate-authority", kubeconfig)
        tls = ssl.create_default_context(cadata=authority or None)
        certificate, key = (_content(user, name, kubeconfig) for name in ("client-certificate", "client-key"))
        if certificate:
            with tempfile.NamedTemporaryFile(
                "w", suffix=".pem"
            ) as file:  # `ssl` reads certificates from files only
                file.write(certificate + key)
                file.flush()
                tls.load_cert_chain(file.name)
        parts = urlsplit(cluster["server"])
        self._connection = http.client.HTTPSConnection(
            parts.hostname or "", parts.port or 443, context=tls, timeout=DEADLINE_S
        )

    def __call__(
        self, method: str, path: str, body: Any = None, kind: str = "application/json", *, raw: bool = False
    ) -> Any:
        """Send a request and return the parsed answer (``raw``: its bytes).

        Raises
        ------
        ApiError
            If the server refuses.
        OSError
            If it cannot be reached.
        """
        headers = self._headers | ({} if body is None else {"Content-Type": kind})
        text = None if body is None else json.dumps(body)
        kept = self._connection.sock is not None
        try:
            status, content = self._send(method, path, text, headers)
        except OSError:
            # A server ends connections that were kept for long. What only reads may be asked again.
            if method != "GET" or not kept:
                raise
            status, content = self._send(method, path, text, headers)
        if status >= 400:
            raise ApiError(status, content.decode(errors="replace"))
        return content if raw else json.loads(content)

    def _send(self, method: str, path: str, text: str | None, headers: dict[str, str]) -> tuple[int, bytes]:
        try:
            self._connection.request(method, path, text, headers)
            answer = self._connection.getresponse()
            return answer.status, answer.read()
        except (http.client.HTTPException, OSError) as error:
            self._connection.close()  # the next request makes a new one
            raise OSError(f"{method} {path}: {error!r}") from error


def _named(items: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(item for item in items if item["name"] == name)


def _content(of: dict[str, Any], name: str, kubeconfig: Path) -> str:
    if data := of.get(f"{name}-data"):
        return base64.b64decode(data).decode()
    return (kubeconfig.parent / of[name]).read_text() if name in of else ""


class Existing:
    """A cluster that the user has: tests use it, and break nothing of it.

    Parameters
    ----------
    kubeconfig
        Who to be, and where.
    """

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        self.kubectl = Kubectl(kubeconfig)

    @classmethod
    def given(cls, folder: Path) -> Self | None:
        """The cluster of ``DASK_TIDE_KUBECONFIG``, else of ``KUBECONFIG``; None: neither is set.

        Parameters
        ----------
        folder
            Where its present context is written down, alone and in one file.

        Raises
        ------
        RigError
            If there is no such file, or the context signs in by something else than a certificate or a token.
        """
        for variable in ("DASK_TIDE_KUBECONFIG", "KUBECONFIG"):
            if given := os.environ.get(variable):
                return cls(_flat(variable, given, folder))
        return None

    def api(self) -> Api:
        """A new client of the bare API."""
        return Api(self.kubeconfig)

    def serviceaccount_kubeconfig(self, namespace: str, name: str) -> Path:
        """A kubeconfig for a ServiceAccount, by a token that is valid for an hour."""
        token = self.kubectl("--namespace", namespace, "create", "token", name).strip()
        config = json.loads(self.kubeconfig.read_text())
        config["users"][0]["user"] = {"token": token}
        return _write(self.kubeconfig.parent / f"serviceaccount-{namespace}-{name}.kubeconfig", config)


def _flat(variable: str, given: str, folder: Path) -> Path:
    named = [Path(path).expanduser().resolve() for path in given.split(os.pathsep) if path]
    # As kubectl does: of several some may be missing.
    paths = [path for path in named if path.is_file()]
    if not paths:
        raise RigError(f"{variable}={given}: no such file")
    command = [
        str(ensure("kubectl")["kubectl"]),
        "config",
        "view",
        "--raw",
        "--minify",
        "--flatten",
        "--output=json",
    ]
    environment = os.environ | {"KUBECONFIG": os.pathsep.join(map(str, paths))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RigError(f"{variable}={given}: {done.stderr.strip()}")
    config = json.loads(done.stdout)
    user = config["users"][0]["user"] if config.get("users") else {}
    if not user.keys() & {"token", "client-certificate-data"}:
        how = ", ".join(sorted(user)) or "nothing"
        raise RigError(f"{variable}={given}: signs in by {how}; tests want a token or a client's certificate")
    return _write(folder / "kubeconfig", config)


def _write(path: Path, config: dict[str, Any]) -> Path:
    path.touch(mode=0o600)
    path.write_text(json.dumps(config))
    return path
