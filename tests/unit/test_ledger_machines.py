"""What the ledger learns of the machines under its units."""

from __future__ import annotations

import pytest

from dask_tide.controller.ledger import Ledger
from dask_tide.model import Phase, Pool
from dask_tide.providers.base import Observation, ObservedUnit
from dask_tide.providers.kubernetes.nodes import NodeView, quantities
from dask_tide.providers.kubernetes.provider import _size

POOLS = {"cpu": Pool("cpu", price=1.0)}


class Cluster:
    """Units that a platform shows, and a ledger that looks at them."""

    def __init__(self, **options: float | None) -> None:
        self.ledger = Ledger(120.0, **options)  # type: ignore[arg-type]
        self.units: dict[str, ObservedUnit] = {}
        self.registered: set[str] = set()
        self.now_s = 0.0
        #: Those that the platform shows; None: it does not.
        self.machines: set[str] | dict[str, str] | None = None
        self.requested = 0
        self.prices: dict[str, float] = {}

    def look(self, after_s: float = 0.0):
        self.now_s += after_s
        requested = {"cpu": self.requested}
        observation = Observation(
            tuple(self.units.values()), requested=requested, machines=self.machines, prices=self.prices
        )
        return self.ledger.update(self.now_s, observation, self.registered, set(), POOLS)

    def start(self, name: str, machine: str, *, boot_s: float, cold: bool = False, placed_s=2.0) -> None:
        """``placed_s`` of the boot time it is on a machine."""
        self.ledger.asked("cpu", 1, self.now_s)
        self.units[name] = ObservedUnit(name, "cpu", Phase.PENDING, waits=cold)
        self.look()
        self.now_s += boot_s - placed_s
        self.units[name] = ObservedUnit(name, "cpu", Phase.STARTING, machine)
        self.look()
        self.look(after_s=placed_s)
        self.registered.add(name)
        self.look()

    @property
    def cpu(self):
        return self.ledger.records["cpu"]


def test_p32_two_boot_times_are_learned():
    cluster = Cluster()
    cluster.start("a", "m1", boot_s=60.0, cold=True, placed_s=10.0)
    cluster.start("b", "m2", boot_s=66.0, cold=True, placed_s=16.0)
    assert (cluster.cpu.boot_s, cluster.cpu.cold_boot_s) == (13.0, 63.0), "once there is a machine"
    cluster.start("c", "m1", boot_s=3.0)
    cluster.start("d", "m3", boot_s=60.0, cold=True, placed_s=10.0)
    assert (cluster.cpu.boot_s, cluster.cpu.cold_boot_s) == (3.0, 60.0), "one that had room is a better sign"


def test_room_is_unknown_until_a_machine_had_to_come():
    cluster = Cluster()
    cluster.start("a", "m1", boot_s=3.0)
    assert cluster.cpu.room is None


def test_a_machine_has_room_for_as_many_as_were_seen_on_one():
    cluster = Cluster()
    for name in "abc":
        cluster.start(name, "m1", boot_s=60.0, cold=True)
    cluster.start("d", "m2", boot_s=60.0, cold=True)
    assert cluster.cpu.room == 2
    cluster.units["e"] = ObservedUnit("e", "cpu", Phase.PENDING, waits=True)
    cluster.look()
    assert cluster.cpu.room == 0, "one finds no machine"


@pytest.mark.parametrize(("machine_idle_s", "room_after_50_s"), [(None, 2), (20.0, 0), (90.0, 2)])
def test_an_empty_machine_counts_for_as_long_as_the_platform_keeps_it(machine_idle_s, room_after_50_s):
    cluster = Cluster(machine_idle_s=machine_idle_s)
    cluster.start("a", "m1", boot_s=60.0, cold=True)
    cluster.start("b", "m1", boot_s=3.0)
    cluster.units.clear()
    cluster.look()
    assert cluster.cpu.room == 2
    cluster.look(after_s=50.0)
    assert cluster.cpu.room == room_after_50_s
    cluster.look(after_s=50.0)
    assert cluster.cpu.room == 0


def test_p33_room_is_not_given_twice():
    """What has been asked for takes its room, seen there or not."""
    cluster = Cluster()
    for name in "abc":
        cluster.start(name, "m1", boot_s=60.0, cold=True)
    cluster.start("d", "m2", boot_s=60.0, cold=True)
    assert cluster.cpu.room == 2
    cluster.requested = 1
    cluster.look()
    assert cluster.cpu.room == 1
    cluster.requested = 0
    cluster.units["e"] = ObservedUnit("e", "cpu", Phase.PENDING)
    cluster.look()
    assert cluster.cpu.room == 1
    cluster.start("e", "m2", boot_s=3.0)
    assert cluster.cpu.room == 1


def test_p33_a_machine_that_is_known_to_be_gone_has_no_room():
    cluster = Cluster()
    cluster.start("a", "m1", boot_s=60.0, cold=True)
    cluster.start("b", "m1", boot_s=3.0)
    cluster.start("c", "m2", boot_s=60.0, cold=True)
    cluster.units.clear()
    cluster.machines = {"m1", "m2"}
    cluster.look()
    assert cluster.cpu.room == 4
    cluster.machines = {"m2", "another"}
    cluster.look()
    assert cluster.cpu.room == 2


SIZES = {"small-1": "small", "small-2": "small", "large": "large"}


def test_p33_machines_of_another_size_have_no_room_for_as_many():
    """Four on a large one, two on each of two small ones: all three are full."""
    cluster = Cluster()
    cluster.machines = SIZES
    for name in "abcd":
        cluster.start(name, "large", boot_s=60.0, cold=True)
    for name, machine in zip("efgh", ["small-1", "small-1", "small-2", "small-2"], strict=True):
        cluster.start(name, machine, boot_s=60.0, cold=True)
    assert cluster.cpu.room == 0
    del cluster.units["a"], cluster.units["e"], cluster.units["f"]
    cluster.look()
    assert cluster.cpu.room == 3


def test_p33_of_a_kind_that_was_never_full_no_more_is_believed_than_was_seen():
    cluster = Cluster()
    cluster.machines = {**SIZES, "another": "another"}
    for name in "abcd":
        cluster.start(name, "large", boot_s=60.0, cold=True)
    cluster.start("e", "another", boot_s=60.0, cold=True)
    assert cluster.cpu.room == 0
    cluster.start("f", "small-1", boot_s=60.0, cold=True)
    cluster.start("g", "small-2", boot_s=60.0, cold=True)
    cluster.start("h", "small-2", boot_s=3.0)
    assert cluster.cpu.room == 1


def test_p33_what_kind_a_machine_is_is_remembered_while_nobody_tells():
    cluster = Cluster()
    cluster.machines = SIZES
    for name, machine in zip("abcdef", ["large"] * 4 + ["small-1"] * 2, strict=True):
        cluster.start(name, machine, boot_s=60.0, cold=True)
    assert cluster.cpu.room == 0
    cluster.machines = None
    cluster.look()
    assert cluster.cpu.room == 0
    cluster.machines = {"small-1": "small"}  # the large one is about to go
    del cluster.units["e"]
    cluster.look()
    assert cluster.cpu.room == 1


def test_a_machine_is_known_later_than_the_units_on_it():
    cluster = Cluster()
    cluster.machines = {}
    for name in "abc":
        cluster.start(name, "large", boot_s=60.0, cold=True)
    assert cluster.cpu.room == 0
    cluster.machines = SIZES
    cluster.start("d", "small-1", boot_s=60.0, cold=True)
    assert cluster.cpu.room == 0, "what was seen there says nothing of a small one"
    del cluster.units["a"]
    cluster.look()
    assert cluster.cpu.room == 1


def test_nodes_with_as_much_for_pods_are_of_one_kind():
    def size(kind: str, **allocatable: str) -> str:
        return _size(NodeView(kind=f"{kind}/eu-west-1a/spot", allocatable=quantities(allocatable)))

    medium = size("m5.xlarge", cpu="3920m", memory="15200Mi")
    assert medium == size("m6i.xlarge", cpu="3.92", memory="15190Mi"), "another host has some MB less"
    assert medium != size("c5.xlarge", cpu="3920m", memory="7000Mi")
    assert medium != size("m5.2xlarge", cpu="7910m", memory="31000Mi")
    assert size("m5.xlarge") == "m5.xlarge", "it has not said yet"


def test_a_machine_that_is_about_to_go_has_no_room_though_units_are_there():
    cluster = Cluster()
    cluster.machines = {"m1", "m2"}
    for name in "abc":
        cluster.start(name, "m1", boot_s=60.0, cold=True)
    cluster.start("d", "m2", boot_s=60.0, cold=True)
    del cluster.units["c"]
    cluster.look()
    assert cluster.cpu.room == 3
    cluster.machines = {"m2"}
    cluster.look()
    assert cluster.cpu.room == 2


def test_what_the_machine_costs_is_what_is_paid():
    cluster = Cluster()
    cluster.units["a"] = ObservedUnit("a", "cpu", Phase.STARTING, "m1", price=0.25)
    cluster.units["b"] = ObservedUnit("b", "cpu", Phase.STARTING, "m2")
    cluster.look()
    (a, b) = cluster.look(after_s=10.0)
    assert cluster.ledger.spent == pytest.approx(12.5)
    assert (a.price, b.price) == (0.25, None)


def test_where_machines_are_paid_for_a_unit_that_has_none_costs_nothing():
    """A pool's own price is of another currency: 1 a second, where a machine costs cents an hour."""
    cluster = Cluster()
    cluster.prices = {"cpu": 0.5}
    cluster.units["a"] = ObservedUnit("a", "cpu", Phase.PENDING, waits=True)
    cluster.look()
    cluster.look(after_s=180.0)
    assert cluster.ledger.spent == 0.0
    cluster.units["a"] = ObservedUnit("a", "cpu", Phase.STARTING, "m1")
    cluster.look()
    cluster.look(after_s=10.0)
    assert cluster.ledger.spent == pytest.approx(5.0), "no pattern fits: at the most so much"
    cluster.units["b"] = ObservedUnit("b", "cpu", Phase.STARTING, "m2", price=0.1)
    cluster.look()
    cluster.look(after_s=10.0)
    assert cluster.ledger.spent == pytest.approx(5.0 + 10 * (0.1 + 0.1)), "what others cost"


def test_the_dearest_is_remembered_for_some_minutes():
    cluster = Cluster()
    cluster.units["a"] = ObservedUnit("a", "cpu", Phase.STARTING, "m1", price=0.2)
    cluster.units["b"] = ObservedUnit("b", "cpu", Phase.STARTING, "m2", price=0.6)
    cluster.look()
    assert (cluster.cpu.price, cluster.cpu.dearest) == (pytest.approx(0.4), 0.6)
    del cluster.units["b"]
    cluster.look(after_s=500.0)
    assert (cluster.cpu.price, cluster.cpu.dearest) == (0.2, 0.6)
    cluster.look(after_s=500.0)
    assert cluster.cpu.dearest == 0.2


def test_what_units_cost_is_no_news_after_some_minutes_without_any():
    """The next one gets another machine, of another market perhaps; a budget expects the dearest still."""
    cluster = Cluster()
    cluster.units["a"] = ObservedUnit("a", "cpu", Phase.STARTING, "m1", price=0.2)
    cluster.look(after_s=2000.0)
    del cluster.units["a"]
    cluster.look(after_s=500.0)
    assert cluster.cpu.price_lately(cluster.now_s) == 0.2
    cluster.look(after_s=500.0)
    assert (cluster.cpu.price_lately(cluster.now_s), cluster.cpu.dearest) == (None, 0.2)


def test_units_show_that_they_are_doomed_or_have_no_place():
    cluster = Cluster()
    cluster.units["a"] = ObservedUnit("a", "cpu", Phase.STARTING, "m1", "spot notice", doomed=True)
    cluster.units["b"] = ObservedUnit("b", "cpu", Phase.PENDING, unplaced=True)
    (a, b) = cluster.look()
    assert (a.doomed, a.unplaced, a.message) == (True, False, "spot notice")
    assert (b.doomed, b.unplaced) == (False, True)


def test_a_unit_that_was_given_back_lingers_until_the_platform_stops_it():
    cluster = Cluster()
    cluster.units["a"] = ObservedUnit("a", "cpu", Phase.RUNNING, "m1", doomed=True)
    assert [(unit.phase, unit.lingers) for unit in cluster.look()] == [(Phase.RUNNING, False)]
    cluster.ledger.released(["a"])
    assert [(unit.phase, unit.lingers) for unit in cluster.look()] == [(Phase.STOPPING, True)]
    cluster.units["a"] = ObservedUnit("a", "cpu", Phase.STOPPING, "m1", doomed=True)
    assert [(unit.phase, unit.lingers) for unit in cluster.look()] == [(Phase.STOPPING, False)]


def test_a_pod_that_its_replicaset_has_replaced_took_as_long_as_it_took():
    """An hour after the last launch: nobody has asked for it."""
    cluster = Cluster()
    cluster.start("a", "m1", boot_s=60.0, cold=True)
    cluster.look(after_s=3600.0)
    del cluster.units["a"]
    cluster.units["b"] = ObservedUnit("b", "cpu", Phase.PENDING, waits=True)
    cluster.look()
    cluster.registered.add("b")
    cluster.look(after_s=60.0)
    assert cluster.cpu.cold_boot_s == 60.0


def test_more_than_were_asked_for_were_not_asked_for():
    cluster = Cluster()
    cluster.start("a", "m1", boot_s=40.0)
    cluster.units["b"] = ObservedUnit("b", "cpu", Phase.PENDING)
    [_, b] = cluster.look()
    assert b.age_s == 0.0


def test_how_long_one_took_that_was_there_before_is_not_known():
    cluster = Cluster()
    cluster.units["a"] = ObservedUnit("a", "cpu", Phase.STARTING, "m1")
    cluster.look()
    cluster.registered.add("a")
    cluster.look(after_s=0.5)
    assert (cluster.cpu.boot_s, cluster.cpu.started) == (None, 1)


def test_what_a_unit_costs_is_remembered_when_there_is_none():
    cluster = Cluster()
    cluster.units["a"] = ObservedUnit("a", "cpu", Phase.STARTING, "m1", price=0.25)
    cluster.look()
    cluster.units.clear()
    cluster.look()
    assert cluster.cpu.price == 0.25


def test_p32_a_boot_time_that_was_configured_is_a_machines_until_one_was_measured():
    cluster = Cluster()
    cluster.cpu.cold_boot_s = 90.0
    cluster.look()
    assert cluster.cpu.room is None, "no machine was ever seen"
    cluster.start("a", "m1", boot_s=4.0)
    assert (cluster.cpu.boot_s, cluster.cpu.cold_boot_s, cluster.cpu.room) == (4.0, 90.0, 0)
    cluster.start("b", "m2", boot_s=70.0, cold=True)
    assert cluster.cpu.cold_boot_s == 70.0


def test_a_unit_found_on_a_machine_that_does_not_answer_is_given_up_in_time():
    cluster = Cluster()
    cluster.units["a"] = ObservedUnit("a", "cpu", Phase.UNKNOWN, "m1")
    (unit,) = cluster.look()
    assert unit.phase is Phase.UNKNOWN
    (unit,) = cluster.look(after_s=121.0)
    assert unit.phase is Phase.EXPIRED


def test_p32_the_time_on_a_machine_is_learned_although_there_was_no_place_for_a_while():
    """A busy autoscaler does not say of every pod that a machine is coming."""
    cluster = Cluster()
    cluster.units["a"] = ObservedUnit("a", "cpu", Phase.PENDING, waits=True, unplaced=True)
    cluster.look()
    cluster.units["a"] = ObservedUnit("a", "cpu", Phase.STARTING, "m1")
    cluster.look(after_s=70.0)
    cluster.registered.add("a")
    cluster.look(after_s=12.0)
    assert (cluster.cpu.boot_s, cluster.cpu.cold_boot_s) == (12.0, None)
