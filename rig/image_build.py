"""The project's image as a docker-archive tar, without a Docker daemon and without a registry.

`build` runs ``images/Dockerfile`` with buildah on a base that mmdebstrap makes of Debian packages. What was
built of the same inputs before is not built again. By hand: ``make image``, or
``python -m rig.image_build --help``.
"""

from __future__ import annotations

import argparse
import ast
import configparser
import hashlib
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rig import packages
from rig.buildah import EPOCH, Workshop
from rig.folders import CHECKOUT, RigError

__all__ = [
    "TAG",
    "Description",
    "base_image",
    "build",
    "copy_inputs",
    "describe",
    "missing",
    "pip_secrets",
    "root",
]

#: The image's name in the tests: imported into a node's store, never pulled.
TAG = "docker.io/dask-tide/dask-tide:dev"

# What `images/Dockerfile.dockerignore` lets in, and what decides how it is built.
INPUTS = (
    "charts/*/Chart.yaml",
    "charts/*/values*",
    "images",
    "requirements/image*.txt",
    "rig/image_build.py",
    "src",
    "LICENSE",
    "README.md",
    "pyproject.toml",
)

# Names in buildah's store. Only the tar has `TAG`: images of different options would take it from each other.
STORE_NAME = "localhost/dask-tide/image"
BASE_NAME = "localhost/dask-tide/base"
# `usr-is-merged`: without it comes `usrmerge`, and with that all of Perl.
BASE_PACKAGES = ("python3", "python3-venv", "tini", "ca-certificates", "usr-is-merged")
# As in the slim images of registries: nobody reads a manual page in a container.
BASE_EXCLUDES = ("/usr/share/doc/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/man/*")

# No dates, no buildah's version: the same inputs give the same image.
BUILD_OPTIONS = ("--format=oci", f"--timestamp={EPOCH}", "--identity-label=false")

KEPT = 4


def missing() -> str | None:
    """Why an image cannot be built here, or None if it can."""
    if sys.platform != "linux" or os.geteuid() != 0 or "CAP_SYS_ADMIN" in packages.denied():
        docker = "docker build -f images/Dockerfile ."
        return f"building the image needs root with CAP_SYS_ADMIN on Linux; with Docker: {docker}"
    absent = [name for name in ("buildah", "mmdebstrap", "runc") if shutil.which(name) is None]
    if absent:
        return f"building the image needs {' and '.join(absent)}: apt-get install {' '.join(absent)}"
    return None


@dataclass(frozen=True)
class Description:
    """What an image is, whatever the tar around it.

    Attributes
    ----------
    tag
        Its name.
    config
        Its configuration, with the digests of its layers in ``config["rootfs"]``.
    size_bytes
        Of all layers, unpacked: what a node pulls is compressed.
    """

    tag: str
    config: dict[str, Any]
    size_bytes: int


def describe(archive: Path) -> Description:
    """Read what a docker-archive tar has in it."""
    with tarfile.open(archive) as tar:

        def document(name: str) -> Any:
            member = tar.extractfile(name)
            if member is None:
                raise RigError(f"{archive}: {name} is not a file")
            return json.load(member)

        [manifest] = document("manifest.json")
        size_bytes = sum(tar.getmember(layer).size for layer in manifest["Layers"])
        return Description(manifest["RepoTags"][0], document(manifest["Config"]), size_bytes)


def build(
    output: Path | None = None,
    *,
    base: str | None = None,
    tag: str = TAG,
    notebook: bool = True,
    extra_packages: Sequence[str] = (),
    cached: bool = True,
    checkout: Path = CHECKOUT,
    workshop: Workshop | None = None,
) -> Path:
    """Build the image, unless it is there already, and return its docker-archive tar.

    Parameters
    ----------
    output
        Where the tar has to be; by default it stays in the cache.
    base
        Another base, by a name that buildah can pull; by default one is made of Debian packages.
    tag
        The image's name in the tar.
    notebook
        Whether JupyterLab is in it.
    extra_packages
        More Python packages: requirements without spaces.
    cached
        False builds each layer anew, but from packages that were downloaded before.
    checkout
        What to build.
    workshop
        Where to build.

    Raises
    ------
    RigError
        If a step fails, or if images cannot be built here (see `missing`).
    """
    workshop = workshop or Workshop()
    options = [base or "", tag, str(notebook), *extra_packages]

    def archive(inputs: Path) -> Path:
        return workshop.folder / f"dask-tide-{_key(inputs, options)}.tar"

    tar = archive(checkout)
    if not (cached and tar.exists()):
        if reason := missing():
            raise RigError(reason)
        with workshop.opened(), workshop.temporary() as folder:
            # Of a copy: somebody may be writing in the checkout.
            context = copy_inputs(folder / "context", checkout)
            tar = archive(context)
            if not (cached and tar.exists()):
                arguments = {"NOTEBOOK": str(int(notebook)), "EXTRA_PACKAGES": " ".join(extra_packages)}
                _bud(workshop, context, f"{STORE_NAME}:{tar.stem}", base, arguments, cached)
                partial = folder / tar.name
                workshop.buildah(
                    "push", "--quiet", f"{STORE_NAME}:{tar.stem}", f"docker-archive:{partial}:{tag}"
                )
                partial.replace(tar)
                _forget_old(workshop.folder)
    os.utime(tar)  # the order in which they are thrown away
    if output is None:
        return tar
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.{os.getpid()}")
    shutil.copyfile(tar, partial)
    return partial.replace(output)


def copy_inputs(folder: Path, checkout: Path = CHECKOUT) -> Path:
    """Copy what the image is made of; return the copy's folder, a `checkout` for `build`."""
    for file in _inputs(checkout):
        copy = folder / file.relative_to(checkout)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, copy, follow_symlinks=False)
    return folder


@contextmanager
def root(archive: Path, workshop: Workshop) -> Iterator[Path]:
    """The root of a container of an image that was built here, as long as the workshop is open."""
    name = f"{STORE_NAME}:{archive.stem}"
    if not workshop.has(name):
        workshop.buildah("pull", "--quiet", f"docker-archive:{archive}")
        workshop.buildah("tag", describe(archive).tag, name)
    with workshop.mounted(name) as folder:
        yield folder


def base_image(workshop: Workshop) -> str:
    """The name of a base that has what the Dockerfile asks of one; it is made if it is not there."""
    recipe = ["mmdebstrap", "--quiet", "--mode=root", "--variant=apt", f"--include={','.join(BASE_PACKAGES)}"]
    recipe += [f"--dpkgopt=path-exclude={pattern}" for pattern in BASE_EXCLUDES]
    recipe += ["--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr", "bookworm"]
    dockerfile = 'FROM scratch\nADD base.tar /\nCMD ["python3"]\n'
    name = f"{BASE_NAME}:bookworm-{_hash([*recipe, *BUILD_OPTIONS, dockerfile])[:8]}"
    if not workshop.has(name):
        with workshop.temporary() as folder:
            tree = folder / "base.tar"
            workshop.run([*recipe, str(tree)])
            (folder / "Dockerfile").write_text(dockerfile)
            workshop.buildah("bud", *BUILD_OPTIONS, "--tag", name, folder)
    return name


def _bud(
    workshop: Workshop, context: Path, name: str, base: str | None, arguments: dict[str, str], cached: bool
) -> None:
    arguments |= {"BASE": base or base_image(workshop), "SOURCE_DATE_EPOCH": str(EPOCH)}
    with workshop.temporary() as folder:
        options = ["--layers", "--isolation=chroot", "--network=host", f"--tag={name}"]
        options += ["--pull" if base else "--pull-never", *([] if cached else ["--no-cache"])]
        options += [f"--file={context / 'images' / 'Dockerfile'}"]
        options += [f"--ignorefile={context / 'images' / 'Dockerfile.dockerignore'}"]
        options += [f"--build-arg={argument}={value}" for argument, value in arguments.items()]
        options += [f"--secret=id={secret},src={path}" for secret, path in pip_secrets(folder).items()]
        workshop.buildah("bud", *BUILD_OPTIONS, *options, context)


def _forget_old(folder: Path) -> None:
    tars = sorted(folder.glob("dask-tide-*.tar"), key=lambda path: path.stat().st_mtime)
    for old in tars[:-KEPT]:
        old.unlink()


def _inputs(checkout: Path) -> list[Path]:
    """What decides what the image is: files and links, not what Python compiled beside them."""
    found = [path for pattern in INPUTS for path in checkout.glob(pattern)]
    files = [file for path in found for file in (path.rglob("*") if path.is_dir() else [path])]
    return sorted(file for file in files if not file.is_dir() and "__pycache__" not in file.parts)


def _key(checkout: Path, options: Sequence[str]) -> str:
    """A name for what the image is made of: checkouts with the same files share what they build."""
    files = {
        str(file.relative_to(checkout)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in _inputs(checkout)
    }
    return _hash([*options, *itertools.chain(*files.items())])[:16]


def _hash(parts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()


def pip_secrets(folder: Path) -> dict[str, Path]:
    """What pip is told on this machine (its files and its ``PIP_*`` variables), for the pip in the build.

    Files that it names are not in the build: the certificate authorities become a secret of their own, and
    folders with packages are left out.
    """
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    sections: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in listed.stdout.splitlines():
        name, _, value = line.partition("=")
        section, _, key = name.rpartition(".")
        sections.get(section, {})[key] = ast.literal_eval(value)
    # As pip: a variable goes before a file, and a command's section before the one for all.
    settings = sections["global"] | sections["install"] | sections[":env:"]
    authorities = (
        settings.pop("cert", None) or os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE")
    )
    kept: dict[str, str] = {
        key: settings[key]
        for key in ("index-url", "extra-index-url", "trusted-host", "timeout")
        if key in settings
    }
    secrets = {}
    if authorities and Path(authorities).is_file():
        secrets["ca.crt"] = folder / "ca.crt"
        shutil.copyfile(authorities, secrets["ca.crt"])
        kept["cert"] = "/run/secrets/ca.crt"
    parser = configparser.RawConfigParser()
    parser["global"] = kept
    written = io.StringIO()
    parser.write(written)
    secrets["pip.conf"] = folder / "pip.conf"
    secrets["pip.conf"].write_text(written.getvalue())
    return secrets


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m rig.image_build", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=Path, help="where the tar has to be; by default it stays in the cache"
    )
    parser.add_argument("--base", help="another base, pulled from its registry")
    parser.add_argument("--tag", default=TAG, help="the image's name (%(default)s)")
    parser.add_argument("--no-notebook", action="store_true", help="without JupyterLab")
    parser.add_argument("--extra-packages", nargs="*", default=[], help="more Python packages")
    parser.add_argument("--no-cache", action="store_true", help="build every layer anew")
    parser.add_argument("--clear", action="store_true", help="empty the cache, and build nothing")
    given = parser.parse_args()
    try:
        if given.clear:
            Workshop().clear()
            return
        tar = build(
            given.output,
            base=given.base,
            tag=given.tag,
            notebook=not given.no_notebook,
            extra_packages=given.extra_packages,
            cached=not given.no_cache,
        )
    except RigError as error:
        parser.exit(1, f"{error}\n")
    print(tar)


if __name__ == "__main__":
    main()
