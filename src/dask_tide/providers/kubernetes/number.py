"""Number: how many pods a ReplicaSet is to have, which others may set, too."""

from __future__ import annotations

from .api import FIELD_MANAGER, Api
from .replicasets import ReplicaSetView
from .rivals import Rivals

__all__ = ["Number"]


class Number:
    """The number of one ReplicaSet.

    Parameters
    ----------
    replicaset
        Its name.
    api
        The API server.
    rivals
        Told when somebody else sets the number.

    Attributes
    ----------
    view
        The ReplicaSet as the watch shows it; None: there is no such one.
    wanted
        The number that was last asked for, by whomever.
    """

    def __init__(self, replicaset: str, api: Api, rivals: Rivals) -> None:
        self.view: ReplicaSetView | None = None
        self.wanted = 0
        self._replicaset = replicaset
        self._api = api
        self._rivals = rivals
        #: Of the ReplicaSet, that ``wanted`` is of; and of the last reply.
        self._version = self._replied = 0
        #: What our call that is under way asks for.
        self._asking: int | None = None

    def seen(self, view: ReplicaSetView | None) -> None:
        """Take what the watch shows."""
        before, self.view = self.view, view
        if view is None:
            self.wanted = self._version = self._replied = 0
            return
        # A list or a watch may be behind our own calls, but is never behind what was shown before: then the
        # server is, restored from a backup, or is another one.
        if before is not None and view.version < before.version:
            self._version = self._replied = 0
        if view.version >= self._version:
            first, self._version = not self._version, view.version
            if view.replicas != self.wanted:
                # The effect of our own call may be seen before its reply; and where a ReplicaSet was made
                # without a number, the server does not say that it was us.
                ours = view.replicas == self._asking or view.manager.partition("/")[0] == FIELD_MANAGER
                if not ours:
                    self._rivals.scaled(view, first=first)
                self.wanted = view.replicas

    async def set(self, replicas: int) -> None:
        """Ask for so many; one call after the other."""
        self._asking = replicas
        try:
            version = int(await self._api.scale(self._replicaset, replicas))
        finally:
            self._asking = None
        if version < self._replied:
            self._version = 0  # the server has gone back, which the watch need not have shown
        self._replied = version
        # Otherwise the watch has shown what was set after that, by whomever.
        if version > self._version:
            self._version, self.wanted = version, replicas

    async def existing(self) -> int:
        """How many pods there are, whatever the watch has shown."""
        return await self._api.existing(self._replicaset)

    def frozen(self) -> str:
        """Why it may not be set; empty: it may."""
        if self.view is None:
            return f"there is no ReplicaSet {self._replicaset} in namespace {self._api.namespace}"
        return self._rivals.reason()
