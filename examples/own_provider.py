"""A provider of one's own: a unit is a process started with ``dask worker``.

Use it by its dotted name::

    TideCluster(provider="own_provider:Processes", maximum=4)
"""

import subprocess
import sys

from dask_tide.errors import LaunchRejected
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
        return Observation(tuple(self.look(name, *unit) for name, unit in self.units.items()))

    def look(self, name, pool, process):
        failed = process.poll() is not None
        message = f"ended with code {process.returncode}" if failed else ""
        return ObservedUnit(name, pool, Phase.FAILED if failed else Phase.STARTING, message=message)

    async def scale_up(self, pool, n):
        existing = sum(1 for of, process in self.units.values() if of == pool and process.poll() is None)
        for _ in range(n - existing):
            name = unit_name(self.context.cluster, pool)
            command = self.command(name, self.context.templates[pool].pool)
            try:
                self.units[name] = pool, subprocess.Popen(command)  # noqa: ASYNC220
            except OSError as error:
                raise LaunchRejected(str(error)) from error

    def command(self, name, pool):
        resources = ",".join(f"{resource}={amount}" for resource, amount in pool.resources)
        return [sys.executable, "-m", "distributed.cli.dask_worker", self.context.scheduler_address,
                "--name", name, "--nthreads", str(pool.threads), "--memory-limit", str(pool.memory_bytes),
                "--resources", resources, "--no-nanny", "--no-dashboard",
                "--preload", "dask_tide.preload"]  # fmt: skip

    async def scale_down(self, units):
        for name in units:
            if name in self.units:
                self.units.pop(name)[1].terminate()

    async def close(self):
        await self.scale_down(list(self.units))
