"""Tokens of a program that a kubeconfig names, and what is said of one that has none."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from lightkube.config.models import NameValue, UserExec
from lightkube.core.exceptions import ConfigError as LightkubeConfigError
from lightkube.resources.core_v1 import Pod
from waiting import until

from dask_tide.errors import Unauthorized
from dask_tide.providers.kubernetes import kubeconfig
from dask_tide.providers.kubernetes.api import Api
from dask_tide.providers.kubernetes.exec_auth import ExecAuth
from dask_tide.providers.kubernetes.options import Options
from dask_tide.providers.kubernetes.patience import Patience

AT_ONCE = 6
#: Says `token-1` the first time, then `token-2` and so on.
COUNTS = """
echo run >> runs
echo "{\\"status\\": {\\"token\\": \\"token-$(wc -l < runs | tr -d ' ')\\"}}"
"""


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], str]:
    """A factory of programs, which run in a folder of their own."""

    def write(text: str) -> str:
        path = tmp_path / "login"
        path.write_text(f"#!/bin/sh\ncd {shlex.quote(str(tmp_path))}\n{text}")
        path.chmod(0o755)
        return str(path)

    return write


def program(command: str, version: str = "v1", **more: Any) -> UserExec:
    return UserExec(apiVersion=f"client.authentication.k8s.io/{version}", command=command, **more)


def client(auth: UserExec, answer: Callable[[httpx2.Request], Any] | None = None) -> httpx2.AsyncClient:
    """A client whose requests nobody gets; the answer is a status, by default 200."""

    async def handle(request: httpx2.Request) -> httpx2.Response:
        status = 200 if answer is None else await answer(request)
        return httpx2.Response(status, text=request.headers["Authorization"])

    transport = httpx2.MockTransport(handle)
    return httpx2.AsyncClient(transport=transport, auth=ExecAuth(auth), base_url="http://api")


def runs(tmp_path: Path) -> int:
    return (tmp_path / "runs").read_text().count("run")


@pytest.mark.parametrize("version", ["v1", "v1beta1", "v1alpha1"])
async def test_the_program_is_told_what_it_is_asked(
    script: Callable[[str], str], tmp_path: Path, version: str
) -> None:
    command = script(
        'echo "$KUBERNETES_EXEC_INFO" > info\necho "{\\"status\\": {\\"token\\": \\"$1-$WHO\\"}}"'
    )
    asked = program(command, version, args=["token"], env=[NameValue(name="WHO", value="me")])
    async with client(asked) as http:
        assert (await http.get("/")).text == "Bearer token-me"
    assert json.loads((tmp_path / "info").read_text()) == {
        "apiVersion": f"client.authentication.k8s.io/{version}",
        "kind": "ExecCredential",
        "spec": {"interactive": False},
    }


async def test_the_first_requests_run_it_once(script: Callable[[str], str], tmp_path: Path) -> None:
    """Each run may be a window of a browser."""
    async with client(program(script(COUNTS))) as http:
        answers = await asyncio.gather(*(http.get("/") for _ in range(AT_ONCE)))
    assert {answer.text for answer in answers} == {"Bearer token-1"}
    assert runs(tmp_path) == 1


async def test_a_token_that_has_expired_is_replaced_once_for_all(
    script: Callable[[str], str], tmp_path: Path
) -> None:
    together = asyncio.Barrier(AT_ONCE)

    async def answer(request: httpx2.Request) -> int:
        if request.headers["Authorization"] != "Bearer token-1":
            return 200
        await together.wait()  # all have been sent before the first one is refused
        return 401

    async with client(program(script(COUNTS)), answer) as http:
        answers = await asyncio.gather(*(http.get("/") for _ in range(AT_ONCE)))
        assert {(one.status_code, one.text) for one in answers} == {(200, "Bearer token-2")}
        assert (await http.get("/")).text == "Bearer token-2"
    assert runs(tmp_path) == 2


async def test_who_is_refused_again_is_refused(script: Callable[[str], str], tmp_path: Path) -> None:
    async def answer(_: httpx2.Request) -> int:
        return 401

    async with client(program(script(COUNTS)), answer) as http:
        assert (await http.get("/")).status_code == 401
    assert runs(tmp_path) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("echo 'log in first' >&2\nexit 3", r"login ended with exit code 3: log in first$"),
        ("echo hello", "said no token"),
        ("echo '[]'", "said no token"),
        ("echo '{}'", "said no token"),
        ("""echo '{"status": null}'""", "said no token"),
        ("""echo '{"status": {"clientCertificateData": "x"}}'""", "said no token"),
        ("""echo '{"status": {"token": null}}'""", "said no token"),
        ("""echo '{"status": {"token": ""}}'""", "said no token"),
        ("""echo '{"status": {"token": ["secret"]}}'""", r"said no token \(but list\)"),
    ],
)
async def test_a_program_that_says_no_token_is_told(
    script: Callable[[str], str], text: str, words: str
) -> None:
    async with client(program(script(text))) as http:
        with pytest.raises(LightkubeConfigError, match=words):
            await http.get("/")


@pytest.mark.parametrize("hint", [None, "get it from https://example.org"])
async def test_a_program_that_is_not_there_is_told(tmp_path: Path, hint: str | None) -> None:
    command = str(tmp_path / "no-such-program")
    async with client(program(command, installHint=hint)) as http:
        with pytest.raises(LightkubeConfigError) as error:
            await http.get("/")
    assert f"program {command} cannot be run: " in str(error.value)
    assert str(error.value).endswith(hint or f"'{command}'")


async def test_a_program_that_failed_is_asked_again(script: Callable[[str], str], tmp_path: Path) -> None:
    fails = script(f"[ -e ready ] || exit 1\n{COUNTS}")
    async with client(program(fails)) as http:
        with pytest.raises(LightkubeConfigError, match="exit code 1"):
            await http.get("/")
        (tmp_path / "ready").touch()
        assert (await http.get("/")).text == "Bearer token-1"


async def test_a_login_is_shown_while_it_waits_and_reads_nothing(
    script: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As with a code to be entered in a browser."""
    said = "echo 'open https://login and enter ABCD' >&2"
    waits = "until test -e entered; do sleep 0.05; done\ncat > typed"
    async with client(program(script(f"{said}\n{waits}\n{COUNTS}"))) as http:
        request = asyncio.ensure_future(http.get("/"))
        await until(lambda: "enter ABCD" in capsys.readouterr().err, "it is shown")
        assert not request.done()
        (tmp_path / "entered").touch()
        assert (await request).text == "Bearer token-1"
    assert (tmp_path / "typed").read_text() == ""


async def test_who_gives_up_the_login_leaves_no_program(script: Callable[[str], str], tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    async with client(program(script("echo $$ > new\nmv new pid\nexec sleep 600"))) as http:
        request = asyncio.ensure_future(http.get("/"))
        await until(pid.exists, "it runs")
        request.cancel()
        with suppress(asyncio.CancelledError):
            await request
    number = int(pid.read_text())

    def ended() -> bool:
        try:
            os.kill(number, 0)
        except ProcessLookupError:
            return True
        return False

    await until(ended, "it has ended")


async def test_the_api_server_is_asked_with_its_token(script: Callable[[str], str], tmp_path: Path) -> None:
    """From the file to the error: nobody listens there, and the program comes first."""
    user = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "./login"}}
    content = {
        "current-context": "here",
        "clusters": [{"name": "here", "cluster": {"server": "http://127.0.0.1:1"}}],
        "users": [{"name": "me", "user": user}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
    }
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(content))
    assert kubeconfig.read(str(path)).user.exec.command == script("echo 'log in first' >&2\nexit 3")
    api = Api(Options(kubeconfig=str(path)), Patience())
    try:
        with pytest.raises(Unauthorized, match=r"listing Pods: .*exit code 3: log in first"):
            await api.list(Pod, None, "")
    finally:
        await api.close()
