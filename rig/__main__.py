"""``python -m rig``: the test cluster by hand."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rig import binaries, image_build, images, packages
from rig.arguments import at_least, gibibytes, pair, seconds
from rig.aws import karpenter
from rig.buildah import Workshop
from rig.ci import in_ci
from rig.cloud import AUTOSCALERS, Cloud, Sky
from rig.folders import RigError, default_name, root, runs
from rig.keeper import Kept, clean
from rig.nodes import Cluster
from rig.plane import Plane


def _attached(name: str) -> Plane:
    folder = runs() / name
    if (folder / "sky.json").exists():
        return Cloud.attach(name)
    return (Cluster if (folder / "nodes").exists() else Plane).attach(name)


def _cluster(name: str) -> Cluster:
    cluster = _attached(name)
    if not isinstance(cluster, Cluster):
        raise RigError("this cluster has fake nodes only; for real ones: python -m rig up --level nodes")
    return cluster


def _cloud(name: str) -> Cloud:
    cloud = _attached(name)
    if not isinstance(cloud, Cloud):
        raise RigError("this cluster has no cloud; for one: make cloud")
    return cloud


def _up(arguments: argparse.Namespace) -> None:
    start_s = time.monotonic()
    if Kept(runs() / arguments.name).runs():
        raise RigError("a cluster of this checkout runs already; first: python -m rig down")
    cluster: Plane
    if arguments.level in ("nodes", "cloud") or (arguments.level is None and not packages.impossible()):
        packages.install()
        tars = list(arguments.image)
        if arguments.project_image:
            tars.append(image_build.build())
        if arguments.level == "cloud":
            sky = Sky(arguments.autoscaler, arguments.machines, arguments.boot_s)
            cluster = Cloud.start(arguments.name, bound=False, tars=tars, sky=sky)
        else:
            cluster = _up_nodes(arguments.name, arguments.nodes, tars)
    else:
        cluster = Plane.start(arguments.name, bound=False)
        cluster.add_kwok_nodes(arguments.nodes)
    print(cluster.kubectl("get", "nodes"))
    print(f"up in {time.monotonic() - start_s:.1f} s; logs in {cluster.folder / 'logs'}\n")
    kubectl = binaries.ensure("kubectl")["kubectl"].parent
    print(f"export KUBECONFIG={shlex.quote(str(cluster.kubeconfig))}")
    print(f"export PATH={shlex.quote(str(kubectl))}:$PATH\n")
    if isinstance(cluster, Cloud):
        _say_what_to_try(cluster)
    elif isinstance(cluster, Cluster):
        print(f"kubectl run web --image={images.TOOLBOX} --port=8080 -- serve :8080")
        print("kubectl port-forward pod/web 8080:8080       # then http://localhost:8080")
        print("kubectl exec web -- /toolbox lookup kubernetes.default.svc.cluster.local")
        print("python -m rig node-up n9; python -m rig node-down n1    # boot and kill machines")
    else:
        print(
            "kubectl create deployment many --image=any --replicas=100   # pods of fake nodes: seen, not run"
        )
        print("kubectl get pods --watch")
    print("make cloud-down" if isinstance(cluster, Cloud) else "make cluster-down")


def _say_what_to_try(cloud: Cloud) -> None:
    example = cloud.folder / "burst.json"
    example.write_text(json.dumps(karpenter.burst()))
    print(f"kubectl create -f {shlex.quote(str(example))}     # pods that need machines for workers")
    print("kubectl scale rs burst --replicas=10      # … and machines come")
    print("kubectl get pods,nodeclaims,nodes -o wide")
    print("python -m rig instances                   # what EC2 runs, and what it costs")
    print("python -m rig interrupt NODE              # EC2 takes a spot instance back")
    print("python -m rig stock-out '*/*/spot'        # type/zone/market; python -m rig in-stock")
    print("kubectl scale rs burst --replicas=0       # … and they go within a minute")


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
    cluster = _cluster(arguments.name)
    cluster.node_up(
        arguments.node,
        cpus=arguments.cpus,
        memory_gib=arguments.memory_gib,
        labels=dict(arguments.label),
        taints=arguments.taint,
        provider_id=arguments.provider_id,
    )
    if arguments.policies:
        cluster.enforce_policies(arguments.node)
    print(f"{arguments.node} is Ready after {time.monotonic() - start_s:.1f} s")


def _node_down(arguments: argparse.Namespace) -> None:
    _cluster(arguments.name).node_down(arguments.node, forget=arguments.forget)


def _instances(arguments: argparse.Namespace) -> None:
    cloud = _cloud(arguments.name)
    told = cloud.bill() if arguments.all else cloud.instances()
    print(f"{'INSTANCE':20} {'TYPE':10} {'ZONE':11} {'MARKET':10} {'POOL':12} {'PAID':>7} {'COST':>9}  NODE")
    for each in told:
        boots = "cannot boot: " + each.trouble.splitlines()[0] if each.trouble else "boots"
        state = "terminated" if not each.alive else each.node if each.joined else f"{each.node} ({boots})"
        paid = f"{each.paid_s:6.0f}s {each.cost:8.4f}$"
        print(f"{each.id:20} {each.kind:10} {each.zone:11} {each.market:10} {each.pool:12} {paid}  {state}")
    print(f"{sum(each.paid_s for each in told):.0f} machine-seconds, {sum(each.cost for each in told):.4f} $")


def _interrupt(arguments: argparse.Namespace) -> None:
    _cloud(arguments.name).interrupt(arguments.instance, arguments.notice_s)


def _terminate(arguments: argparse.Namespace) -> None:
    _cloud(arguments.name).terminate(arguments.instance)


def _stock_out(arguments: argparse.Namespace) -> None:
    _cloud(arguments.name).stock_out(*arguments.glob)


def _in_stock(arguments: argparse.Namespace) -> None:
    _cloud(arguments.name).in_stock()


def _throttle(arguments: argparse.Namespace) -> None:
    _cloud(arguments.name).throttle(arguments.state == "on", arguments.operations)


def _boots(arguments: argparse.Namespace) -> None:
    joins = None if arguments.joins is None else arguments.joins == "yes"
    _cloud(arguments.name).boots(arguments.delay_s, joins=joins)


def _faults(arguments: argparse.Namespace) -> None:
    for name, value in _cloud(arguments.name).faults().items():
        print(f"{name}: {value}")


def _restart_autoscaler(arguments: argparse.Namespace) -> None:
    _cloud(arguments.name).restart_autoscaler()


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
    if not arguments.program:
        _prepare_packages()
    binaries.ensure(*(arguments.program or binaries.PROGRAMS))
    print(f"programs are in {root() / 'bin'}")
    if not arguments.program and not image_build.missing():
        _prepare_image()


def _prepare_packages() -> None:
    if reason := packages.impossible():
        print(f"without the level nodes: {reason}")
        return
    with _forgiven_elsewhere_than_in_ci():
        packages.install(packages.NODE | packages.IMAGE | packages.BROWSER)


def _prepare_image() -> None:
    workshop = Workshop()
    with _forgiven_elsewhere_than_in_ci():
        if workshop.folder.exists():
            with suppress(BlockingIOError), workshop.opened(wait=False):
                pass  # what a build that was killed left is gone
        print(f"this project's image is {image_build.build(workshop=workshop)}")


@contextmanager
def _forgiven_elsewhere_than_in_ci() -> Iterator[None]:
    """Say what this machine cannot do, and go on: tests that need it say so, too."""
    try:
        yield
    except RigError as error:
        if in_ci():
            raise
        print(f"rig: {error}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m rig", description="A real Kubernetes on this machine.")
    parser.add_argument(
        "--name", default=default_name(), help="the cluster's name; by default this checkout's own"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, does: Callable[[argparse.Namespace], None], text: str, **options: Any
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, **options)
        command.set_defaults(does=does)
        return command

    up = add("up", _up, "start a cluster")
    up.add_argument(
        "--level",
        choices=("plane", "nodes", "cloud"),
        help="plane: fake nodes; nodes: real ones (for root, the default); cloud: machines come and go",
    )
    up.add_argument("--nodes", type=at_least(0), default=3, help="how many (%(default)s)")
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
    up.add_argument("--autoscaler", choices=AUTOSCALERS, default="karpenter", help="cloud: which one")
    up.add_argument(
        "--machines", choices=("real", "kwok"), default="real", help="cloud: real nodes or objects only"
    )
    up.add_argument("--boot-s", type=seconds, default=5.0, help="cloud: how long they boot (%(default)s)")
    add("down", _down, "end it; nothing is left")
    node_up = add("node-up", _node_up, "boot a machine")
    node_up.add_argument("node")
    node_up.add_argument("--cpus", type=at_least(1), help="what it says to have")
    node_up.add_argument("--memory-gib", type=gibibytes, help="what it says to have")
    node_up.add_argument("--label", type=pair, action="append", default=[], metavar="KEY=VALUE")
    node_up.add_argument("--taint", action="append", default=[], metavar="KEY=VALUE:EFFECT")
    node_up.add_argument("--provider-id", help="what a cloud would call it")
    node_up.add_argument("--policies", action="store_true", help="have it enforce NetworkPolicies")
    node_down = add("node-down", _node_down, "kill a machine")
    node_down.add_argument("node")
    node_down.add_argument("--forget", action="store_true", help="and delete its Node object")
    _add_faults(add)
    add("load", _load, "import an image into all nodes, and those to come").add_argument("tar", type=Path)
    add("status", _status, "what runs")
    for name, does, text in (
        ("kubectl", _kubectl, "kubectl with this cluster"),
        ("in", _in, "run a command in the cluster's network: Services and pods by address"),
    ):
        add(name, does, text, add_help=False).set_defaults(words=[])
    prepare = add(
        "prepare",
        _prepare,
        "build all programs; as root, also install the packages that nodes need, and build the image",
    )
    prepare.add_argument("program", nargs="*", help="build these only")
    return parser


def _add_faults(add: Callable[..., argparse.ArgumentParser]) -> None:
    instances = add("instances", _instances, "cloud: the instances, and what they cost")
    instances.add_argument("--all", action="store_true", help="those that were, too")
    interrupt = add("interrupt", _interrupt, "cloud: EC2 takes a spot instance back")
    interrupt.add_argument("instance", help="or its node")
    interrupt.add_argument("--notice-s", type=seconds, default=120.0, help="how long before (%(default)s)")
    terminate = add("terminate", _terminate, "cloud: an instance dies, with no notice")
    terminate.add_argument("instance", help="or its node")
    stock_out = add("stock-out", _stock_out, "cloud: EC2 runs out of instances")
    stock_out.add_argument("glob", nargs="+", metavar="TYPE/ZONE/MARKET", help="globs, such as '*/*/spot'")
    add("in-stock", _in_stock, "cloud: EC2 has instances again")
    throttle = add("throttle", _throttle, "cloud: AWS refuses calls for there being too many")
    throttle.add_argument("state", choices=("on", "off"))
    throttle.add_argument("--operations", default="ec2:*", help="a glob of SERVICE:OPERATION (%(default)s)")
    boots = add("boots", _boots, "cloud: how instances launched from now on boot")
    boots.add_argument("--delay-s", type=seconds, help="how long it takes")
    boots.add_argument("--joins", choices=("yes", "no"), help="whether they become nodes")
    add("faults", _faults, "cloud: what goes wrong now")
    add("restart-autoscaler", _restart_autoscaler, "cloud: kill the autoscaler and start it again")


def main() -> None:
    # What others are told is theirs, options included.
    parser = _parser()
    arguments, words = parser.parse_known_args()
    if hasattr(arguments, "words"):
        arguments.words = words[words[:1] == ["--"] :]
    elif words:
        parser.error(f"unrecognized arguments: {' '.join(words)}")
    try:
        arguments.does(arguments)
    except RigError as error:
        print(f"rig: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
