"""Buildah with a store, caches and settings of its own: nobody else's images are touched."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rig.folders import RigError, root

__all__ = ["EPOCH", "Workshop"]

#: All dates in an image are this one (2026-01-01), so that the same inputs give the same image.
EPOCH = 1767225600

STEP_DEADLINE_S = 900.0
_STEP = "step-"

# What buildah needs where CAP_SYS_RESOURCE is missing or cgroups are of version 1; it does no harm elsewhere.
CONTAINERS_CONF = """\
[containers]
default_ulimits = []
[engine]
cgroup_manager = "cgroupfs"
runtime = "runc"
"""

STORAGE_CONF = """\
[storage]
driver = "overlay"
graphroot = "{store}"
runroot = "{run}"
[storage.options.overlay]
# Else a bind mount stays behind.
skip_mount_home = "true"
"""


class Workshop:
    """One folder to build images in, used by one process at a time.

    Parameters
    ----------
    folder
        Where to keep it all; by default ``images`` in the rig's cache.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or root() / "images"
        self._lock = -1

    @contextmanager
    def opened(self, *, wait: bool = True) -> Iterator[None]:
        """Alone in here: others wait, also for a buildah that outlives us, because it inherits the lock.

        Who is in here may enter again. What a build that was killed left is gone.

        Parameters
        ----------
        wait
            Whether to wait for others.

        Raises
        ------
        BlockingIOError
            If others are in here and we do not wait.
        """
        if self._lock >= 0:
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        # Counts of mounts: these must not survive a reboot, as the store does.
        run = Path("/run/dask-tide-images") / hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:8]
        self._lock = os.open(self.folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            (self.folder / "containers.conf").write_text(CONTAINERS_CONF)
            (self.folder / "storage.conf").write_text(
                STORAGE_CONF.format(store=self.folder / "store", run=run)
            )
            (self.folder / "temporary").mkdir(exist_ok=True)
            self.buildah("rm", "--all")  # mounts, too
            for step in (self.folder / "temporary").glob(f"{_STEP}*"):  # pip's credentials may be in there
                shutil.rmtree(step)
            try:
                yield
            finally:
                self.buildah("rm", "--all")
        finally:
            os.close(self._lock)
            self._lock = -1

    def buildah(self, *arguments: str | Path) -> str:
        """Run ``buildah`` and return its standard output."""
        return self.run(["buildah", *map(str, arguments)])

    def has(self, image: str) -> bool:
        names = self.buildah("images", "--noheading", "--format", "{{.Name}}:{{.Tag}}").splitlines()
        return image in names

    def clear(self) -> None:
        """Forget all images and what was downloaded for them."""
        with self.opened():
            self.buildah("rmi", "--all", "--force")
            for path in (*self.folder.glob("*.tar"), *(self.folder / "temporary").iterdir()):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    @contextmanager
    def temporary(self) -> Iterator[Path]:
        """A folder that goes away; only we can read it."""
        with tempfile.TemporaryDirectory(dir=self.folder / "temporary", prefix=_STEP) as folder:
            yield Path(folder)

    @contextmanager
    def mounted(self, image: str) -> Iterator[Path]:
        """The root of a container made from the image: writing to it does not change the image."""
        container = self.buildah("from", "--pull-never", image).strip()
        try:
            yield Path(self.buildah("mount", container).strip())
        finally:
            self.buildah("rm", container)

    def run(self, command: Sequence[str], deadline_s: float = STEP_DEADLINE_S) -> str:
        """Run a command with the settings of this workshop and return its standard output.

        Raises
        ------
        RigError
            With the end of what it wrote, if it fails or takes too long.
        """
        environment = os.environ | {
            "CONTAINERS_CONF": str(self.folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self.folder / "storage.conf"),
            "SOURCE_DATE_EPOCH": str(EPOCH),
            # The Dockerfile's cache mounts are kept here as well.
            "TMPDIR": str(self.folder / "temporary"),
            "LC_ALL": "C.UTF-8",
        }
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as log:
            with subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                env=environment,
                pass_fds=[self._lock],
                start_new_session=True,
            ) as process:
                try:
                    code = process.wait(deadline_s)
                    failure = f"exited with {code}" if code else ""
                except subprocess.TimeoutExpired:
                    failure = f"took longer than {deadline_s:g} s"
                finally:
                    if process.returncode is None:
                        os.killpg(process.pid, signal.SIGKILL)
            out.seek(0)
            log.seek(0)
            written = out.read().decode(errors="replace")
            if failure:
                told = (written + log.read().decode(errors="replace"))[-4000:].strip()
                raise RigError(f"`{' '.join(command[:2])}` {failure}:\n{told}")
        return written
