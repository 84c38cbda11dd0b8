"""``python -m benchmarks.aws [PART …]``: measure, print tables, write raw numbers to results/."""

from __future__ import annotations

import argparse
from dataclasses import replace

from benchmarks.kubernetes import peer
from benchmarks.parts import chosen, measure

from . import bursty, first, scale
from .settings import SMALL, Settings
from .workloads import WORKLOADS

PARTS = {"bursty": bursty, "first": first, "scale": scale}


def main() -> None:
    """Run the named parts, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.aws")
    parser.add_argument("part", nargs="*", help=f"{', '.join(PARTS)}; all by default")
    parser.add_argument("--small", action="store_true", help="a fifth of it, to see whether it works")
    parser.add_argument("--boots", nargs="+", type=float, metavar="S", help="how long machines boot: 60 180")
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, help="all by default")
    arguments = parser.parse_args()
    parts = chosen(parser, PARTS, arguments.part)
    settings = SMALL if arguments.small else Settings()
    if arguments.boots:
        settings = replace(settings, boots=tuple(arguments.boots))
    if arguments.workloads:
        settings = replace(settings, workloads=tuple(arguments.workloads))
    if "bursty" in parts:
        peer.environment()
    measure("aws", parts, lambda part: part.run(settings), small=arguments.small)


if __name__ == "__main__":
    main()
