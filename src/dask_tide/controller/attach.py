"""Attach: put the controller into a scheduler."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dask_tide import config as configuration
from dask_tide.providers.base import Provider, ProviderContext
from dask_tide.providers.registry import load

from .folder import named_folder, private_folder
from .handlers import register
from .loop import Controller

if TYPE_CHECKING:
    from distributed.scheduler import Scheduler

logger = logging.getLogger("distributed.tide.attach")


def attach(
    scheduler: Scheduler,
    overrides: Mapping[str, Any] | None = None,
    *,
    provider: Callable[[ProviderContext], Provider] | None = None,
    shut_down: Callable[[], Awaitable[object]] | None = None,
) -> Controller:
    """Start a controller in a running scheduler, with Dask's configuration section ``tide``.

    Parameters
    ----------
    scheduler
        It must be listening already: units are told its address.
    overrides
        Values that take precedence over the configuration, nested as in it.
    provider
        Instead of the configured one.
    shut_down
        Instead of closing the scheduler when there has been no work for long enough.

    Raises
    ------
    ConfigError
        Something in the configuration is wrong; nothing was started.
    """
    if "tide" in scheduler.plugins:
        raise RuntimeError("this scheduler has a dask-tide controller already")
    config = configuration.read(overrides)
    factory = load(config.provider) if provider is None else provider
    cluster = config.name or f"tide-{secrets.token_hex(3)}"
    # The paths of now, wherever this process goes from here.
    named, path = (None if it is None else it.absolute() for it in (config.folder, config.journal.path))
    config = replace(config, name=cluster, folder=named, journal=replace(config.journal, path=path))
    alone = getattr(factory, "alone", False)
    named_one = None if config.folder is None else named_folder(config.folder, cluster, alone=alone)
    private, remove_private = private_folder(cluster)
    clean_up = ExitStack()
    clean_up.callback(remove_private)
    folder = named_one or private
    if config.journal.path is None:
        config = replace(config, journal=replace(config.journal, path=folder / "journal.jsonl"))
    # Of all clusters that have this folder: mostly one after the other, each with a name of its own.
    durations = None if config.folder is None else config.folder / "durations.json"
    controller = Controller(
        scheduler, config, shut_down=shut_down, clean_up=clean_up.close, durations=durations
    )
    context = ProviderContext(
        cluster=cluster,
        scheduler_address=scheduler.address,
        templates=config.pools,
        options=config.options,
        folder=folder,
        private=private,
        security=scheduler.security,
        wake=controller.wake,
    )
    try:
        controller.start(factory(context))
    except BaseException:
        clean_up.close()
        raise
    clean_up.callback(register(controller))
    logger.info(
        "dask-tide: cluster %s, provider %s, pools %s; logs and journal in %s",
        cluster,
        config.provider,
        ", ".join(f"{pool.name} ({pool.minimum} to {pool.maximum})" for pool in controller.pools.values()),
        folder,
    )
    scheduler.extensions["tide"] = controller
    return controller
