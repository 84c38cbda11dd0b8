"""Least privilege: what policies allow, to whom and on what; and whether they allow what is needed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deploy.aws.check.hcl import Block, Module, plain, texts
from deploy.aws.check.policies import FILE, Facts, Statement, several, statements
from deploy.aws.check.problems import Place, Problem
from deploy.aws.check.tree import Tree

_DOCUMENT = "aws_iam_policy_document"
#: As OpenTofu's files say it.
_REGION = "${var.region}"
_READS = re.compile(r"[a-z0-9-]+:(Describe|List|Get)\w*")
#: Reads that tell of no secret, and that know no resources: `*` is all that one can say.
_NARROWEST = re.compile(
    r"(ec2|autoscaling|eks|iam):(Describe|List)\w+"
    r"|pricing:GetProducts|ec2:GetInstanceTypesFromInstanceRequirements"
)
#: EC2 asks for the right to launch on all that a machine is made with; its tags say whose it is.
_LAUNCHES = {"ec2:RunInstances", "ec2:CreateFleet"}
#: What makes things, whose tags are those of the request. All else is done to what has tags already.
_MAKES = re.compile(r"ec2:RunInstances|[a-z0-9-]+:Create(?!Tags)\w+")
#: Says that tags are put on only what is being made.
_MAKING = "ec2:CreateAction"
#: EKS tags all groups of a cluster alike, others' too.
_SCALES = re.compile(r"autoscaling:(SetDesiredCapacity|TerminateInstanceInAutoScalingGroup)")
_INGREDIENTS = re.compile(
    r":(image|snapshot|security-group|subnet|capacity-reservation|placement-group)/\*\"?$"
)
#: The two files that IAM reads without credentials, for IRSA, where kOps writes them.
_PUBLIC = re.compile(
    r"\$\{aws_s3_bucket\.discovery\.arn\}/\$\{var\.cluster_name\}"
    r"/(\.well-known/openid-configuration|openid/v1/jwks)"
)
#: What narrows down a service that acts for others than us, too.
_CONFINED = {
    "pods.eks.amazonaws.com": (
        "aws:RequestTag/eks-cluster-name",
        "aws:RequestTag/kubernetes-namespace",
        "aws:RequestTag/kubernetes-service-account",
    ),
    "events.amazonaws.com": ("aws:SourceArn",),
}
_TEST = re.compile(
    r"(ForAllValues:|ForAnyValue:)?"
    r"(String(Not)?(Equals|EqualsIgnoreCase|Like)|Arn(Not)?(Equals|Like)|Bool|Null|(Not)?IpAddress"
    r"|(Numeric|Date)(Equals|NotEquals|(Less|Greater)Than(Equals)?))(IfExists)?"
)
#: AWS's own policies that allow far more than any pod or machine needs.
_SWEEPING = re.compile(r"\w*(AdministratorAccess|PowerUserAccess|FullAccess)\w*")
#: Resources whose argument `policy` is IAM's; others have policies of other kinds.
_POLICIES = re.compile(r"aws_(iam_\w+|s3_bucket_policy|sqs_queue_policy|kms_key|ecr_repository_policy)")
#: kOps's name of those who read the state store, and need its key: nobody else gets a policy of its own.
_READERS = "master"
#: kOps's names of the roles of all machines.
_MACHINES = ("master", "node")
#: Of machines that have neither a key nor a port for SSH.
_SHELLS = ["arn:aws:iam::aws:policy/AmazonSSMManagedInstanceCore"]


def check(tree: Tree, modules: Mapping[Path, Module]) -> Iterator[Problem]:
    """What OpenTofu's files allow beyond need."""
    facts = Facts.read(tree)
    for module in modules.values():
        for block in module.data.values():
            if block.type == _DOCUMENT:
                said = list(statements(module, block))
                for statement in said:
                    yield from _judge(statement, facts, _REGION)
                needed = facts.needed.get(f"{module.name}: {block.name.split('.')[1]}")
                yield from _enough(block.place, said, needed)
        for call in module.modules.values():
            given = call.body.keys() & {"policies", "policy_arns"}
            words = "policies or policy_arns: a role without any is for nothing"
            holds = not str(plain(call.body.get("source"))).endswith("/pod-role") or bool(given)
            yield from call.place.expect(holds, "policies", None, words)
        for block in module.resources.values():
            yield from _attached(block, facts)


def check_kops(
    tree: Tree, place: Place, cluster: Mapping[str, Any], values: Mapping[str, Any]
) -> Iterator[Problem]:
    """What a kOps cluster, made of these inputs, allows beyond what kOps itself does, or too little."""
    spec, facts, region = cluster["spec"], Facts.read(tree), str(values.get("region"))
    policies = spec.get("additionalPolicies") or {}
    for role, text in policies.items():
        yield from place.expect_one_of("spec.additionalPolicies", role, [_READERS])
        yield from _json(place, f"spec.additionalPolicies.{role}", text, facts, region)
    if key := values.get("stateKeyArn"):
        words = f"{_READERS}: the state store is encrypted with {key}"
        yield from place.expect(_READERS in policies, "spec.additionalPolicies", sorted(policies), words)
    if _READERS in policies:
        said = list(_written(place, _READERS, json.loads(policies[_READERS])))
        yield from _enough(place, said, facts.needed["kops: additionalPolicies"])
    external = spec.get("externalPolicies") or {}
    for role in external:
        yield from place.expect_one_of("spec.externalPolicies", role, _MACHINES)
    for role in _MACHINES:
        words = f"{_SHELLS}: a shell on a machine comes by Systems Manager alone, and no machine needs more"
        yield from place.expect(
            external.get(role) == _SHELLS, f"spec.externalPolicies.{role}", external.get(role), words
        )
    for index, given in enumerate(spec.get("iam", {}).get("serviceAccountExternalPermissions") or []):
        key = f"spec.iam.serviceAccountExternalPermissions[{index}].aws"
        for arn in given["aws"].get("policyARNs") or []:
            words = "the ARN of a policy that allows less"
            holds = bool(re.fullmatch(r"arn:[a-z-]+:iam::.+", arn)) and not _SWEEPING.search(arn)
            yield from place.expect(holds, f"{key}.policyARNs", arn, words)
        if "inlinePolicy" in given["aws"]:
            yield from _json(place, f"{key}.inlinePolicy", given["aws"]["inlinePolicy"], facts, region)


def _json(place: Place, key: str, text: str, facts: Facts, region: str) -> Iterator[Problem]:
    try:
        said = json.loads(text)
    except ValueError as error:
        yield place.problem(key, text, f"JSON: {error}")
        return
    known = {"Sid", "Effect", "Action", "Resource", "Condition"}
    for index, each in enumerate(said):
        for name in each:
            yield from place.expect_one_of(f"{key}[{index}]", name, sorted(known))
    for statement in _written(place, key, said):
        yield from _judge(statement, facts, region)


def _written(place: Place, key: str, said: list[dict[str, Any]]) -> Iterator[Statement]:
    """Statements in JSON."""
    for index, each in enumerate(said):
        yield Statement(
            place=place,
            key=f"{key}[{index}]",
            effect=str(each.get("Effect")),
            actions=several(each.get("Action")),
            resources=several(each.get("Resource")),
            principals=(),
            conditions={
                variable: (test, several(values))
                for test, tested in each.get("Condition", {}).items()
                for variable, values in tested.items()
            },
            excludes=tuple(name for name in each if name.startswith("Not")),
        )


def _parts(resource: str) -> list[str]:
    """Those of an ARN that is written out, six if it is one."""
    parts = re.sub(r"(?!\$\{var\.region\})\$\{[^}]*\}", "x", resource).split(":", 5)
    return parts if parts[0] == "arn" else []


def _kind(resource: str) -> tuple[str, str] | None:
    """The service and the kind of a resource whose ARN is written out."""
    parts = _parts(resource)
    if not parts:
        return None
    return (parts[2], re.split("[/:]", parts[5])[0]) if len(parts) == 6 else ("", "")  # noqa: PLR2004


def _enough(place: Place, given: list[Statement], needed: Mapping[str, Any] | None) -> Iterator[Problem]:
    """Whether a policy allows what its owner cannot do without."""
    if needed is None:
        return
    allowed: dict[str, set[str]] = {}
    for statement in given:
        if statement.effect == "Allow":
            kinds = {kind[1] for resource in statement.resources if (kind := _kind(resource))}
            for action in statement.actions:
                allowed.setdefault(action, set()).update(kinds)
    for action in needed["actions"]:
        words = f"{action}: {needed['source']}"
        yield from place.expect(action in allowed, "actions", sorted(allowed), words)
        missing = sorted({*needed["resources"].get(action, ())} - allowed.get(action, set()))
        words = f"…:{', '.join(missing)}/…, too, for {action}"
        yield from place.expect(not missing, "resources", sorted(allowed.get(action, ())), words)
    if "principals" in needed:
        named = sorted({name for each in given if each.effect == "Allow" for _, name in each.principals})
        words = f"{', '.join(needed['principals'])}, and nobody else: {needed['source']}"
        yield from place.expect(named == sorted(needed["principals"]), "principals", named, words)
    for action, resources in needed.get("with TLS only", {}).items():
        holds = any(
            statement.effect == "Deny"
            and action in statement.actions
            and {*resources} <= {*statement.resources}
            and ("*", "*") in statement.principals
            and statement.conditions == {"aws:SecureTransport": ("Bool", ("false",))}
            for statement in given
        )
        words = f"one that denies {action} on {', '.join(resources)} to all without TLS: {needed['source']}"
        yield from place.expect(holds, "statements", [statement.key for statement in given], words)


def _judge(statement: Statement, facts: Facts, region: str) -> Iterator[Problem]:
    place, key = statement.place, statement.key
    yield from place.expect_one_of(f"{key}: effect", statement.effect, ["Allow", "Deny"])
    yield from _conditions(statement, facts, region)
    if statement.effect == "Deny":
        return
    for name in statement.excludes:
        yield place.problem(f"{key}: {name}", name, "what is allowed, not what is not")
    if statement.administers_key:
        return
    yield from place.expect(bool(statement.actions), f"{key}: actions", [], "at least one")
    for action in statement.actions:
        words = f"one action of {FILE}, no `*`; if it is none of a misspelling, add it"
        yield from place.expect(action in facts.actions, f"{key}: actions", action, words)
    for resource in statement.resources:
        kind = _kind(resource)
        holds = kind is None or kind[1] in facts.kinds.get(kind[0], ())
        words = f"an ARN of a kind of {FILE}; if it is none of a misspelling, add it"
        yield from place.expect(holds, f"{key}: resources", resource, words)
        yield from _located(statement, resource, facts, region)
    yield from _principals(statement)
    yield from _resources(statement)
    if "iam:PassRole" in statement.actions:
        yield from _passes(statement)


def _located(statement: Statement, resource: str, facts: Facts, region: str) -> Iterator[Problem]:
    """Whether an ARN is one that AWS could match."""
    place, key, kind, parts = (
        statement.place,
        f"{statement.key}: resources",
        _kind(resource),
        _parts(resource),
    )
    if kind is None or "" in kind:
        return
    words = f"an ARN of {region}, the cluster's region, or of none"
    yield from place.expect(parts[3] in ("", region), key, resource, words)
    pattern = facts.formats.get(kind[1], ".*")
    words = f"the form of {kind[1]}s, {pattern}: by another nothing is allowed"
    yield from place.expect(re.fullmatch(pattern, parts[5]) is not None, key, resource, words)


def _conditions(statement: Statement, facts: Facts, region: str) -> Iterator[Problem]:
    place = statement.place
    for variable, (test, values) in statement.conditions.items():
        key = f"{statement.key}: condition {variable}"
        words = "an operator of IAM's conditions, such as StringEquals"
        yield from place.expect(bool(_TEST.fullmatch(test)), key, test, words)
        tagged = re.fullmatch(r"aws:(?:Resource|Request)Tag/(.+)", variable)
        tag = facts.tag(tagged[1]) if tagged else None
        holds = variable in facts.conditions or tag is not None
        words = f"one of {FILE}; if it is none of a misspelling, add it"
        yield from place.expect(holds, key, variable, words)
        value = facts.tags[tag] if tag else facts.conditions.get(variable)
        value = value and value.replace(_REGION, region)
        words = f"{value}: that is what is there"
        yield from place.expect(value is None or values == (value,), key, list(values), words)
        if statement.effect == "Allow":
            yield from _narrows(statement, variable)
        for each in values:
            if variable == "aws:TagKeys":
                yield from place.expect(facts.tag(each) is not None, key, each, f"a tag of {FILE}")
            elif variable == "ec2:CreateAction":
                yield from place.expect(f"ec2:{each}" in facts.actions, key, each, f"an action of {FILE}")


def _narrows(statement: Statement, variable: str) -> Iterator[Problem]:
    """Whether a condition lets through what it names, and no more."""
    place, key = statement.place, f"{statement.key}: condition {variable}"
    test, values = statement.conditions[variable]
    yield from place.expect("Not" not in test, key, test, "a test of what may be: all else is too much")
    words = "StringLike: to StringEquals `*` is a star"
    yield from place.expect("*" not in values or "Like" in test, key, test, words)
    optional = test.startswith("ForAllValues:") or test.endswith("IfExists")
    # What has its tags already may be given others.
    renames = "RequestTag/" in variable and any("ResourceTag/" in each for each in statement.conditions)
    words = "a test that fails without the tag: others' things have none"
    yield from place.expect(not optional or renames or "Tag/" not in variable, key, test, words)


def _principals(statement: Statement) -> Iterator[Problem]:
    place, key = statement.place, statement.key
    for kind, name in statement.principals:
        yield from place.expect_one_of(f"{key}: principals", kind, ("AWS", "Federated", "Service", "*"))
        if "*" in (kind, name):
            words = "s3:GetObject: what everybody may"
            yield from place.expect(
                statement.actions == ("s3:GetObject",), f"{key}: actions", list(statement.actions), words
            )
            for resource in statement.resources:
                words = "IRSA's /.well-known/openid-configuration or /openid/v1/jwks: everybody may read it"
                holds = "*" not in resource and bool(_PUBLIC.fullmatch(resource))
                yield from place.expect(holds, f"{key}: resources", resource, words)
        elif kind == "Service":
            words = "a service, such as ec2.amazonaws.com"
            holds = bool(re.fullmatch(r"[a-z0-9.-]+\.amazonaws\.com", name))
            yield from place.expect(holds, f"{key}: principals", name, words)
        for variable in _CONFINED.get(name, ()):
            words = f"{variable} among them: {name} acts for others, too"
            yield from place.expect(
                variable in statement.conditions, f"{key}: condition", sorted(statement.conditions), words
            )


def _resources(statement: Statement) -> Iterator[Problem]:
    place, key = statement.place, f"{statement.key}: resources"
    assumes = bool(statement.principals) and all(each.startswith("sts:") for each in statement.actions)
    words = "at least one; none is whatever the policy is attached to"
    yield from place.expect(bool(statement.resources) or assumes, key, list(statement.resources), words)
    tagged = {variable.split("Tag/")[0] for variable in statement.conditions if "Tag/" in variable}
    for resource in statement.resources:
        for action in statement.actions:
            if resource == "*":
                words = f"what {action} is for; `*` is for Describe and List, which know no resources"
                yield from place.expect(bool(_NARROWEST.fullmatch(action)), key, resource, words)
            elif "/*" in resource and not _READS.fullmatch(action):
                launches = action in _LAUNCHES and bool(_INGREDIENTS.search(resource))
                making = bool(_MAKES.fullmatch(action)) or _MAKING in statement.conditions
                enough = {"aws:Resource", "aws:Request"} if making else {"aws:Resource"}
                words = f"a condition on {' or '.join(f'{each}Tag' for each in sorted(enough, reverse=True))}"
                words += f": {action} on all of them"
                holds = bool(tagged & enough) or launches or bool(statement.principals)
                yield from place.expect(holds, key, resource, words)
            if _SCALES.fullmatch(action):
                words = f"groups by name: EKS tags all of the cluster's alike, and {action} is for ours"
                yield from place.expect(not resource.endswith("*"), key, resource, words)


def _passes(statement: Statement) -> Iterator[Problem]:
    place, key = statement.place, statement.key
    for resource in statement.resources:
        words = "one role's ARN: who may pass any role is as mighty as the mightiest"
        named = re.fullmatch(r"\$\{aws_iam_role\.\w+\.arn\}|arn:.+:role/[^*]+", resource)
        yield from place.expect(named is not None, f"{key}: resources", resource, words)
    variable, wanted = "iam:PassedToService", ("StringEquals", ("ec2.amazonaws.com",))
    words = f"{variable} {wanted[0]} {wanted[1][0]}, for iam:PassRole: the role is for machines"
    holds = statement.conditions.get(variable) == wanted
    yield from place.expect(holds, f"{key}: condition", dict(statement.conditions), words)


def _attached(block: Block, facts: Facts) -> Iterator[Problem]:
    """Policies that are no documents of ours."""
    if block.type == "aws_iam_role_policy_attachment":
        said = {word for text in texts(block.body) for word in re.findall(r"\bAmazon\w+", text)}
        for name in sorted(said):
            words = f"one of AWS's policies in {FILE}; if it is none of a misspelling, add it"
            yield from block.place.expect(name in facts.managed, "for_each", name, words)
        for name, needed in facts.managed.items():
            words = f"{name}, too, without which machines do not join or run the image"
            yield from block.place.expect(
                not said or name in said or not needed, "for_each", sorted(said), words
            )
        arn = str(plain(block.body.get("policy_arn")))
        holds = bool(re.fullmatch(r"\$\{[^}]+\}|arn:[^:]+(:[^:]+\})?:iam::[^:/]+:policy/.+", arn))
        yield from block.place.expect(holds, "policy_arn", arn, "a policy's ARN: arn:…:iam::aws:policy/…")
    for name, value in block.body.items():
        if name in ("policy", "assume_role_policy", "inline_policy") and _POLICIES.fullmatch(block.type):
            words = f"a data.{_DOCUMENT}, which is checked, or a variable"
            holds = bool(
                re.search(rf"\bdata\.{_DOCUMENT}\.|^\$\{{var\.\w+(\[count\.index\])?\}}$", str(value))
            )
            yield from block.place.expect(holds, name, plain(value), words)
        found = _SWEEPING.search(str(value)) if block.type.startswith("aws_iam_") else None
        words = "a policy of AWS's that allows less"
        yield from block.place.expect(found is None, name, found and found[0], words)
