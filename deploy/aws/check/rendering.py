"""Templates, filled in by Helm.

``kops toolbox template`` is Go's templates with sprig's functions; so is Helm. Hence the kOps template
is put into a chart of its own, and there is no second template language to maintain.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from deploy.aws.check.problems import Problem
from deploy.aws.check.tree import Tree
from rig import binaries

_DEADLINE_S = 60.0
RELEASE = ("dask", "dask")
#: EKS's name of the cluster that Karpenter's pools are rendered for.
CLUSTER_NAME = "example"
MACHINES_ROLE = f"{CLUSTER_NAME}-eu-west-1-dask-machine"
#: Subnets and security groups of machines, as OpenTofu prints them.
IDS = {"subnetIds": ["subnet-0123456789abcdef0"], "securityGroupIds": ["sg-0123456789abcdef0"]}
#: How a node class finds them: by what OpenTofu prints, and by the tags of a Karpenter that is there.
BY_ID = {
    "subnetSelectorTerms": [{"id": each} for each in IDS["subnetIds"]],
    "securityGroupSelectorTerms": [{"id": each} for each in IDS["securityGroupIds"]],
}
BY_TAG = {selector: [{"tags": {"karpenter.sh/discovery": CLUSTER_NAME}}] for selector in BY_ID}


class RenderError(Exception):
    """Helm cannot fill in a template; the message is what it said."""


def _helm(*arguments: str, values: str = "") -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as home:
        environment = os.environ | {f"HELM_{kind}_HOME": home for kind in ("CACHE", "CONFIG", "DATA")}
        done = subprocess.run(
            [str(binaries.ensure("helm")["helm"]), "template", *arguments],
            env=environment,
            input=values,
            capture_output=True,
            text=True,
            timeout=_DEADLINE_S,
            check=False,
        )
    if done.returncode != 0:
        raise RenderError(done.stderr.strip())
    try:
        return [document for document in yaml.safe_load_all(done.stdout) if document]
    except yaml.YAMLError as error:
        raise RenderError(f"what comes out is no YAML: {error}") from error


def _values(tree: Tree, files: Sequence[str]) -> list[str]:
    return [argument for file in files for argument in ("--values", str(tree.path(file)))]


def kops_documents(tree: Tree, variant: str) -> list[dict[str, Any]]:
    """The cluster and its groups, as ``kops toolbox template`` would print them.

    Raises
    ------
    RenderError
        If the template has a mistake.
    """
    template = tree.text("kops/cluster.tmpl.yaml")
    with tempfile.TemporaryDirectory() as folder:
        chart = Path(folder)
        (chart / "Chart.yaml").write_text("apiVersion: v2\nname: kops\nversion: 0.1.0\n")
        (chart / "templates").mkdir()
        wrapped = f'{{{{- define "cluster" }}}}{template}{{{{- end }}}}{{{{ include "cluster" .Values }}}}\n'
        (chart / "templates" / "cluster.yaml").write_text(wrapped, encoding="utf-8")
        return _helm("kops", folder, *_values(tree, tree.kops_inputs(variant)))


def karpenter_documents(tree: Tree, zones: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The objects of ``deploy/aws/karpenter``, for a cluster called :data:`CLUSTER_NAME`.

    As OpenTofu prints their values; with zones, as one says them whose cluster has Karpenter already.

    Raises
    ------
    RenderError
        If the chart has a mistake, or its values are not those of its schema.
    """
    values: dict[str, Any] = {"clusterName": CLUSTER_NAME, "nodeRole": MACHINES_ROLE}
    if zones:
        values |= {pool: {"zones": list(zones)} for pool in ("worker", "scheduler")}
    else:
        values |= IDS
    return _helm("nodes", str(tree.path("karpenter")), "--values", "-", values=yaml.safe_dump(values))


def release_documents(tree: Tree, values: str) -> list[dict[str, Any]]:
    """The objects of the project's own chart with one of our files of values.

    Raises
    ------
    RenderError
        If the values are not those of its schema, say.
    """
    version = str(tree.yaml("kops/defaults.yaml")["kubernetesVersion"])
    return _release(tree.chart, version, tree.text(values))


@cache
def _release(chart: Path, version: str, values: str) -> list[dict[str, Any]]:
    """Rendered once for the same values: there are variants, and tests."""
    namespace, name = RELEASE
    where = ("--namespace", namespace, "--kube-version", version)
    # Whose image it is everybody says for himself.
    image = ("--set", "image.repository=example.org/dask-tide")
    return _helm(name, str(chart), *where, *image, "--values", "-", values=values)


def failed(file: str, error: RenderError) -> Problem:
    """What a failure to render is reported as."""
    return Problem(file, "rendering", str(error), "a template that Helm can fill in")
