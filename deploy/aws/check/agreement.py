"""Whether the chart's pods and the groups of machines are for each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Any

from deploy.aws.check.durations import seconds
from deploy.aws.check.machines import MARKETS, SPOT, Group
from deploy.aws.check.pods import OPERATORS, Pods, fulfils
from deploy.aws.check.problems import Problem
from deploy.aws.check.sizes import mebibytes

#: Of the two minutes from a spot machine's notice to its end, what the notice itself may need to arrive.
NOTICE_S = 120
NOTICE_DELAY_S = 15
_HARD = ("NoSchedule", "NoExecute")
_PROTECTION = "karpenter.sh/do-not-disrupt"
#: Of a scheduler's pod, for cluster-autoscaler and Karpenter.
_PROTECTIONS = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", _PROTECTION: "true"}
#: Machines for a scheduler: its own, and another while it moves.
_SCHEDULERS_MACHINES = 2
_RESOURCES = ("cpu", "memory", "ephemeral-storage")
#: The part of a CPU that a thread has at the least; with more threads they wait for each other.
_CPU_PER_THREAD = 0.75
#: How many times as much as on spot a worker on demand may be said to cost.
_DEAREST_RATIO = 10.0
#: How many pods there are for one that is wanted: it comes while the one before it still ends.
_WITH_THOSE_THAT_END = 2
#: How long a machine may be said to boot.
_LONGEST_BOOT_S = 1800.0
#: How many hops a machine's metadata must be told to answer over, that pods get an answer.
_HOPS_TO_PODS = 2
#: Of the whole release: the chart's default, what it must be, and what happens else.
_SWITCHES = {
    "scheduler.spot": (False, False, "with a spot machine goes the work in hand"),
    "notebook.spot": (False, False, "with a spot machine goes what its user has not saved"),
    "scheduler.podDisruptionBudget.enabled": (False, True, "updates of nodes would end the work in hand"),
    "admission.enabled": (True, True, "nobody else enforces the maximum, or marks idle workers as such"),
    "security.tls.enabled": (True, True, "who reaches the scheduler's port runs code in the cluster"),
    "networkPolicy.enabled": (True, True, "any pod of the cluster reaches the scheduler"),
}


def check(pods: Sequence[Pods], groups: Sequence[Group], values: Mapping[str, Any]) -> Iterator[Problem]:
    """What keeps the pods of a values file from running where they should, or what makes it cost more."""
    where: dict[str, list[Group]] = {}
    for some in pods:
        if not some.selector and some.key == "notebook":
            continue  # wherever there is room; the taints keep it off these groups
        yield from _finds(some, groups)
        found = [group for group in groups if some.markets(group)]
        where[some.key] = found
        for group in found:
            yield from _tolerates(some, group)
            yield from _fits(some, group)
            yield from _limits(some, group)
            yield from _survives(some, group, values)
            yield from _priced(some, group)
        yield from _needs(some, found)
        yield from _prefers(some, found)
        yield from _markets(some, found)
        if some.key == "scheduler":
            yield from _alone(some, found)
        yield from _amounts(some)
    selected = {group.name for found in where.values() for group in found}
    for group in groups:
        if group.taints:
            words = "; ".join(f"{some.key} selects {_words(some.selector)}" for some in pods)
            words = f"labels that pods of {pods[0].place.file} select: {words}"
            yield from group.place.expect(group.name in selected, "labels", group.labels, words)
        elif group.name in selected:
            yield group.place.problem("taints", [], "one: other pods would come, and their machines never go")
    yield from _room([some for some in pods if where.get(some.key)], where)
    yield from _haven([some for some in pods if some.pool is not None])
    yield from _settings(pods, groups, values)
    yield from _quota(pods, values)
    yield from _budget([some for some in pods if some.pool is not None], where, values)


def _words(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in labels.items()) or "no labels"


def _finds(pods: Pods, groups: Sequence[Group]) -> Iterator[Problem]:
    """Whether there is a group for them at all."""
    for term in [*pods.terms, pods.preferences]:
        for expression in term:
            yield from pods.place.expect_one_of(f"{pods.key}.affinity", expression.get("operator"), OPERATORS)
    found = [group for group in groups if any(pods.selects(group, market) for market in group.markets)]
    own = {key for group in groups for key in group.labels}
    known = "; ".join(f"{group.name} has {_words(group.labels)}" for group in groups)
    key = f"{pods.key}.nodeSelector"
    holds = bool(found) and bool(pods.selector.keys() & own)
    yield from pods.place.expect(holds, key, pods.selector, f"labels of a group: {known}")
    if not found or any(pods.markets(group) for group in found):
        return
    if pods.pool is None and all(group.spot for group in found):
        names = ", ".join(group.name for group in found)
        yield pods.place.problem(key, pods.selector, f"no spot machines: {names} has some")
    else:
        names = ", ".join(f"{group.name} ({', '.join(group.markets)})" for group in found)
        yield pods.place.problem(
            f"{pods.key}.affinity", pods.spec.get("affinity"), f"labels that {names} can have"
        )


def _tolerates(pods: Pods, group: Group) -> Iterator[Problem]:
    for taint in group.taints:
        if taint.effect in _HARD:
            holds = any(taint.tolerated_by(toleration) for toleration in pods.tolerations)
            words = f"one of {taint}, which {group.name} has ({group.place.file})"
            yield from pods.place.expect(holds, f"{pods.key}.tolerations", pods.tolerations, words)


def _needs(pods: Pods, found: Sequence[Group]) -> Iterator[Problem]:
    taints = [taint for group in found for taint in group.taints]
    for index, toleration in enumerate(pods.tolerations):
        holds = any(taint.tolerated_by(toleration) for taint in taints) or not found
        words = f"a taint of the group it runs in: {', '.join(map(str, taints)) or 'none'}"
        yield from pods.place.expect(holds, f"{pods.key}.tolerations[{index}]", toleration, words)


def _prefers(pods: Pods, found: Sequence[Group]) -> Iterator[Problem]:
    for each in pods.preferences:
        fulfilled = any(
            fulfils(each, group.values(each["key"], market))
            for group in found
            for market in pods.markets(group)
        )
        words = f"what {', '.join(group.name for group in found)} can have"
        yield from pods.place.expect(fulfilled or not found, f"{pods.key}.affinity", each, words)


def _fits(pods: Pods, group: Group) -> Iterator[Problem]:
    for size in group.sizes:
        if not size.holds(pods.millicpu, pods.memory_mib):
            asked = f"{pods.millicpu}m CPU, {pods.memory_mib}Mi"
            free = f"{size.free_millicpu}m CPU and {size.free_mib}Mi"
            words = f"at most {free}: what a machine of {group.name} has left"
            yield Problem(pods.place.file, f"{pods.key}.resources", asked, words)
            return


def _limits(pods: Pods, group: Group) -> Iterator[Problem]:
    """Whether a pod may take more than its machine has."""
    for container in pods.spec["containers"]:
        limit = container["resources"].get("limits", {}).get("memory")
        most = min((size.memory_mib for size in group.sizes), default=0)
        holds = limit is None or mebibytes(str(limit)) <= most
        words = f"at most {most}Mi, the memory of a machine of {group.name}"
        yield from pods.place.expect(holds, f"{pods.key}.resources.limits.memory", limit, words)


def _amounts(pods: Pods) -> Iterator[Problem]:
    """What they ask for, by names that Kubernetes knows, and for each thread enough."""
    for container in pods.spec["containers"]:
        for kind, amounts in container["resources"].items():
            for name in amounts:
                holds = name in _RESOURCES or "/" in name
                words = f"one of {', '.join(_RESOURCES)}, or a device's name"
                yield from pods.place.expect(holds, f"{pods.key}.resources.{kind}", name, words)
    if pods.pool is None:
        return
    threads = pods.pool.threads
    most = int(pods.millicpu / 1000 / _CPU_PER_THREAD)
    words = f"at most {most}, for the {pods.millicpu}m CPU that a worker asks for"
    yield from pods.place.expect(threads <= most, f"{pods.key}.threads", threads, words)
    boot = pods.pool.boot_time
    boot_s = None if boot is None else seconds(boot)
    words = f"a duration of at most {_LONGEST_BOOT_S / 60:g}m"
    holds = boot is None or (boot_s is not None and boot_s <= _LONGEST_BOOT_S)
    yield from pods.place.expect(holds, f"{pods.key}.bootTime", boot, words)


def _survives(pods: Pods, group: Group, values: Mapping[str, Any]) -> Iterator[Problem]:
    if SPOT not in pods.markets(group):
        return
    if pods.pool is None:
        yield pods.place.problem(
            f"{pods.key}.nodeSelector", pods.selector, f"no spot machines: {group.name} has some"
        )
        return
    words = f"true: {group.name} has spot machines, on which results are not to stay"
    yield from pods.place.expect(pods.pool.spot, f"{pods.key}.spot", pods.pool.spot, words)
    grace_s = pods.spec.get("terminationGracePeriodSeconds", 30)
    most_s = NOTICE_S - NOTICE_DELAY_S
    words = f"at most {most_s}: a spot machine of {group.name} goes {NOTICE_S} s after its notice"
    yield from pods.place.expect(
        grace_s <= most_s, f"{pods.key}.terminationGracePeriodSeconds", grace_s, words
    )
    reads = values.get("nodes", {}).get("read")
    words = (
        f"true, or podAnnotations {_PROTECTION}: false: it would hold a busy worker until the power is cut"
    )
    holds = reads is True or pods.annotations.get(_PROTECTION) == "false"
    yield from pods.place.expect(holds, "nodes.read", reads, words)


def _markets(pods: Pods, found: Sequence[Group]) -> Iterator[Problem]:
    """Whether a pool on spot has spot machines."""
    if pods.pool is not None and pods.pool.spot and found:
        names = ", ".join(f"{group.name} ({', '.join(group.markets)})" for group in found)
        words = f"false, or spot machines among {names}: results would leave machines that stay"
        holds = any(SPOT in pods.markets(group) for group in found)
        yield from pods.place.expect(holds, f"{pods.key}.spot", True, words)


def _alone(pods: Pods, found: Sequence[Group]) -> Iterator[Problem]:
    """Whether the scheduler has its machine, is left there, and pays for no others."""
    for annotation, wanted in _PROTECTIONS.items():
        value = pods.annotations.get(annotation)
        words = f"{wanted}: an autoscaler would move it, and end the work in hand"
        yield from pods.place.expect(value == wanted, f"{pods.key}.podAnnotations.{annotation}", value, words)
    for group in found:
        most = max(group.maxima, default=0)
        words = f"at most {_SCHEDULERS_MACHINES} machines: one, and another while it moves"
        yield from group.place.expect(most <= _SCHEDULERS_MACHINES, "machines", most, words)


def _priced(pods: Pods, group: Group) -> Iterator[Problem]:
    told = any(label in group.labels or label in group.choices for label in MARKETS)
    words = f"one of {', '.join(MARKETS)}: prices go by the market ({pods.key})"
    yield from group.place.expect(told or pods.pool is None, "labels", group.labels, words)


def _room(pods: Sequence[Pods], where: Mapping[str, Sequence[Group]]) -> Iterator[Problem]:
    """Each alone, then those together that share groups."""
    together: dict[str, list[tuple[Pods, Fraction]]] = {}
    for some in pods:
        groups = where[some.key]
        names = ", ".join(group.name for group in groups)
        room = sum(group.room(some.millicpu, some.memory_mib) for group in groups)
        words = f"at most {room}: what the groups {names} have room for"
        yield from some.place.expect(some.count <= room, f"{some.key}.maximum", some.count, words)
        if some.count <= room:
            together.setdefault(names, []).append((some, Fraction(some.count, max(room, 1))))
    for names, several in together.items():
        filled = sum(part for _, part in several)
        keys = " + ".join(f"{some.key}.maximum" for some, _ in several)
        counts = " + ".join(str(some.count) for some, _ in several)
        words = f"less, as {names} has room for only {float(1 / filled):.0%} of them" if filled else ""
        yield from pods[0].place.expect(filled <= 1, keys, counts, words)


def _haven(pools: Sequence[Pods]) -> Iterator[Problem]:
    """Whether results have a place that is not taken away, and one that is not taken first."""
    spot = {some.key: some.pool for some in pools if some.pool is not None and some.pool.spot}
    safe = {some.key: some.pool for some in pools if some.pool is not None and not some.pool.spot}
    if not spot:
        return
    yield from pools[0].place.expect(
        any(pool.maximum for pool in safe.values()),
        "pools",
        ", ".join(spot),
        "another one on demand, too: results must not stay on spot machines, and these may be out of stock",
    )
    dearest = max(pool.price for pool in spot.values())
    for key, pool in safe.items():
        words = f"more than {dearest:g}, the price of workers on spot, as the cheapest pool is used first, "
        words += f"and at most {_DEAREST_RATIO:g} times that"
        holds = dearest < pool.price <= dearest * _DEAREST_RATIO
        yield from pools[0].place.expect(holds, f"{key}.price", pool.price, words)


def _settings(pods: Sequence[Pods], groups: Sequence[Group], values: Mapping[str, Any]) -> Iterator[Problem]:
    """What the values say of the whole release."""
    place = pods[0].place
    for key, (default, wanted, why) in _SWITCHES.items():
        value = _said(values, key, default)
        yield from place.expect(value is wanted, key, value, f"{str(wanted).lower()}: {why}")
    watch = _said(values, "tide.interruption.watch")
    deaf = [group for group in groups if group.spot and group.hop_limit < _HOPS_TO_PODS]
    words = "null: no worker would ever read a notice; metadata answers over one hop only, not to pods, on "
    words += ", ".join(f"{group.name} ({group.place.file})" for group in deaf)
    yield from place.expect(watch is None or not deaf, "tide.interruption.watch", watch, words)
    maxima = {some.key: some.count for some in pods}
    for name, units in _placeholders(values).items():
        most = maxima.get(f"pools.{name}", 0)
        words = f"at most {most}, pools.{name}.maximum: each place of a placeholder is paid for"
        yield from place.expect(units <= most, f"buffer.pools.{name}", units, words)


def _placeholders(values: Mapping[str, Any]) -> dict[str, int]:
    """The most placeholders that there are at a time, by their pools."""
    buffers = values.get("buffer", {}).get("pools") or {}
    return {
        name: max([buffer.get("units") or 0, *(entry["units"] for entry in buffer.get("schedule") or [])])
        for name, buffer in buffers.items()
        if buffer is not None
    }


def _quota(pods: Sequence[Pods], values: Mapping[str, Any]) -> Iterator[Problem]:
    """Whether a quota bounds the pods that end, which no maximum counts, and hinders nobody else."""
    place, hard = pods[0].place, _said(values, "resourceQuota.hard") or {}
    buffers = values.get("buffer", {}).get("pools") or {}
    times = sum(len((buffer or {}).get("schedule") or []) for buffer in buffers.values())
    there = sum(some.count for some in pods) + sum(_placeholders(values).values()) + times
    least = _WITH_THOSE_THAT_END * there
    said = hard.get("pods")
    holds = str(said).isdecimal() and int(str(said)) >= least
    words = f"at least {least}: {there} pods, and as many that still end, which no maximum counts"
    yield from place.expect(holds, "resourceQuota.hard.pods", said, words)
    others = sorted(hard.keys() - {"pods"})
    words = "pods alone: of what else is limited each pod of the namespace would have to say how much"
    yield from place.expect(not others, "resourceQuota.hard", others, words)


def _budget(
    pools: Sequence[Pods], where: Mapping[str, Sequence[Group]], values: Mapping[str, Any]
) -> Iterator[Problem]:
    """Whether a budget has prices to count with, for whatever machines workers may be on."""
    if (budget := _said(values, "tide.limits.budget-per-hour")) is None:
        return
    prices = _said(values, "tide.options.prices") or {}
    # TYPE alone is of any market.
    priced = [pattern.rpartition("/")[2] if "/" in pattern else "*" for pattern in prices]
    markets = {each for some in pools for group in where.get(some.key, ()) for each in some.markets(group)}
    for market in sorted(markets):
        words = f"one of {market} machines, such as '*/{market}': 0.1, for the budget of {budget} an hour: "
        words += "a pool's price, which is for comparing pools, would count each second"
        holds = any(fnmatchcase(market, pattern) for pattern in priced)
        yield from pools[0].place.expect(holds, "tide.options.prices", prices, words)


def _said(values: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """What values say at ``a.b.c``, if anything."""
    value: Any = values
    for name in key.split("."):
        value = value.get(name, {}) if isinstance(value, dict) else {}
    return default if value == {} else value


def first_machines(file: str, pods: Sequence[Pods]) -> str:
    """What an installation costs before anybody computes: the chart's ReplicaSets have no `replicas`."""
    pools = ", ".join(some.key for some in pods if some.pool is not None)
    return f"{file}: its first installation may boot a machine for each of {pools}; idle, it goes again"
