"""kOps's InstanceGroups: what their schema cannot say, and how they fit their cluster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from deploy.aws.check.arguments import is_amount
from deploy.aws.check.machines import (
    CAPACITY,
    EFFECTS,
    LIFECYCLE,
    ON_DEMAND,
    SPOT,
    Group,
    known_sizes,
    parse_taint,
    same_size,
)
from deploy.aws.check.problems import Place, Problem
from deploy.aws.check.sizes import BIGGEST_GIB, SMALLEST_GIB, Sizes, mebibytes

ROLES = ("ControlPlane", "Node", "Bastion", "APIServer")
STRATEGIES = (
    "lowest-price",
    "diversified",
    "capacity-optimized",
    "capacity-optimized-prioritized",
    "price-capacity-optimized",
)
#: Of Auto Scaling's, those without which cluster-autoscaler still can work.
PROCESSES = ("AZRebalance", "AlarmNotification", "InstanceRefresh", "ReplaceUnhealthy", "ScheduledActions")
VOLUMES = ("gp2", "gp3", "io1", "io2", "standard")
_ALL_PERCENT = 100
#: Of kOps's metrics-server, which are never two on one machine.
_METRICS_REPLICAS = 2
_DISK = "k8s.io/cluster-autoscaler/node-template/resources/ephemeral-storage"

Document = Mapping[str, Any]


def check(file: str, cluster: Document, groups: Sequence[Document], sizes: Sizes) -> Iterator[Problem]:
    """What is wrong with the objects InstanceGroup."""
    names = [group["metadata"]["name"] for group in groups]
    images = sorted({str(group["spec"].get("image")) for group in groups})
    words = "one image for all groups"
    yield from Place(file, "InstanceGroups").expect(len(images) <= 1, "spec.image", images, words)
    yield from _system(Place(file, f"Cluster {cluster['metadata']['name']}"), cluster, groups)
    for group in groups:
        place = placed(file, group)
        name = group["metadata"]["name"]
        yield from place.expect(names.count(name) == 1, "metadata.name", name, "names that differ")
        owner = group["metadata"].get("labels", {}).get("kops.k8s.io/cluster")
        yield from place.expect_one_of(
            "metadata.labels.kops.k8s.io/cluster", owner, [cluster["metadata"]["name"]]
        )
        yield from place.expect_one_of("spec.role", group["spec"].get("role"), ROLES)
        yield from _numbers(place, group["spec"])
        yield from _subnets(place, group["spec"], cluster)
        yield from _taints(place, group["spec"])
        yield from _machine(place, group["spec"])
        yield from _mixed(place, group["spec"], sizes)
        if group["spec"].get("role") == "Node":
            yield from _autoscaled(place, group["spec"], cluster)
    yield from _etcd(Place(file, f"Cluster {cluster['metadata']['name']}"), cluster, groups)


def _system(place: Place, cluster: Document, groups: Sequence[Document]) -> Iterator[Problem]:
    """What the cluster as a whole needs of its groups."""
    always = {
        group["metadata"]["name"]: int(least)
        for group in groups
        if group["spec"].get("role") == "Node"
        and not group["spec"].get("taints")
        and (least := group["spec"].get("minSize") or 0) > 0
    }
    words = "a group without taints that always has a machine, for DNS and metrics"
    yield from place.expect(bool(always), "groups", list(always), words)
    if always and cluster["spec"].get("metricsServer", {}).get("enabled") is True:
        words = f"at least {_METRICS_REPLICAS} machines in groups without taints: metrics-server has as many "
        words += "pods, never two on one machine, and `kops validate` fails while one waits"
        yield from place.expect(sum(always.values()) >= _METRICS_REPLICAS, "groups", always, words)
    autoscaler = cluster["spec"].get("clusterAutoscaler", {})
    configured = "customPriorityExpanderConfig" in autoscaler or any(
        "autoscalePriority" in group["spec"] for group in groups
    )
    words = "spec.clusterAutoscaler.customPriorityExpanderConfig, or spec.autoscalePriority of groups"
    holds = autoscaler.get("expander") != "priority" or configured
    yield from place.expect(holds, "spec.clusterAutoscaler.expander", autoscaler.get("expander"), words)


def placed(file: str, group: Document) -> Place:
    """Where a group's problems are reported."""
    return Place(file, f"InstanceGroup {group['metadata']['name']}")


def _numbers(place: Place, spec: Document) -> Iterator[Problem]:
    least, most = spec.get("minSize"), spec.get("maxSize")
    yield from place.expect_one_of(
        "spec.manager", spec.get("manager", "CloudGroup"), ["CloudGroup", "Karpenter"]
    )
    yield from place.expect(isinstance(most, int), "spec.maxSize", most, "a number: no group without a limit")
    if spec.get("manager") == "Karpenter":
        words = "none: Karpenter starts from nothing by itself, and kOps refuses 0"
        yield from place.expect(least is None, "spec.minSize", least, words)
    elif isinstance(most, int):
        holds = isinstance(least, int) and 0 <= least <= most
        yield from place.expect(holds, "spec.minSize", least, f"a number from 0 to spec.maxSize, {most}")
    if spec.get("role") == "ControlPlane":
        words = "1: a second control plane is a second group"
        yield from place.expect((least, most) == (1, 1), "spec.maxSize", most, words)


def _subnets(place: Place, spec: Document, cluster: Document) -> Iterator[Problem]:
    known = {subnet["name"]: subnet.get("type") for subnet in cluster["spec"].get("subnets", [])}
    given = spec.get("subnets", [])
    yield from place.expect(bool(given), "spec.subnets", given, "at least one")
    private = [name for name, kind in known.items() if kind == "Private"]
    for index, name in enumerate(given):
        yield from place.expect_one_of(f"spec.subnets[{index}]", name, private)


def _taints(place: Place, spec: Document) -> Iterator[Problem]:
    for index, text in enumerate(spec.get("taints", [])):
        taint = parse_taint(str(text))
        words = f"key=value:effect, and for the effect one of {', '.join(EFFECTS)}"
        holds = taint is not None and taint.effect in EFFECTS
        yield from place.expect(holds, f"spec.taints[{index}]", text, words)


def _machine(place: Place, spec: Document) -> Iterator[Problem]:
    encrypted = spec.get("rootVolumeEncryption")
    yield from place.expect(encrypted is True, "spec.rootVolumeEncryption", encrypted, "true")
    size_gib = spec.get("rootVolumeSize")
    holds = isinstance(size_gib, int) and SMALLEST_GIB <= size_gib <= BIGGEST_GIB
    words = f"a number of GiB from {SMALLEST_GIB} to {BIGGEST_GIB}"
    yield from place.expect(holds, "spec.rootVolumeSize", size_gib, words)
    yield from place.expect_one_of("spec.rootVolumeType", spec.get("rootVolumeType"), VOLUMES)
    metadata = spec.get("instanceMetadata", {})
    tokens = metadata.get("httpTokens")
    yield from place.expect_one_of("spec.instanceMetadata.httpTokens", tokens, ["required"])
    hops = metadata.get("httpPutResponseHopLimit")
    words = "1, said: with more, pods get the machine's credentials"
    yield from place.expect(hops == 1, "spec.instanceMetadata.httpPutResponseHopLimit", hops, words)
    update = spec.get("rollingUpdate", {})
    none = [name for name in ("maxUnavailable", "maxSurge") if str(update.get(name, 1)) in ("0", "0%")]
    words = "one of them more than 0: else no machine is ever updated"
    yield from place.expect(len(none) < 2, "spec.rollingUpdate.maxUnavailable", update, words)  # noqa: PLR2004
    drains = update.get("drainAndTerminate")
    words = "true: an update drains a machine before it ends it"
    yield from place.expect(drains is not False, "spec.rollingUpdate.drainAndTerminate", drains, words)


def _mixed(place: Place, spec: Document, sizes: Sizes) -> Iterator[Problem]:
    types = _types(spec)
    kind = spec.get("machineType")
    yield from place.expect(bool(kind), "spec.machineType", kind, "an instance type; kOps's default is small")
    problems, known = known_sizes(place, "spec.machineType", types, sizes)
    yield from problems
    yield from same_size(place, "spec.mixedInstancesPolicy.instances", types, known)
    policy = spec.get("mixedInstancesPolicy")
    if policy is None:
        return
    key = "spec.mixedInstancesPolicy"
    words = f"with {spec.get('machineType')}, the group's machineType, among them"
    instances = policy.get("instances", [])
    yield from place.expect(spec.get("machineType") in instances, f"{key}.instances", instances, words)
    strategy = policy.get("spotAllocationStrategy")
    yield from place.expect_one_of(f"{key}.spotAllocationStrategy", strategy, STRATEGIES)
    base, above = policy.get("onDemandBase", 0), policy.get("onDemandAboveBase", _ALL_PERCENT)
    holds = 0 <= base <= (spec.get("maxSize") or 0)
    yield from place.expect(holds, f"{key}.onDemandBase", base, "a number from 0 to spec.maxSize")
    holds = 0 <= above <= _ALL_PERCENT
    yield from place.expect(holds, f"{key}.onDemandAboveBase", above, "per cent, from 0 to 100")


def _autoscaled(place: Place, spec: Document, cluster: Document) -> Iterator[Problem]:
    labelled = spec.get("nodeLabels", {}).get(LIFECYCLE)
    key = f"spec.nodeLabels.{LIFECYCLE}"
    if spec.get("manager") == "Karpenter":
        words = "none: with Karpenter the group may have machines of both markets"
        yield from place.expect(labelled is None, key, labelled, words)
        return
    if SPOT in _markets(spec)[0]:
        words = "spot: prices go by it, and nobody else says so of this group's nodes"
        yield from place.expect(labelled == SPOT, key, labelled, words)
    else:
        words = "on-demand, if anything: its machines are on demand"
        yield from place.expect(labelled in (None, ON_DEMAND), key, labelled, words)
    scaled = spec.get("autoscale", True)
    if spec.get("minSize") == spec.get("maxSize") and scaled is False:
        return
    least = spec.get("minSize")
    words = "0: machines are paid for, also while nobody computes"
    yield from place.expect(least == 0, "spec.minSize", least, words)
    words = "true: nobody else would start the machines from spec.minSize to spec.maxSize"
    yield from place.expect(scaled is True, "spec.autoscale", scaled, words)
    words = "false, or an autoscaler for it: cluster-autoscaler is not enabled"
    enabled = cluster["spec"].get("clusterAutoscaler", {}).get("enabled") is True
    yield from place.expect(enabled, "spec.autoscale", spec.get("autoscale"), words)
    disk = spec.get("cloudLabels", {}).get(_DISK)
    words = "a size such as 48Gi: from nothing cluster-autoscaler does not know the disk"
    yield from place.expect(is_amount(disk), f"spec.cloudLabels.{_DISK}", disk, words)
    room_mib = (spec.get("rootVolumeSize") or 0) * 1024
    words = f"at most the root volume, {room_mib // 1024}Gi"
    holds = not is_amount(disk) or mebibytes(str(disk)) <= room_mib
    yield from place.expect(holds, f"spec.cloudLabels.{_DISK}", disk, words)
    suspended = spec.get("suspendProcesses", [])
    words = "AZRebalance in it: Auto Scaling would end busy machines to keep zones even"
    yield from place.expect("AZRebalance" in suspended, "spec.suspendProcesses", suspended, words)
    for process in suspended:
        yield from place.expect_one_of("spec.suspendProcesses", process, PROCESSES)
    rebalance = spec.get("capacityRebalance")
    words = "not true: Auto Scaling would replace machines behind the autoscaler's back"
    yield from place.expect(rebalance is not True, "spec.capacityRebalance", rebalance, words)


def _etcd(place: Place, cluster: Document, groups: Sequence[Document]) -> Iterator[Problem]:
    planes = [group["metadata"]["name"] for group in groups if group["spec"].get("role") == "ControlPlane"]
    for index, etcd in enumerate(cluster["spec"].get("etcdClusters", [])):
        key = f"spec.etcdClusters[{index}].etcdMembers"
        members = [member.get("instanceGroup") for member in etcd.get("etcdMembers", [])]
        words = f"one for each control plane: {', '.join(planes)}"
        yield from place.expect(sorted(members) == sorted(planes), key, members, words)
        yield from place.expect(len(members) % 2 == 1, key, members, "an odd number, for a majority")
        for number, member in enumerate(etcd.get("etcdMembers", [])):
            encrypted = member.get("encryptedVolume")
            yield from place.expect(encrypted is True, f"{key}[{number}].encryptedVolume", encrypted, "true")


def _types(spec: Document) -> list[str]:
    mixed = spec.get("mixedInstancesPolicy", {}).get("instances", [])
    return list(dict.fromkeys([spec["machineType"], *mixed])) if "machineType" in spec else list(mixed)


def groups_of(file: str, groups: Sequence[Document], sizes: Sizes) -> list[Group]:
    """The groups of nodes, as workers' pools see them."""
    made = []
    for group in groups:
        spec = group["spec"]
        if spec.get("role") != "Node":
            continue
        taints = tuple(taint for text in spec.get("taints", []) if (taint := parse_taint(str(text))))
        known = known_sizes(placed(file, group), "", _types(spec), sizes)[1]
        maxima = (int(spec.get("maxSize") or 0),) * len(known)
        name = group["metadata"]["name"]
        labels = dict(spec.get("nodeLabels", {}))
        hops = spec.get("instanceMetadata", {}).get("httpPutResponseHopLimit", 1)
        made.append(
            Group(placed(file, group), name, labels, taints, known, maxima, *_markets(spec), hops),
        )
    return made


def _markets(spec: Document) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Which kinds of machines a group has, and the labels that say so without its doing."""
    mixed = spec.get("mixedInstancesPolicy", {}).get("onDemandAboveBase", _ALL_PERCENT) < _ALL_PERCENT
    if spec.get("manager") == "Karpenter":
        # As kOps's karpenterCapacityTypes has it: of the two Karpenter takes the cheaper.
        both = (SPOT, ON_DEMAND) if mixed else (ON_DEMAND,)
        markets = (SPOT,) if "maxPrice" in spec else both
        return markets, {CAPACITY: markets}
    return (SPOT if mixed or "maxPrice" in spec else ON_DEMAND,), {}
