"""The image: built as users build it, run as Kubernetes' Pod Security "restricted" runs it."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from configparser import RawConfigParser
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from rig import image_build
from rig.buildah import Workshop
from rig.folders import RigError

# A first build downloads everything.
pytestmark = [pytest.mark.xdist_group("image"), pytest.mark.timeout(900)]

#: Unpacked; what a node pulls is compressed, about a third of it.
LIMIT_BYTES = 500e6
LIMIT_WITHOUT_NOTEBOOK_BYTES = 330e6
#: Small, without dependencies, and here already.
EXTRA = f"iniconfig=={version('iniconfig')}"


class Image:
    """An image and its files, in a folder."""

    def __init__(self, archive: Path, root: Path) -> None:
        self.root = root
        self.description = image_build.describe(archive)
        self.settings: dict[str, Any] = self.description.config["config"]

    @contextmanager
    def container(self, folder: Path, *command: str, uid: int = 1000) -> Iterator[Container]:
        container = Container(self, folder, command, uid)
        try:
            yield container
        finally:
            container.remove()

    def output(self, folder: Path, *command: str, uid: int = 1000) -> str:
        """Run a command to its end and return what it wrote."""
        with self.container(folder, *command, uid=uid) as container:
            written, _ = container.process.communicate(timeout=120)
            assert container.process.returncode == 0, written
            return written


class Container:
    """A container with nothing granted: no capabilities, a read-only root, no network but loopback."""

    def __init__(self, image: Image, folder: Path, command: Sequence[str], uid: int) -> None:
        self.name = f"dask-tide-{uuid.uuid4().hex[:12]}"
        self.bundle = folder / self.name
        self.bundle.mkdir()
        self.runc = ["runc", "--root", str(folder / "runc")]
        subprocess.run([*self.runc, "spec", "--bundle", self.bundle], check=True, timeout=30)
        spec = json.loads((self.bundle / "config.json").read_text())
        spec["root"] = {"path": str(image.root), "readonly": True}
        spec["process"] |= {
            "terminal": False,
            "user": {"uid": uid, "gid": 0 if uid != 1000 else 1000},
            "env": image.settings["Env"],
            "cwd": image.settings["WorkingDir"],
            "args": [*image.settings["Entrypoint"], *command],
            "capabilities": {},
            "rlimits": [],
            "noNewPrivileges": True,
        }
        spec["mounts"].append(
            {
                "destination": "/tmp",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "nodev", "mode=1777"],
            }
        )
        (self.bundle / "config.json").write_text(json.dumps(spec))
        self.process = subprocess.Popen(
            [*self.runc, "run", "--bundle", self.bundle, self.name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_for_line(self, part: str, deadline_s: float = 60.0) -> None:
        end_s = time.monotonic() + deadline_s
        written = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            written.append(line)
            if part in line:
                return
            assert time.monotonic() < end_s, "".join(written)
        raise AssertionError("it ended: " + "".join(written))

    def send(self, number: int) -> None:
        subprocess.run([*self.runc, "kill", self.name, str(number)], check=True, timeout=30)

    def remove(self) -> None:
        subprocess.run(
            [*self.runc, "delete", "--force", self.name], check=False, capture_output=True, timeout=30
        )
        self.process.communicate(timeout=30)


@pytest.fixture(scope="module")
def workshop(image: Path) -> Iterator[Workshop]:
    """Open as long as these tests run: containers are mounted in it."""
    workshop = Workshop()
    with workshop.opened():
        yield workshop


@pytest.fixture(scope="module")
def usual(image: Path, workshop: Workshop) -> Iterator[Image]:
    """The image that the cluster runs."""
    with image_build.root(image, workshop) as root:
        yield Image(image, root)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the image is made of, while somebody may be writing in the real checkout."""
    return image_build.copy_inputs(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="module")
def special_archive(checkout: Path, workshop: Workshop) -> Path:
    return image_build.build(notebook=False, extra_packages=[EXTRA], checkout=checkout, workshop=workshop)


@pytest.fixture(scope="module")
def special(special_archive: Path, workshop: Workshop) -> Iterator[Image]:
    """What somebody builds who wants workers with a package of their own, and no JupyterLab."""
    with image_build.root(special_archive, workshop) as root:
        yield Image(special_archive, root)


def test_configuration(usual: Image) -> None:
    config = usual.settings
    assert config["User"] == "1000:1000"
    assert config["Entrypoint"] == ["/usr/bin/tini", "--"]
    assert "HOME=/tmp" in config["Env"]
    assert config["Labels"]["org.opencontainers.image.title"] == "dask-tide"
    assert not [name for name in config["Env"] if name.startswith(("PIP_CONFIG", "PIP_INDEX", "PIP_CERT"))]


def test_size(usual: Image, special: Image) -> None:
    print(f"Unpacked: {usual.description.size_bytes / 1e6:.0f} MB")
    print(f"Without notebook server: {special.description.size_bytes / 1e6:.0f} MB")
    assert usual.description.size_bytes < LIMIT_BYTES
    assert special.description.size_bytes < LIMIT_WITHOUT_NOTEBOOK_BYTES


@pytest.mark.parametrize("uid", [1000, 54321])
def test_runs_as_anybody_on_a_read_only_root(usual: Image, tmp_path: Path, uid: int) -> None:
    script = """
        id -u
        dask --version
        dask tide validate
        python -c "import lightkube, dask_tide, numpy, lz4; print('imported')"
        touch /opt/x 2>/dev/null || echo read-only
        cat /proc/1/comm
    """
    written = usual.output(tmp_path, "sh", "-ec", script, uid=uid).splitlines()
    assert written[:2] == [str(uid), f"dask, version {version('dask')}"]
    assert written[-4:] == ["provider local: the configuration is valid", "imported", "read-only", "tini"]


def test_a_cluster_computes_in_it(usual: Image, tmp_path: Path) -> None:
    program = """if True:
        from dask_tide import TideCluster
        if __name__ == "__main__":
            with TideCluster(maximum=1, dashboard_address=":8787") as cluster, cluster.get_client() as client:
                print(client.submit(sum, range(10)).result(timeout=60))
                print(cluster.dashboard_link)
    """
    written = usual.output(
        tmp_path, "sh", "-ec", f"cat > /tmp/job.py <<'END'\n{program}\nEND\npython /tmp/job.py"
    )
    assert written.splitlines()[-2:] == ["45", "http://127.0.0.1:8787/status"]


def test_sigterm_ends_a_scheduler(usual: Image, tmp_path: Path) -> None:
    with usual.container(tmp_path, "dask", "scheduler", "--preload", "dask_tide.preload") as container:
        container.wait_for_line("Scheduler at:")
        container.send(signal.SIGTERM)
        written, _ = container.process.communicate(timeout=60)
        assert container.process.returncode != 128 + signal.SIGKILL, written
        assert "SIGTERM" in written


def test_jupyter_lab_serves_and_computes(usual: Image, tmp_path: Path) -> None:
    script = """
        jupyter lab --ip 127.0.0.1 --port 8888 --no-browser > /tmp/log 2>&1 &
        python - <<'END'
import time, urllib.error, urllib.request
end = time.monotonic() + 60
while True:
    try:
        page = urllib.request.urlopen("http://127.0.0.1:8888/lab?token=secret").read().decode()
        break
    except OSError:
        assert time.monotonic() < end, open("/tmp/log").read()
        time.sleep(0.2)
print("JupyterLab" in page)
import nbformat
cells = [nbformat.v4.new_code_cell("import dask_tide, distributed; print(6 * 7)")]
nbformat.write(nbformat.v4.new_notebook(cells=cells), "/tmp/book.ipynb")
END
        jupyter execute --inplace /tmp/book.ipynb 2>/dev/null
        grep -c '"42' /tmp/book.ipynb
    """
    written = usual.output(tmp_path, "sh", "-ec", f"export JUPYTER_TOKEN=secret\n{script}")
    assert written.splitlines() == ["True", "1"]


def test_nothing_in_it_raises_rights_or_compiles(usual: Image) -> None:
    raising, writable = [], []
    for path in usual.root.rglob("*"):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode) and mode & (stat.S_ISUID | stat.S_ISGID):
            raising.append(path)
        if stat.S_ISREG(mode) and mode & stat.S_IWOTH:
            writable.append(path)
    assert not raising
    assert not writable
    programs = {
        path.name
        for folder in ("usr/bin", "usr/local/bin", "opt/venv/bin")
        for path in usual.root.glob(f"{folder}/*")
    }
    assert not programs & {"ar", "as", "cc", "c++", "gcc", "g++", "ld", "make", "curl", "wget", "git"}


def test_nothing_is_left_of_the_build(usual: Image) -> None:
    def files(folder: str) -> list[Path]:
        return [path for path in (usual.root / folder).rglob("*") if not path.is_dir()]

    # Where caches, secrets and tools were mounted.
    assert not any(
        files(folder) for folder in ("run", "tmp", "root/.cache", "var/cache/pip", "opt/tools", "source")
    )
    assert not (usual.root / "etc" / "pip.conf").exists()


def test_python_code_is_compiled_without_dates(usual: Image) -> None:
    [packages] = usual.root.glob("opt/venv/lib/python3*/site-packages")
    compiled = list(packages.rglob("*.pyc"))
    assert {"dask_tide", "distributed"} <= {path.relative_to(packages).parts[0] for path in compiled}
    for path in compiled:
        with path.open("rb") as file:
            # PEP 552: by hash, and not compared with the source.
            assert file.read(8)[4:] == b"\x01\0\0\0", path


def test_extra_packages_are_in_it_and_jupyter_is_not(special: Image, tmp_path: Path) -> None:
    script = (
        "import importlib.util, iniconfig, dask_tide, prometheus_client;"
        "print(importlib.util.find_spec('jupyterlab'))"
    )
    assert special.output(tmp_path, "python", "-c", script) == "None\n"
    [compiled] = special.root.glob("opt/venv/lib/python3*/site-packages/iniconfig/__pycache__")
    assert list(compiled.iterdir())


def test_an_extra_package_cannot_change_the_others(checkout: Path, workshop: Workshop) -> None:
    with pytest.raises(RigError, match=r"\(constraint\) distributed=="):
        image_build.build(
            notebook=False, extra_packages=["distributed==2025.1.0"], checkout=checkout, workshop=workshop
        )


def test_the_same_inputs_give_the_same_image(
    special: Image, checkout: Path, workshop: Workshop, tmp_path: Path
) -> None:
    again = image_build.build(
        tmp_path / "again.tar",
        notebook=False,
        extra_packages=[EXTRA],
        cached=False,
        checkout=checkout,
        workshop=workshop,
    )
    assert image_build.describe(again) == special.description
    again.unlink()


def test_what_is_built_is_not_built_again(
    special_archive: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(self: Workshop) -> None:
        raise AssertionError("nothing has changed")

    monkeypatch.setattr(Workshop, "opened", opened)
    assert image_build.build(notebook=False, extra_packages=[EXTRA], checkout=checkout) == special_archive


def test_pip_in_the_build_is_told_what_pip_here_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authorities = tmp_path / "authorities.pem"
    authorities.write_text("certificates")
    (tmp_path / "pip.conf").write_text("[global]\nindex-url = https://other.example/simple\ntimeout = 7\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.setenv("PIP_INDEX_URL", "https://index.example/100%/simple")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CERT", str(authorities))
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    found = image_build.pip_secrets(secrets)
    settings = RawConfigParser()
    settings.read(found["pip.conf"])
    assert settings["global"]["index-url"] == "https://index.example/100%/simple"
    assert settings["global"]["cert"] == "/run/secrets/ca.crt"
    assert "find-links" not in settings["global"]
    assert found["ca.crt"].read_text() == "certificates"


def test_without_root_it_says_what_to_do_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert "docker build" in (image_build.missing() or "")
