"""What moto lacks of AWS for Karpenter and cluster-autoscaler; see also ``rig.aws.fleets``."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any

from moto.autoscaling.models import FakeAutoScalingGroup
from moto.autoscaling.responses import AutoScalingResponse
from moto.core.exceptions import ServiceException
from moto.core.responses import ActionResult
from moto.ec2.models import EC2Backend, ec2_backends
from moto.ec2.models.amis import Ami, AmiBackend
from moto.ec2.models.instance_types import INSTANCE_TYPE_OFFERINGS, InstanceTypeBackend
from moto.ec2.models.instances import Instance
from moto.ec2.models.subnets import Subnet
from moto.ec2.responses import EC2Response
from moto.ssm.models import Parameter, SimpleSystemManagerBackend

from rig.aws import account
from rig.aws.faults import Faults
from rig.aws.fleets import OutOfStockError, replace
from rig.aws.fleets import mend as mend_fleets

_EKS_IMAGE = re.compile(
    r"/aws/service/eks/optimized-ami/[\d.]+/amazon-linux-2023/x86_64/standard/[^/]+/image_id$"
)
_IMPAIRED = {"instance-status.status", "system-status.status", "event.code"}


def mend(faults: Faults) -> None:
    """Mend moto in this process.

    Parameters
    ----------
    faults
        What goes wrong on purpose.
    """
    mend_fleets(faults)
    _offer_few_types()
    _answer_with_nothing()
    _tell_spot_prices()
    _know_eks_images()
    _rest_addresses()
    _keep_groups_that_are_out_of_stock()
    _keep_what_is_not_updated()


def _offer_few_types() -> None:
    offered = [kind for kind in InstanceTypeBackend.instance_types if kind.name in account.TYPES]
    InstanceTypeBackend.instance_types = offered
    for regions in INSTANCE_TYPE_OFFERINGS.values():
        regions[account.REGION] = [
            offer for offer in regions[account.REGION] if offer["InstanceType"] in account.TYPES
        ]


def _answer_with_nothing() -> None:
    """Karpenter asks for things that nobody here has; moto would answer with an error, or with everything."""
    for operation, answer in (
        ("describe_placement_groups", "PlacementGroups"),
        ("describe_capacity_reservations", "CapacityReservations"),
    ):
        replace(EC2Response, operation, lambda _, answer=answer: ActionResult({answer: []}))
    describe = EC2Backend.describe_instance_status

    def status(self: Any, ids: list[str], everything: bool, filters: Any) -> Any:
        if any(each["name"] in _IMPAIRED for each in filters or ()):
            return []
        return describe(self, ids, everything, filters)

    replace(EC2Backend, "describe_instance_status", status)


def _tell_spot_prices() -> None:
    def history(_: Any) -> ActionResult:
        now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        prices = [
            {
                "InstanceType": kind,
                "ProductDescription": "Linux/UNIX",
                "SpotPrice": f"{account.price_per_hour(kind, zone, 'spot'):.5f}",
                "AvailabilityZone": zone,
                "Timestamp": now,
            }
            for kind in account.TYPES
            for zone in account.ZONES
        ]
        return ActionResult({"SpotPriceHistory": prices})

    replace(EC2Response, "describe_spot_price_history", history)


def _know_eks_images() -> None:
    """`al2023@latest`, which a node class of a real cluster asks for; and whose image that is."""
    register_image = AmiBackend.register_image

    def register(self: Any, *told: Any) -> Ami:
        image = register_image(self, *told)
        image.architecture = "x86_64"  # moto does not listen
        return image

    replace(AmiBackend, "register_image", register)
    get_parameter = SimpleSystemManagerBackend.get_parameter

    def get(self: Any, name: str) -> Parameter | None:
        if not _EKS_IMAGE.match(name):
            return get_parameter(self, name)
        image = next(iter(ec2_backends[account.ACCOUNT][account.REGION].amis))
        now = dt.datetime.now(dt.UTC)
        return Parameter(self.account_id, name, image, "String", None, None, None, now, 1, "text")  # type: ignore[abstract]

    replace(SimpleSystemManagerBackend, "get_parameter", get)


def _rest_addresses() -> None:
    """An address comes again only after all others, else a new node meets the Node object of a dead one.

    moto itself frees it when Python forgets the instance, which it never does.
    """

    def free(subnet: Any, address: str) -> bool:
        holder = subnet._subnet_ips.get(address)
        return holder is None or (isinstance(holder, Instance) and holder._state.name == "terminated")

    def next_address(self: Any, instance: Any) -> str:
        hosts = range(4, self.cidr.num_addresses - 1)  # AWS keeps the first four and the last
        last = getattr(self, "last_host", 3)
        for step in range(1, len(hosts) + 1):
            host = hosts[(last - 4 + step) % len(hosts)]
            address = str(self.cidr[host])
            if free(self, address):
                self.last_host = host
                self._subnet_ips[address] = instance
                return address
        raise ServiceException("InsufficientFreeAddressesInSubnet", f"{self.id} has no free addresses")

    replace(Subnet, "get_available_subnet_ip", next_address)


def _keep_groups_that_are_out_of_stock() -> None:
    """A group whose instances cannot be launched keeps its desired capacity, and says what failed."""
    launch = FakeAutoScalingGroup.replace_autoscaling_group_instances

    def tried(self: Any, count: int, tags: dict[str, str]) -> None:
        try:
            launch(self, count, tags)
        except OutOfStockError as error:
            now = dt.datetime.now(dt.UTC)
            activity = {
                "ActivityId": f"{now.timestamp()}",
                "AutoScalingGroupName": self.name,
                "Cause": "an instance was started in response to a difference between desired and actual",
                "StartTime": now,
                "StatusCode": "Failed",
                "StatusMessage": error.message,
                "Progress": 100,
            }
            failed[:] = [activity, *failed[:99]]

    failed: list[dict[str, Any]] = []

    def activities(self: Any) -> ActionResult:
        group = self._get_param("AutoScalingGroupName")
        of_group = [activity for activity in failed if activity["AutoScalingGroupName"] == group]
        return ActionResult({"Activities": of_group})

    replace(FakeAutoScalingGroup, "replace_autoscaling_group_instances", tried)
    replace(AutoScalingResponse, "describe_scaling_activities", activities)


def _keep_what_is_not_updated() -> None:
    """A group keeps its mixed instances where an update says nothing of what they are launched from."""
    update = FakeAutoScalingGroup.update

    def updated(self: Any, **told: Any) -> None:
        kept = self.mixed_instances_policy
        launched_from = ("launch_config_name", "launch_template", "mixed_instances_policy")
        if kept is not None and not any(told[name] for name in launched_from):
            template = kept["LaunchTemplate"]
            named = template["LaunchTemplateSpecification"]
            by_id = {key: named[key] for key in ("LaunchTemplateId", "Version")}
            told["mixed_instances_policy"] = kept | {
                "LaunchTemplate": template | {"LaunchTemplateSpecification": by_id}
            }
        update(self, **told)

    replace(FakeAutoScalingGroup, "update", updated)
