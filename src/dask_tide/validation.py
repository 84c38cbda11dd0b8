"""Validation: what a configuration will meet that is right by itself, before anything is started."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from dask_tide.config import TideConfig
from dask_tide.controller.folder import check_shared
from dask_tide.errors import ConfigError
from dask_tide.providers.registry import load

__all__ = ["check", "check_names"]


def check(config: TideConfig) -> None:
    """Find the provider, and check the options of our own ones and the folder.

    Raises
    ------
    ConfigError
        Something is wrong, or missing here.
    """
    factory = load(config.provider)
    if config.provider == "local":
        from dask_tide.providers.local.options import Options as LocalOptions

        common = LocalOptions().updated("tide.options", config.options)
        for name, template in config.pools.items():
            common.updated(f"tide.pools.{name}.options", template.options)
    elif config.provider == "kubernetes":
        from dask_tide.providers.kubernetes.options import Options, protects

        Options.read(config.options)
        for name, template in config.pools.items():
            protects(f"tide.pools.{name}.options", template.options)
    if config.folder is not None:
        _check_folder(config.folder, alone=getattr(factory, "alone", False))


def check_names(content: object, *path: str) -> None:
    """Raise :class:`~dask_tide.errors.ConfigError` where a name in it is no text; Dask fails at those."""
    if isinstance(content, Mapping):
        for name, below in content.items():
            if not isinstance(name, str):
                raise ConfigError(".".join(path) or "the file", name, "keys that are text")
            check_names(below, *path, name)


def _check_folder(folder: Path, *, alone: bool) -> None:
    try:
        if not alone and folder.exists():
            check_shared(folder)
        there = next(path for path in (folder, *folder.parents) if path.exists())
        # Permissions alone do not say it: nobody can write in /proc.
        with tempfile.TemporaryDirectory(dir=there):
            pass
    except OSError as error:
        expected = f"a folder that can be written to ({error.strerror})"
        raise ConfigError("tide.folder", str(folder), expected) from error
