"""Work: tasks that are alike, counted."""

from __future__ import annotations

import msgspec

from .pools import Resources


class Work(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """The unfinished tasks of one TaskGroup that have the same restrictions.

    Attributes
    ----------
    group
        The TaskGroup's name.
    example
        The key of one of them, for messages.
    needs
        Abstract resources that each of them takes while it runs.
    bound
        Whether they may only run on certain workers or hosts: no new unit helps those. The threads that they
        take there are taken all the same (see ``Worker.bound``).
    waiting
        Tasks whose dependencies have not finished.
    ready
        Tasks that could run now and have no worker (Dask's ``queued`` and ``no-worker``).
    processing
        Tasks that a worker was given, running or not, but for seceded ones.
    elsewhere
        How many of those, where they need resources, are on workers that no provider of ours started.
    duration_s
        Mean run time of a finished task, or the user's hint; None where nothing is known.
    stalled_s
        For how long tasks have been running with none of them finishing: each of those takes
        at least that long.
    levels
        How wide the graph of the waiting tasks is: ``(levels, tasks)`` pairs, so many levels with so many
        tasks in all; those of one level may run at the same time. Nothing: all of them may.
    """

    group: str
    example: str = ""
    needs: Resources = ()
    bound: bool = False
    waiting: int = 0
    ready: int = 0
    processing: int = 0
    duration_s: float | None = None
    stalled_s: float = 0.0
    levels: tuple[tuple[int, int], ...] = ()
    elsewhere: int = 0

    @property
    def runnable(self) -> int:
        """Tasks that could run now, had they a slot each."""
        return self.ready + self.processing
