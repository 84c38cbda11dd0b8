"""Launching instances: instant fleets as EC2 makes them, and what it has none of.

Karpenter asks for instant fleets. moto's take the first type that is offered, without its launch template's
security groups, and know neither prices nor stock.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from moto.autoscaling.models import autoscaling_backends
from moto.core.exceptions import ServiceException
from moto.core.responses import ActionResult
from moto.ec2.models.instances import Instance, InstanceBackend
from moto.ec2.responses import EC2Response
from moto.ec2.utils import convert_tag_spec

from rig.aws.account import ACCOUNT, REGION, price_per_hour
from rig.aws.faults import Faults

OUT_OF_STOCK = "InsufficientInstanceCapacity"
#: Devices that an image's root is on, and what is said of a volume in words.
_ROOTS = frozenset({"/dev/xvda", "/dev/sda1"})
_SWITCHES = frozenset({"DeleteOnTermination", "Encrypted"})


class OutOfStockError(ServiceException):
    """EC2 has no such instance now."""

    code = OUT_OF_STOCK

    def __init__(self, kind: str, zone: str, market: str) -> None:
        super().__init__(
            f"We currently do not have sufficient {kind} capacity in the Availability Zone you requested "
            f"({zone}, {market})."
        )


@dataclass
class Offer:
    """One of the ways in which a fleet's instances may be launched.

    Attributes
    ----------
    specification
        Where its launch template was named.
    override
        What is to be otherwise than in that.
    data
        Both.
    zone
        The zone of its subnet.
    """

    specification: dict[str, Any]
    override: dict[str, Any]
    data: dict[str, Any]
    zone: str

    def described(self) -> dict[str, Any]:
        overrides = self.override | {"AvailabilityZone": self.zone}
        return {"LaunchTemplateSpecification": self.specification, "Overrides": overrides}

    def price(self, market: str) -> float:
        return price_per_hour(self.data["InstanceType"], self.zone, market)


def _offers(backend: Any, configs: list[dict[str, Any]]) -> Iterator[Offer]:
    for config in configs:
        named = config["LaunchTemplateSpecification"]
        template = (
            backend.get_launch_template(named["LaunchTemplateId"])
            if "LaunchTemplateId" in named
            else backend.get_launch_template_by_name(named["LaunchTemplateName"])
        )
        for override in config.get("Overrides") or [{}]:
            data = template.latest_version().data | override
            yield Offer(named, override, data, backend.get_subnet(data["SubnetId"]).availability_zone)


def _launch(backend: Any, offer: Offer, count: int, market: str, tags: dict[str, Any]) -> list[Instance]:
    data = offer.data
    groups = [
        *(data.get("SecurityGroupIds") or ()),
        *(group for card in data.get("NetworkInterfaces") or () for group in card.get("Groups") or ()),
    ]
    own = convert_tag_spec(data.get("TagSpecifications") or [])
    volumes = [_volume(each) for each in data.get("BlockDeviceMappings") or ()]
    reservation = backend.run_instances(
        data["ImageId"],
        count,
        data.get("UserData"),
        [],
        instance_type=data["InstanceType"],
        is_instance_type_default=False,
        subnet_id=data["SubnetId"],
        security_group_ids=list(dict.fromkeys(groups)),
        metadata_options=data.get("MetadataOptions"),
        lifecycle="spot" if market == "spot" else None,
        **({"block_device_mappings": volumes} if volumes else {}),
        tags={"instance": own.get("instance", {}) | tags.get("instance", {})},
    )
    launched: list[Instance] = reservation.instances
    return launched


def _volume(mapping: dict[str, Any]) -> dict[str, Any]:
    """A template's block device, for moto; a root goes with its instance unless told otherwise."""
    ebs = {"DeleteOnTermination": mapping["DeviceName"] in _ROOTS} | (mapping.get("Ebs") or {})
    return mapping | {"Ebs": ebs | {key: str(ebs[key]).lower() == "true" for key in _SWITCHES & ebs.keys()}}


def _create_fleet(response: Any, faults: Faults) -> ActionResult:
    response.error_on_dryrun()
    wanted = response._get_param("TargetCapacitySpecification", {})
    market = wanted.get("DefaultTargetCapacityType", "on-demand")
    backend = response.ec2_backend
    offers, errors = [], []
    for offer in _offers(backend, response._get_param("LaunchTemplateConfigs", [])):
        kind = offer.data["InstanceType"]
        if faults.out_of_stock(kind, offer.zone, market):
            said = {
                "ErrorCode": OUT_OF_STOCK,
                "ErrorMessage": OutOfStockError(kind, offer.zone, market).message,
            }
            errors.append(said | {"Lifecycle": market, "LaunchTemplateAndOverrides": offer.described()})
        else:
            offers.append(offer)
    fleet = {"FleetId": f"fleet-{secrets.token_hex(16)}", "Errors": errors, "Instances": []}
    if offers:
        cheapest = min(offers, key=lambda offer: offer.price(market))
        tags = convert_tag_spec(response._get_param("TagSpecifications", []))
        count = int(wanted["TotalTargetCapacity"])
        launched = _launch(backend, cheapest, count, market, tags)
        fleet["Instances"] = [
            {
                "InstanceIds": [instance.id for instance in launched],
                "InstanceType": cheapest.data["InstanceType"],
                "Lifecycle": market,
                "LaunchTemplateAndOverrides": cheapest.described(),
            }
        ]
    return ActionResult(fleet)


def _mixed_group(tags: dict[str, str]) -> dict[str, Any]:
    """The policy of the Auto Scaling group of several types whose instances have these tags."""
    groups = autoscaling_backends[ACCOUNT][REGION].autoscaling_groups
    group = groups.get(tags.get("aws:autoscaling:groupName", ""))
    policy: dict[str, Any] = (group and group.mixed_instances_policy) or {}
    return policy


def chosen(policy: dict[str, Any], zone: str, faults: Faults) -> dict[str, Any]:
    """What a group of several types starts: the cheapest that there is, on spot where it says so.

    moto takes the launch template's type, on demand.

    Parameters
    ----------
    policy
        The group's MixedInstancesPolicy.
    zone
        Where.
    faults
        What is out of stock.

    Returns
    -------
    dict
        Arguments of moto's ``run_instances``.
    """
    above = int(policy["InstancesDistribution"].get("OnDemandPercentageAboveBaseCapacity", 100))
    market = "on-demand" if above else "spot"
    kinds = [override["InstanceType"] for override in policy["LaunchTemplate"]["Overrides"]]
    there = [kind for kind in kinds if not faults.out_of_stock(kind, zone, market)]
    kind = min(there or kinds, key=lambda kind: price_per_hour(kind, zone, market))
    return {"instance_type": kind, "lifecycle": "spot" if market == "spot" else None}


def replace(owner: type, name: str, method: Callable[..., Any]) -> None:
    """Give one of moto's classes another method."""
    setattr(owner, name, method)


def mend(faults: Faults) -> None:
    """Have moto launch instances our way."""
    run_instances = InstanceBackend.run_instances

    def run(self: Any, image_id: str, count: int, data: Any, groups: list[str], **options: Any) -> Any:
        template = options.get("launch_template")
        told = self._get_template_from_args(template).data if template else {}
        if (told.get("InstanceMarketOptions") or {}).get("MarketType") == "spot":
            options["lifecycle"] = "spot"
        if template:
            options.setdefault("metadata_options", told.get("MetadataOptions"))
        if options.get("is_instance_type_default"):
            options |= {"instance_type": told["InstanceType"], "is_instance_type_default": False}
        options["region_name"] = REGION  # else some get another region's names
        zone = self.get_subnet(options["subnet_id"]).availability_zone
        if group := _mixed_group((options.get("tags") or {}).get("instance", {})):
            options |= chosen(group, zone, faults)
        kind, market = options["instance_type"], options.get("lifecycle") or "on-demand"
        if faults.out_of_stock(kind, zone, market):
            raise OutOfStockError(kind, zone, market)
        reservation = run_instances(self, image_id, count, data, groups, **options)
        launched: list[Any] = reservation.instances
        for instance in launched:
            if instance.lifecycle == "spot":
                instance.spot_instance_request_id = f"sir-{secrets.token_hex(4)}"
        return reservation

    replace(InstanceBackend, "run_instances", run)
    replace(EC2Response, "create_fleet", lambda self: _create_fleet(self, faults))
