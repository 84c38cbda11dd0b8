"""A simulated AWS that is there for long: addresses of what has ended come again."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

#: In a process of its own, since moto is mended for good.
PROGRAM = """
    import json
    import boto3
    from moto import mock_aws
    from rig.aws import account, moto_gaps
    from rig.aws.faults import Faults

    moto_gaps.mend(Faults(0.0))
    with mock_aws():
        keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b"}
        ec2 = boto3.client("ec2", region_name=account.REGION, **keys)
        vpc = ec2.create_vpc(CidrBlock="10.66.0.0/16")["Vpc"]["VpcId"]
        block = {"CidrBlock": "10.66.0.64/28", "AvailabilityZone": account.ZONES[0]}
        subnet = ec2.create_subnet(VpcId=vpc, **block)["Subnet"]["SubnetId"]
        image = ec2.register_image(Name="image", Architecture="x86_64")["ImageId"]
        what = {"ImageId": image, "MinCount": 1, "MaxCount": 1, "InstanceType": next(iter(account.TYPES))}
        addresses = []
        for number in range(40):
            (made,) = ec2.run_instances(SubnetId=subnet, **what)["Instances"]
            addresses.append(made["PrivateIpAddress"])
            if number:
                ec2.terminate_instances(InstanceIds=[made["InstanceId"]])
        print(json.dumps(addresses))
"""


def test_addresses_of_machines_that_have_ended_come_again_after_all_others() -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    addresses = json.loads(done.stdout.splitlines()[-1])
    assert len(set(addresses)) == 11, "AWS keeps five of sixteen"
    assert addresses.count(addresses[0]) == 1, "it runs"
    assert addresses[1:11] == addresses[11:21]
