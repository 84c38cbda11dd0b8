"""Show the demo while it runs: a live view in a terminal, plain lines anywhere else."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from itertools import pairwise
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from .job import STAGES
from .recorder import Decision, Recording, Sample, Tasks
from .story import Act, Report, findings

if TYPE_CHECKING:
    from rich.console import Console, Group, RenderableType

#: Colours that the colour-blind can tell apart (Okabe and Ito); each state has a shape as well.
COLOURS = {
    "busy": "#0072B2",
    "idle": "#E69F00",
    "leaving": "#CC79A7",
    "starting": "#999999",
    "unplaced": "#999999",
    "done": "#009E73",
}
SHAPES = {"busy": "█", "idle": "▒", "leaving": "▽", "starting": "◌"}
_BARS = " ▁▂▃▄▅▆▇█"
_SPARKS = 40
_DECISIONS_SHOWN = 3


class Screen(AbstractContextManager["Screen"], ABC):
    """Where the demo shows itself."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    @abstractmethod
    def show(self, recording: Recording, act: Act, new: bool) -> None:
        """Show the last sample; ``new`` says that an act begins with it."""

    @abstractmethod
    def say(self, text: str) -> None:
        """Add a line."""

    @abstractmethod
    def table(self, title: str, rows: list[tuple[str, str]]) -> None:
        """Add a table of two columns."""

    def report(self, report: Report) -> None:
        """Tell what happened."""
        self.say("")
        for sentence in findings(report.answer):
            self.say(sentence)
        self.table("What happened", report.rows())
        acted = [each for each in report.recording.decisions if each.action != "hold"]
        if acted:
            self.table("Decisions", [(f"{each.at_s:.1f} s", each.sentence) for each in acted])
        self.table("The story", [("yes" if each.kept else "NO", each.text) for each in report.promises])
        missed = [promise.text for promise in report.promises if not promise.kept]
        if missed:
            self.say("Did not come true: " + "; ".join(missed) + ".")


class PlainScreen(Screen):
    """One line per event.

    Parameters
    ----------
    stream
        Where to write.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._told = 0
        self._before = Sample(0.0)

    def show(self, recording: Recording, act: Act, new: bool) -> None:
        sample, before = recording.samples[-1], self._before
        lines = [f"== {act.headline} =="] if new else []
        decisions, self._told = recording.decisions[self._told :], len(recording.decisions)
        lines += [each.sentence for each in decisions if each.action != "hold"]
        if (len(sample.workers), sample.starting) != (len(before.workers), before.starting):
            lines.append(
                f"workers: {len(sample.workers)}"
                + on_machines(sample)
                + (f", {sample.starting} starting" if sample.starting else "")
            )
        for stage, what in STAGES.items():
            tasks = sample.stages.get(stage, Tasks())
            if 0 < tasks.total == tasks.done and before.stages.get(stage, Tasks()).done < tasks.done:
                lines.append(f"{what}: all {tasks.total:,} done")
        self._before = sample
        for line in lines:
            self.say(f"{sample.at_s:6.1f} s  {line}")

    def say(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()

    def table(self, title: str, rows: list[tuple[str, str]]) -> None:
        width = max(len(what) for what, _ in rows)
        self.say(f"\n{title}")
        for what, value in rows:
            self.say(f"  {what:<{width}}  {value}")


class LiveScreen(Screen):
    """A view that is redrawn in place.

    Parameters
    ----------
    console
        The terminal.
    """

    def __init__(self, console: Console) -> None:
        from rich.live import Live

        self._console = console
        # It is redrawn with each sample: no thread of rich's own is needed.
        self._live = Live(console=console, auto_refresh=False, transient=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, recording: Recording, act: Act, new: bool) -> None:
        self._live.update(_view(recording, act), refresh=True)

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    def table(self, title: str, rows: list[tuple[str, str]]) -> None:
        from rich.box import SIMPLE
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=SIMPLE)
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        for what, value in rows:
            table.add_row(Text(what), Text(value))
        self._console.print(table)


def screen_for(stream: TextIO) -> Screen:
    """A live screen if ``stream`` is a terminal for people and rich is there; else a plain one."""
    if (
        not stream.isatty()
        or not (stream.encoding or "utf-8").lower().startswith("utf")
        or os.environ.get("NO_COLOR")
        or os.environ.get("CI")
        or os.environ.get("TERM") == "dumb"
    ):
        return PlainScreen(stream)
    try:
        from rich.console import Console
    except ModuleNotFoundError:
        return PlainScreen(stream)
    return LiveScreen(Console(file=stream))


def on_machines(sample: Sample) -> str:
    """Where the workers are, if that is more than one place."""
    return f" on {', '.join(sample.machines)}" if len(sample.machines) > 1 else ""


def throughput(recording: Recording, window_s: float = 1.0, points: int = _SPARKS) -> list[float]:
    """Tasks finished per second, averaged over windows; the last window ends now."""
    samples = recording.samples
    now_s = samples[-1].at_s if samples else 0.0
    done_at = [0] * (points + 1)
    for sample in samples:
        # The oldest edge that this sample is not later than gets at least this much.
        back = int((now_s - sample.at_s) / window_s)
        if back <= points:
            done_at[points - back] = max(done_at[points - back], sample.tasks.done)
    for place in range(1, points + 1):
        done_at[place] = max(done_at[place], done_at[place - 1])
    return [(after - before) / window_s for before, after in pairwise(done_at)]


def spark(values: list[float]) -> str:
    """Draw values as a line of blocks, the highest as the full one.

    >>> spark([0, 1, 2, 4])
    ' ▂▄█'
    """
    top = max(values, default=0.0)
    return "".join(_BARS[round(value / top * (len(_BARS) - 1))] if top else _BARS[0] for value in values)


def _view(recording: Recording, act: Act) -> RenderableType:
    from rich.panel import Panel
    from rich.text import Text

    sample = recording.samples[-1]
    title = Text.assemble((" dask-tide ", "bold"), (f"{sample.at_s:.0f} s ", "dim"))
    return Panel(
        _body(recording, sample, act), title=title, title_align="left", border_style="#56B4E9", padding=(0, 1)
    )


def _body(recording: Recording, sample: Sample, act: Act) -> Group:
    from rich.console import Group
    from rich.text import Text

    rates = throughput(recording)
    speed = Text.assemble(
        ("tasks per second  ", "dim"),
        (spark(rates), COLOURS["done"]),
        f"  {rates[-1]:.0f}",
        (f" (best {max(rates):.0f})", "dim"),
    )
    return Group(
        Text(act.headline, style="bold"),
        Text(),
        _workers(sample),
        Text(),
        _stages(sample),
        Text(),
        speed,
        Text(),
        _decisions(recording.decisions),
    )


def _workers(sample: Sample) -> RenderableType:
    from rich.text import Text

    counts = {state: sample.count(state) for state in ("busy", "idle", "leaving")} | {
        "starting": sample.starting
    }
    row = Text("workers  ", style="dim")
    for state, count in counts.items():
        row.append(f"{SHAPES[state] * 2} " * count, style=COLOURS[state])
    told = ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "none"
    row.append(f" {told}{on_machines(sample)}", style="default")
    return row


def _stages(sample: Sample) -> RenderableType:
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", min_width=20)
    grid.add_column(width=40)
    grid.add_column(justify="right", min_width=13)
    for stage, what in STAGES.items():
        tasks = sample.stages.get(stage, Tasks())
        bar = ProgressBar(
            total=max(1, tasks.total), completed=tasks.done, width=40,
            complete_style=COLOURS["busy"], finished_style=COLOURS["done"],
        )  # fmt: skip
        grid.add_row(what, bar, f"{tasks.done:,} / {tasks.total:,}" if tasks.total else "")
    return grid


def _decisions(decisions: list[Decision]) -> RenderableType:
    """The last ones that changed something, and why nothing happens if that is the last word."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", justify="right", no_wrap=True)
    grid.add_column()
    shown = [each for each in decisions if each.action != "hold"][-_DECISIONS_SHOWN:]
    shown += [each for each in decisions[-1:] if each.action == "hold"]
    for each in shown:
        grid.add_row(f"{each.at_s:.1f} s", Text(each.sentence, style="dim" if each.action == "hold" else ""))
    return grid
