"""A provider of one's own: a unit is a process started with ``dask worker``.

Use it by its dotted name::

    TideCluster(provider="own_provider:Processes", maximum=4)
"""

import subprocess
import sys

from dask_tide.model import Phase
from dask_tide.providers.base import Observation, ObservedUnit, unit_name


class Processes:
    boot_s = 2.0  # seconds a worker takes to start, until that has been measured
    closes_workers = True  # a drained worker's process may end

    def __init__(self, context):
        self.context = context
        self.units = {}  # name: (pool, process)

    async def observe(self):
        self.units = {name: unit for name, unit in self.units.items() if unit[1].poll() != 0}
        return Observation(tuple(self.look(*item) for item in self.units.items()))

    def look(self, name, unit):
        pool, process = unit
        failed = process.returncode is not None
        message = f"ended with code {process.returncode}" if failed else ""
        return ObservedUnit(name, pool, Phase.FAILED if failed else Phase.STARTING, message=message)

    async def scale_up(self, pool, n):
        for _ in range(n - sum(1 for name in self.units if self.units[name][0] == pool)):
            name = unit_name(self.context.cluster, pool)
            threads = str(self.context.templates[pool].pool.threads)
            command = [sys.executable, "-m", "distributed.cli.dask_worker", self.context.scheduler_address]
            options = ["--name", name, "--nthreads", threads, "--no-nanny", "--no-dashboard"]
            self.units[name] = pool, subprocess.Popen(command + options)

    async def scale_down(self, units):
        for name in units:
            if name in self.units:
                self.units.pop(name)[1].terminate()

    async def close(self):
        await self.scale_down(list(self.units))
