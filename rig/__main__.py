"""``python -m rig``: the test cluster by hand."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rig import binaries, image_build, images, packages
from rig.folders import RigError, default_name, root, runs
from rig.keeper import Kept, clean
from rig.nodes import Cluster
from rig.plane import Plane


def _attached(name: str) -> Plane:
    return (Cluster if (runs() / name / "nodes").exists() else Plane).attach(name)


def _cluster(name: str) -> Cluster:
    cluster = _attached(name)
    if not isinstance(cluster, Cluster):
        raise RigError("this cluster has fake nodes only; for real ones: python -m rig up --level nodes")
    return cluster


def _up(arguments: argparse.Namespace) -> None:
    start_s = time.monotonic()
    if Kept(runs() / arguments.name).runs():
        raise RigError("a cluster of this checkout runs already; first: python -m rig down")
    if arguments.level == "nodes" or (arguments.level is None and not packages.impossible()):
        packages.install()
        tars = list(arguments.image)
        if arguments.project_image:
            tars.append(image_build.build())
        cluster: Plane = _up_nodes(arguments.name, arguments.nodes, tars)
    else:
        cluster = Plane.start(arguments.name, bound=False)
        cluster.add_kwok_nodes(arguments.nodes)
    print(cluster.kubectl("get", "nodes"))
    print(f"up in {time.monotonic() - start_s:.1f} s; logs in {cluster.folder / 'logs'}\n")
    kubectl = binaries.ensure("kubectl")["kubectl"].parent
    print(f"export KUBECONFIG={shlex.quote(str(cluster.kubeconfig))}")
    print(f"export PATH={shlex.quote(str(kubectl))}:$PATH\n")
    if isinstance(cluster, Cluster):
        print(f"kubectl run web --image={images.TOOLBOX} --port=8080 -- serve :8080")
        print("kubectl port-forward pod/web 8080:8080       # then http://localhost:8080")
        print("kubectl exec web -- /toolbox lookup kubernetes.default.svc.cluster.local")
        print("python -m rig node-up n9; python -m rig node-down n1    # boot and kill machines")
    else:
        print(
            "kubectl create deployment many --image=any --replicas=100   # pods of fake nodes: seen, not run"
        )
        print("kubectl get pods --watch")
    print("make cluster-down")


def _up_nodes(name: str, count: int, tars: list[Path]) -> Cluster:
    cluster = Cluster.start(name, bound=False, tars=tars)
    try:
        cluster.nodes_up(*(f"n{i + 1}" for i in range(count)))
    except BaseException:
        cluster.stop()
        raise
    return cluster


def _down(arguments: argparse.Namespace) -> None:
    clean()
    folder = runs() / arguments.name
    if folder.exists():
        Kept(folder).quit()
        print("down; nothing is left")
    else:
        print("no cluster runs")


def _node_up(arguments: argparse.Namespace) -> None:
    start_s = time.monotonic()
    _cluster(arguments.name).node_up(
        arguments.node,
        cpus=arguments.cpus,
        memory_gib=arguments.memory_gib,
        labels=dict(arguments.label),
        taints=arguments.taint,
        provider_id=arguments.provider_id,
    )
    print(f"{arguments.node} is Ready after {time.monotonic() - start_s:.1f} s")


def _node_down(arguments: argparse.Namespace) -> None:
    _cluster(arguments.name).node_down(arguments.node, forget=arguments.forget)


def _load(arguments: argparse.Namespace) -> None:
    _cluster(arguments.name).load(arguments.tar)


def _kubectl(arguments: argparse.Namespace) -> None:
    kubectl = _attached(arguments.name).kubectl
    command = kubectl.command(*arguments.words)
    os.execve(command[0], command, os.environ | kubectl.environment())


def _in(arguments: argparse.Namespace) -> None:
    command = [*_cluster(arguments.name).place.enter, *arguments.words]
    raise SystemExit(subprocess.run(command, check=False).returncode)


def _status(arguments: argparse.Namespace) -> None:
    for folder in sorted(path for path in runs().iterdir() if (path / "keeper.lock").exists()):
        kept = Kept(folder)
        mark = " (this checkout's)" if folder.name == arguments.name else ""
        if not kept.runs():
            print(f"{folder.name}{mark}: dead; the next start cleans it up")
            continue
        print(f"{folder.name}{mark}: KUBECONFIG={folder / 'kubeconfig'}")
        for name, (pid, code) in kept.status().items():
            print(f"    {name:28} {f'process {pid}' if code is None else f'ended with {code}'}")


def _prepare(arguments: argparse.Namespace) -> None:
    for left in clean():
        print(f"cleaned up what cluster {left} had left")
    if reason := packages.impossible():
        print(f"without the level nodes: {reason}")
    else:
        packages.install(packages.NODE | packages.IMAGE | packages.BROWSER)
    binaries.ensure(*(arguments.program or [*binaries.PROGRAMS, "kwok-stages"]))
    print(f"programs are in {root() / 'bin'}")
    if not arguments.program and not image_build.missing():
        print(f"this project's image is {image_build.build()}")


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m rig", description="A real Kubernetes on this machine.")
    parser.add_argument(
        "--name", default=default_name(), help="the cluster's name; by default this checkout's own"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, does: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(does=does)
        return command

    up = add("up", _up, "start a cluster")
    up.add_argument(
        "--level",
        choices=("plane", "nodes"),
        help="plane: fake nodes; nodes: real ones (for root, the default)",
    )
    up.add_argument("--nodes", type=int, default=3, help="how many (%(default)s)")
    up.add_argument(
        "--image",
        type=Path,
        action="append",
        default=[],
        metavar="TAR",
        help="have the nodes start with this image",
    )
    up.add_argument(
        "--project-image",
        action="store_true",
        help="build this project's image and have the nodes start with it",
    )
    add("down", _down, "end it; nothing is left")
    node_up = add("node-up", _node_up, "boot a machine")
    node_up.add_argument("node")
    node_up.add_argument("--cpus", type=int, help="what it says to have")
    node_up.add_argument("--memory-gib", type=float, help="what it says to have")
    node_up.add_argument("--label", type=_pair, action="append", default=[], metavar="KEY=VALUE")
    node_up.add_argument("--taint", action="append", default=[], metavar="KEY=VALUE:EFFECT")
    node_up.add_argument("--provider-id", help="what a cloud would call it")
    node_down = add("node-down", _node_down, "kill a machine")
    node_down.add_argument("node")
    node_down.add_argument("--forget", action="store_true", help="and delete its Node object")
    add("load", _load, "import an image into all nodes, and those to come").add_argument("tar", type=Path)
    add("status", _status, "what runs")
    for name, does, text in (
        ("kubectl", _kubectl, "kubectl with this cluster"),
        ("in", _in, "run a command in the cluster's network: Services and pods by address"),
    ):
        add(name, does, text).add_argument("words", nargs=argparse.REMAINDER)
    prepare = add(
        "prepare",
        _prepare,
        "build all programs; as root, also install the packages that nodes need, and build the image",
    )
    prepare.add_argument("program", nargs="*", help="build these only")
    return parser


def main() -> None:
    arguments = _parser().parse_args()
    try:
        arguments.does(arguments)
    except RigError as error:
        print(f"rig: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
