"""A cluster's addresses and routes while nodes come and go; no node is real."""

from __future__ import annotations

import random
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rig import cgroups, network
from rig.keeper import Kept
from rig.nodes import Cluster
from rig.plane import Options, Place

NODES = 24


class Wires:
    """In the place of the network: which nodes are plugged in, and which one Services are reached by."""

    def __init__(self) -> None:
        self.plugged = set(range(1, NODES + 1))
        self.services = 1

    def pull_out(self, index: int) -> None:
        self.plugged.remove(index)
        time.sleep(random.uniform(0, 0.005))

    def route_services(self, index: int) -> None:
        time.sleep(random.uniform(0, 0.005))
        self.services = index


def test_eight_at_a_time_are_cut_and_services_are_still_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wires = Wires()
    monkeypatch.setattr(Cluster, "network", wires)
    monkeypatch.setattr(Kept, "status", lambda kept: {})
    monkeypatch.setattr(cgroups, "remove", lambda *arguments: None)
    names = [f"n{index}" for index in sorted(wires.plugged)]
    (tmp_path / "addresses").mkdir()
    for name in names:
        (tmp_path / "nodes" / name).mkdir(parents=True)
        (tmp_path / "addresses" / name.removeprefix("n")).symlink_to(name)
    cluster = Cluster(Kept(tmp_path), Place(), Options())
    stays = names.pop(random.randrange(NODES))
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(cluster.node_down, names))
    assert cluster.nodes() == [stays]
    assert wires.plugged == {wires.services} == {int(stays.removeprefix("n"))}


def test_the_router_keeps_its_address_whatever_cards_come_and_go(able: None) -> None:
    card = "v-1 address 02:00:00:00:00:01 type veth peer name eth0"
    steps = [f"ip link add {card}", "ip link set v-1 master br0 up", "ip link delete v-1"]
    script = "\n".join([network._SWITCH, *(f"{step}\nip -brief link show br0" for step in ["", *steps])])
    command = ["unshare", "--net", "--", "bash", "-c", f"PATH=$PATH:/usr/sbin:/sbin\n{script}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    addresses = [line.split()[2] for line in done.stdout.splitlines()]
    assert len(addresses) == 4
    assert len(set(addresses)) == 1
