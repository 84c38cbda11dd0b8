"""Which kubeconfig is read, and what is said of one that makes no sense."""

from __future__ import annotations

import base64
import os
import traceback
from pathlib import Path

import pytest
import yaml

from dask_tide.errors import ConfigError
from dask_tide.providers.kubernetes import kubeconfig
from dask_tide.providers.kubernetes.api import Api
from dask_tide.providers.kubernetes.options import Options
from dask_tide.providers.kubernetes.patience import Patience


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user who has nothing, and a process that is in no pod."""
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(kubeconfig, "_ACCOUNT", tmp_path / "account")
    return tmp_path / "home"


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "account"
    folder.mkdir()
    (folder / "token").write_text("secret")
    (folder / "namespace").write_text("science\n")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")


def write(path: Path, name: str = "here", **more: object) -> Path:
    """A file with one context, whose cluster is called the same."""
    content = {
        "current-context": name,
        "clusters": [{"name": name, "cluster": {"server": f"https://{name}:1"}}],
        "users": [{"name": name, "user": {"client-certificate": "me.crt", "client-key": "/keys/me.key"}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
    }
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(yaml.safe_dump(content | more))
    return path


def server(*arguments: str | None) -> str:
    return str(kubeconfig.read(*arguments).cluster.server)


def test_what_is_said_comes_first(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home / ".kube" / "config", "default")
    assert server() == "https://default:1"
    monkeypatch.setenv("KUBECONFIG", str(write(tmp_path / "one", "variable")))
    assert server() == "https://variable:1"
    assert server(str(write(tmp_path / "two", "argument"))) == "https://argument:1"
    monkeypatch.setenv("KUBECONFIG", "")
    assert server() == "https://default:1", "empty is not set, as for kubectl"


@pytest.mark.usefixtures("pod")
def test_in_a_pod_it_is_its_service_account_unless_something_is_said(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(home / ".kube" / "config", "default")
    assert server() == "https://10.0.0.1:443"
    assert kubeconfig.own_namespace() == "science"
    assert server(None, "default") == "https://default:1", "a ServiceAccount has no contexts"
    assert kubeconfig.own_namespace(None, "default") is None
    monkeypatch.setenv("KUBECONFIG", str(write(tmp_path / "one", "variable")))
    assert server() == "https://variable:1"
    assert kubeconfig.own_namespace() is None


def test_several_files_are_merged_as_kubectl_does_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = write(tmp_path / "first" / "config", "one", clusters=None, users=None)
    second = write(tmp_path / "second" / "config", "one")
    third = write(tmp_path / "third" / "config", "two")
    files = (first, tmp_path / "no-such-file", second, third)
    monkeypatch.setenv("KUBECONFIG", os.pathsep.join(map(str, files)))
    found = kubeconfig.read()
    assert (found.context_name, found.cluster.server) == ("one", "https://one:1")
    assert found.user.client_cert == str(tmp_path / "second" / "me.crt"), "relative to its own file"
    assert found.user.client_key == "/keys/me.key"
    assert server(None, "two") == "https://two:1"


def test_the_first_file_that_says_something_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = [{"name": "one", "user": {"token": "t"}}]
    odd = [{"name": "one", "user": {"token": "t", "as": "root"}}]
    first = write(tmp_path / "first" / "config", "one", users=plain)
    second = write(tmp_path / "second" / "config", "one", users=odd, clusters=None)
    monkeypatch.setenv("KUBECONFIG", os.pathsep.join(map(str, (first, second))))
    assert kubeconfig.read().user.token == "t"
    monkeypatch.setenv("KUBECONFIG", os.pathsep.join(map(str, (second, first))))
    with pytest.raises(ConfigError, match=r"users\.one\.as: got 'root'"):
        kubeconfig.read()


def test_nothing_at_all() -> None:
    with pytest.raises(ConfigError, match=r"ServiceAccount, \$KUBECONFIG or ~/.kube/config: there is none"):
        kubeconfig.read()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "a kubeconfig file"),
        (b"\xff\xfe", "a kubeconfig file"),
        (b"[1]", "a kubeconfig file"),
        (b"contexts: [{name: here, context: {cluster: 1}}]", "a kubeconfig file"),
        (b"contexts: [{context: {}}]", "a kubeconfig file"),
        (b"", "one of no context at all"),
        (b"contexts: [{name: here, context: {cluster: gone}}]\ncurrent-context: here", "one that has 'gone'"),
    ],
)
def test_a_file_that_makes_no_sense_is_told(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "broken"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        kubeconfig.read(str(path))


EXEC = {"apiVersion": "client.authentication.k8s.io/v1", "command": "login"}
SECRET = "swordfish"
REFUSED: list[tuple[str, str, object]] = [
    ("user", "as", "root"),
    ("user", "as", "root@example.org"),
    ("user", "as-uid", "0"),
    ("user", "as-groups", ["system:masters"]),
    ("user", "as-user-extra", {"reason": [SECRET]}),
    ("user", "auth-provider", {"name": "gcp", "config": {"access-token": SECRET}}),
    ("user", "as", {"token": SECRET}),
    ("user", "as-groups", [{"token": SECRET}]),
    ("user", "exec.apiVersion", "client.authentication.k8s.io/v2"),
    ("cluster", "proxy-url", "socks5://127.0.0.1:1"),
    ("cluster", "proxy-url", f"http://me:{SECRET}@proxy:3128"),
    ("cluster", "proxy-url", f"me:{SECRET}/x@y@proxy:3128"),
    ("cluster", "tls-server-name", "elsewhere"),
]


def odd(path: Path, kind: str, key: str, value: object) -> Path:
    """A file with an entry `odd` that says this, and a context of that name, which is not the current one."""
    first, _, below = key.partition(".")
    said = {first: {**EXEC, below: value} if below else value}
    plain = {"cluster": {"server": "https://here:1"}, "user": {"token": "t"}}
    entries = {
        part: [
            {"name": "here", part: body},
            {"name": "odd", part: {**body, **said} if part == kind else body},
        ]
        for part, body in plain.items()
    }
    contexts = [{"name": name, "context": {"cluster": name, "user": name}} for name in ("here", "odd")]
    return write(path, "here", clusters=entries["cluster"], users=entries["user"], contexts=contexts)


@pytest.mark.parametrize(("kind", "key", "value"), REFUSED)
def test_what_would_be_passed_over_is_refused_where_it_counts(
    tmp_path: Path, kind: str, key: str, value: object
) -> None:
    """It says to whom one speaks, or as whom: passed over, that is another server, or more rights."""
    path = str(odd(tmp_path / "config", kind, key, value))
    assert server(path) == "https://here:1", "a context that is not in use does no harm"
    with pytest.raises(ConfigError) as error:
        kubeconfig.read(path, "odd")
    assert error.value.key == f"tide.options.kubeconfig: {kind}s.odd.{key}"
    if isinstance(value, str) and "@proxy" in value:
        assert error.value.value == ("http://proxy:3128" if "//" in value else "proxy:3128")
    else:
        assert error.value.value == ("(not shown)" if SECRET in repr(value) else value)
    assert_nothing_told(error.value)


def assert_nothing_told(error: ConfigError) -> None:
    """Messages go to logs and bug reports, and with them what hangs on to an error."""
    told: list[BaseException | None] = [error]
    for cause in told:
        if cause is not None:
            assert SECRET not in "".join(traceback.format_exception(cause))
            assert SECRET not in repr(cause)
            assert SECRET not in repr(vars(cause))
            told += [cause.__cause__, cause.__context__]


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (f"users: [\n  {{token: {SECRET}, }}, ]]\n", "ParserError, line 2, column "),
        (f"users:\n- token: *{SECRET}\n", "ComposerError, line 2, column 10"),
        (f"users:\n- token: !{SECRET} x\n", "ConstructorError, line 2, column 10"),
        (f"users:\n- token: {SECRET}: {SECRET}\n", "ScannerError, line 2, column 19"),
        (f"token: {SECRET}\x01", "ReaderError"),
        (f"token: {SECRET}\udcff", "UnicodeDecodeError, byte 16: invalid start byte"),
        (f"users: [{{name: here, user: {SECRET}}}]", "a kubeconfig file"),
        (f"users: [{{name: here, user: {{token: [{SECRET}]}}}}]", "a kubeconfig file"),
        (f"users: {SECRET}", "a kubeconfig file"),
        (SECRET, "a kubeconfig file"),
    ],
)
def test_of_a_file_that_makes_no_sense_is_told_where_and_not_what(
    tmp_path: Path, content: str, where: str
) -> None:
    """YAML's own errors have the line in them, with its token."""
    path = tmp_path / "broken"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError) as error:
        kubeconfig.read(str(path))
    assert where in str(error.value)
    assert error.value.value == str(path)
    assert_nothing_told(error.value)


@pytest.mark.parametrize(
    ("command", "found"),
    [
        ("login", "login"),
        ("./login", "{}/login"),
        ("bin/login", "{}/bin/login"),
        ("/bin/login", "/bin/login"),
    ],
)
def test_a_program_may_lie_beside_the_file(tmp_path: Path, command: str, found: str) -> None:
    user = {"exec": {**EXEC, "command": command}}
    path = write(tmp_path / "config", users=[{"name": "here", "user": user}])
    assert kubeconfig.read(str(path)).user.exec.command == found.format(tmp_path)


PEM = base64.b64encode(b"-----BEGIN CERTIFICATE-----\n").decode()


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("user", {"client-certificate-data": "a", "client-key-data": "a"}),
        ("user", {"client-certificate-data": PEM}),
        ("user", {"client-certificate-data": PEM, "client-key-data": PEM}),
        ("user", {"client-certificate": "/no/such/file", "client-key": "/no/such/file"}),
        ("cluster", {"certificate-authority-data": "no base64"}),
        ("cluster", {"certificate-authority": "/no/such/file"}),
        ("cluster", {"server": "https://here:port"}),
    ],
)
def test_credentials_that_make_no_sense_are_told(tmp_path: Path, kind: str, said: dict[str, str]) -> None:
    plain = {"cluster": {"server": "https://here:1"}, "user": {}}
    entries = {part: [{"name": "here", part: body}] for part, body in plain.items()}
    entries[kind][0][kind] = {**plain[kind], **said}
    path = write(tmp_path / "config", clusters=entries["cluster"], users=entries["user"])
    with pytest.raises(ConfigError, match="valid credentials") as error:
        Api(Options(kubeconfig=str(path)), Patience())
    assert error.value.key == "tide.options.kubeconfig"


def test_what_is_empty_is_nothing_and_data_go_before_files(tmp_path: Path) -> None:
    """As for kubectl."""
    authority = {
        "certificate-authority": "gone.crt",
        "certificate-authority-data": base64.b64encode(b"it").decode(),
    }
    empty = {"token": "", "tokenFile": "", "client-certificate": "", "client-key-data": ""}
    path = write(
        tmp_path / "file",
        clusters=[{"name": "here", "cluster": {"server": "https://here:1", **authority}}],
        users=[{"name": "here", "user": empty}],
    )
    found = kubeconfig.read(str(path))
    user = found.user
    assert (user.token, user.token_file, user.client_cert, user.client_key_data) == (None,) * 4
    assert found.cluster.certificate_auth is None
