"""The account: where it is, what it offers, and what is in it before anything runs."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from rig.aws import cluster_autoscaler

ACCOUNT = "123456789012"
REGION = "eu-west-1"
#: The endpoint, in the cluster's network.
PORT = 4566
URL = f"http://127.0.0.1:{PORT}"
ZONES = tuple(f"{REGION}{letter}" for letter in "abc")
#: The Kubernetes cluster's name; discovery tags and the queue of interruptions carry it.
CLUSTER = "tide"
NODE_ROLE = "tide-node"
SYSTEM_TYPE = "m5.large"
#: The Auto Scaling group's types: cluster-autoscaler plans with the first, and no other may be smaller.
WORKER_TYPES = ("m5.xlarge", "r5.xlarge")
#: The label of all nodes, and the taint of those for workers, which values files of the chart name.
PURPOSE = "dask-tide/nodes"
WORKERS_TAINT = f"{PURPOSE}=workers:NoSchedule"

# AWS has 1,300 types; listing them takes moto some seconds each time.
_CPUS = {"large": 2, "xlarge": 4, "2xlarge": 8, "4xlarge": 16}
#: Dollars an hour for one CPU on demand, by family.
_ON_DEMAND = {"c5": 0.048, "m5": 0.0535, "r5": 0.0705}
#: What spot costs of that, by zone: the cheapest is not the first.
_SPOT = dict(zip(ZONES, (0.40, 0.36, 0.38), strict=True))
#: CPUs of each instance type on offer.
TYPES = {f"{family}.{size}": cpus for family in _ON_DEMAND for size, cpus in _CPUS.items()}


def price_per_hour(kind: str, zone: str, market: str) -> float:
    """What an instance costs an hour, in dollars.

    Parameters
    ----------
    kind
        Its type, one of :data:`TYPES`.
    zone
        Its zone.
    market
        ``"spot"`` or ``"on-demand"``.
    """
    on_demand = _ON_DEMAND[kind.partition(".")[0]] * TYPES[kind]
    return round(on_demand * (_SPOT[zone] if market == "spot" else 1), 5)


def clients(url: str) -> dict[str, Any]:
    """boto3's clients of the services that are seeded, by name."""
    import boto3

    keys = {"aws_access_key_id": "any", "aws_secret_access_key": "any"}
    return {
        service: boto3.client(service, endpoint_url=url, region_name=REGION, **keys)
        for service in ("autoscaling", "ec2", "eks", "iam", "sqs")
    }


def seed(url: str, blocks: Mapping[str, str]) -> str:
    """Make what somebody has before the autoscaler comes; return the first zone's subnet.

    Parameters
    ----------
    url
        The endpoint.
    blocks
        The subnets' address ranges by zone.
    """
    aws = clients(url)
    ec2 = aws["ec2"]
    vpc = ec2.create_vpc(CidrBlock="10.66.0.0/16")["Vpc"]["VpcId"]
    subnets = [
        ec2.create_subnet(VpcId=vpc, CidrBlock=block, AvailabilityZone=zone)["Subnet"]["SubnetId"]
        for zone, block in blocks.items()
    ]
    group = ec2.create_security_group(GroupName="nodes", Description="nodes", VpcId=vpc)["GroupId"]
    discovery = [{"Key": "karpenter.sh/discovery", "Value": CLUSTER}]
    ec2.create_tags(Resources=[*subnets, group], Tags=discovery)
    image = ec2.register_image(Name="al2023", Architecture="x86_64")["ImageId"]
    _seed_cluster(aws, subnets, group)
    spot = {PURPOSE: "workers", "node.kubernetes.io/lifecycle": "spot"}
    labels = {"system": f"{PURPOSE}=system", "workers": ",".join(f"{key}={spot[key]}" for key in spot)}
    for name, kind, taints in (("system", SYSTEM_TYPE, ""), ("workers", WORKER_TYPES[0], WORKERS_TAINT)):
        data = {
            "ImageId": image,
            "InstanceType": kind,
            "SecurityGroupIds": [group],
            "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 2},
            "UserData": base64.b64encode(_node_config(labels[name], taints).encode()).decode(),
        }
        ec2.create_launch_template(LaunchTemplateName=name, LaunchTemplateData=data)
    aws["autoscaling"].create_auto_scaling_group(
        AutoScalingGroupName=cluster_autoscaler.GROUP,
        MinSize=0,
        MaxSize=50,
        DesiredCapacity=0,
        VPCZoneIdentifier=subnets[0],
        # As kops/cluster.tmpl.yaml has it: spot, whichever of the types there is.
        MixedInstancesPolicy={
            "LaunchTemplate": {
                "LaunchTemplateSpecification": {"LaunchTemplateName": "workers", "Version": "$Latest"},
                "Overrides": [{"InstanceType": kind} for kind in WORKER_TYPES],
            },
            "InstancesDistribution": {
                "OnDemandBaseCapacity": 0,
                "OnDemandPercentageAboveBaseCapacity": 0,
                "SpotAllocationStrategy": "price-capacity-optimized",
            },
        },
        Tags=cluster_autoscaler.tags(CLUSTER, spot, [WORKERS_TAINT]),
    )
    return str(subnets[0])


def _seed_cluster(aws: Mapping[str, Any], subnets: list[str], group: str) -> None:
    nobody = json.dumps({"Version": "2012-10-17", "Statement": []})
    for role in (NODE_ROLE, "tide-cluster"):
        aws["iam"].create_role(RoleName=role, AssumeRolePolicyDocument=nobody)
    aws["eks"].create_cluster(
        name=CLUSTER,
        version="1.35",
        roleArn=f"arn:aws:iam::{ACCOUNT}:role/tide-cluster",
        resourcesVpcConfig={"subnetIds": subnets, "securityGroupIds": [group]},
        kubernetesNetworkConfig={"serviceIpv4Cidr": "10.96.0.0/16", "ipFamily": "ipv4"},
    )
    aws["sqs"].create_queue(QueueName=CLUSTER)


def _node_config(labels: str, taints: str) -> str:
    flags = [f"--node-labels={labels}", *([f"--register-with-taints={taints}"] if taints else [])]
    config = {
        "apiVersion": "node.eks.aws/v1alpha1",
        "kind": "NodeConfig",
        "spec": {"cluster": {"name": CLUSTER}, "kubelet": {"flags": flags}},
    }
    return json.dumps(config)


def run_system_node(url: str, subnet: str) -> str:
    """Launch the machine on demand that is always there; return its instance's id."""
    tags = [{"Key": f"kubernetes.io/cluster/{CLUSTER}", "Value": "owned"}]
    launched = clients(url)["ec2"].run_instances(
        LaunchTemplate={"LaunchTemplateName": "system"},
        MinCount=1,
        MaxCount=1,
        SubnetId=subnet,
        TagSpecifications=[{"ResourceType": "instance", "Tags": tags}],
    )
    return str(launched["Instances"][0]["InstanceId"])
