"""The story that the demo tells: its acts, and whether each one happened."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass

from .job import Answer
from .recorder import Recording, Sample, Tasks

#: So many of the files that were looked at closely are told of.
TOLD = 4


class Act(enum.IntEnum):
    """Where the story is; it never goes back."""

    NOBODY = 0
    ASKED = 1
    FIRST = 2
    MORE = 3
    TAIL = 4
    FINISHED = 5
    KEPT = 6
    FETCHED = 7
    AGAIN = 8
    NOTHING = 9

    @property
    def headline(self) -> str:
        return _HEADLINES[self]

    @property
    def caption(self) -> str:
        """A word or two, for the picture."""
        return _CAPTIONS[self]


_HEADLINES = {
    Act.NOBODY: "nobody computes: there is only a scheduler",
    Act.ASKED: "a client submits a job: a worker is asked for",
    Act.FIRST: "one worker comes",
    Act.MORE: "the work is parallel: more come",
    Act.TAIL: "the tail: fewer tasks than workers, so workers go",
    Act.FINISHED: "the job is finished: workers go",
    Act.KEPT: "the answer is kept by one worker",
    Act.FETCHED: "the answer is fetched: the last worker goes",
    Act.AGAIN: "a second job: the machine is still warm",
    Act.NOTHING: "nothing is left but the scheduler",
}
_CAPTIONS = {
    Act.NOBODY: "nobody",
    Act.ASKED: "asked",
    Act.FIRST: "one worker",
    Act.MORE: "more come",
    Act.TAIL: "the tail",
    Act.FINISHED: "finished",
    Act.KEPT: "answer kept",
    Act.FETCHED: "fetched",
    Act.AGAIN: "second job",
    Act.NOTHING: "nothing left",
}


class Story:
    """Tells from the samples which act it is.

    Attributes
    ----------
    act
        The present one.
    began
        When each act that has happened began, in seconds after the recording's start.
    fetched
        To be set when the client has the answer and lets go of it: no sample shows that.
    again
        To be set when the client submits a second job, if it does.
    """

    def __init__(self) -> None:
        self.act = Act.NOBODY
        self.began: dict[Act, float] = {}
        self.fetched = False
        self.again = False
        self._peak = 0

    def tell(self, sample: Sample) -> bool:
        """Take in the next sample; True if a new act begins with it."""
        self._peak = max(self._peak, len(sample.workers))
        self.act = max(self.act, self._act(sample))
        new = self.act not in self.began
        if new:
            self.began[self.act] = sample.at_s
        return new

    def _act(self, sample: Sample) -> Act:
        if self.fetched:
            if nothing(sample):
                return Act.NOTHING
            return Act.AGAIN if self.again else Act.FETCHED
        if finished(sample):
            return Act.KEPT if kept_by_one(sample) else Act.FINISHED
        tasks = sample.tasks
        if self._peak > 1:
            wide = sample.stages.get("measure_file", Tasks())
            tail = 0 < wide.total == wide.done and tasks.ready == 0 and tasks.running < self._peak
            return Act.TAIL if tail else Act.MORE
        if self._peak:
            return Act.FIRST
        return Act.ASKED if tasks.total else Act.NOBODY


def finished(sample: Sample) -> bool:
    """Whether the job's last task is done."""
    return sample.stages.get("summarise", Tasks()).done > 0


def kept_by_one(sample: Sample) -> bool:
    """Whether the job is done, and one unit is there, none on its way, and that one holds a result."""
    alone = sample.units == 1 and not sample.ending
    return finished(sample) and alone and any(worker.results for worker in sample.workers)


def empty(sample: Sample) -> bool:
    """Whether there is no worker, none on its way, and nothing left of one."""
    return sample.units == 0 and not sample.ending


def nothing(sample: Sample) -> bool:
    """Whether there is no machine for workers either, as far as anybody looks."""
    return empty(sample) and (sample.fleet is None or sample.fleet.total == 0)


def one_machine(sample: Sample) -> bool:
    """Whether there is one, and none boots, as far as anybody looks."""
    return sample.fleet is None or (sample.fleet.ready, sample.fleet.booting) == (1, 0)


@dataclass(frozen=True, slots=True)
class Promise:
    """Something that the story promises, and whether it came true."""

    text: str
    kept: bool


@dataclass(frozen=True, slots=True)
class Report:
    """What happened.

    Attributes
    ----------
    promises
        In the order of the story.
    recording
        All of it, for the picture.
    began
        When each act began, in seconds after the recording's start.
    submitted_s, finished_s
        When the client submitted the job, and when its last task was done, likewise.
    answer
        The job's result.
    """

    promises: tuple[Promise, ...]
    recording: Recording
    began: Mapping[Act, float]
    submitted_s: float
    finished_s: float
    answer: Answer

    @property
    def ok(self) -> bool:
        """Whether every promise was kept."""
        return all(promise.kept for promise in self.promises)

    @property
    def first_worker_s(self) -> float:
        """Seconds from the submission to the first worker; NaN if none was seen."""
        seen = (sample.at_s for sample in self.recording.samples if sample.workers)
        return next(seen, math.nan) - self.submitted_s

    def rows(self) -> list[tuple[str, str]]:
        """The table of what happened: what, and how much."""
        recording = self.recording
        used_s, busy_s = recording.spent_s, recording.busy_s
        machines = [
            f"{name} ({count} worker{'s'[: count > 1]})" for name, count in recording.machines.items()
        ]
        tasks = max((sample.tasks.total for sample in recording.samples), default=0)
        return [
            ("tasks", f"{tasks:,}"),
            ("time to first worker", f"{self.first_worker_s:.1f} s"),
            ("time to the answer", f"{self.finished_s - self.submitted_s:.1f} s"),
            ("total time, until nothing was left", f"{recording.samples[-1].at_s:.1f} s"),
            ("peak workers", f"{recording.peak}"),
            ("workers started", f"{recording.starts}"),
            *([("machines", ", ".join(machines))] if machines else []),
            *([("machine-seconds", f"{recording.machines_s:.0f} s")] if recording.samples[-1].fleet else []),
            ("seconds that tasks took", f"{busy_s:.1f} s"),
            (
                "worker-seconds used",
                f"{used_s:.1f} s" + (f", {busy_s / used_s:.0%} of them busy" if used_s else ""),
            ),
            (f"{recording.peak} workers from submission to answer", f"{self._fixed_s():.1f} s"),
        ]

    def _fixed_s(self) -> float:
        """Worker-seconds of a cluster of the peak's size that is there for exactly this job."""
        return self.recording.peak * (self.finished_s - self.submitted_s)


def findings(answer: Answer) -> list[str]:
    """What the job found out, as sentences."""
    total = answer.total
    told = [
        (
            f"{total.files:,} files in {answer.packages:,} packages: {total.lines:,} lines,"
            f" {total.functions:,} functions, {total.classes:,} classes, {total.branches:,} branches,"
            f" nested up to {total.nesting} deep; {total.unparseable:,} do not parse."
        )
    ]
    for study in answer.studies[:TOLD]:
        name, complexity = study.most_complex
        told.append(
            f"{study.path}: {study.instructions:,} instructions, most complex is {name}()"
            f" with {complexity} paths, {study.copies:,} likely copies"
            f" among {study.compared:,} pairs of functions."
        )
    return told
