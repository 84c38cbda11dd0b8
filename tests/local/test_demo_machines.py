"""The demo's promises of machines, with real workers on machines that are only counted."""

from __future__ import annotations

import io
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import dask
import pytest
from distributed import Client

from dask_tide import TideCluster
from dask_tide.demo.recorder import Fleet, Recorder, Recording
from dask_tide.demo.run import JobError, Patience, _new_cluster, _same_for_everybody, _second_job, run
from dask_tide.demo.screen import PlainScreen
from dask_tide.demo.story import Act, Report, Story
from dask_tide.providers.base import Observation
from dask_tide.providers.local import LocalProvider

#: In how many samples a machine boots.
BOOTS = 2
PATIENCE = Patience(job_s=120.0, settle_s=60.0, look_s=0.1)
SECOND = "a second job booted no machine"


def fail() -> list[str]:
    raise KeyError("no such file")


def test_a_job_that_fails_ends_the_story_at_once(tide: Callable[..., TideCluster], monkeypatch) -> None:
    monkeypatch.setattr("dask_tide.demo.run.find_sources", lambda size: fail())
    with pytest.raises(JobError, match="KeyError: 'no such file'"):
        run(lambda: tide(maximum=2), size="small", screen=PlainScreen(io.StringIO()), patience=PATIENCE)


def test_who_gives_up_says_why(tide: Callable[..., TideCluster]) -> None:
    told = io.StringIO()
    impatient = Patience(job_s=2.0, settle_s=60.0, look_s=0.1)
    with pytest.raises(TimeoutError):
        run(lambda: tide(maximum=0), size="small", screen=PlainScreen(told), patience=impatient)
    assert "maximum" in told.getvalue()


def test_the_demo_is_the_same_for_everybody() -> None:
    mine = {
        "provider": "kubernetes",
        "pools": {"a": {"maximum": 1}, "b": {}},
        "options": {"namespace": "lab"},
        "limits": {"maximum": 1},
    }
    with dask.config.set({"tide": mine}):
        with _new_cluster("local", 3) as cluster:
            config = cluster.scheduler.extensions["tide"].config
            assert [(name, each.pool.maximum) for name, each in config.pools.items()] == [("default", 3)]
            assert config.settings.maximum is None
        with _same_for_everybody("kubernetes"):
            assert dask.config.get("tide") == {"provider": "kubernetes", "options": {"namespace": "lab"}}


class Machines:
    """Machines that come for workers, and go with their last ones.

    Parameters
    ----------
    room
        For how many workers each has room.
    warm
        Whether the last one stays when it is empty, until :meth:`cool`.
    """

    def __init__(self, room: int, *, warm: bool) -> None:
        self._room = room
        self._warm = warm
        self._looks: dict[str, int] = {}
        self._on: dict[str, str] = {}
        self._names = (f"m{number}" for number in itertools.count())
        self._lock = threading.Lock()

    def place(self, units: Collection[str]) -> dict[str, str]:
        """Of each unit: its machine."""
        with self._lock:
            self._on = {unit: on for unit, on in self._on.items() if unit in units}
            used = set(self._on.values()) or set([*self._looks][-1:] if self._warm else ())
            self._looks = {machine: looks for machine, looks in self._looks.items() if machine in used}
            for unit in units:
                if unit not in self._on:
                    self._on[unit] = self._free()
            return dict(self._on)

    def _free(self) -> str:
        taken = Counter(self._on.values())
        free = [machine for machine in self._looks if taken[machine] < self._room]
        machine = free[0] if free else next(self._names)
        self._looks.setdefault(machine, 0)
        return machine

    def cool(self) -> None:
        """From now on the last one goes, too."""
        with self._lock:
            self._warm = False

    def fleet(self) -> Fleet:
        """What the demo sees of them."""
        with self._lock:
            booting = sum(looks < BOOTS for looks in self._looks.values())
            self._looks = {machine: looks + 1 for machine, looks in self._looks.items()}
            return Fleet(booting=booting, ready=len(self._looks) - booting)


class Viewer(PlainScreen):
    """Whoever sees a worker of the second job lets the warm machine go."""

    def __init__(self, machines: Machines) -> None:
        super().__init__(io.StringIO())
        self._machines = machines

    def show(self, recording: Recording, act: Act, new: bool) -> None:
        super().show(recording, act, new)
        if act is Act.AGAIN and recording.samples[-1].workers:
            self._machines.cool()


class OnMachines(LocalProvider):
    """Processes, said to be on them."""

    machines: Machines

    async def observe(self) -> Observation:
        seen = await super().observe()
        places = self.machines.place([unit.name for unit in seen.units])
        return replace(seen, units=tuple(replace(unit, machine=places[unit.name]) for unit in seen.units))


@pytest.fixture
def play(tide: Callable[..., TideCluster], monkeypatch: pytest.MonkeyPatch) -> Callable[[Machines], Report]:
    """The demo, on these machines."""

    def play(machines: Machines) -> Report:
        monkeypatch.setattr(OnMachines, "machines", machines, raising=False)
        return run(
            lambda: tide(provider=f"{__name__}:OnMachines"),
            size="small",
            screen=Viewer(machines),
            patience=PATIENCE,
            fleet=machines.fleet,
        )

    return play


def kept(report: Report) -> dict[str, bool]:
    return {promise.text: promise.kept for promise in report.promises}


def test_the_machine_is_warm_for_a_second_job(play: Callable[[Machines], Report]) -> None:
    promises = kept(play(Machines(2, warm=True)))
    assert promises["it began with no worker"]
    assert promises["so did its machine, and no other"]
    assert promises[SECOND]
    assert promises["it ended with no worker and no machine"]


def test_it_fails_where_a_machine_boots_for_the_second_job(play: Callable[[Machines], Report]) -> None:
    report = play(Machines(1, warm=False))
    promises = kept(report)
    assert promises["so did its machine, and no other"]
    assert not promises[SECOND]
    assert not report.ok
    later = [each for each in report.recording.samples if each.at_s > report.finished_s]
    assert any(each.fleet and each.fleet.booting for each in later)


def test_who_has_not_looked_promises_nothing() -> None:
    """A second job that is over before anybody has seen it."""
    future = SimpleNamespace(result=lambda timeout: [], release=lambda: None)
    client = cast("Client", SimpleNamespace(submit=lambda *_, **__: future))
    recorder = Recorder(client, None)  # it does not record
    patience = Patience(settle_s=0.1)
    assert not _second_job(client, recorder, Story(), patience)
