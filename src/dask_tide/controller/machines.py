"""Machines: for how many more units those that are there have room, as far as it can be seen of the units."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping

__all__ = ["Machines"]


class Machines:
    """The machines that one pool's units run on, and ran on lately.

    A machine is taken to have room for as many units as were ever seen together on one of its kind: what else
    runs there the controller may not see. Where kinds are not told, all machines are of one.
    """

    def __init__(self) -> None:
        #: By kind.
        self._fit: Counter[str] = Counter()
        self._kinds: dict[str, str] = {}
        self._units: Counter[str] = Counter()
        self._used_s: dict[str, float] = {}

    @property
    def seen(self) -> bool:
        """Whether any was ever shown."""
        return bool(self._fit)

    def update(self, now_s: float, machines: Iterable[str], there: Collection[str] | None = None) -> None:
        """Of each unit that has a place: its machine; and all machines that stay, if that is known.

        ``there`` may be a mapping: to what kind each of them is.
        """
        self._units = Counter(machine for machine in machines if machine)
        self._used_s.update(dict.fromkeys(self._units, now_s))
        if there is not None:
            self._used_s = {machine: at_s for machine, at_s in self._used_s.items() if machine in there}
        # What one is, it stays, also while the platform does not tell.
        told = there if isinstance(there, Mapping) else {}
        known = self._kinds | {machine: told[machine] for machine in self._used_s if machine in told}
        self._kinds = {machine: known.get(machine, "") for machine in {*self._used_s, *self._units}}
        for machine, count in self._units.items():
            kind = self._kinds[machine]
            self._fit[kind] = max(self._fit[kind], count)

    def room(self, now_s: float, idle_s: float) -> int:
        """How many more would fit, if the platform keeps a machine for ``idle_s`` after its last unit."""
        self._used_s = {machine: at_s for machine, at_s in self._used_s.items() if now_s - at_s <= idle_s}
        return sum(self._fit[self._kinds[machine]] - self._units[machine] for machine in self._used_s)


def by_pool(units: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Machines by pool, of ``(pool, machine)`` pairs."""
    found: dict[str, list[str]] = defaultdict(list)
    for pool, machine in units:
        found[pool].append(machine)
    return found
