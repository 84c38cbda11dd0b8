"""What is measured with, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Sizes:
    """How much of everything.

    Attributes
    ----------
    some, many
        Pods on fake nodes.
    rounds
        How often the growth to ``some`` is measured; the median counts.
    workers, tasks
        Of the job on real nodes; tasks take a second.
    idle_s
        For how long schedulers are watched that have nothing to do.
    after_s
        For how long, after a job, workers are waited for to go.
    """

    some: int = 100
    many: int = 1000
    rounds: int = 3
    workers: int = 12
    tasks: int = 240
    idle_s: float = 20.0
    after_s: float = 30.0


#: To see whether it works.
SMALL = Sizes(some=10, many=40, rounds=1, workers=3, tasks=12, idle_s=2.0, after_s=5.0)


def note(text: str) -> None:
    """Say how far a part is."""
    print(f"   {text}", flush=True)


@dataclass
class Figures:
    """A part's results.

    Attributes
    ----------
    raw
        All that was measured.
    rows
        The table: what, ours, the peer's, the ratio, the goal, whether it was reached.
    """

    raw: dict[str, Any] = field(default_factory=dict)
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def against(
        self, what: str, ours: float | None, peer: float | None, goal: float | None, unit: str = "s"
    ) -> None:
        """Add a row: our figure against a peer's; the goal is an upper bound of the ratio."""
        ratio = None if ours is None or not peer else ours / peer
        reached = ours is not None and peer is not None and (goal is None or ours <= goal * peer)
        self.rows.append(
            (
                what,
                _number(ours, unit),
                _number(peer, unit),
                "-" if ratio is None else f"{ratio:.2f}",
                "" if goal is None else f"<= {goal:.2f}",
                "" if goal is None else _said(reached),
            )
        )

    def alone(self, what: str, ours: float | None, goal: float | None = None, unit: str = "s") -> None:
        """Add a row: a figure without a peer; the goal is its upper bound."""
        reached = ours is not None and (goal is None or ours <= goal)
        limit, said = ("", "") if goal is None else (f"<= {_number(goal, unit)}", _said(reached))
        self.rows.append((what, _number(ours, unit), "", "", limit, said))

    def table(self) -> str:
        """The rows as text."""
        rows = [("", "ours", "peer", "ratio", "goal", "reached"), *self.rows]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = []
        for row in rows:
            first, *others = (
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            lines.append("  ".join([first, *others]).rstrip())
        return "\n".join(lines)


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return "not seen"
    digits = f"{value:.0f}" if value == int(value) or abs(value) >= 100 else f"{value:.3g}"
    return f"{digits} {unit}".strip()


def _said(reached: bool) -> str:
    return "yes" if reached else "NO"
