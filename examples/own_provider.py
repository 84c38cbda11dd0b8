"""A provider of one's own: a unit is a process started with ``dask worker``.

Use it by its dotted name::

    TideCluster(provider="own_provider:Processes", maximum=4)
"""

import asyncio
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
        self.stopping = set()

    async def observe(self):
        for name in [n for n, (_, process) in self.units.items() if process.poll() is not None]:
            if self.units[name][1].returncode == 0 or name in self.stopping:
                del self.units[name]
        return Observation(tuple(self.look(name, *unit) for name, unit in self.units.items()))

    def look(self, name, pool, process):
        if process.returncode is not None:
            return ObservedUnit(name, pool, Phase.FAILED, message=f"ended with code {process.returncode}")
        return ObservedUnit(name, pool, Phase.STOPPING if name in self.stopping else Phase.STARTING)

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
                "--resources", resources, "--no-nanny", "--no-dashboard", "--death-timeout", "60",
                "--preload", "dask_tide.preload"]  # fmt: skip

    async def scale_down(self, units):
        for name in set(units) & set(self.units) - self.stopping:
            self.units[name][1].terminate()
            self.stopping.add(name)

    async def close(self):
        await self.scale_down(list(self.units))
        for _, process in self.units.values():
            await asyncio.to_thread(process.wait)
