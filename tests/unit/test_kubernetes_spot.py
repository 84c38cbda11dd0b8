"""Spot pools: without eyes for the notice no worker is told to stay until the power is cut."""

from __future__ import annotations

import pytest

from dask_tide.providers.kubernetes.manifests import manifests

DO_NOT_DISRUPT = "karpenter.sh/do-not-disrupt"
IMAGE = {"image": {"repository": "example.org/dask-tide"}}
SPOT = {"nodeSelector": {"karpenter.sh/capacity-type": "spot"}}
EYES = {"nodes": {"read": True}}


def requires(operator, *values):
    """A pool whose nodes must have such a market."""
    expressions = [{"key": "karpenter.sh/capacity-type", "operator": operator, "values": list(values)}]
    terms = {"nodeSelectorTerms": [{"matchExpressions": expressions}]}
    return {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}}


MAYBE_SPOT = [SPOT, requires("In", "spot"), requires("In", "on-demand", "spot")]


def born(pool, values=None):
    """The annotations that the pool's pods have from the start."""
    made = manifests("r", "ns", IMAGE | {"pools": {"cpu": pool}} | (values or {}))
    (replicaset,) = (each for each in made if each["kind"] == "ReplicaSet")
    return replicaset["spec"]["template"]["metadata"]["annotations"]


@pytest.mark.parametrize("pool", [{"spot": True}, SPOT | {"spot": None}, *MAYBE_SPOT])
def test_workers_on_spot_nodes_are_not_protected_from_karpenter(pool):
    annotations = born(pool)
    assert DO_NOT_DISRUPT not in annotations
    # cluster-autoscaler only takes nodes that nobody needs; notices are another's business.
    assert annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"


@pytest.mark.parametrize(
    "pool",
    [
        {},
        {"spot": False},
        *(pool | {"spot": False} for pool in MAYBE_SPOT),
        requires("In", "on-demand"),
        requires("NotIn", "spot"),
    ],
)
def test_others_are(pool):
    assert born(pool)[DO_NOT_DISRUPT] == "true"


def test_where_nodes_are_watched_they_are_until_theirs_is_to_go():
    assert born(SPOT, EYES)[DO_NOT_DISRUPT] == "true"


def test_where_pods_may_not_be_patched_nobody_could_take_it_back():
    assert DO_NOT_DISRUPT not in born(SPOT, EYES | {"admission": {"enabled": False}})


def test_the_user_has_the_last_word():
    assert born(SPOT | {"podAnnotations": {DO_NOT_DISRUPT: "true"}})[DO_NOT_DISRUPT] == "true"
