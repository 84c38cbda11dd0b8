"""The provider of workers that are pods of Kubernetes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial

from dask_tide.errors import ConfigError, ProviderError
from dask_tide.model import Phase
from dask_tide.providers.base import NAMELESS, Limit, Observation, ObservedUnit, ProviderContext

from .api import Api
from .events import EVICTED, IGNORED, EventView, read_event
from .marks import PROTECTED, VICTIM, Annotations, Marks
from .nodes import NodeView, dearest_per_s, price_per_s, read_node
from .objects import Event, Node, Pod, ReplicaSet
from .options import Options, protects
from .patience import Patience
from .places import Places
from .pods import (
    CLUSTER,
    COMPONENT,
    DELETION_COST,
    DO_NOT_DISRUPT,
    SAFE_TO_EVICT,
    PodView,
    Rank,
    read_pod,
)
from .pool_pods import PoolPods
from .reflector import Reflector
from .replicasets import ReplicaSetView, read_replicaset
from .scale import PoolScale

__all__ = ["KubernetesProvider"]

logger = logging.getLogger("distributed.tide.kubernetes")

#: A pod's name is its ReplicaSet's and six characters, and is a worker's host name: a DNS label.
_LONGEST = 57


class KubernetesProvider:
    """Scales one ReplicaSet a pool, ``<cluster>-<pool>``, in one namespace.

    The ReplicaSets exist: Helm's chart or :class:`~dask_tide.TideCluster` made them. What there is
    is known from watches; growing is one call, whatever the number. Pods are found by their labels,
    so that those of an earlier scheduler of the same name are adopted.

    Parameters
    ----------
    context
        What it works for. Its options: see :class:`~dask_tide.providers.kubernetes.options.Options`.
    patience
        How long it waits for what.

    Raises
    ------
    ConfigError
        If an option is wrong, a name too long, or there are no credentials.
    """

    boot_s = 5.0
    closes_workers = False
    #: Its scheduler is a pod.
    alone = True

    def __init__(self, context: ProviderContext, patience: Patience = Patience()) -> None:  # noqa: B008 -- it is frozen
        self._context = context
        self._patience = patience
        self._options = Options.read(context.options)
        self._protect = {
            name: protects(f"tide.pools.{name}.options", template.options)
            for name, template in context.templates.items()
        }
        for name in context.templates:
            if len(f"{context.cluster}-{name}") > _LONGEST:
                expected = (
                    f"a name so short that {context.cluster}-{name} has {_LONGEST} characters at the most"
                )
                raise ConfigError("tide.name", context.cluster, expected)
        self._api = Api(self._options, patience)
        self._by_pool: dict[str, dict[str, PodView]] = {name: {} for name in context.templates}
        self._dismissed: set[str] = set()
        self._words: dict[str, str] = {}
        #: Nodes that are about to go, with the taint that says so.
        self._dooms: dict[str, str] = {}
        self._background: set[asyncio.Task[None]] = set()
        self.marks = (
            Marks(self._api, self._known, self._protected, patience=patience)
            if self._options.annotate
            else None
        )
        self.scales = {
            name: PoolScale(
                template.pool,
                f"{context.cluster}-{name}",
                self._api,
                PoolPods(partial(self._by_pool.__getitem__, name)),
                marks=self.marks,
                wake=context.wake,
                patience=patience,
            )
            for name, template in context.templates.items()
        }
        #: The configured price of a pool means something else than those of machines.
        self._dearest = {
            name: price
            for name, template in context.templates.items()
            if (price := dearest_per_s(self._options.prices, spot=template.pool.spot)) is not None
        }
        self._places = {name: Places(name, self._options) for name in context.templates}
        labels = {CLUSTER: context.cluster, COMPONENT: "worker"}
        self._pods: Reflector[PodView] = Reflector(
            self._api, Pod, read_pod, self._pod_changed, labels=labels, patience=patience
        )
        self._replicasets: Reflector[ReplicaSetView] = Reflector(
            self._api, ReplicaSet, read_replicaset, self._replicaset_changed, labels=labels, patience=patience
        )
        self._events: Reflector[EventView] = Reflector(
            self._api,
            Event,
            self._read_event,
            lambda *_: None,
            fields=IGNORED,
            patience=patience,
            bookmarks=False,
        )
        self._nodes: Reflector[NodeView] | None = (
            Reflector(self._api, Node, read_node, self._node_changed, patience=patience)
            if self._options.nodes
            else None
        )
        #: Taken away by somebody, and gone before anybody looked: what was said of them is told once.
        self._taken: dict[str, PodView] = {}
        #: Parked for an earlier scheduler, which did not live to let them go.
        self._parked: set[str] = set()
        self._closed = False
        self._started = False
        self._adopted = False

    # -- the protocol -----------------------------------------------------------------------------

    async def observe(self) -> Observation:
        """What the watches show. Raises what they met if they do not stand."""
        await self._start()
        for reflector in (self._replicasets, self._pods):
            if reflector.error is not None:
                # Without the traceback it would grow with each time that it is raised.
                raise reflector.error.with_traceback(None)
        self._adopt()
        units: list[ObservedUnit] = []
        limits: list[Limit] = []
        frozen: dict[str, str] = {}
        requested: dict[str, int] = {}
        for name, scale in self.scales.items():
            current = scale.view.template if scale.view is not None else ""
            pods, places = self._by_pool[name], self._places[name]
            if reason := scale.frozen():
                frozen[name] = reason
            if count := scale.requested():
                requested[name] = count
            refused = places.refused(pods)
            there = [pod for pod in pods.values() if not self._settled(pod)]
            there += [pod for pod in self._taken.values() if pod.unit.pool == name]
            units += [self._unit(pod, current, refused) for pod in there]
            known = (scale.limit(), places.limit(pods, refused, self._message))
            limits += sorted(filter(None, known), key=lambda limit: limit.maximum)[:1]
        self._taken.clear()
        return Observation(tuple(units), tuple(limits), requested, frozen, self._dearest, self._machines())

    async def scale_up(self, pool: str, n: int) -> None:
        """One PATCH of the ReplicaSet's scale."""
        await self._start()
        await self.scales[pool].up(n)

    async def scale_down(self, units: Sequence[str]) -> Collection[str]:
        """Lower the scale of the pools, so that exactly these go; returns those that must stay."""
        await self._start()
        if self._pods.error is not None:
            raise self._pods.error  # of pods that are not seen some would go, too
        pods = self._pods.objects
        self._dismissed |= {pods[name].uid for name in units if name in pods}
        # Each for itself: what one pool waits for is nothing to the others.
        results = await asyncio.gather(
            *(self._fewer(pool, scale, units) for pool, scale in self.scales.items()), return_exceptions=True
        )
        kept: list[str] = []
        for result in results:
            if isinstance(result, BaseException):
                raise result
            kept += result
        self._dismissed -= {pods[name].uid for name in kept if name in pods}
        return kept

    def _settled(self, pod: PodView) -> bool:
        """Whether one that was given back has ended: it is the garbage collector's."""
        return pod.uid in self._dismissed and pod.unit.phase is Phase.FAILED and not pod.active

    async def _fewer(self, pool: str, scale: PoolScale, units: Sequence[str]) -> Collection[str]:
        nameless = sum(1 for name in units if name.startswith(pool + NAMELESS))
        if nameless:
            await scale.cancel(nameless)
        return await scale.down([name for name in units if name in self._by_pool[pool]])

    def mark(self, protected: Mapping[str, bool], doomed: Collection[str] = ()) -> None:
        """Which units have work or results, and which are about to lose their machine; see :mod:`.marks`."""
        for scale in self.scales.values():
            scale.going.told(protected)
        if self.marks is not None:
            self.marks.wish(protected, doomed)

    async def close(self) -> None:
        """Release all pods, if so configured, and stop watching. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._started and self._options.on_close == "release":
            results = await asyncio.gather(
                *(scale.none() for scale in self.scales.values()), return_exceptions=True
            )
            for result in results:
                if isinstance(result, ProviderError):
                    logger.warning("A pool could not be scaled to 0: %s", result)
                elif isinstance(result, BaseException):
                    raise result
        background = tuple(self._background)
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        if self.marks is not None:
            await self.marks.stop()
        for scale in self.scales.values():
            await scale.stop()
        for reflector in self._reflectors():
            await reflector.stop()
        await self._api.close()

    # -- inside ------------------------------------------------------------------------------------

    async def _start(self) -> None:
        if not self._started:
            self._started = True
            for reflector in self._reflectors():
                if reflector is not self._events:
                    reflector.start()
            if self.marks is not None:
                self.marks.start()
        await asyncio.gather(self._pods.settled(), self._replicasets.settled())
        # Those of earlier say something of the pods that are known.
        self._events.start()

    def _reflectors(
        self,
    ) -> list[Reflector[PodView] | Reflector[ReplicaSetView] | Reflector[EventView] | Reflector[NodeView]]:
        nodes = () if self._nodes is None else (self._nodes,)
        return [self._pods, self._replicasets, self._events, *nodes]

    def _known(self) -> Mapping[str, PodView]:
        """The pods of our pools."""
        return {name: pod for name, pod in self._pods.objects.items() if pod.unit.pool in self.scales}

    def _protected(self, pool: str) -> Annotations:
        """What keeps node autoscalers away from a pod: nothing that its template does not say."""
        view = self.scales[pool].view
        born = view.annotations if view is not None and self._protect[pool] else {}
        kept = {key: born.get(key) for key in (SAFE_TO_EVICT, DO_NOT_DISRUPT)}
        return {DELETION_COST: PROTECTED[DELETION_COST], **kept}

    def _pod_changed(self, name: str, before: PodView | None, now: PodView | None) -> None:
        if before is not None and now is not None and before.unit.pool != now.unit.pool:
            # Somebody has relabelled it, as one does with a pod that is to be looked into.
            self._pod_changed(name, before, None)
            before = None
        pool = (now or before).unit.pool  # type: ignore[union-attr]
        pods = self._by_pool.setdefault(pool, {})
        if now is None:
            pods.pop(name, None)
            self._words.pop(name, None)
            if pool in self._places:
                self._places[pool].forget(name)
            self._parked.discard(name)
            if before is not None:
                if before.unit.phase is Phase.STOPPING and before.uid not in self._dismissed:
                    self._taken[name] = before
                self._dismissed.discard(before.uid)
        else:
            pods[name] = now
        if pool in self.scales:
            if now is not None and now.resized and (before is None or before.resized != now.resized):
                self.scales[pool].rivals.resized(now.resized)
            self.scales[pool].pods_changed()
        self._context.wake()

    def _replicaset_changed(
        self, name: str, before: ReplicaSetView | None, now: ReplicaSetView | None
    ) -> None:
        scale = self.scales.get((now or before).pool)  # type: ignore[union-attr]
        if scale is not None:
            if scale.replicaset == name:
                scale.seen(now)
        elif now is not None and now.replicas and (before is None or not before.replicas):
            logger.warning(
                "ReplicaSet %s is of pool %s, which is not configured: its pods (%d) stay until somebody "
                "deletes it (kubectl delete replicaset %s)",
                name,
                now.pool,
                now.replicas,
                name,
            )

    def _node_changed(self, name: str, before: NodeView | None, now: NodeView | None) -> None:
        doom = now.doom if now is not None else ""
        if doom == self._dooms.get(name, ""):
            return
        if doom:
            logger.info("Node %s is about to go (%s)", name, doom)
            self._dooms[name] = doom
        else:
            del self._dooms[name]
        if self.marks is not None:
            self.marks.doomed = frozenset(self._dooms)
        self._context.wake()

    def _read_event(self, event: Event) -> None:
        """Events are not kept: what one says of a pod, or of who scales, is."""
        view = read_event(event)
        if view is None:
            return
        # What a rival did before is no sign of one now.
        lately = view.age_s < self._patience.rival_s
        if view.autoscaler:
            if not lately:
                return
            for scale in self.scales.values():
                scale.rivals.rescaled(view.name, view.words)
        elif (pod := self._pods.objects.get(view.name)) is not None:
            if view.machine is None:
                self._words[view.name] = view.words
            elif pod.unit.pool in self._places:
                self._places[pod.unit.pool].said(view)
            if view.resized and lately and pod.unit.pool in self.scales:
                self.scales[pod.unit.pool].rivals.resized(view.words)
            self._context.wake()

    def _message(self, pod: PodView) -> str:
        return self._unit(pod, "", ()).message

    def _machines(self) -> Mapping[str, str] | None:
        """Those that stay, by name, and how large each is."""
        if self._nodes is None or self._nodes.error is not None:
            return None
        nodes = self._nodes.objects.items()
        return {name: _size(node) for name, node in nodes if not node.doom and not node.silent}

    def _price(self, pod: PodView) -> float | None:
        """What a pod costs for a second, where its node and the price of such nodes are known."""
        node = self._nodes.objects.get(pod.unit.machine) if self._nodes is not None else None
        view = self.scales[pod.unit.pool].view
        if node is None or view is None or not self._options.prices:
            return None
        return price_per_s(node, self._options.prices, view.requests)

    def _unit(self, pod: PodView, current: str, refused: Collection[str]) -> ObservedUnit:
        unit, words = pod.unit, self._words.get(pod.unit.name, "")
        if unit.name in self._parked and pod.active:
            return replace(unit, phase=Phase.STOPPING, message="parked for an earlier scheduler")
        node = self._nodes.objects.get(unit.machine) if self._nodes is not None else None
        if node is not None and node.silent and unit.phase in (Phase.PENDING, Phase.STARTING):
            unit = replace(unit, phase=Phase.UNKNOWN, message=f"its node does not answer ({node.silent})")
        said = [unit.message]
        if _repeats(unit.message, words):
            pass
        elif words.startswith(EVICTED):
            said.insert(0, words)
        elif unit.phase is Phase.PENDING:
            said.append(words)
        if pod.unschedulable_since is not None:
            said.append(self._places[unit.pool].words(unit.name))
        if doom := self._dooms.get(unit.machine, "") if unit.phase is not Phase.FAILED else "":
            said.append(f"its node is about to go ({doom})")
        if stale := bool(current and pod.template and pod.template != current):
            said.append(f"made from template {pod.template}, which is {current} now")
        price = self._price(pod)
        if not stale and len(said) == 1 and price is None:
            return unit
        return replace(
            unit,
            message="; ".join(filter(None, said)),
            stale=stale,
            doomed=bool(doom),
            unplaced=unit.name in refused,
            price=price,
        )

    def _adopt(self) -> None:
        """Let the pods go whose workers were drained for an earlier scheduler and are parked ever since."""
        if self._adopted:
            return
        self._adopted = True
        for pool, scale in self.scales.items():
            parked = [name for name, pod in self._by_pool[pool].items() if _is_parked(pod)]
            if parked:
                logger.info("Parked for an earlier scheduler: %s", ", ".join(sorted(parked)))
                self._parked.update(parked)
                task = asyncio.create_task(self._let_go(scale, parked), name=f"dask-tide-parked-{pool}")
                self._background.add(task)
                task.add_done_callback(self._background.discard)

    async def _let_go(self, scale: PoolScale, parked: list[str]) -> None:
        while True:
            try:
                kept = await scale.down(parked)
            except ProviderError as error:
                logger.info("%s", error)
                await asyncio.sleep(self._patience.refused_max_s)
            else:
                self._parked.difference_update(kept)
                self._context.wake()
                return


def _size(node: NodeView) -> str:
    """What pods may have of a node, to two digits: nodes of one type differ by some MB. Else its type."""
    sizes = ", ".join(f"{name} {amount:.2g}" for name, amount in node.allocatable.items())
    return sizes or node.kind.partition("/")[0]


def _repeats(status: str, words: str) -> bool:
    """Whether an event says what the status does, which may have another reason before it."""
    return (words.partition(": ")[2] or words) in status


def _is_parked(pod: PodView) -> bool:
    return (
        pod.rank is Rank.UNREADY
        and pod.active
        and pod.annotations.get(DELETION_COST) == VICTIM[DELETION_COST]
    )
