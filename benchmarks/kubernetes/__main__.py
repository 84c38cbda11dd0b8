"""``python -m benchmarks.kubernetes [PART …]``: measure, print tables, write raw numbers to results/."""

from __future__ import annotations

import argparse

from benchmarks.parts import chosen, measure

from . import nodes, peer, plane, shrink, size
from .clusters import Clusters
from .figures import SMALL, Sizes

#: Those on fake nodes come first: each change of cluster takes some seconds.
PARTS = {"plane": plane, "size": size, "shrink": shrink, "nodes": nodes}


def main() -> None:
    """Run the named parts, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kubernetes")
    parser.add_argument("part", nargs="*", help=f"{', '.join(PARTS)}; all by default")
    parser.add_argument("--small", action="store_true", help="a tenth of it, to see whether it works")
    arguments = parser.parse_args()
    parts = chosen(parser, PARTS, arguments.part)
    if {"plane", "nodes"} & set(parts):
        peer.environment()
    sizes = SMALL if arguments.small else Sizes()
    with Clusters() as clusters:
        measure("kubernetes", parts, lambda part: [part.run(clusters, sizes)], small=arguments.small)


if __name__ == "__main__":
    main()
