"""Draw the story: tasks and workers over time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

# Drawn without pyplot: nothing global is touched, and no display is needed.
import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from .recorder import Sample
from .screen import COLOURS
from .story import Act, Report

_TASKS = {"done": COLOURS["done"], "running": "#D55E00", "ready": "#56B4E9", "waiting": "#D9D9D9"}
_WORKERS = {state: COLOURS[state] for state in ("busy", "idle", "leaving", "starting", "unplaced")}
_MACHINES = {"at work": COLOURS["busy"], "empty": COLOURS["idle"], "booting": COLOURS["starting"]}
#: What is not there yet is hatched.
_HATCHES = {"starting": "////", "unplaced": r"\\", "booting": "////"}
_INK = "#333333"
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.edgecolor": "#999999",
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    # Text stays text in the SVG, and the same report gives the same file.
    "svg.fonttype": "none",
    "svg.hashsalt": "dask-tide",
}
#: Acts closer to the next than this share of the picture's width are captioned one line lower.
_CROWDED_RATIO = 0.075
#: Acts that a reader sees without being told.
_UNMARKED = {Act.NOBODY, Act.FETCHED}


def draw(report: Report, out: Path) -> tuple[Path, Path]:
    """Write a PNG and an SVG.

    Parameters
    ----------
    report
        What happened.
    out
        The files' path without their endings; folders are made if need be.

    Returns
    -------
    tuple of Path
        The two files.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    png, svg = out.with_name(f"{out.name}.png"), out.with_name(f"{out.name}.svg")
    with mpl.rc_context(_STYLE):
        figure = _figure(report)
        figure.savefig(png, dpi=160)
        figure.savefig(svg, metadata={"Date": None})
    return png, svg


def _figure(report: Report) -> Figure:
    samples = list(_changes(report.recording.samples))
    fleets = [sample.fleet for sample in samples if sample.fleet is not None]
    figure = Figure(figsize=(10, 7.6 if fleets else 5.6), layout="constrained", facecolor="white")
    ratios = [1.15, 1, 0.7] if fleets else [1.15, 1]
    panels = tasks, workers, *_ = list(figure.subplots(len(ratios), 1, sharex=True, height_ratios=ratios))
    at_s = [sample.at_s for sample in samples]
    _stack(
        tasks,
        at_s,
        {state: [getattr(sample.tasks, state) for sample in samples] for state in _TASKS},
        _TASKS,
    )
    counts = {state: [sample.count(state) for sample in samples] for state in ("busy", "idle", "leaving")}
    counts["starting"] = [sample.starting - sample.waiting for sample in samples]
    counts["unplaced"] = [sample.waiting for sample in samples]
    _stack(workers, at_s, counts, _WORKERS)
    if fleets:
        # One that is about to go may still have had a worker on it a moment ago.
        used = [min(len(sample.machines), fleet.ready) for sample, fleet in zip(samples, fleets, strict=True)]
        empty = [fleet.ready - count for fleet, count in zip(fleets, used, strict=True)]
        booting = [fleet.booting for fleet in fleets]
        _stack(panels[2], at_s, dict(zip(_MACHINES, (used, empty, booting), strict=True)), _MACHINES)
        panels[2].set_ylabel("machines")
        panels[2].yaxis.set_major_locator(MaxNLocator(integer=True))

    tasks.set_ylabel("tasks")
    tasks.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    workers.set_ylabel("workers")
    workers.yaxis.set_major_locator(MaxNLocator(integer=True))
    panels[-1].set_xlabel("seconds")
    workers.set_xlim(0, at_s[-1])
    for axes in panels:
        axes.margins(y=0.04)
        axes.set_ylim(bottom=0)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, reverse=True)
    _mark(panels, report)
    used_s = report.recording.spent_s
    figure.suptitle(
        f"From nothing to {report.recording.peak} workers and back: "
        f"{report.recording.busy_s:.0f} s of work in {report.finished_s - report.submitted_s:.0f} s, "
        f"with {used_s:.0f} worker-seconds",
        fontsize=13,
        fontweight="bold",
        x=0.01,
        ha="left",
    )
    return figure


def _changes(samples: list[Sample]) -> Iterator[Sample]:
    """Those in which something is new, and the last: in steps, the others would only make the file larger."""
    drawn = attrgetter("stages", "workers", "starting", "waiting", "fleet")
    yield from (next(alike) for _, alike in groupby(samples[:-1], drawn))
    yield samples[-1]


def _stack(axes: Axes, at_s: list[float], counts: dict[str, list[int]], colours: dict[str, str]) -> None:
    """Stack areas in steps: a sample holds until the next."""
    floor = [0] * len(at_s)
    for state, values in counts.items():
        top = [low + value for low, value in zip(floor, values, strict=True)]
        if any(values):
            hatch = _HATCHES.get(state)
            axes.fill_between(
                at_s,
                floor,
                top,
                step="post",
                label=state,
                facecolor="white" if hatch else colours[state],
                edgecolor=colours[state],
                hatch=hatch,
                linewidth=0.5 if hatch else 0,
            )
        if state == "running":
            # A handful among a thousand would not be seen.
            edge = [high if count else math.nan for high, count in zip(top, values, strict=True)]
            axes.step(at_s, edge, where="post", color=colours[state], linewidth=2.5)
        floor = top


def _mark(panels: list[Axes], report: Report) -> None:
    """A line where each act begins, and its caption above; captions that would touch are staggered."""
    marked = [(at_s, act) for act, at_s in sorted(report.began.items()) if act not in _UNMARKED]
    width_s = report.recording.samples[-1].at_s
    for at_s, _ in marked:
        for axes in panels:
            axes.axvline(at_s, color=_INK, linewidth=0.8, linestyle=(0, (2, 3)), zorder=3)
    row = 0
    ends = [at_s for at_s, _ in marked] + [width_s * 2]
    for (at_s, act), after_s in zip(marked, ends[1:], strict=True):
        panels[0].annotate(
            act.caption,
            (at_s, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(2, 4 + 13 * row),
            textcoords="offset points",
            fontsize=9.5,
            annotation_clip=False,
        )
        row = (row + 1) % 3 if after_s - at_s < _CROWDED_RATIO * width_s else 0
