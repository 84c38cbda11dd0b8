"""A pool's number: what is asked for at its limits. The API server is a stand-in that knows one number."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from waiting import until

from dask_tide.errors import LaunchRejected, Unavailable
from dask_tide.model import Phase, Pool
from dask_tide.providers.base import ObservedUnit
from dask_tide.providers.kubernetes.patience import Patience
from dask_tide.providers.kubernetes.pods import PodView, Rank
from dask_tide.providers.kubernetes.pool_pods import PoolPods
from dask_tide.providers.kubernetes.replicasets import ReplicaSetView
from dask_tide.providers.kubernetes.scale import PoolScale

pytest.importorskip("lightkube")


class World:
    """A ReplicaSet whose pods run at once, each on a node of its own."""

    namespace = "science"

    def __init__(self, maximum: int, *, enforced: bool = True) -> None:
        self.maximum = maximum if enforced else 1000
        self.asked: list[int] = []
        #: Pods that the watch has not shown yet.
        self.unseen: dict[str, PodView] = {}
        self.pods: dict[str, PodView] = {}
        self.scale_ = PoolScale(
            Pool("cpu", maximum=maximum),
            "r-cpu",
            self,  # type: ignore[arg-type]  # all of it that is called
            PoolPods(lambda: self.pods),
            marks=None,
            wake=lambda: None,
            patience=Patience(delete_s=0.1),
        )
        self.see(0)

    def see(self, replicas: int) -> None:
        self.scale_.seen(
            ReplicaSetView("r-cpu", "cpu", len(self.asked) + 1, replicas, replicas, "", "", "dask-tide")
        )

    async def scale(self, replicaset: str, replicas: int) -> str:
        if replicas > self.maximum:
            raise LaunchRejected(f"the scheduler may scale {replicaset} to {self.maximum} at the most")
        self.asked.append(replicas)
        active = [name for name, pod in self.pods.items() if pod.active]
        for number in range(len(active), replicas):
            self.add(f"p{len(self.pods)}-{number}")
        return str(len(self.asked) + 1)

    async def existing(self, replicaset: str) -> int:
        return sum(pod.active for pod in (self.pods | self.unseen).values())

    def hide(self, count: int) -> None:
        """Let the watch be late with the last ones."""
        for name in sorted(self.pods)[-count:]:
            self.unseen[name] = self.pods.pop(name)

    def show(self) -> None:
        """Let the watch show all that there are."""
        self.pods |= self.unseen
        self.unseen.clear()
        self.scale_.pods_changed()

    def add(self, name: str, rank: Rank = Rank.READY) -> None:
        unit = ObservedUnit(name, "cpu", Phase.STARTING, f"node-of-{name}")
        self.pods[name] = PodView(unit, name, "", True, rank, rank is Rank.READY, True, None, {})

    def rank(self, name: str, rank: Rank, phase: Phase = Phase.STARTING) -> None:
        """Let the watch show it like that."""
        pod = self.pods[name]
        unit = replace(pod.unit, phase=phase)
        self.pods[name] = replace(pod, rank=rank, ready=rank is Rank.READY, unit=unit)
        self.scale_.pods_changed()

    def end(self, name: str, instead: str = "", rank: Rank = Rank.NOWHERE) -> None:
        """Let its kubelet refuse or evict it, and the ReplicaSet make another one."""
        pod = self.pods[name]
        self.pods[name] = replace(pod, active=False, ready=False, unit=replace(pod.unit, phase=Phase.FAILED))
        if instead:
            self.add(instead, rank)
        self.scale_.pods_changed()

    def delete(self, *names: str) -> None:
        for name in names:
            del self.pods[name]
        self.scale_.pods_changed()


async def test_more_than_an_admission_policy_allows_is_as_many_as_it_allows():
    world = World(maximum=4)
    await world.scale_.up(20)
    assert world.asked == [4]
    limit = world.scale_.limit()
    assert limit is not None
    assert (limit.maximum, limit.message) == (4, "the scheduler may scale r-cpu to 4 at the most")
    await world.scale_.up(20)
    assert world.asked == [4], "there is nothing to ask for"


async def test_what_is_refused_below_the_maximum_is_an_error():
    world = World(maximum=4)
    world.maximum = 2
    with pytest.raises(LaunchRejected):
        await world.scale_.up(3)
    assert world.scale_.limit() is None


async def test_those_that_are_about_to_be_made_are_no_reason_to_ask_for_fewer():
    world = World(maximum=4)
    scale = world.scale_
    await scale.up(3)
    leaving, *others = world.pods
    world.pods[leaving] = replace(world.pods[leaving], rank=Rank.UNREADY, ready=False)  # it has parked
    del world.pods[others[0]]  # somebody deletes it: there will be another one
    going = asyncio.create_task(scale.down([leaving]))
    await asyncio.sleep(0)
    world.add("instead")
    scale.pods_changed()
    await until(lambda: len(world.asked) == 2, "the number is lowered")
    del world.pods[leaving]
    scale.pods_changed()
    assert not await going
    assert world.asked == [3, 2]


async def test_what_goes_while_more_are_asked_for_is_not_made_up_for():
    """`up` waits for those that are due; those that nobody knew would be, too, are no reason for others."""
    world = World(maximum=9)
    await world.scale_.up(3)
    a, b, c = world.pods
    world.scale_.going.due |= {a}
    growing = asyncio.create_task(world.scale_.up(5))  # two more beside these three, which all are to go
    await asyncio.sleep(0)
    for name in (a, b, c):
        pod = world.pods[name]
        world.pods[name] = replace(pod, active=False, unit=replace(pod.unit, phase=Phase.STOPPING))
    world.scale_.going.due.clear()
    world.see(0)
    world.scale_.pods_changed()
    await growing
    assert world.asked == [3, 2]


async def test_what_may_be_there_unseen_is_not_cancelled():
    """The watch is late: to lower the number would delete workers that nobody here knows of."""
    world = World(maximum=9)
    await world.scale_.up(2)
    world.see(2)
    await world.scale_.up(5)
    world.hide(3)
    world.see(5)
    assert world.scale_.requested() == 3
    with pytest.raises(Unavailable, match="3 pods of r-cpu are not seen"):
        await world.scale_.cancel(3)
    assert world.asked == [2, 5]
    world.show()
    assert world.scale_.requested() == 0


async def test_nobody_is_let_go_while_there_are_others_that_the_watch_has_not_shown():
    """Its API server is gone and it hangs, and with it that of ReplicaSets; another one takes the calls."""
    world = World(maximum=9)
    await world.scale_.up(6)
    world.hide(5)
    [parked] = world.pods
    world.pods[parked] = replace(world.pods[parked], rank=Rank.UNREADY, ready=False)
    with pytest.raises(Unavailable, match="5 pods of r-cpu are not seen"):
        await world.scale_.down([parked])
    with pytest.raises(Unavailable, match="5 pods of r-cpu are not seen"):
        await world.scale_.cancel(5)
    assert world.asked == [6]
    world.show()
    going = asyncio.create_task(world.scale_.down([parked]))
    await until(lambda: world.asked == [6, 5], "the number is lowered, by one")
    del world.pods[parked]
    world.scale_.pods_changed()
    assert not await going


async def test_one_that_gets_to_work_while_it_is_to_go_stays():
    """It was to go while it started. Its worker has registered, and the watch does not show it ready yet."""
    world = World(maximum=9)
    await world.scale_.up(2)
    late, other = sorted(world.pods)
    world.pods[late] = replace(world.pods[late], rank=Rank.UNREADY, ready=False)
    world.scale_.going.used = frozenset({late, other})
    assert await world.scale_.down([late]) == {late}
    assert world.asked == [2]


async def test_a_parked_one_that_is_at_work_again_stays_however_late_the_number_is_lowered():
    """Its container was started again, and registers with the scheduler that has drained the one before."""
    world = World(maximum=4)
    scale = world.scale_
    await scale.up(3)
    parked, *others = world.pods
    scale.frozen = lambda: "somebody else scales it"
    with pytest.raises(Unavailable, match="somebody else"):
        await scale.down([parked])
    del scale.frozen
    scale.going.used = frozenset({parked, *others})
    assert await scale.down([parked]) == {parked}
    assert world.asked == [3], "the number stays"
    # Ready, but as it was when it was drained: its kubelet has not looked since.
    scale.going.used = frozenset(others)
    going = asyncio.create_task(scale.down([parked]))
    await until(lambda: parked in scale.going.leaving, "it is to go")
    world.pods[parked] = replace(world.pods[parked], rank=Rank.UNREADY, ready=False)
    scale.pods_changed()
    await until(lambda: world.asked == [3, 2], "the number is lowered")
    del world.pods[parked]
    scale.pods_changed()
    assert not await going


async def test_one_that_has_failed_to_start_takes_none_with_it_that_start():
    world = World(maximum=10)
    scale = world.scale_
    scale._patience = scale.going._patience = replace(scale._patience, start_s=1.0)
    await scale.up(1)
    (crashing,) = world.pods
    world.pods[crashing] = replace(world.pods[crashing], rank=Rank.UNREADY, ready=False)
    await scale.up(3)
    pulling = [name for name in world.pods if name != crashing]
    for name in pulling:
        world.pods[name] = replace(world.pods[name], rank=Rank.PENDING, ready=False)
    with pytest.raises(Unavailable, match="start, and would go rather than"):
        await scale.down([crashing])
    assert world.asked == [1, 3]
    for name in pulling:
        world.pods[name] = replace(world.pods[name], rank=Rank.READY, ready=True)
    going = asyncio.create_task(scale.down([crashing]))
    await until(lambda: world.asked == [1, 3, 2], "now that they have started")
    del world.pods[crashing]
    scale.pods_changed()
    assert not await going


async def test_one_that_has_failed_goes_in_the_end_also_where_others_never_start():
    """Their volume cannot be mounted, say: they are given up with it, and made anew."""
    world = World(maximum=10)
    scale = world.scale_
    scale._patience = scale.going._patience = replace(scale._patience, start_s=0.05)
    await scale.up(2)
    crashing, hanging = world.pods
    world.pods[crashing] = replace(world.pods[crashing], rank=Rank.UNREADY, ready=False)
    world.pods[hanging] = replace(world.pods[hanging], rank=Rank.PENDING, ready=False)

    async def insist() -> None:
        while True:
            try:
                await scale.down([crashing])
            except Unavailable:
                await asyncio.sleep(0.01)
            else:
                return

    going = asyncio.create_task(insist())
    await until(lambda: world.asked == [2, 0], "both are given up")
    world.pods.clear()
    scale.pods_changed()
    await going


async def test_a_platform_that_is_busy_is_told_again_that_all_may_go(monkeypatch):
    world = World(maximum=4)
    await world.scale_.up(3)
    told = world.scale

    async def busy(replicaset: str, replicas: int) -> str:
        monkeypatch.setattr(world, "scale", told)
        raise Unavailable("too many requests", retry_after_s=0.01)

    monkeypatch.setattr(world, "scale", busy)
    going = asyncio.create_task(world.scale_.none())
    await until(lambda: world.asked == [3, 0], "it is said again")
    world.pods.clear()
    world.scale_.pods_changed()
    await going


# -- pods that have ended, and that their ReplicaSet replaces ---------------------------------------------


async def test_pods_that_a_kubelet_refuses_are_not_made_without_end():
    """Given back, one that has ended is one fewer, once: who wants another one asks for it."""
    world = World(maximum=9)
    await world.scale_.up(3)
    first, second, _ = sorted(world.pods)
    world.end(first, "instead")
    assert not await world.scale_.down([first])
    assert world.asked == [3, 2]
    world.delete("instead")
    assert not await world.scale_.down([first])
    assert world.asked == [3, 2]
    world.end(second)  # another one has not been made yet
    assert not await world.scale_.down([first, second])
    assert world.asked == [3, 2, 1]
    await world.scale_.up(2)
    assert world.asked == [3, 2, 1, 2]


@pytest.mark.parametrize("rank", [Rank.UNREADY, Rank.READY], ids=str)
async def test_one_that_has_ended_is_not_one_fewer_if_another_one_is_at_work_in_its_stead(rank):
    world = World(maximum=9)
    await world.scale_.up(2)
    first, _ = sorted(world.pods)
    world.end(first, "instead", rank)
    assert not await world.scale_.down([first])
    assert world.asked == [2]


async def test_one_that_has_ended_takes_no_busy_one_with_it_whose_sidecar_starts():
    world = World(maximum=9)
    await world.scale_.up(2)
    first, _ = sorted(world.pods)
    world.end(first, "instead", Rank.PENDING)
    world.scale_.going.used = frozenset({"instead"})
    assert not await world.scale_.down([first])
    assert world.asked == [2]


async def test_of_several_that_have_ended_as_many_are_fewer_as_do_not_run_in_their_stead():
    world = World(maximum=9)
    await world.scale_.up(5)
    a, b, c, *_ = sorted(world.pods)
    for name, rank in ((a, Rank.READY), (b, Rank.PENDING), (c, Rank.NOWHERE)):
        world.end(name, f"instead-of-{name}", rank)
    assert not await world.scale_.down([a, b, c])
    assert world.asked == [5, 3]


async def test_one_that_ends_while_it_is_to_go_is_one_fewer_too():
    world = World(maximum=9)
    scale = world.scale_
    await scale.up(2)
    first, _ = sorted(world.pods)
    going = asyncio.create_task(scale.down([first]))
    await until(lambda: first in scale.going.leaving, "it is to go, and has not parked yet")
    world.end(first, "instead")
    assert not await going
    assert world.asked == [2, 1]


async def test_one_that_ends_when_the_number_is_lowered_already_is_no_second_one_fewer():
    world = World(maximum=9)
    scale = world.scale_
    await scale.up(3)
    first, _, other = sorted(world.pods)
    world.rank(first, Rank.UNREADY)
    going = asyncio.create_task(scale.down([first]))
    await until(lambda: world.asked == [3, 2], "the number is lowered")
    world.rank(other, Rank.PENDING)
    world.end(first)
    assert not await going
    assert not await scale.down([first])
    assert world.asked == [3, 2]


async def test_one_that_has_ended_is_asked_about_again_where_others_are_not_seen():
    world = World(maximum=9)
    await world.scale_.up(3)
    first, *_ = sorted(world.pods)
    world.end(first, "zz-instead")
    world.hide(1)
    with pytest.raises(Unavailable, match="1 pods of r-cpu are not seen"):
        await world.scale_.down([first])
    assert world.asked == [3]
    world.show()
    assert not await world.scale_.down([first])
    assert world.asked == [3, 2]


async def test_one_that_has_ended_is_nobodys_concern_where_somebody_else_scales():
    world = World(maximum=9)
    await world.scale_.up(3)
    first, *_ = sorted(world.pods)
    world.end(first, "instead")
    world.scale_.frozen = lambda: "somebody else scales it"
    assert not await world.scale_.down([first])
    assert world.asked == [3]


# -- pods that do not run yet, or seem so -----------------------------------------------------------------


async def test_a_busy_worker_whose_sidecar_has_not_started_yet_is_not_given_up_as_one_that_waits():
    """Its pod is pending for as long as any container waits that has never run."""
    world = World(maximum=9)
    scale = world.scale_
    scale._patience = scale.going._patience = replace(scale._patience, start_s=0.05)
    await scale.up(2)
    idle, busy = sorted(world.pods)
    world.rank(busy, Rank.PENDING, Phase.PENDING)
    scale.going.used = frozenset({busy})
    going = asyncio.create_task(scale.down([idle]))
    await until(lambda: idle in scale.going.leaving, "it is to go")
    world.rank(idle, Rank.UNREADY)
    with pytest.raises(Unavailable, match=f"{idle} are parked, and {busy} would go first"):
        await going
    assert world.asked == [2]
    world.rank(busy, Rank.READY)
    going = asyncio.create_task(scale.down([idle]))
    await until(lambda: world.asked == [2, 1], "now that it has started")
    world.delete(idle)
    assert not await going


async def test_a_parked_worker_whose_sidecar_has_not_started_is_not_one_that_waits():
    """It has to go: no other one is as good, and those that would go as soon are given up with it."""
    world = World(maximum=9)
    scale = world.scale_
    scale._patience = scale.going._patience = replace(scale._patience, start_s=0.05)
    await scale.up(3)
    parked, waiting, _ = sorted(world.pods)
    for name in (parked, waiting):
        world.rank(name, Rank.PENDING, Phase.PENDING)
    scale.going.told({parked: False})
    scale.going.told({})
    going = asyncio.create_task(scale.down([parked]))
    await until(lambda: world.asked == [3, 1], "the one that waits is given up with it")
    world.delete(parked, waiting)
    assert not await going


async def test_without_marks_one_that_starts_is_given_back_and_not_all_that_start():
    world = World(maximum=10)
    scale = world.scale_
    await scale.up(9)
    victim, *others = sorted(world.pods)
    for name in world.pods:
        world.rank(name, Rank.PENDING, Phase.PENDING)
    going = asyncio.create_task(scale.down([victim]))
    await until(lambda: world.asked == [9, 8], "one fewer is asked for")
    world.delete(others[0])  # one is as good as another
    assert await going == {victim}
    assert world.asked == [9, 8]


async def test_without_marks_one_that_has_failed_to_pull_its_image_takes_none_with_it_that_start():
    world = World(maximum=10)
    scale = world.scale_
    scale._patience = scale.going._patience = replace(scale._patience, start_s=0.05)
    now_s = 0.0
    scale._clock = scale.going._clock = lambda: now_s
    await scale.up(9)
    failed, *others = sorted(world.pods)
    world.rank(failed, Rank.PENDING, Phase.FAILED)
    for name in others:
        world.rank(name, Rank.PENDING, Phase.PENDING)
    with pytest.raises(Unavailable, match=f"start, and would go rather than {failed}"):
        await scale.down([failed])
    assert world.asked == [9]
    # The others may hang for ever: in the end they are given up with it, and made anew.
    now_s = 10.0
    going = asyncio.create_task(scale.down([failed]))
    await until(lambda: world.asked == [9, 0], "all are given up")
    world.delete(*list(world.pods))
    assert not await going


# -- workers that were never seen as ready ----------------------------------------------------------------


async def test_a_worker_that_is_drained_before_its_pod_was_seen_as_ready_has_not_started_since(
    monkeypatch,
):
    """What its kubelet found a moment before it parked is reported late."""
    world = World(maximum=9)
    scale = world.scale_
    await scale.up(2)
    young, _ = sorted(world.pods)
    world.rank(young, Rank.UNREADY)
    scale.going.told(dict.fromkeys(world.pods, False))  # both have registered
    scale.going.told({})  # and one has been drained

    async def existing(replicaset: str) -> int:
        world.rank(young, Rank.READY)
        return 2

    monkeypatch.setattr(world, "existing", existing)
    with pytest.raises(Unavailable, match=f"{young} are still ready"):
        await scale.down([young])
    monkeypatch.undo()
    world.rank(young, Rank.UNREADY)
    going = asyncio.create_task(scale.down([young]))
    await until(lambda: world.asked == [2, 1], "the number is lowered")
    world.delete(young)
    assert not await going


async def test_a_worker_that_crashed_was_not_drained():
    """No machine becomes free with it of which those that start could make use."""
    world = World(maximum=9)
    scale = world.scale_
    scale._patience = scale.going._patience = replace(scale._patience, start_s=0.05)
    await scale.up(2)
    crashing, starting = sorted(world.pods)
    scale.going.told({crashing: True})
    scale.going.told({})
    world.rank(crashing, Rank.UNREADY, Phase.FAILED)
    world.rank(starting, Rank.PENDING, Phase.PENDING)
    scale._clock = scale.going._clock = lambda: 0.0
    with pytest.raises(Unavailable, match=f"{starting} start, and would go rather than {crashing}"):
        await scale.down([crashing])
    assert world.asked == [2]


async def test_of_pods_that_are_gone_it_is_forgotten_that_they_had_a_worker():
    world = World(maximum=9)
    await world.scale_.up(2)
    first, second = sorted(world.pods)
    world.scale_.going.told({first: False, second: True, "of-another-pool": True})
    world.delete(first)
    world.scale_.going.told({})
    assert world.scale_.going._worked == {second}
