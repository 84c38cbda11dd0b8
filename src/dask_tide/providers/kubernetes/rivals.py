"""Rivals: others who scale a pool, or change its pods. Two cannot agree, so it is left alone meanwhile.

No right is needed for it beyond those to read ReplicaSets, pods and events:

- A HorizontalPodAutoscaler sets the ReplicaSet's number; the managed fields say that it was one, and
  its event says its name. KEDA makes one for each ScaledObject, and sets the number itself
  between 0 and 1.
- A VerticalPodAutoscaler leaves the number alone. Its admission webhook changes the resources of new
  pods, and says so in annotations; its updater evicts or resizes pods that run, and says so in events.

One is noticed by what it does, so it is believed to be there for a while after that.
"""

from __future__ import annotations

import logging
import re
import time
from collections import deque
from collections.abc import Callable

from .patience import Patience
from .replicasets import ReplicaSetView

__all__ = ["Rivals"]

logger = logging.getLogger("distributed.tide.kubernetes")

#: Somebody who sets the number so often within so long is an autoscaler.
CHANGES, WITHIN_S = 3, 60.0
#: What a HorizontalPodAutoscaler's event says.
_SIZE = re.compile(r"New size: (\d+)")
#: How KEDA names the HorizontalPodAutoscaler of a ScaledObject.
_KEDAS = "keda-hpa-"


class Rivals:
    """Who else scales one pool.

    Parameters
    ----------
    pool, replicaset
        Their names.
    patience
        For how long a rival is believed to be there.
    clock
        Seconds that increase steadily.
    """

    def __init__(
        self,
        pool: str,
        replicaset: str,
        *,
        patience: Patience,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool = pool
        self._replicaset = replicaset
        self._patience = patience
        self._clock = clock
        self._changes: deque[float] = deque(maxlen=CHANGES)
        #: Names of HorizontalPodAutoscalers, by the number that they have last set.
        self._autoscalers: dict[int, str] = {}
        #: The number that an autoscaler has set here.
        self._size: int | None = None
        self._message = ""
        self._until_s = 0.0
        self._told: set[str] = set()

    def reason(self) -> str:
        """Why the pool is left alone; empty: nobody else scales it."""
        return self._message if self._clock() < self._until_s else ""

    def scaled(self, view: ReplicaSetView, *, first: bool) -> None:
        """Somebody else has set the ReplicaSet's number; ``first``: nobody has looked at it before."""
        now_s = self._clock()
        if not first:
            self._changes.append(now_s)
        often = len(self._changes) == CHANGES and now_s - self._changes[0] < WITHIN_S
        manager, _, subresource = view.manager.partition("/")
        # Of the built-in controllers only the HorizontalPodAutoscaler sets a bare ReplicaSet's scale.
        if manager == "kube-controller-manager" and subresource == "scale":
            self._size = view.replicas
            self._meet_autoscaler()
        elif manager.startswith("keda"):
            self._meet("KEDA", self._too("KEDA", "its ScaledObject", view.replicas))
        elif often:
            self._meet(manager, self._too(manager or "somebody", "that scaler", view.replicas))
        elif not first:
            logger.info("%s has set ReplicaSet %s to %d", manager or "somebody", view.name, view.replicas)

    def rescaled(self, autoscaler: str, words: str) -> None:
        """An event of a HorizontalPodAutoscaler of the namespace; of which pool, only the number tells."""
        if (size := _SIZE.search(words)) is not None:
            self._autoscalers[int(size[1])] = autoscaler
            if self._size == int(size[1]) and self.reason():
                self._meet_autoscaler()

    def resized(self, words: str) -> None:
        """A VerticalPodAutoscaler has changed a pod, or evicts it."""
        self._meet(
            "a VerticalPodAutoscaler",
            f"a VerticalPodAutoscaler changes pods of ReplicaSet {self._replicaset}: remove it, or set its "
            f"updateMode to Off; a pool's workers must be alike, and Dask know their memory ({words})",
        )

    def _meet_autoscaler(self) -> None:
        assert self._size is not None
        name = self._autoscalers.get(self._size, "")
        who, what = "a HorizontalPodAutoscaler", "that scaler"
        if name:
            who, what = f"HorizontalPodAutoscaler {name}", "it"
        if name.startswith(_KEDAS):
            what = f"KEDA's ScaledObject {name.removeprefix(_KEDAS)}"
        self._meet("a HorizontalPodAutoscaler", self._too(who, what, self._size))

    def _too(self, who: str, what: str, replicas: int) -> str:
        return (
            f"{who} scales ReplicaSet {self._replicaset}, too: remove {what}, two cannot agree "
            f"(it has just set {replicas} replicas)"
        )

    def _meet(self, kind: str, message: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            logger.error("Pool %s is left alone: %s", self._pool, message)
        self._message, self._until_s = message, self._clock() + self._patience.rival_s
