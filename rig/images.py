"""Images for the nodes: small ones made here, and stores of images that every node starts with."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rig import binaries
from rig.folders import CHECKOUT, RigError, locked, root
from rig.keeper import die_with_parent

#: The image that holds a pod's namespaces.
PAUSE = "docker.io/dask-tide/pause:rig"
#: A web server and its client, a DNS look-up and a glutton, for tests: see ``rig/go/containers/toolbox``.
TOOLBOX = "docker.io/dask-tide/toolbox:rig"
STORES_KEPT = 3
BAKE_S = 600


def _add(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    archive.addfile(entry, io.BytesIO(content))


def archive(tag: str, program: Path) -> bytes:
    """A docker-archive of an image with nothing but one static program.

    Parameters
    ----------
    tag
        The image's full name.
    program
        The program; it becomes the entrypoint.
    """
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as files:
        folder = tarfile.TarInfo("tmp")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o1777
        files.addfile(folder)
        _add(files, program.name, program.read_bytes(), 0o755)
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    config: dict[str, Any] = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[_machine()],
        "os": "linux",
        "config": {"Entrypoint": [f"/{program.name}"], "User": "65534:65534"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        "history": [{"created_by": "dask-tide rig"}],
    }
    content = json.dumps(config).encode()
    name = hashlib.sha256(content).hexdigest()
    manifest = [{"Config": f"{name}.json", "RepoTags": [tag], "Layers": [f"{digest}/layer.tar"]}]
    result = io.BytesIO()
    with tarfile.open(fileobj=result, mode="w") as image:
        _add(image, f"{name}.json", content)
        _add(image, f"{digest}/layer.tar", layer.getvalue())
        _add(image, "manifest.json", json.dumps(manifest).encode())
    return result.getvalue()


def _machine() -> str:
    import platform

    return platform.machine()


def own() -> list[Path]:
    """The tars of the images that are always there: :data:`PAUSE` and :data:`TOOLBOX`."""
    tars = []
    for tag, name in ((PAUSE, "pause"), (TOOLBOX, "toolbox")):
        program = binaries.ensure(name)[name]
        tar = program.with_suffix(".tar")
        with locked(program.with_suffix(".lock")):
            if not tar.exists():
                part = program.with_suffix(".part")
                part.write_bytes(archive(tag, program))
                part.rename(tar)
        tars.append(tar)
    return tars


def _digest(tar: Path) -> str:
    with tar.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def bake(tars: Sequence[Path] = ()) -> Path:
    """A containerd store with these images and :func:`own` ones, unpacked; nodes hard-link it.

    What was baked of the same tars before is there at once.

    Parameters
    ----------
    tars
        docker-archive (or OCI archive) files.

    Returns
    -------
    Path
        The store's folder. It may go when others are baked; who has linked it keeps what it has.
    """
    everything = [*own(), *tars]
    key = hashlib.sha256("".join(sorted(map(_digest, everything))).encode()).hexdigest()[:12]
    stores = root() / "stores"
    store = stores / key
    with locked(_lock(store)):
        if not store.exists():
            stores.mkdir(parents=True, exist_ok=True)
            part = store.with_suffix(".part")
            _remove_parts(store)
            _import(everything, part)
            part.rename(store)
        os.utime(store)
    _throw_away_old(stores)
    return store


def _lock(store: Path) -> Path:
    return root() / "locks" / f"store-{store.name}"


def _remove_parts(store: Path) -> None:
    """Remove what one that was killed has left of this store; we hold the lock."""
    for part in store.parent.glob(f"{store.name}.part*"):
        shutil.rmtree(part, ignore_errors=True)


def _throw_away_old(stores: Path) -> None:
    """Remove all but the last few stores that were asked for and what is no store, if nobody is at them."""
    for store in {path.with_name(path.name.partition(".")[0]) for path in stores.glob("*.part*")}:
        with suppress(BlockingIOError), locked(_lock(store), wait=False):
            _remove_parts(store)
    last = sorted(
        (path for path in stores.iterdir() if not path.suffix), key=lambda path: path.stat().st_mtime
    )
    for old in last[:-STORES_KEPT]:
        with suppress(BlockingIOError), locked(_lock(old), wait=False):
            shutil.rmtree(old, ignore_errors=True)


def copy(store: Path, target: Path) -> None:
    """Give a node a store of its own: hard links, but real copies of the databases.

    Layers are never written to by overlayfs, databases are.
    """
    with locked(_lock(store)):
        subprocess.run(["cp", "-al", str(store), str(target)], check=True, timeout=BAKE_S)
        for database in store.rglob("*.db"):
            copied = target / database.relative_to(store)
            copied.unlink()
            shutil.copy2(database, copied)


def renew(store: Path, source: Path) -> None:
    """Put a copy of another store in a store's place; who copies that meanwhile gets the one or the other."""
    fresh = store.with_suffix(".new")
    shutil.rmtree(fresh, ignore_errors=True)  # of one that was killed
    copy(source, fresh)
    with locked(_lock(store)):
        shutil.rmtree(store)
        fresh.rename(store)


def _import(tars: Sequence[Path], store: Path) -> None:
    store.mkdir()
    isolated = ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
    script = [str(CHECKOUT / "rig" / "machine.sh"), "bake", str(store), *map(str, tars)]
    command = [*isolated, "--propagation", "private", "--", "bash", *script]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=BAKE_S,
        check=False,
        preexec_fn=die_with_parent,
    )
    if done.returncode != 0:
        raise RigError(f"images were not imported:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
