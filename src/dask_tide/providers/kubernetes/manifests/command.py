"""``dask tide manifests``: the objects of a cluster as YAML, for ``kubectl apply -f -``."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import yaml

from dask_tide.errors import ConfigError
from dask_tide.schema import merge

from . import manifests
from .goyaml import dump_all, parse

__all__ = ["manifests_command"]


@click.command(name="manifests")
@click.option("--name", default="dask", show_default=True, help="The cluster's name.")
@click.option("--namespace", default="default", show_default=True, help="Where it shall be.")
@click.option(
    "--values",
    "files",
    multiple=True,
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Values of the chart; of several files the last one wins.",
)
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="One value, such as pools.cpu.maximum=40; VALUE is YAML, and '\\.' a dot within a key.",
)
def manifests_command(name: str, namespace: str, files: Sequence[Path], assignments: Sequence[str]) -> None:
    """Print what makes a cluster on Kubernetes, for 'kubectl apply -f -'.

    These are the objects of the Helm chart. Certificates are new ones each time: to apply the objects again
    without replacing them, bring your own (security.tls.source=secret).
    """
    try:
        layers = [_read(file) for file in files]
        layers += [_assign(assignment) for assignment in assignments]
        made = manifests(name, namespace, merge(*layers))
    except ConfigError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)
    click.echo(dump_all(made), nl=False)


def _read(file: Path) -> dict[str, Any]:
    try:
        content = parse(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise click.ClickException(f"{file}: {error}") from error
    if content is None:  # an empty file
        return {}
    if not isinstance(content, dict):
        raise ConfigError(str(file), content, "a mapping")
    return content


def _assign(assignment: str) -> dict[str, Any]:
    """Make values of ``a.b=c``."""
    key, equals, text = assignment.partition("=")
    parts = [part.replace("\\.", ".") for part in re.split(r"(?<!\\)\.", key)]
    if not equals or not all(parts):
        raise click.UsageError(f"--set {assignment}: expected KEY=VALUE")
    try:
        value = parse(text)
    except yaml.YAMLError as error:
        raise click.ClickException(f"--set {assignment}: {error}") from error
    for part in reversed(parts):
        value = {part: value}
    assert isinstance(value, dict)
    return value
