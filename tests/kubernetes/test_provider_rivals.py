"""A second scaler on a pool: the pool is left alone and says whose fault it is, until that is gone."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from replicasets import MERGE, QUICK, PoolSet, provided, shows
from waiting import until

from dask_tide.errors import ProviderError
from dask_tide.providers.kubernetes.provider import KubernetesProvider
from rig import binaries
from rig.clients import ApiError
from rig.plane import Plane
from rig.servers import free_port

pytestmark = [pytest.mark.xdist_group("plane"), pytest.mark.usefixtures("machines")]

#: The event that names an autoscaler must come before its scaling is forgotten; it counts whole seconds.
LONGER = replace(QUICK, rival_s=15.0)


@pytest.fixture(scope="module")
def machines(plane):
    return plane.add_kwok_nodes(2, prefix="provider")


@pytest.fixture
def pool(plane, namespace):
    return PoolSet(plane.api(), namespace).create()


async def frozen(provider: KubernetesProvider, words: str = "") -> str:
    """Why the pool is left alone; empty: it is not, or for another reason."""
    reason = (await provider.observe()).frozen.get("cpu", "")
    return reason if words in reason else ""


async def thawed(provider: KubernetesProvider) -> bool:
    return not await frozen(provider)


# -- HorizontalPodAutoscaler, KEDA -------------------------------------------------------------------------


def autoscaler(pool: PoolSet, name: str, labels: dict[str, str] | None = None) -> str:
    """Have a HorizontalPodAutoscaler that wants three pods at least; its path."""
    target = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": pool.name}
    metric = {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}
    spec = {"scaleTargetRef": target, "minReplicas": 3, "maxReplicas": 5}
    spec["metrics"] = [{"type": "Resource", "resource": metric}]
    path = f"/apis/autoscaling/v2/namespaces/{pool.namespace}/horizontalpodautoscalers"
    body = {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler"}
    pool.api("POST", path, body | {"metadata": {"name": name, "labels": labels or {}}, "spec": spec})
    return f"{path}/{name}"


async def test_a_horizontal_pod_autoscaler_freezes_the_pool_and_is_named(plane, pool, said):
    async with provided(plane, pool.namespace, patience=LONGER) as provider:
        await provider.observe()
        await provider.scale_up("cpu", 1)
        await shows(provider, 1)
        path = autoscaler(pool, "h")
        message = await until(lambda: frozen(provider, "HorizontalPodAutoscaler h "), "the pool is frozen")
        assert message == (
            "HorizontalPodAutoscaler h scales ReplicaSet r-cpu, too: remove it, two cannot agree "
            "(it has just set 3 replicas)"
        )
        with pytest.raises(ProviderError, match="HorizontalPodAutoscaler h "):
            await provider.scale_up("cpu", 9)
        assert pool.replicas() == 3
        assert said("is left alone") == 1
        pool.api("DELETE", path)
        await until(lambda: thawed(provider), "it is believed to be gone after a while")
        await provider.scale_up("cpu", 4)
        await shows(provider, 4)


async def test_of_kedas_autoscaler_the_scaledobject_is_to_be_removed(plane, pool):
    """KEDA's operator would make the HorizontalPodAutoscaler again. It is not here: this is what it makes."""
    async with provided(plane, pool.namespace, patience=LONGER) as provider:
        await provider.observe()
        await provider.scale_up("cpu", 1)
        await shows(provider, 1)
        autoscaler(pool, "keda-hpa-jobs", {"scaledobject.keda.sh/name": "jobs"})
        message = await until(lambda: frozen(provider, "keda-hpa-jobs"), "the pool is frozen")
        assert message.startswith(
            "HorizontalPodAutoscaler keda-hpa-jobs scales ReplicaSet r-cpu, too: "
            "remove KEDA's ScaledObject jobs, two cannot agree"
        )
        with pytest.raises(ProviderError, match="ScaledObject jobs"):
            await provider.scale_up("cpu", 9)


async def test_keda_wakes_a_pool_that_sleeps(plane, pool):
    """From 0 to 1 it sets the scale itself; an autoscaler leaves a pool of 0 alone."""
    async with provided(plane, pool.namespace) as provider:
        await provider.observe()
        scale = f"{pool.sets}/{pool.name}/scale?fieldManager=keda"
        pool.api("PATCH", scale, {"spec": {"replicas": 1}}, MERGE)
        message = await until(lambda: frozen(provider), "the pool is frozen")
        assert message.startswith("KEDA scales ReplicaSet r-cpu, too: remove its ScaledObject")


async def test_one_who_sets_the_number_again_and_again_is_a_rival(plane, pool):
    async with provided(plane, pool.namespace) as provider:
        await provider.observe()
        scale = provider.scales["cpu"]
        for number in (1, 2, 1):
            plane.kubectl("-n", pool.namespace, "scale", "rs", pool.name, f"--replicas={number}")
            await until(lambda: scale.wanted == number, "it is seen")  # noqa: B023
        assert await frozen(provider, "kubectl scales ReplicaSet r-cpu, too")


async def test_somebody_who_scales_once_by_hand_is_no_rival(plane, pool):
    async with provided(plane, pool.namespace) as provider:
        await provider.observe()
        plane.kubectl("-n", pool.namespace, "scale", "rs", pool.name, "--replicas=3")
        names = await shows(provider, 3)
        assert not await frozen(provider)
        pool.set_ready(names[:1], False)
        assert not await provider.scale_down(names[:1])
        assert sorted(pool.pods()) == names[1:]


# -- VerticalPodAutoscaler ---------------------------------------------------------------------------------

GROUP, KIND, PLURAL = "autoscaling.k8s.io", "VerticalPodAutoscaler", "verticalpodautoscalers"


class Vertical:
    """The real admission controller and updater of the Vertical Pod Autoscaler, for one namespace.

    Its recommender needs metrics, which pods of kwok do not have: what it would recommend the test says.
    """

    def __init__(self, plane: Plane, pool: PoolSet) -> None:
        self.plane = plane
        self.pool = pool
        self.programs = binaries.ensure("vpa-admission-controller", "vpa-updater")
        self.path = f"/apis/{GROUP}/v1/namespaces/{pool.namespace}/{PLURAL}"
        self.webhook = f"/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{pool.namespace}"
        self.running: list[str] = []

    def define(self) -> None:
        """Its kind."""
        version = {"name": "v1", "served": True, "storage": True}
        schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        spec = {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {"kind": KIND, "plural": PLURAL},
            "versions": [version | {"schema": {"openAPIV3Schema": schema}}],
        }
        approved = {"api-approved.kubernetes.io": "https://github.com/kubernetes/kubernetes/pull/63797"}
        self.plane.kubectl.apply(
            {
                "apiVersion": "apiextensions.k8s.io/v1",
                "kind": "CustomResourceDefinition",
                "metadata": {"name": f"{PLURAL}.{GROUP}", "annotations": approved},
                "spec": spec,
            }
        )
        self.plane.kubectl("wait", "--for=condition=Established", f"crd/{PLURAL}.{GROUP}", "--timeout=30s")

    def run(self, program: str, *arguments: str) -> None:
        name = f"{program}-{self.pool.namespace}"
        self.plane.run(
            name,
            [
                self.programs[program],
                f"--kubeconfig={self.plane.kubeconfig}",
                f"--vpa-object-namespace={self.pool.namespace}",
                f"--address=127.0.0.1:{free_port()}",
                *arguments,
            ],
            {"NAMESPACE": self.pool.namespace},
        )
        self.running.append(name)

    def admit(self) -> None:
        """Change pods at their creation."""
        certificate = self.plane.authority.issue("vpa", "vpa", names=["127.0.0.1"])
        port = free_port()
        self.run(
            "vpa-admission-controller",
            f"--port={port}",
            f"--client-ca-file={self.plane.authority.certificate}",
            f"--tls-cert-file={certificate.certificate}",
            f"--tls-private-key={certificate.key}",
            "--register-webhook=false",
        )
        bundle = base64.b64encode(self.plane.authority.certificate.read_bytes()).decode()
        # As it would register itself 10 s later, but for this namespace only, and loud when it fails.
        hook = {
            "name": "vpa.k8s.io",
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "failurePolicy": "Fail",
            "clientConfig": {"url": f"https://127.0.0.1:{port}", "caBundle": bundle},
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": self.pool.namespace}},
            "rules": [
                {"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}
            ],
        }
        path, _, name = self.webhook.rpartition("/")
        self.pool.api("POST", path, {"metadata": {"name": name}, "webhooks": [hook]})

    def update(self) -> None:
        """Evict those that run with other resources."""
        self.run("vpa-updater", "--updater-interval=1s", "--min-replicas=1")

    def want(self, mode: str) -> None:
        """Have one, which recommends more than the pool's pods have."""
        more = {"cpu": "500m", "memory": "100Mi"}
        bounds = {"target": more, "lowerBound": more, "upperBound": more, "uncappedTarget": more}
        body = {
            "apiVersion": f"{GROUP}/v1",
            "kind": KIND,
            "metadata": {"name": "upright"},
            "spec": {
                "targetRef": {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": self.pool.name},
                "updatePolicy": {"updateMode": mode},
            },
            "status": {
                "conditions": [{"type": "RecommendationProvided", "status": "True"}],
                "recommendation": {"containerRecommendations": [{"containerName": "worker"} | bounds]},
            },
        }
        self.pool.api("POST", self.path, body)

    async def admits(self) -> None:
        """Wait until it serves, and knows what there is."""

        def asked() -> dict[str, Any] | None:
            template = self.pool.pod_template()
            owner = self.pool.api("GET", f"{self.pool.sets}/{self.pool.name}")
            reference = {
                "apiVersion": "apps/v1",
                "kind": "ReplicaSet",
                "name": self.pool.name,
                "uid": owner["metadata"]["uid"],
                "controller": True,
            }
            metadata = template["metadata"] | {"name": "probe", "ownerReferences": [reference]}
            pods = f"/api/v1/namespaces/{self.pool.namespace}/pods?dryRun=All"
            try:
                made = self.pool.api("POST", pods, {"metadata": metadata, "spec": template["spec"]})
            except ApiError as error:
                if "vpa.k8s.io" in str(error):
                    return None
                raise
            return dict(made["metadata"]["annotations"])

        self.probe = await until(asked, "it admits pods", detail=self.plane.kept.failed)

    def gone(self) -> None:
        self.pool.api("DELETE", f"{self.path}/upright")

    def close(self) -> None:
        for name in self.running:
            self.plane.kept.stop(name)
        self.pool.api("DELETE", self.webhook)


@pytest.fixture
def vertical(plane: Plane, pool: PoolSet) -> Iterator[Vertical]:
    made = Vertical(plane, pool)
    made.define()
    made.admit()
    yield made
    made.close()


async def test_a_vertical_pod_autoscaler_freezes_the_pool_and_is_named(plane, pool, vertical, said):
    vertical.want("Initial")
    async with provided(plane, pool.namespace) as provider:
        await provider.observe()

        async def known() -> bool:
            await vertical.admits()
            return "vpaUpdates" in vertical.probe

        await until(known, "it changes pods")
        assert not await frozen(provider)
        await provider.scale_up("cpu", 2)
        message = await until(lambda: frozen(provider), "the pool is frozen")
        assert message.startswith(
            "a VerticalPodAutoscaler changes pods of ReplicaSet r-cpu: remove it, or set"
        )
        assert "(Pod resources updated by upright: container 0: " in message
        with pytest.raises(ProviderError, match="updated by upright"):
            await provider.scale_up("cpu", 9)
        assert pool.replicas() == 2
        assert said("is left alone") == 1
        await pool.running(2)
        vertical.gone()

        async def forgotten() -> bool:
            await vertical.admits()
            return "vpaUpdates" not in vertical.probe

        await until(forgotten, "it knows that it is gone")
        await until(lambda: thawed(provider), "it is believed to be gone after a while")
        # Its marks are still on the two; that is no news.
        await provider.scale_up("cpu", 4)
        await shows(provider, 4)
        assert not await frozen(provider)
        assert said("is left alone") == 1


async def test_one_that_recommends_only_is_nobodys_rival(plane, pool, vertical):
    vertical.want("Off")
    async with provided(plane, pool.namespace) as provider:
        await provider.observe()
        await vertical.admits()
        await provider.scale_up("cpu", 2)
        names = await shows(provider, 2)
        assert not await frozen(provider)
        pool.set_ready(names[:1], False)
        assert not await provider.scale_down(names[:1])


async def test_one_that_comes_while_there_are_workers_and_evicts_them(plane, pool, vertical):
    vertical.want("Off")
    async with provided(plane, pool.namespace) as provider:
        await provider.observe()
        await vertical.admits()
        await provider.scale_up("cpu", 2)
        names = await shows(provider, 2)
        assert not await frozen(provider)
        vertical.gone()
        vertical.want("Recreate")
        vertical.update()
        message = await until(
            lambda: frozen(provider, "VerticalPodAutoscaler"), "the pool is frozen", detail=plane.kept.failed
        )
        assert "updated by upright" in message or "EvictedByVPA" in message
        assert len(set(pool.pods()) & set(names)) < 2


@pytest.mark.parametrize("reason", ["EvictedByVPA", "InPlaceResizedByVPA"])
async def test_what_its_updater_says_of_a_pod_suffices(plane, pool, reason):
    """Where the pod that is evicted was its only one, nothing is created any more that could be annotated."""
    async with provided(plane, pool.namespace) as provider:
        await provider.observe()
        await provider.scale_up("cpu", 1)
        (name,) = await shows(provider, 1)
        post_event(pool, name, "SomethingElse")
        post_event(pool, name, reason)
        message = await until(lambda: frozen(provider), "the pool is frozen")
        assert f"({reason}: as it says)" in message


def post_event(pool: PoolSet, pod: str, reason: str) -> None:
    about = {"kind": "Pod", "namespace": pool.namespace, "name": pod}
    event = {"metadata": {"name": reason.lower()}, "involvedObject": about, "reason": reason}
    event |= {"message": "as it says", "type": "Normal", "source": {"component": "vpa-updater"}}
    pool.api("POST", f"/api/v1/namespaces/{pool.namespace}/events", event)
