"""Workers, as the scheduler knows them."""

from __future__ import annotations

import msgspec


class Worker(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One Dask worker.

    Attributes
    ----------
    address, name
        As the scheduler knows them; different things: a restart changes the address only.
    unit
        Name of the unit that runs it; empty for a worker that no provider of ours started.
    threads
        Its number of threads.
    status
        The scheduler's view: ``running``, ``paused``, ``closing_gracefully``, …
    tasks
        Tasks that the scheduler has given to it and that have not finished.
    bound
        How many of those may run only on certain workers, and wait for nothing; but for seceded ones. Of
        a worker that no provider of ours started also those that need resources.
    held_keys, held_bytes
        Results that it holds and their size.
    only_copies
        How many of those no other running worker holds; None where it was not looked up.
    largest_bytes
        Size of the largest one of these; 0 where it was not looked up.
    used_bytes, limit_bytes
        Memory of its process including what it has spilled, and the memory limit; 0: unknown.
    pinned
        Why it must not be drained (an actor, a seceded task, a shuffle); empty: nothing.
    blocked
        Threads that run what was cancelled, at the most, where there are other tasks.
    stuck
        Name of the reason (a :class:`Code`) for which it takes no task any more, and has not for longer than
        another one takes to come: `FULL` or `BLOCKED`; empty: there is none.
    """

    address: str
    name: str
    unit: str = ""
    threads: int = 1
    status: str = "running"
    tasks: int = 0
    bound: int = 0
    held_keys: int = 0
    held_bytes: int = 0
    only_copies: int | None = None
    largest_bytes: int = 0
    used_bytes: int = 0
    limit_bytes: int = 0
    pinned: str = ""
    blocked: int = 0
    stuck: str = ""

    @property
    def idle(self) -> bool:
        return self.tasks == 0

    @property
    def last_keys(self) -> int:
        """Results that no other running worker holds; all that it holds where that was not looked up."""
        return self.held_keys if self.only_copies is None else self.only_copies

    @property
    def last_bytes(self) -> int:
        """Their size, on the average of what it holds."""
        return self.held_bytes * self.last_keys // max(1, self.held_keys)

    @property
    def taken(self) -> int:
        """Threads that no task can have which may run anywhere."""
        return self.bound + self.blocked
