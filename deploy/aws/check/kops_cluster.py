"""A kOps cluster: what its schema cannot say."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

from deploy.aws.check.durations import seconds
from deploy.aws.check.problems import Place, Problem

EXPANDERS = ("least-waste", "random", "most-pods", "priority")
SUBNET_TYPES = ("Private", "Public", "Utility", "DualStack")
CHANNELS = ("stable", "alpha", "none")
DNS_TYPES = ("None", "Public", "Private")
#: Networks that enforce NetworkPolicies. amazonvpc does not unless told to; flannel and kubenet never.
ENFORCING = ("calico", "canal", "cilium", "kuberouter")
#: Target groups of the API's load balancer, whose names kOps makes of these and the cluster's.
_TARGET_GROUPS = ("tcp", "tls", "kops-controller")
#: What cluster-autoscaler is told: its defaults keep machines for ten minutes, half full ones for ever.
SAID = (
    "ignoreDaemonSetsUtilization",
    "maxNodeProvisionTime",
    "scaleDownDelayAfterAdd",
    "scaleDownUnneededTime",
    "scaleDownUtilizationThreshold",
)
#: The tag of all that a cluster costs, and what it is for.
TAG = "dask-tide/cluster"
TAG_IS_FOR = "the budget sums it up, and leftovers.sh looks for it"
_LONGEST_BACKUP_D = 90
#: Of networks that may reach the API, by the length of their prefix.
_WIDEST = 8
LEAST_FULL = 0.8
#: How long cluster-autoscaler waits, at the least and at the most, and why; by its flags and kOps's names.
_WAITS_S = {
    ("new-pod-scale-up-delay", "newPodScaleUpDelay"): (0.0, 60.0, "work waits meanwhile"),
    ("max-node-provision-time", "maxNodeProvisionTime"): (180.0, 1800.0, "machines take minutes to boot"),
}
_WAIT_S = (0.0, 3600.0, "machines are paid for meanwhile")
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)+")


def check(place: Place, cluster: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong with the object Cluster by itself."""
    spec = cluster["spec"]
    yield from _name(place, cluster["metadata"]["name"])
    yield from place.expect_one_of("spec.cloudProvider", spec.get("cloudProvider"), ["aws"])
    version = str(spec.get("kubernetesVersion"))
    words = "a version, such as 1.35.4: what `latest` is changes under a cluster"
    holds = bool(re.fullmatch(r"1\.[0-9]+\.[0-9]+", version))
    yield from place.expect(holds, "spec.kubernetesVersion", version, words)
    channel = str(spec.get("channel"))
    holds = channel in CHANNELS or "://" in channel
    yield from place.expect(holds, "spec.channel", channel, f"one of {', '.join(CHANNELS)}, or a URL")
    tagged = spec.get("cloudLabels", {}).get(TAG)
    words = f"{cluster['metadata']['name']}: {TAG_IS_FOR}"
    holds = tagged == cluster["metadata"]["name"]
    yield from place.expect(holds, f"spec.cloudLabels.{TAG}", tagged, words)
    for index, etcd in enumerate(spec.get("etcdClusters", [])):
        days = etcd.get("manager", {}).get("backupRetentionDays")
        words = f"a number from 1 to {_LONGEST_BACKUP_D}"
        holds = isinstance(days, int) and 1 <= days <= _LONGEST_BACKUP_D
        yield from place.expect(holds, f"spec.etcdClusters[{index}].manager.backupRetentionDays", days, words)
    kept = [etcd.get("name") for etcd in spec.get("etcdClusters", [])]
    yield from place.expect(sorted(kept) == ["events", "main"], "spec.etcdClusters", kept, "main and events")
    yield from _doors(place, spec)
    yield from _network(place, spec)
    yield from _identities(place, spec)
    yield from _autoscaler(place, spec)
    yield from _interruptions(place, spec)


def _name(place: Place, name: str) -> Iterator[Problem]:
    yield from place.expect(bool(_NAME.fullmatch(name)), "metadata.name", name, "a DNS name with a dot in it")
    for prefix in _TARGET_GROUPS:
        # kOps cuts at 25 characters and adds a hyphen and a hash.
        cut = f"{prefix}-{name.replace('.', '-')}"[:25]
        words = f"a name of which kOps makes no target group with `--`, which not every AWS takes: {cut}-…"
        yield from place.expect("--" not in f"{cut}-", "metadata.name", name, words)


def _doors(place: Place, spec: Mapping[str, Any]) -> Iterator[Problem]:
    for door in ("kubernetesApiAccess", "sshAccess"):
        for cidr in spec.get(door, ["0.0.0.0/0"]):
            words = f"a network with its prefix, from /{_WIDEST} on, not the whole internet (kOps's default)"
            yield from place.expect(_is_narrow(str(cidr)), f"spec.{door}", cidr, words)
    words = "somebody: kOps, kubectl and the helm of the guide go through it"
    access = spec.get("kubernetesApiAccess")
    yield from place.expect(access != [], "spec.kubernetesApiAccess", access, words)
    authorization = list(spec.get("authorization") or {})
    words = "rbac alone: otherwise everybody may do everything"
    yield from place.expect(authorization == ["rbac"], "spec.authorization", authorization, words)
    for component, said in (("kubelet", True), ("kubeAPIServer", False)):
        anonymous = spec.get(component, {}).get("anonymousAuth", None if said else False)
        words = f"false{', said' if said else ''}: it would answer whoever asks"
        yield from place.expect(anonymous is False, f"spec.{component}.anonymousAuth", anonymous, words)
    balancer = spec.get("api", {}).get("loadBalancer", {})
    dns = spec.get("topology", {}).get("dns", {}).get("type")
    yield from place.expect_one_of("spec.topology.dns.type", dns, DNS_TYPES)
    yield from place.expect_one_of("spec.api.loadBalancer.class", balancer.get("class"), ["Network"])
    yield from place.expect_one_of("spec.api.loadBalancer.type", balancer.get("type"), ["Public", "Internal"])
    zone, name = spec.get("dnsZone"), spec.get("configBase", "").rsplit("/", 1)[-1]
    if dns == "Public":
        words = f"a zone that {name} ends with"
        yield from place.expect(bool(zone) and name.endswith(f".{zone}"), "spec.dnsZone", zone, words)


def _is_narrow(text: str) -> bool:
    """Whether it is a network, with its prefix, and no large part of the internet; or a list of AWS's."""
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        return bool(re.fullmatch(r"pl-[0-9a-f]+", text))
    return "/" in text and network.prefixlen >= _WIDEST


def _network(place: Place, spec: Mapping[str, Any]) -> Iterator[Problem]:
    networks = list(spec.get("networking", {}))
    words = f"one network that enforces NetworkPolicies: {', '.join(ENFORCING)}"
    yield from place.expect(
        len(networks) == 1 and networks[0] in ENFORCING, "spec.networking", networks, words
    )
    whole = _block(spec.get("networkCIDR"))
    yield from place.expect(
        whole is not None, "spec.networkCIDR", spec.get("networkCIDR"), "a block of addresses"
    )
    pods = _block(spec.get("nonMasqueradeCIDR"))
    holds = pods is not None and not (whole is not None and pods.overlaps(whole))
    words = f"a block of addresses, for pods and Services, apart from spec.networkCIDR, {whole}"
    yield from place.expect(holds, "spec.nonMasqueradeCIDR", spec.get("nonMasqueradeCIDR"), words)
    blocks: list[tuple[str, Any]] = []
    subnets = spec.get("subnets", [])
    for index, subnet in enumerate(subnets):
        key = f"spec.subnets[{index}]"
        yield from place.expect_one_of(f"{key}.type", subnet.get("type"), SUBNET_TYPES)
        block = _block(subnet.get("cidr"))
        inside = block is not None and whole is not None and block.subnet_of(whole)
        yield from place.expect(inside, f"{key}.cidr", subnet.get("cidr"), f"a block within {whole}")
        if block is not None:
            blocks.append((f"{key}.cidr", block))
    for (_, one), (key, other) in combinations(blocks, 2):
        yield from place.expect(
            not one.overlaps(other), key, str(other), f"a block that does not overlap {one}"
        )
    names = [subnet.get("name") for subnet in subnets]
    yield from place.expect(len(set(names)) == len(names), "spec.subnets", names, "names that differ")
    private = {subnet.get("zone") for subnet in subnets if subnet.get("type") == "Private"}
    utility = {subnet.get("zone") for subnet in subnets if subnet.get("type") == "Utility"}
    words = "a Private subnet, and in its zone a Utility one for the NAT gateway"
    yield from place.expect(bool(private) and private <= utility, "spec.subnets", names, words)


def _block(text: Any) -> ipaddress.IPv4Network | None:
    try:
        return ipaddress.IPv4Network(text)
    except ValueError:
        return None


def _identities(place: Place, spec: Mapping[str, Any]) -> Iterator[Problem]:
    discovery = spec.get("serviceAccountIssuerDiscovery", {})
    store = str(discovery.get("discoveryStore", ""))
    words = "s3://BUCKET/…, and no dot in the bucket's name: S3's certificate would not match"
    yield from place.expect(
        bool(re.fullmatch(r"s3://[a-z0-9-]+/.+", store)),
        "spec.serviceAccountIssuerDiscovery.discoveryStore",
        store,
        words,
    )
    key = "spec.serviceAccountIssuerDiscovery.enableAWSOIDCProvider"
    yield from place.expect(discovery.get("enableAWSOIDCProvider") is True, key, discovery, "true, for IRSA")
    iam = spec.get("iam", {})
    key = "spec.iam.useServiceAccountExternalPermissions"
    words = "true: add-ons have roles of their own, and Karpenter insists on it"
    yield from place.expect(iam.get(key.rsplit(".", 1)[1]) is True, key, iam, words)
    key = "spec.iam.allowContainerRegistry"
    yield from place.expect(iam.get("allowContainerRegistry") is True, key, iam, "true: the image is in ECR")
    managed = spec.get("certManager", {}).get("enabled") is True
    metrics = spec.get("metricsServer", {})
    yield from place.expect(metrics.get("enabled") is True, "spec.metricsServer.enabled", metrics, "true")
    insecure = metrics.get("insecure")
    words = "false, said: otherwise it believes whoever says that he is a kubelet"
    yield from place.expect(insecure is False, "spec.metricsServer.insecure", insecure, words)
    words = "spec.certManager.enabled: true, which spec.metricsServer.insecure: false needs"
    yield from place.expect(managed, "spec.certManager", managed, words)
    webhook = spec.get("podIdentityWebhook", {}).get("enabled")
    words = "true: without it pods do not get their roles"
    yield from place.expect(webhook is True, "spec.podIdentityWebhook.enabled", webhook, words)
    words = "spec.certManager.enabled: true, which spec.podIdentityWebhook needs"
    yield from place.expect(managed, "spec.certManager", managed, words)
    legacy = iam.get("legacy", False)
    words = "false: with it machines may read all of the state store"
    yield from place.expect(legacy is False, "spec.iam.legacy", legacy, words)


def _autoscaler(place: Place, spec: Mapping[str, Any]) -> Iterator[Problem]:
    autoscaler = spec.get("clusterAutoscaler", {})
    enabled = [
        name for name in ("clusterAutoscaler", "karpenter") if spec.get(name, {}).get("enabled") is True
    ]
    yield from place.expect(len(enabled) == 1, "spec", enabled, "clusterAutoscaler or karpenter, enabled")
    if "clusterAutoscaler" not in enabled:
        return
    yield from place.expect_one_of("spec.clusterAutoscaler.expander", autoscaler.get("expander"), EXPANDERS)
    words = "false: workers spill to an emptyDir, and would keep their machine when idle"
    key = "spec.clusterAutoscaler.skipNodesWithLocalStorage"
    value = autoscaler.get("skipNodesWithLocalStorage")
    yield from place.expect(value is False, key, value, words)
    for name in SAID:
        words = "said: its default is not for machines that come and go with the work"
        yield from place.expect(name in autoscaler, f"spec.clusterAutoscaler.{name}", None, words)
    words = "false: it would start machines in several groups for what one has room for"
    balance = autoscaler.get("balanceSimilarNodeGroups", False)
    yield from place.expect(
        balance is False, "spec.clusterAutoscaler.balanceSimilarNodeGroups", balance, words
    )
    for name, value in autoscaler.items():
        if re.search(r"(Time|Delay|DelayAfterAdd)$", name):
            yield from delay(place, f"spec.clusterAutoscaler.{name}", value)
    value = autoscaler.get("scaleDownUtilizationThreshold", "0.5")
    yield from threshold(place, "spec.clusterAutoscaler.scaleDownUtilizationThreshold", value)


def delay(place: Place, key: str, value: object) -> Iterator[Problem]:
    """How long cluster-autoscaler waits with something."""
    names = [names for names in _WAITS_S if key.endswith(names)]
    least_s, most_s, why = _WAITS_S[names[0]] if names else _WAIT_S
    lasts_s = seconds(str(value))
    words = f"a duration, such as 3m0s, of {least_s / 60:g} to {most_s / 60:g} minutes: {why}"
    yield from place.expect(lasts_s is not None and least_s <= lasts_s <= most_s, key, value, words)


def threshold(place: Place, key: str, value: object) -> Iterator[Problem]:
    """How full a machine may be that is worth emptying."""
    holds = bool(re.fullmatch(r"0\.[0-9]+|1(\.0+)?", str(value)))
    yield from place.expect(holds, key, value, "a number from 0 to 1, as text")
    words = f"at least {LEAST_FULL}: a machine with one idle worker is worth emptying, however big the worker"
    yield from place.expect(not holds or float(str(value)) >= LEAST_FULL, key, value, words)


def _interruptions(place: Place, spec: Mapping[str, Any]) -> Iterator[Problem]:
    handler = spec.get("nodeTerminationHandler", {})
    key = "spec.nodeTerminationHandler"
    if spec.get("karpenter", {}).get("enabled"):
        words = "none beside Karpenter, where kOps refuses it: see kops/termination-handler-values.yaml"
        yield from place.expect(not handler.get("enabled"), key, handler, words)
        return
    name = "enableRebalanceMonitoring"
    words = "false: a recommendation is no notice, and would cordon machines that may live for hours"
    yield from place.expect(handler.get(name) is False, f"{key}.{name}", handler.get(name), words)
    for name in ("enabled", "enableSQSTerminationDraining", "enableSpotInterruptionDraining"):
        words = "true: without it nobody drains a spot machine that is about to go"
        yield from place.expect(handler.get(name) is True, f"{key}.{name}", handler.get(name), words)
    words = "true: by that taint the scheduler learns of it, and stops protecting the machine's workers"
    value = handler.get("taintNode")
    yield from place.expect(value is True, f"{key}.taintNode", value, words)
    words = "false: a recommendation is no notice, and would drain workers that may live for hours"
    value = handler.get("enableRebalanceDraining")
    yield from place.expect(value is False, f"{key}.enableRebalanceDraining", value, words)
