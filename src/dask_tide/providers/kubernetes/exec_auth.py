"""Exec auth: tokens of a program that a kubeconfig names (``aws eks get-token``, ``kubelogin``, ...)."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncGenerator, Generator
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO

import httpx2
from lightkube.core.exceptions import ConfigError as LightkubeConfigError

if TYPE_CHECKING:
    from lightkube.config.models import UserExec

__all__ = ["ExecAuth"]

_API = "client.authentication.k8s.io"
_UNAUTHORIZED = 401
_LONGEST_LINE = 1 << 24


class ExecAuth(httpx2.Auth):
    """Runs the program when there is no token, and when the API server takes the last one no more.

    lightkube's own knows no ``v1``, and runs the program once for each of the first requests: so many
    browser windows, perhaps.

    Parameters
    ----------
    program
        What the kubeconfig says.

    Raises
    ------
    LightkubeConfigError
        With a request: the program fails, or says no token.
    """

    def __init__(self, program: UserExec) -> None:
        self._program = program
        self._token = ""
        self._lock = asyncio.Lock()

    def sync_auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        raise RuntimeError("there is no synchronous client here")

    async def async_auth_flow(
        self, request: httpx2.Request
    ) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        refused = ""
        for _ in range(2):
            async with self._lock:
                if self._token == refused:
                    self._token = ""
                    self._token = await self._run()
                token = self._token
            request.headers["Authorization"] = f"Bearer {token}"
            response = yield request
            if response.status_code != _UNAUTHORIZED:
                return
            refused = token

    async def _run(self) -> str:
        program = self._program
        info = {"apiVersion": program.apiVersion, "kind": "ExecCredential", "spec": {"interactive": False}}
        said = {variable.name: variable.value for variable in program.env or ()}
        called = f"the kubeconfig's program {program.command}"
        try:
            process = await asyncio.create_subprocess_exec(
                program.command,
                *(program.args or ()),
                env={**os.environ, "KUBERNETES_EXEC_INFO": json.dumps(info), **said},
                # What was typed is for somebody else.
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                limit=_LONGEST_LINE,
                stderr=asyncio.subprocess.PIPE,
            )
        except OSError as error:
            hint = f"; {program.installHint}" if program.installHint else ""
            raise LightkubeConfigError(f"{called} cannot be run: {error}{hint}") from error
        try:
            output, words = await asyncio.gather(_read(process.stdout), _read(process.stderr, sys.stderr))
            await process.wait()
        except BaseException:  # whoever gave up did not log in
            with suppress(ProcessLookupError):
                process.kill()
            raise
        if process.returncode:
            raise LightkubeConfigError(f"{called} ended with exit code {process.returncode}: {words.strip()}")
        try:
            token = json.loads(output)["status"]["token"]
        except (ValueError, LookupError, TypeError) as error:
            raise LightkubeConfigError(f"{called} said no token ({error!r})") from error
        if not isinstance(token, str) or not token:
            what = type(token).__name__ if token else "nothing"
            raise LightkubeConfigError(f"{called} said no token (but {what})")
        return token


async def _read(stream: asyncio.StreamReader | None, shown: TextIO | None = None) -> str:
    """All that a program says; what is shown may say where to log in, and it waits for that."""
    assert stream is not None
    said = ""
    while line := (await stream.readline()).decode(errors="replace"):
        said += line
        if shown is not None:
            shown.write(line)
            shown.flush()
    return said
