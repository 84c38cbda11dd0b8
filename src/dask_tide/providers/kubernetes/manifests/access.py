"""Who may do what: accounts, roles, admission policies, network policies, certificates.

Clients run code in the scheduler, so whatever it may do, each of them may: hence so little.
"""

from __future__ import annotations

import base64

from .certificates import Certificates, host_names
from .pods import READINESS_PORT
from .release import Manifest, Release
from .values import watched

__all__ = [
    "make_account",
    "make_admission",
    "make_issued_certificates",
    "make_network_policies",
    "make_node_role",
    "make_role",
    "make_tls_secret",
]

_RBAC = "rbac.authorization.k8s.io"
_READ = ["get", "list", "watch"]


def make_account(release: Release, component: str) -> Manifest:
    """ServiceAccount of a component. Only the scheduler's pod asks for its token."""
    annotations = release.values["serviceAccounts"].get(component, {}).get("annotations")
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": release.metadata(f"{release.name}-{component}", component, annotations=annotations),
        "automountServiceAccountToken": False,
    }


def make_role(release: Release) -> list[Manifest]:
    """Role of the scheduler, and its RoleBinding."""
    # Without the admission policies `patch` would be the right to change images and owners.
    patch = ["patch"] if release.values["admission"]["enabled"] else []
    pools = [f"{release.name}-{pool}" for pool in release.pools]
    rules: list[Manifest] = [
        {"apiGroups": [""], "resources": ["pods"], "verbs": _READ + patch},
        {"apiGroups": [""], "resources": ["events"], "verbs": _READ},
        {"apiGroups": ["apps"], "resources": ["replicasets"], "verbs": _READ},
        {
            "apiGroups": ["apps"],
            "resources": ["replicasets/scale"],
            "resourceNames": pools,
            "verbs": ["get", "patch"],
        },
    ]
    return _make_role_and_binding(release, "", f"{release.name}-scheduler", rules)


def make_node_role(release: Release) -> list[Manifest]:
    """ClusterRole to read nodes, and its ClusterRoleBinding."""
    rules: list[Manifest] = [{"apiGroups": [""], "resources": ["nodes"], "verbs": _READ}]
    return _make_role_and_binding(release, "Cluster", release.cluster_scoped("nodes"), rules)


def _make_role_and_binding(release: Release, scope: str, name: str, rules: list[Manifest]) -> list[Manifest]:
    metadata = release.metadata(name, "scheduler", namespaced=not scope)
    scheduler = {
        "kind": "ServiceAccount",
        "name": f"{release.name}-scheduler",
        "namespace": release.namespace,
    }
    return [
        {"apiVersion": f"{_RBAC}/v1", "kind": f"{scope}Role", "metadata": metadata, "rules": rules},
        {
            "apiVersion": f"{_RBAC}/v1",
            "kind": f"{scope}RoleBinding",
            "metadata": metadata,
            "roleRef": {"apiGroup": _RBAC, "kind": f"{scope}Role", "name": name},
            "subjects": [scheduler],
        },
    ]


def make_admission(release: Release) -> list[Manifest]:
    """Two ValidatingAdmissionPolicies that bind the scheduler, and their bindings."""
    return [
        *_make_policy(release, "pods", *_pods_policy(release)),
        *_make_policy(release, "scale", *_scale_policy(release)),
    ]


def _pods_policy(release: Release) -> tuple[Manifest, list[Manifest], list[Manifest]]:
    """Of its own workers' pods the scheduler may change three annotations."""
    rule = {"apiGroups": [""], "resources": ["pods", "pods/*"]}
    variables = [
        {
            "name": "allowed",
            "expression": "['controller.kubernetes.io/pod-deletion-cost', "
            "'cluster-autoscaler.kubernetes.io/safe-to-evict', 'karpenter.sh/do-not-disrupt']",
        },
        {"name": "labels", "expression": "oldObject.metadata.?labels.orValue({})"},
        {"name": "before", "expression": "oldObject.metadata.?annotations.orValue({})"},
        {"name": "after", "expression": "object.metadata.?annotations.orValue({})"},
        # How long the record is of who has changed what; a request may bring its own.
        *(
            {"name": name, "expression": f"size('%s'.format([{which}.metadata.?managedFields.orValue([])]))"}
            for name, which in (("sizeBefore", "oldObject"), ("sizeAfter", "object"))
        ),
    ]
    validations = [
        {
            "expression": "request.?subResource.orValue('') == ''",
            "message": "the scheduler may change annotations of pods, nothing else",
        },
        {
            "expression": "variables.labels[?'app.kubernetes.io/name'].orValue('') == 'dask-tide' && "
            f"variables.labels[?'app.kubernetes.io/instance'].orValue('') == '{release.name}' && "
            "variables.labels[?'app.kubernetes.io/component'].orValue('') == 'worker'",
            "message": f"the scheduler may change pods of the workers of {release.name} only",
        },
        {
            "expression": "object.spec == oldObject.spec",
            "message": "the scheduler may not change the spec of pods",
        },
        {
            "expression": "object.metadata.?labels == oldObject.metadata.?labels && "
            "object.metadata.?generateName == oldObject.metadata.?generateName && "
            "object.metadata.?finalizers == oldObject.metadata.?finalizers && "
            "object.metadata.?ownerReferences == oldObject.metadata.?ownerReferences",
            "message": "the scheduler may not change names, labels, finalizers or owners of pods",
        },
        {
            "expression": "variables.after.all(key, key in variables.allowed || "
            "variables.before[?key] == variables.after[?key]) && "
            "variables.before.all(key, key in variables.allowed || key in variables.after)",
            "messageExpression": "'the scheduler may change these annotations of pods only: ' "
            "+ variables.allowed.join(', ')",
        },
        {
            # The longest that means anything has 11, a number of 32 bits.
            "expression": "variables.allowed.all(key, size(variables.after[?key].orValue('')) <= 16 || "
            "variables.before[?key] == variables.after[?key])",
            "message": "the scheduler may give annotations of pods 16 characters at the most",
        },
        {
            "expression": "variables.sizeAfter <= 65536 || variables.sizeAfter <= variables.sizeBefore",
            "message": "the scheduler may not fill the managedFields of pods",
        },
    ]
    return rule, variables, validations


def _scale_policy(release: Release) -> tuple[Manifest, list[Manifest], list[Manifest]]:
    """The scheduler may scale a pool up to its maximum, and lower one that is above it."""
    maximums = ", ".join(
        f"'{release.name}-{name}': {pool['maximum']}" for name, pool in release.pools.items()
    )
    rule = {"apiGroups": ["apps"], "resources": ["replicasets/scale"]}
    variables = [
        {"name": "maximum", "expression": f"{{{maximums}}}"},
        {"name": "wanted", "expression": "object.?spec.?replicas.orValue(0)"},
        {"name": "before", "expression": "oldObject.?spec.?replicas.orValue(0)"},
    ]
    validation = {
        "expression": "request.name in variables.maximum && "
        "(variables.wanted <= variables.maximum[request.name] || variables.wanted < variables.before)",
        "messageExpression": "'the scheduler may scale ' + request.name + ' to ' "
        "+ string(variables.maximum[?request.name].orValue(0)) + ' at the most, not to ' "
        "+ string(variables.wanted)",
    }
    return rule, variables, [validation]


def _make_policy(
    release: Release,
    suffix: str,
    rule: Manifest,
    variables: list[Manifest],
    validations: list[Manifest],
) -> list[Manifest]:
    name = release.cluster_scoped(suffix)
    metadata = release.metadata(name, "scheduler", namespaced=False)
    account = f"system:serviceaccount:{release.namespace}:{release.name}-scheduler"
    here = {"matchLabels": {"kubernetes.io/metadata.name": release.namespace}}
    version = "admissionregistration.k8s.io/v1"
    return [
        {
            "apiVersion": version,
            "kind": "ValidatingAdmissionPolicy",
            "metadata": metadata,
            "spec": {
                "failurePolicy": "Fail",
                "matchConstraints": {
                    "namespaceSelector": here,
                    "resourceRules": [{**rule, "apiVersions": ["*"], "operations": ["UPDATE"]}],
                },
                "matchConditions": [
                    {"name": "scheduler", "expression": f"request.userInfo.username == '{account}'"}
                ],
                "variables": variables,
                "validations": validations,
            },
        },
        {
            "apiVersion": version,
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": metadata,
            "spec": {"policyName": name, "validationActions": ["Deny"]},
        },
    ]


def make_network_policies(release: Release) -> list[Manifest]:
    """Who may open connections to the pods, and where these may; one policy for each component."""
    values = release.values["networkPolicy"]
    ours = {"podSelector": {"matchLabels": release.labels()}}
    anybody: Manifest = {"namespaceSelector": {}}
    dashboard = values.get("dashboard") or ([anybody] if watched(release.values) else [])
    ingress: dict[str, list[Manifest]] = {
        "scheduler": [
            {"ports": [_port(8786)], "from": [ours, *(values.get("clients") or ())]},
            {"ports": [_port(8787)], "from": [ours, *dashboard]},
        ],
        # The second is the kubelet's probe.
        "worker": [{"from": [ours]}, {"ports": [_port(READINESS_PORT)]}],
    }
    if release.values["notebook"].get("enabled"):
        ingress["notebook"] = [{"ports": [_port(8888)], "from": values.get("notebook") or [anybody]}]
    policies = [_make_network_policy(release, component, rules) for component, rules in ingress.items()]
    if values.get("egress") is not None:
        for component, policy in zip(ingress, policies, strict=True):
            # Tasks run code in the scheduler as well (`run_on_scheduler`).
            more = values["apiServer" if component == "scheduler" else "egress"]
            policy["spec"]["policyTypes"] = ["Ingress", "Egress"]
            policy["spec"]["egress"] = [{"to": [ours]}, *(values.get("dns") or ()), *more]
    return policies


def _make_network_policy(release: Release, component: str, ingress: list[Manifest]) -> Manifest:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": release.metadata(f"{release.name}-{component}", component),
        "spec": {
            "podSelector": {"matchLabels": release.labels(component)},
            "policyTypes": ["Ingress"],
            "ingress": ingress,
        },
    }


def _port(number: int, protocol: str = "TCP") -> Manifest:
    return {"port": number, "protocol": protocol}


def make_tls_secret(release: Release, certificates: Certificates) -> Manifest:
    """Secret with the certificates."""
    files = {
        "ca.crt": certificates.ca,
        "tls.crt": certificates.certificate,
        "tls.key": certificates.key,
    }
    annotations = {"dask-tide/rotate": release.rotation}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": release.metadata(f"{release.name}-tls", "scheduler", annotations=annotations),
        "type": "kubernetes.io/tls",
        "data": {name: base64.b64encode(content.encode()).decode() for name, content in files.items()},
    }


def make_issued_certificates(release: Release) -> list[Manifest]:
    """For cert-manager: an authority and an issuer for this release alone, and the certificate."""
    values = release.tls["certManager"]
    authority, selfsigned = f"{release.name}-ca", f"{release.name}-selfsigned"
    private_key = {"algorithm": "ECDSA", "size": 256}

    def made(kind: str, name: str, spec: Manifest) -> Manifest:
        metadata = release.metadata(name, "scheduler")
        return {"apiVersion": "cert-manager.io/v1", "kind": kind, "metadata": metadata, "spec": spec}

    def issuer(name: str) -> Manifest:
        return {"group": "cert-manager.io", "kind": "Issuer", "name": name}

    return [
        made("Issuer", selfsigned, {"selfSigned": {}}),
        made(
            "Certificate",
            authority,
            {
                "isCA": True,
                "commonName": authority,
                "secretName": authority,
                # Ten years: a new CA would part those who have read the old one from those who have not.
                "duration": "87600h",
                "privateKey": private_key,
                "issuerRef": issuer(selfsigned),
            },
        ),
        made("Issuer", authority, {"ca": {"secretName": authority}}),
        made(
            "Certificate",
            f"{release.name}-tls",
            {
                "commonName": f"{release.name}-scheduler",
                "secretName": f"{release.name}-tls",
                "duration": values["duration"],
                "renewBefore": values["renewBefore"],
                "privateKey": private_key,
                "usages": ["digital signature", "key encipherment", "server auth", "client auth"],
                "dnsNames": host_names(release.name, release.namespace),
                "issuerRef": issuer(authority),
            },
        ),
    ]
