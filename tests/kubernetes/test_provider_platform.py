"""The kubernetes provider against what a platform does to it: quotas, outages, refused rights."""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress
from dataclasses import replace

import pytest
from replicasets import MERGE, QUICK, PoolSet, calm, provided, shows, units
from waiting import until, wait_until

from dask_tide.errors import ProviderError, QuotaExceeded, Unauthorized, Unavailable
from dask_tide.model import Phase
from dask_tide.providers.base import Limit
from dask_tide.providers.kubernetes.api import Gone
from dask_tide.providers.kubernetes.objects import Pod
from dask_tide.providers.kubernetes.provider import KubernetesProvider

pytestmark = [pytest.mark.xdist_group("plane"), pytest.mark.usefixtures("machines")]

ROLE = {
    "pods": ["get", "list", "watch", "patch"],
    "events": ["get", "list", "watch"],
    "replicasets": ["get", "list", "watch"],
    "replicasets/scale": ["get", "patch"],
}


@pytest.fixture(scope="module")
def machines(plane):
    return plane.add_kwok_nodes(2, prefix="provider")


@pytest.fixture
def pool(plane, namespace):
    return PoolSet(plane.api(), namespace).create()


async def well(provider: KubernetesProvider):
    """An observation, or None."""
    try:
        return await provider.observe()
    except ProviderError:
        return None


async def refused(provider: KubernetesProvider):
    """The error of an observation, or None."""
    try:
        await provider.observe()
    except ProviderError as error:
        return error
    return None


# -- no room -----------------------------------------------------------------------------------------------


async def test_p39_a_quota_of_ten_and_twenty_are_asked_for(plane, pool, said):
    pool.quota(10)
    async with provided(plane, pool.namespace, patience=replace(QUICK, quota_s=600.0)) as provider:
        await provider.observe()
        scale, calls = provider.scales["cpu"], provider._api.calls
        await provider.scale_up("cpu", 20)
        await until(lambda: scale.limit() is not None and pool.replicas() == 10, "the quota is met")
        await shows(provider, 10)
        (limit,) = (await provider.observe()).limits
        assert limit.maximum == 10
        assert "exceeded quota: quota" in limit.message
        assert calls["scale"] == 2
        with pytest.raises(QuotaExceeded, match="exceeded quota"):
            await provider.scale_up("cpu", 11)
        assert said("exceeded quota") == 1
        # There is room again for as many as before.
        names = sorted(pool.pods())
        pool.set_ready(names[:2], False)
        assert not await provider.scale_down(names[:2])
        await calm(provider)
        await until(lambda: pool.quota_used() == 8, "the quota knows")
        await provider.scale_up("cpu", 10)
        await shows(provider, 10)


async def test_p39_it_grows_soon_after_the_quota_was_raised(plane, pool):
    pool.quota(3)
    async with provided(plane, pool.namespace) as provider:
        await provider.observe()
        scale, calls = provider.scales["cpu"], provider._api.calls

        async def ask() -> bool:
            """As the controller does, as often as it may."""
            with suppress(QuotaExceeded):  # it has been refused since
                if not (await provider.observe()).limits:
                    await provider.scale_up("cpu", 6)
            return len(scale.active()) == 6

        await until(lambda: ask() if scale.limit() is None else True, "the quota is met")
        began_s = asyncio.get_running_loop().time()
        probes = calls["scale"]
        while asyncio.get_running_loop().time() - began_s < 7.0:
            await ask()
            await asyncio.sleep(0.02)
        # Believed for 2, 4 and 4 seconds; each probe is lowered again.
        assert calls["scale"] - probes <= 6
        pool.quota(6)
        await until(ask, "it has grown")


async def test_terminating_pods_need_their_room_too(plane, pool):
    pool.quota(4)
    async with provided(plane, pool.namespace, patience=replace(QUICK, quota_s=600.0)) as provider:
        await provider.observe()
        await provider.scale_up("cpu", 4)
        names = await shows(provider, 4)
        pool.api("PATCH", pool.path(names[0]), {"metadata": {"finalizers": ["test/hold"]}}, MERGE)
        pool.set_ready(names[:1], False)
        assert not await provider.scale_down(names[:1])
        await provider.scale_up("cpu", 6)  # one is ending, so five others
        await until(provider.scales["cpu"].limit, "the quota is met")
        scale = provider.scales["cpu"]
        await until(lambda: scale.wanted == len(scale.active()) == pool.replicas(), "no more are asked for")
        # It counts for the quota until its grace period is over.
        limit = scale.limit()
        assert limit is not None
        assert limit.maximum == len(scale.active()) + 1
        pool.api("PATCH", pool.path(names[0]), {"metadata": {"finalizers": None}}, MERGE)


async def test_no_node_for_it_limits_the_pool_in_the_platforms_words(plane, pool):
    pool.delete()
    pool.spec = {"nodeSelector": {"there-is": "no-such-node"}}
    pool.create()
    async with provided(plane, pool.namespace, unschedulable_after="2s") as provider:
        await provider.observe()
        await provider.scale_up("cpu", 2)

        async def explained() -> bool:
            pending = units(await provider.observe(), Phase.PENDING)
            # More than the maximum was asked for once; that limit hides no lower one.
            provider.scales["cpu"]._enforced = Limit("cpu", 10, "10 at the most")
            return len(pending) == 2 and all("didn't match Pod's node" in u.message for u in pending.values())

        await until(explained, "the scheduler's words are there")

        async def limited() -> bool:
            limits = (await provider.observe()).limits
            return bool(limits) and limits[0].maximum == 0 and "nodes are available" in limits[0].message

        await until(limited, "it is a limit")

        async def told() -> bool:
            observed = units(await provider.observe(), Phase.PENDING)
            return all("FailedScheduling" in provider._words.get(name, "") for name in observed)

        await until(told, "the scheduler says the same in an event")
        for unit in units(await provider.observe(), Phase.PENDING).values():
            assert unit.message.count("didn't match Pod's node") == 1


@pytest.mark.parametrize("cause", ["limit range", "pod security"])
async def test_a_refusal_is_in_the_platforms_words(plane, pool, cause):
    if cause == "limit range":
        spec = {"limits": [{"type": "Container", "min": {"cpu": "2"}}]}
        body = {"kind": "LimitRange", "metadata": {"name": "small"}, "spec": spec}
        pool.api("POST", f"/api/v1/namespaces/{pool.namespace}/limitranges", body)
        words = "minimum cpu usage per Container is 2, but request is 10m"
    else:
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        pool.api("PATCH", f"/api/v1/namespaces/{pool.namespace}", {"metadata": {"labels": labels}}, MERGE)
        words = 'violates PodSecurity "restricted:latest"'
    async with provided(plane, pool.namespace) as provider:
        await provider.observe()
        await provider.scale_up("cpu", 2)

        async def limited() -> bool:
            limits = (await provider.observe()).limits
            return bool(limits) and limits[0].maximum == 0 and words in limits[0].message

        await until(limited, "its words are a limit")
        await until(lambda: pool.replicas() == 0, "nothing is asked for any more")


# -- its ReplicaSet ----------------------------------------------------------------------------------------


async def test_without_its_replicaset_the_pool_is_frozen_until_it_is_there_again(plane, pool):
    async with provided(plane, pool.namespace) as provider:
        await provider.observe()
        await provider.scale_up("cpu", 1)
        await shows(provider, 1)
        pool.delete()

        async def frozen() -> str:
            return (await provider.observe()).frozen.get("cpu", "")

        message = await until(frozen, "the pool is frozen")
        assert message == f"there is no ReplicaSet r-cpu in namespace {pool.namespace}"
        with pytest.raises(ProviderError, match="there is no ReplicaSet r-cpu"):
            await provider.scale_up("cpu", 2)
        await until(lambda: not pool.pods(), "its pods went with it")
        # Those that go, seen or not yet seen to, count when so many are asked for.
        await until(lambda: not provider._known(), "and are known to have gone")
        pool.create()

        async def thawed() -> bool:
            return not await frozen()

        await until(thawed, "it is back")
        await provider.scale_up("cpu", 2)
        await shows(provider, 2)


# -- rights ------------------------------------------------------------------------------------------------


def grant(pool: PoolSet, role: dict[str, list[str]]) -> None:
    """Give the ServiceAccount `scheduler` of the namespace these rights."""
    rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{pool.namespace}"
    rules = [
        {"apiGroups": ["apps" if what.startswith("replicasets") else ""], "resources": [what], "verbs": verbs}
        for what, verbs in role.items()
    ]
    pool.api("PATCH", f"{rbac}/roles/scheduler", {"rules": rules}, MERGE)
    # Who authorizes hears of it by a watch.
    wait_until(lambda: rights(pool) == {what: set(verbs) for what, verbs in role.items()}, "it counts")


def rights(pool: PoolSet) -> dict[str, set[str]]:
    """Those of :data:`ROLE` that the account has."""
    reviews = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
    user = f"system:serviceaccount:{pool.namespace}:scheduler"
    found: dict[str, set[str]] = {what: set() for what in ROLE}
    for what, verb in ((what, verb) for what, verbs in ROLE.items() for verb in verbs):
        resource, _, subresource = what.partition("/")
        about = {"namespace": pool.namespace, "verb": verb, "resource": resource, "subresource": subresource}
        about["group"] = "apps" if resource == "replicasets" else ""
        review = pool.api("POST", reviews, {"spec": {"user": user, "resourceAttributes": about}})
        if review["status"]["allowed"]:
            found[what].add(verb)
    return found


@pytest.fixture
def account(plane, pool):
    """A ServiceAccount with the right to do what the provider does."""
    namespace = pool.namespace
    pool.api("POST", f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": "scheduler"}})
    rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
    pool.api("POST", f"{rbac}/roles", {"metadata": {"name": "scheduler"}, "rules": []})
    binding = {
        "metadata": {"name": "scheduler"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "scheduler"},
        "subjects": [{"kind": "ServiceAccount", "name": "scheduler", "namespace": namespace}],
    }
    pool.api("POST", f"{rbac}/rolebindings", binding)
    grant(pool, ROLE)
    return plane.serviceaccount_kubeconfig(namespace, "scheduler")


@pytest.mark.parametrize(
    ("missing", "verb"),
    [("pods", "list"), ("pods", "watch"), ("replicasets", "list"), ("replicasets", "watch")],
)
async def test_p16_a_missing_right_is_named_and_may_be_given_later(plane, pool, account, missing, verb):
    verbs = [other for other in ROLE[missing] if other != verb]
    grant(pool, ROLE | {missing: verbs})
    async with provided(plane, pool.namespace, kubeconfig=account) as provider:
        error = await until(lambda: refused(provider), "it is refused")
        assert isinstance(error, Unauthorized)
        assert f'cannot {verb} resource "{missing}"' in str(error)
        calls = provider._api.calls
        before = calls["list"] + calls["watch"]
        await asyncio.sleep(3.0)
        assert calls["list"] + calls["watch"] - before <= 2 * (3.0 / QUICK.refused_s)
        grant(pool, ROLE)
        await until(lambda: well(provider), "it is well")


async def test_without_the_right_to_scale_the_error_names_it(plane, pool, account):
    grant(pool, ROLE | {"replicasets/scale": ["get"]})
    async with provided(plane, pool.namespace, kubeconfig=account) as provider:
        await provider.observe()
        with pytest.raises(Unauthorized, match='cannot patch resource "replicasets/scale"'):
            await provider.scale_up("cpu", 1)


async def test_without_the_right_to_patch_pods_readiness_selects(plane, pool, account, said):
    grant(pool, ROLE | {"pods": ["get", "list", "watch"]})
    patience = replace(QUICK, refused_s=60.0)  # longer than this takes: it is not tried again meanwhile
    async with provided(plane, pool.namespace, kubeconfig=account, patience=patience) as provider:
        await provider.observe()
        await provider.scale_up("cpu", 4)
        names = await shows(provider, 4)
        pool.set_ready(names[1:3], False)
        assert not await provider.scale_down(names[1:3])
        assert sorted(pool.pods()) == [names[0], names[3]]
        assert said("cannot be marked") == 1
        assert provider._api.calls["annotate"] == 2


async def test_a_token_is_replaced_while_it_runs(plane, pool, account, tmp_path, monkeypatch):
    """As the kubelet does with a pod's ServiceAccount; the old token is not merely old, but revoked."""
    namespace = pool.namespace

    def secret(name: str) -> str:
        """A token that is valid for as long as a Secret is there."""
        secrets = f"/api/v1/namespaces/{namespace}/secrets"
        made = pool.api("POST", secrets, {"metadata": {"name": name}})
        reference = {"apiVersion": "v1", "kind": "Secret", "name": name, "uid": made["metadata"]["uid"]}
        spec = {"boundObjectRef": reference, "expirationSeconds": 600}
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/scheduler/token"
        request = {"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "spec": spec}
        return str(pool.api("POST", path, request)["status"]["token"])

    token = tmp_path / "token"
    token.write_text(secret("first"))
    (tmp_path / "namespace").write_text(namespace)
    (tmp_path / "ca.crt").write_bytes((plane.folder / "pki" / "ca.crt").read_bytes())
    host, _, port = plane.place.outside.removeprefix("https://").partition(":")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setattr("dask_tide.providers.kubernetes.kubeconfig._ACCOUNT", tmp_path)
    async with provided(plane, namespace, in_cluster=True, patience=replace(QUICK, watch_s=2.0)) as provider:
        await provider.observe()
        await provider.scale_up("cpu", 1)
        await shows(provider, 1)
        token.write_text(secret("second"))
        pool.api("DELETE", f"/api/v1/namespaces/{namespace}/secrets/first")
        await until(lambda: well(provider), "it is well")
        watches = provider._api.calls["watch"]
        await until(lambda: provider._api.calls["watch"] > watches + 3, "new watches are let in")
        await until(lambda: well(provider), "with the new token")
        await provider.scale_up("cpu", 2)
        await shows(provider, 2)


# -- the API server ----------------------------------------------------------------------------------------


async def test_a_silent_server_is_noticed(plane, pool):
    patience = replace(QUICK, silence_s=1.0, watch_s=30.0)
    async with provided(plane, pool.namespace, patience=patience) as provider:
        await provider.observe()
        plane.kept.signal("kube-apiserver", signal.SIGSTOP)
        try:
            error = await until(lambda: refused(provider), "it is noticed")
        finally:
            plane.kept.signal("kube-apiserver", signal.SIGCONT)
        assert isinstance(error, Unavailable)
        assert "silent" in str(error)


async def test_a_watch_ends_and_goes_on_where_it_was(plane, pool):
    patience = replace(QUICK, watch_s=1.0)
    async with provided(plane, pool.namespace, patience=patience) as provider:
        await provider.observe()
        calls = provider._api.calls
        await until(lambda: calls["watch"] >= 9, "some watches have ended")
        await provider.scale_up("cpu", 1)
        await until(provider.scales["cpu"].active, "pods are still watched")
        assert calls["list"] == 3


# The last one: the controller manager needs a while to recover from it.
async def test_the_api_server_is_away_and_has_forgotten_what_was(plane, pool):
    """etcd is compacted meanwhile, so that the versions known are "410 Gone"."""
    async with provided(plane, pool.namespace) as provider:
        await provider.observe()
        version = pool.version()
        await provider.scale_up("cpu", 3)
        names = await shows(provider, 3)
        lists = provider._pods.lists
        await asyncio.to_thread(plane.stop_apiserver)
        try:
            error = await until(lambda: refused(provider), "it is noticed")
            assert isinstance(error, Unavailable)
            with pytest.raises(Unavailable):
                await provider.scale_up("cpu", 5)
            with pytest.raises(Unavailable):
                await provider.scale_down(names)
            calls = provider._api.calls["list"]
            await asyncio.sleep(2.0)
            # Three kinds are watched; each waits half a second between two attempts.
            assert provider._api.calls["list"] - calls <= 2 * 3 * 2.0 / QUICK.failed_max_s
            await asyncio.to_thread(plane.compact_etcd)
        finally:
            await asyncio.to_thread(plane.start_apiserver)
        pool.api = plane.api()
        pool.delete_pod(names[0])

        async def seen() -> bool:
            # Not its replacement: the controller manager may take half a minute to come back.
            # And gone, not going: those that are being deleted count when so many are asked for.
            found = await well(provider)
            there = set() if found is None else {unit.name for unit in found.units}
            return names[0] not in there and set(names[1:]) <= there

        await until(seen, "it is back, nothing is lost", detail=lambda: str(provider._pods.error))
        assert provider._pods.lists > lists
        await provider.scale_up("cpu", 4)
        assert pool.replicas() == 4
        # Who goes on with a version from before is told so, and lists again.
        with pytest.raises(Gone):
            await anext(provider._api.watch(Pod, None, "", version, silence_s=10.0))
        reflector = provider._pods
        list_once = reflector._list

        async def stale() -> str:
            await list_once()
            reflector._list = list_once
            return version

        await reflector.stop()
        reflector._list = stale
        lists = reflector.lists
        reflector.start()
        await until(lambda: reflector.lists >= lists + 2, "it is listed again")
        # The next tests find it as it was: controllers ask again after up to a minute, one after the other.
        await until(lambda: len(pool.pods()) == 4, "all of the control plane is back", 180.0)
        await until(lambda: all(map(scheduled, pool.pods().values())), "all of it", 180.0)


def scheduled(pod: dict) -> bool:
    return bool(pod["spec"].get("nodeName"))
