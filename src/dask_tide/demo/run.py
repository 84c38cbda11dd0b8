"""Run the demo: play the story on a cluster, check that it came true, tell what happened."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import dask
from distributed import Client, Future, wait
from distributed.versions import VersionMismatchWarning

from dask_tide.errors import ConfigError, ProviderError, words
from dask_tide.providers.registry import installing

from .job import STUDIED, Size, build, find_sources
from .place import Place
from .recorder import Fleet, Recorder, Recording
from .screen import Screen, screen_for
from .story import Promise, Report, Story, empty, kept_by_one, nothing, one_machine

#: The usual port is often another cluster's; the demo does without the warning.
ANY_PORT = "127.0.0.1:0"
#: So many of the last decisions are told where the story does not come to its end.
_EXPLAINED = 5
#: Even on a small machine the story needs a few workers to be told.
LEAST_MAXIMUM = 4


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait at most.

    Attributes
    ----------
    job_s
        For the job, including the first worker: a machine may have to be started for it.
    settle_s
        For workers to go when there is no work for them.
    look_s
        Not a limit: how long a state is shown before the story goes on.
    """

    job_s: float = 1200.0
    settle_s: float = 120.0
    look_s: float = 1.5


#: Nodes may have to be booted, and each of them has to pull the image.
AFAR = Patience(job_s=3600.0, settle_s=300.0)


def run(
    cluster_factory: Callable[[], Any],
    *,
    size: Size = "full",
    screen: Screen,
    patience: Patience = Patience(),
    machines: int | None = None,
    fleet: Callable[[], Fleet] | None = None,
) -> Report:
    """Play the story on a cluster of zero workers.

    Parameters
    ----------
    cluster_factory
        Makes a synchronous Dask cluster that adapts from zero; it is closed at the end.
    size
        Of the job: ``"full"`` is about half a minute of one core, ``"small"`` about three seconds.
    screen
        Where to show what happens while it happens.
    patience
        How long to wait at most.
    machines
        How many there are for workers. They are expected on more than one, if there is.
    fleet
        Where machines come and go with the workers: counts them. Then there are more promises, and a second
        job that finds a machine warm.

    Returns
    -------
    Report
        With what was promised and did not come true, if anything.

    Raises
    ------
    TimeoutError
        The job was not done within ``patience.job_s``.
    JobError
        A task of the job has failed.
    """
    story = Story()

    def show(recording: Recording) -> None:
        new = story.tell(recording.samples[-1])
        screen.show(recording, story.act, new)

    with (
        cluster_factory() as cluster,
        cluster.get_client() as client,
        screen,
        Recorder(client, cluster, show, fleet or (lambda: None)) as recorder,
    ):
        begun = recorder.wait_until(nothing, patience.settle_s)
        recorder.watch(patience.look_s)

        submitted_s = recorder.now_s()
        deadline = time.monotonic() + patience.job_s
        try:
            found = client.submit(find_sources, size, pure=False)
            paths = _finished(found, deadline).result()
            answered = client.compute(build(paths, STUDIED[size]))
            # Not before: without any task in between, the policy would see a job that is over.
            found.release()
            _finished(answered, deadline)
        except TimeoutError:
            with suppress(OSError):
                if why := client.sync(client.scheduler.tide_explain, lines=_EXPLAINED):
                    screen.say(why)
            raise
        finished_s = recorder.now_s()

        kept = recorder.wait_until(kept_by_one, patience.settle_s)
        machine_kept = recorder.wait_until(one_machine, patience.settle_s)
        recorder.watch(patience.look_s)
        kept = kept and kept_by_one(recorder.recording.samples[-1])
        machine_kept = machine_kept and one_machine(recorder.recording.samples[-1])

        answer = answered.result(timeout=patience.settle_s)
        story.fetched = True
        answered.release()
        left_empty = recorder.wait_until(empty, patience.settle_s)
        warm = fleet is not None and _second_job(client, recorder, story, patience)
        left_empty = left_empty and recorder.wait_until(nothing, patience.settle_s)
        recorder.watch(patience.look_s)

    recording = recorder.recording
    promises = {
        "it began with no worker": begun,
        "workers came": recording.peak > 0,
        "more than one came": recording.peak > 1,
    }
    if fleet or (machines and machines > 1):
        promises["on more than one machine"] = len(recording.machines) > 1
    if fleet:
        promises["and on each machine that came"] = recording.most_machines <= len(recording.machines)
    promises |= {
        f"all {len(paths):,} files were measured": 0 < len(paths) == answer.total.files,
        "one worker stayed, with the answer, and no other": kept,
    }
    if fleet:
        promises |= {"so did its machine, and no other": machine_kept, "a second job booted no machine": warm}
    promises["it ended with no worker" + (" and no machine" if fleet else "")] = left_empty
    return Report(
        promises=tuple(Promise(text, came_true) for text, came_true in promises.items()),
        recording=recording,
        began=story.began,
        submitted_s=submitted_s,
        finished_s=finished_s,
        answer=answer,
    )


class JobError(Exception):
    """A task of the demo's job has failed."""


def _finished(future: Future[Any], deadline: float) -> Future[Any]:
    """The future, once its task is done."""
    wait(future, timeout=max(0.0, deadline - time.monotonic()))
    if future.status == "error":
        error = future.exception()
        raise JobError(f"{type(error).__name__}: {words(error)}") from error
    return future


def _second_job(client: Client, recorder: Recorder, story: Story, patience: Patience) -> bool:
    """Whether a job so soon after the first one finds a machine: from its start on none was seen to boot."""
    samples = recorder.recording.samples
    began = len(samples)
    story.again = True
    found = client.submit(find_sources, "small", pure=False)
    found.result(timeout=patience.settle_s)
    # Whoever has the result is there as long as it is wanted: that is seen.
    seen = recorder.wait_until(
        lambda sample: len(samples) > began and bool(sample.workers), patience.settle_s
    )
    found.release()
    fleets = [sample.fleet for sample in samples[began:]]
    return seen and all(fleet is not None and not fleet.booting for fleet in fleets)


def main(
    provider: str = "local",
    maximum: int | None = None,
    size: Size = "full",
    out: str | Path = "demo",
    place: Place | None = None,
    fleet: Callable[[], Fleet] | None = None,
) -> int:
    """Run the demo on a TideCluster, print what happened and draw it.

    Parameters
    ----------
    provider
        What starts workers.
    maximum
        The most workers; by default four, and on this machine at least one per processor.
    size
        Of the job.
    out
        The pictures' path without their endings, ``.png`` and ``.svg``.
    place
        With Kubernetes: the place.
    fleet
        Likewise, as for :func:`run`.

    Returns
    -------
    int
        Exit code: 0 if the story came true, 1 if not or if the platform refused, 2 for wrong arguments.
    """
    screen, out = screen_for(sys.stdout), Path(out)
    try:
        if not out.name:
            raise ConfigError("out", str(out), "a file's name without its ending")
        if provider == "kubernetes":
            report = _run_on_kubernetes(place or Place(), maximum, size, screen, fleet)
        else:
            report = run(lambda: _new_cluster(provider, maximum), size=size, screen=screen)
    except TimeoutError:
        screen.say("The demo gave up: the job took too long, or no worker came.")
        return 1
    except JobError as error:
        click.echo(f"Error: the job has failed: {error}", err=True)
        return 1
    except ConfigError as error:
        click.echo(f"Error: {error}", err=True)
        return 2
    except (ProviderError, OSError, CancelledError) as error:
        click.echo(f"Error: {words(error)}", err=True)
        return 1
    screen.report(report)
    try:
        from .picture import draw
    except ModuleNotFoundError as error:
        screen.say(f"No picture, as {error.name} is missing: {installing('demo')}.")
    else:
        try:
            screen.say("Picture: " + ", ".join(map(str, draw(report, out))))
        except OSError as error:
            screen.say(f"No picture: {words(error)}")
    return 0 if report.ok else 1


def _same_for_everybody(provider: str) -> AbstractContextManager[object]:
    """Leave the user's own pools, limits and times out of it; how to reach a platform stays."""
    own = dask.config.get("tide", {})
    options = own.get("options") if own.get("provider") == provider else None
    return dask.config.set({"tide": {"provider": provider, "options": options or {}}})


def _new_cluster(provider: str, maximum: int | None) -> Any:
    from dask_tide import TideCluster

    with _same_for_everybody(provider):
        return TideCluster(
            provider=provider,
            minimum=0,
            maximum=maximum or max(LEAST_MAXIMUM, os.cpu_count() or 1),
            threads_per_worker=1,
            dashboard_address=ANY_PORT,
            # Lines in the middle of the live view would tear it.
            silence_logs=logging.ERROR,
        )


def _run_on_kubernetes(
    place: Place,
    maximum: int | None,
    size: Size,
    screen: Screen,
    fleet: Callable[[], Fleet] | None,
) -> Report:
    try:
        from .kubernetes import Installed, new_cluster, worker_nodes
    except ModuleNotFoundError as error:
        expected = f"a provider that can be imported ({error}); {installing('kubernetes')}"
        raise ConfigError("provider", "kubernetes", expected) from error
    machines = worker_nodes(place)

    def cluster() -> Any:
        if place.release is not None:
            screen.say(f"Reaching the scheduler of release {place.release} ...")
            return Installed(place)
        screen.say("Starting a scheduler in the cluster ...")
        with _same_for_everybody("kubernetes"):
            return new_cluster(place, maximum or LEAST_MAXIMUM)

    with warnings.catch_warnings():
        # The job's results are the same whatever the patch release of the Python in the image.
        warnings.simplefilter("ignore", VersionMismatchWarning)
        return run(cluster, size=size, screen=screen, patience=AFAR, machines=machines, fleet=fleet)
