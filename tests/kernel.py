"""What the kernel of this machine has counted."""

from __future__ import annotations

from pathlib import Path


def killed_for_memory() -> int:
    """How many processes it has killed since it booted, in containers, too."""
    counts = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return int(counts["oom_kill"])
