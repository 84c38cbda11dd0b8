"""The commands of ``deploy/aws``: its scripts, with other programs in place of AWS's, and its check."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.aws.check.everything import Check
from deploy.aws.check.everything import run as run_check
from deploy.aws.check.tree import CHECKOUT, Tree

FOLDER = Tree().folder
REPOSITORY = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/dask-tide"


def run(
    script: str, *arguments: str, programs: dict[str, str], folder: Path
) -> subprocess.CompletedProcess[str]:
    """Run a script with these programs (shell) first on the path; each call of one is a line of ``calls``."""
    for name, body in programs.items():
        path = folder / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >> {folder}/calls\n{body}\n')
        path.chmod(0o755)
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
    environment.pop("AWS_REGION", None)
    command = [str(FOLDER / script), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines()


@pytest.mark.parametrize("cluster", ["lab", "lab.k8s.local"])
def test_nothing_left_is_said_and_succeeds(tmp_path: Path, cluster: str) -> None:
    """An EKS cluster itself, whose name has no dots, is not what is left."""
    done = run("leftovers.sh", cluster, "eu-west-1", programs={"aws": "echo None"}, folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"Nothing of {cluster} is left in eu-west-1.\n")
    keys = [call.split("Key=")[1].split(" ")[0] for call in calls(tmp_path)]
    assert keys == [
        f"dask-tide/cluster,Values={cluster}",
        f"KubernetesCluster,Values={cluster}",
        "kubernetes.io/created-for/pvc/name",
        *(
            [f"kubernetes.io/cluster/{cluster}"]
            if "." in cluster
            else [f"elbv2.k8s.aws/cluster,Values={cluster}", "kubernetes.io/service-name"]
        ),
    ]


def test_what_is_left_is_listed_once_and_fails(tmp_path: Path) -> None:
    left = (
        "arn:aws:ec2:eu-west-1:123456789012:natgateway/nat-1\tarn:aws:ec2:eu-west-1:123456789012:volume/vol-1"
    )
    done = run("leftovers.sh", "lab", "eu-west-1", programs={"aws": f"echo '{left}'"}, folder=tmp_path)
    assert done.returncode == 1
    assert done.stdout.splitlines()[1:] == left.split("\t")


def test_a_key_that_waits_for_its_deletion_is_not_left(tmp_path: Path) -> None:
    going, used = (f"arn:aws:kms:eu-west-1:123456789012:key/{name}" for name in ("going", "used"))
    aws = f"""
    case "$*" in
        *describe-key*going*) echo PendingDeletion ;;
        *describe-key*) echo Enabled ;;
        *) printf '%s\\t%s\\n' {going} {used} ;;
    esac"""
    done = run("leftovers.sh", "lab", "eu-west-1", programs={"aws": aws}, folder=tmp_path)
    assert done.returncode == 1
    assert done.stdout.splitlines()[1:] == [used]
    done = run(
        "leftovers.sh", "lab", "eu-west-1", programs={"aws": aws.replace(used, going)}, folder=tmp_path
    )
    assert (done.returncode, done.stdout) == (0, "Nothing of lab is left in eu-west-1.\n")
    refused = aws.replace("echo Enabled", "exit 254")
    done = run("leftovers.sh", "lab", "eu-west-1", programs={"aws": refused}, folder=tmp_path)
    assert done.returncode == 2, "a failure is not taken for nothing left"


def test_a_failure_of_aws_is_not_taken_for_nothing_left(tmp_path: Path) -> None:
    aws = "echo 'ExpiredToken' >&2; exit 254"
    done = run("leftovers.sh", "lab", "eu-west-1", programs={"aws": aws}, folder=tmp_path)
    assert done.returncode not in (0, 1), done.stdout
    assert "Nothing" not in done.stdout
    assert "ExpiredToken" in done.stderr


@pytest.mark.parametrize("arguments", [(), ("lab",)])
def test_leftovers_wants_a_cluster_and_a_region(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = run("leftovers.sh", *arguments, programs={"aws": "echo None"}, folder=tmp_path)
    assert done.returncode != 0
    assert not (tmp_path / "calls").exists()


def test_an_image_goes_where_it_is_told(tmp_path: Path) -> None:
    programs = {
        "aws": "echo secret",
        "skopeo": 'case "$1" in login) read -r given; test "$given" = secret;; esac',
    }
    done = run("push-image.sh", REPOSITORY, "1", "/images/tide.tar", programs=programs, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"image.repository={REPOSITORY},image.tag=1\n"
    assert sorted(calls(tmp_path)) == [
        "aws ecr get-login-password --region eu-west-1",
        f"skopeo copy docker-archive:/images/tide.tar docker://{REPOSITORY}:1",
        "skopeo login --username AWS --password-stdin 123456789012.dkr.ecr.eu-west-1.amazonaws.com",
    ]


def test_a_refused_login_pushes_nothing(tmp_path: Path) -> None:
    programs = {"aws": "exit 255", "skopeo": 'test "$1" != login || { cat > /dev/null; exit 1; }'}
    done = run("push-image.sh", REPOSITORY, "1", "/images/tide.tar", programs=programs, folder=tmp_path)
    assert done.returncode != 0
    assert not any("copy" in call for call in calls(tmp_path))


def test_the_check_finds_checkov_beside_it_then_in_path_and_else_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = importlib.import_module("deploy.aws.check.__main__")
    monkeypatch.setattr(command, "CHECKOUT", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CI", raising=False)
    assert command._checkov() is None
    report = run_check(Check(Tree(), tmp_path, None), ["security"])
    assert [words.split(":")[0] for words in report.left_out] == ["security rules of OpenTofu's files"]
    for folder in (tmp_path / "bin", tmp_path / ".venv-checkov" / "bin"):
        folder.mkdir(parents=True)
        (folder / "checkov").write_text("#!/bin/sh\n")
        (folder / "checkov").chmod(0o755)
        assert command._checkov() == folder / "checkov"


@pytest.mark.parametrize(
    ("inputs", "status", "said"),
    [
        ("systemCount: 2\n", 0, "deploy/aws: no problems\n"),
        ("sytemCount: 2\nadminCidr: []\n", 1, "deploy/aws: 2 problems\n"),
    ],
)
def test_the_check_says_what_is_wrong_and_fails(tmp_path: Path, inputs: str, status: int, said: str) -> None:
    mine = tmp_path / "my.yaml"
    mine.write_text(inputs)
    command = [sys.executable, "-m", "deploy.aws.check", "--only", "opentofu", "--inputs", str(mine)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (status, said), done.stderr
    assert [line.split(": ")[1] for line in done.stderr.splitlines()] == ["adminCidr", "sytemCount"][
        : 2 * status
    ]
