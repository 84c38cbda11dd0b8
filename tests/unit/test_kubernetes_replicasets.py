"""What a ReplicaSet says: its numbers, why no pod could be made, and who set it last."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from dask_tide.providers.kubernetes.objects import ReplicaSet
from dask_tide.providers.kubernetes.replicasets import read_replicaset

pytest.importorskip("lightkube")

REPLICAS: dict[str, Any] = {"f:spec": {"f:replicas": {}}}
ELSE: dict[str, Any] = {"f:spec": {"f:template": {}}, "f:metadata": {"f:labels": {}}}
QUOTA = (
    'pods "r-cpu-k2x4z" is forbidden: exceeded quota: q, requested: pods=1, used: pods=10, limited: pods=10'
)


def entry(manager, at, fields=REPLICAS, subresource=None):
    made = {
        "manager": manager,
        "operation": "Update",
        "time": f"2026-01-01T00:00:{at:02}Z",
        "fieldsV1": fields,
    }
    return made | ({"subresource": subresource} if subresource else {})


def replicaset(*managers, generation=2, observed=2, conditions=(), labels=None, **metadata):
    raw = {
        "metadata": {
            "name": "r-cpu",
            "resourceVersion": "12",
            "generation": generation,
            "labels": {"dask-tide/pool": "cpu"} if labels is None else labels,
            "managedFields": list(managers),
        }
        | metadata,
        "spec": {"replicas": 20, "template": {"metadata": {"labels": {"dask-tide/template": "0123456789"}}}},
        "status": {"replicas": 10, "observedGeneration": observed, "conditions": list(conditions)},
    }
    return read_replicaset(msgspec.json.decode(msgspec.json.encode(raw), type=ReplicaSet))


def test_its_numbers():
    view = replicaset()
    assert (view.name, view.pool, view.version) == ("r-cpu", "cpu", 12)
    assert (view.replicas, view.existing, view.template) == (20, 10, "0123456789")
    assert view.refusal == view.manager == ""


def test_a_bookmark_can_be_read():
    """As the server sends it: what must be there in an object of the kind is null."""
    template = {"metadata": {}, "spec": {"containers": None}}
    raw = {
        "metadata": {"resourceVersion": "7"},
        "spec": {"selector": None, "template": template},
        "status": {"replicas": 0},
    }
    assert msgspec.json.decode(msgspec.json.encode(raw), type=ReplicaSet).metadata.resourceVersion == "7"


@pytest.mark.parametrize(
    ("managers", "latest"),
    [
        ([entry("helm", 1)], "helm/"),
        ([entry("helm", 1), entry("dask-tide", 5, subresource="scale")], "dask-tide/scale"),
        ([entry("dask-tide", 5, subresource="scale"), entry("helm", 9, ELSE)], "dask-tide/scale"),
        (
            [entry("kube-controller-manager", 9, subresource="scale"), entry("helm", 1)],
            "kube-controller-manager/scale",
        ),
        ([entry("kubectl", 3, subresource="scale"), entry("kubectl", 4, ELSE)], "kubectl/scale"),
        ([entry("helm", 9, ELSE), entry("kube-controller-manager", 9, {}, "status")], ""),
    ],
)
def test_who_has_set_the_number_last(managers, latest):
    assert replicaset(*managers).manager == latest


def test_a_refusal_does_not_name_the_pod_which_is_another_each_time():
    failure = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": QUOTA}
    assert replicaset(conditions=[failure]).refusal.startswith("a pod is forbidden: exceeded quota: q,")
    assert replicaset(conditions=[failure | {"status": "False"}]).refusal == ""
    assert replicaset(conditions=[failure | {"message": ""}]).refusal == "FailedCreate"


def test_a_refusal_of_an_earlier_number_is_none():
    failure = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": QUOTA}
    assert replicaset(conditions=[failure], generation=3, observed=2).refusal == ""


def test_one_of_no_pool_or_that_is_being_deleted_is_none():
    assert replicaset(labels={}) is None
    assert replicaset(deletionTimestamp="2026-01-01T00:00:00Z") is None
