"""``dask tide``: ask a cluster why, check a configuration, decide a journal again, see the demo."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import click
import yaml
from dask import config as dask_config

from dask_tide import config as configuration
from dask_tide.controller import journal as journals
from dask_tide.controller.explain import describe, story, summary
from dask_tide.errors import ConfigError, JournalError, words
from dask_tide.policy import decide
from dask_tide.providers.kubernetes.manifests.command import manifests_command
from dask_tide.validation import check, check_names

#: For the connection and the answer.
_ANSWER_S = 60.0
_TLS = "TLS takes an address tls://HOST:PORT, and distributed.comm.tls: ca-file, client.cert, client.key"

_scheduler = click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="The scheduler's address; by default Dask's scheduler-address (DASK_SCHEDULER_ADDRESS).",
)


@click.group(name="tide")
def tide() -> None:
    """A Dask cluster that is only a scheduler until somebody computes."""


tide.add_command(manifests_command)


@tide.command()
@_scheduler
@click.option("--journal", type=click.Path(path_type=Path), help="Explain this file instead.")
@click.option(
    "--lines",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    help="How many of the last events to tell.",
)
def explain(scheduler: str | None, journal: Path | None, lines: int) -> None:
    """Say why workers came, stayed or went, and why nothing happened."""
    if journal is None:
        click.echo(_ask(scheduler, lambda remote: remote.tide_explain(lines=lines)))
        return
    taken_down = _read(journal)
    told = list(story(taken_down))
    for sentence in told[-lines:] if lines > 0 else []:
        click.echo(sentence)
    click.echo()
    for sentence in summary(taken_down[-1]):
        click.echo(sentence)


@tide.command()
@_scheduler
def status(scheduler: str | None) -> None:
    """Show pools, units and limits as they are now."""
    found: dict[str, Any] = _ask(scheduler, lambda remote: remote.tide_status())
    found.pop("decisions")
    click.echo(yaml.safe_dump(found, sort_keys=False).rstrip())


@tide.command()
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
def validate(file: Path | None) -> None:
    """Check Dask's configuration, or that with FILE on top, without starting anything."""
    try:
        if file is not None:
            content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
            if not isinstance(content, dict) or "tide" not in content:
                raise ConfigError(str(file), content, "a mapping with the section tide")
            check_names(content)
            dask_config.update(dask_config.global_config, content, priority="new")
        config = configuration.read()
        check(config)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise click.ClickException(f"{file}: {error}") from error
    except ConfigError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)
    for name, template in config.pools.items():
        pool = template.pool
        click.echo(
            f"pool {name}: units {pool.minimum} to {pool.maximum}, workers in each: {pool.workers_per_unit}, "
            f"threads of each: {pool.threads}"
        )
    click.echo(f"provider {config.provider}: the configuration is valid")


@tide.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def replay(file: Path) -> None:
    """Decide a journal again; exit with 1 if a decision differs from what was decided then."""
    lines = _read(file)
    different = 0
    for number, line in enumerate(lines, 1):
        actions, _ = decide(line.snapshot, line.memory)
        if journals.encode_actions(actions) != journals.encode_actions(line.actions):
            different += 1
            click.echo(f"line {number}:")
            for sign, decided in (("-", line.actions), ("+", actions)):
                for action in decided:
                    click.echo(f"  {sign} {describe(action)}")
    click.echo(f"{len(lines)} decisions, {different} differ")
    sys.exit(1 if different else 0)


@tide.command()
@click.option("--provider", default="local", show_default=True)
@click.option("--maximum", type=click.IntRange(min=2), help="At most so many units.")
@click.option("--size", type=click.Choice(["small", "full"]), default="full", show_default=True)
@click.option(
    "--out",
    default="demo",
    show_default=True,
    type=click.Path(path_type=Path),
    help="The pictures' name without its ending.",
)
@click.option("--namespace", metavar="NAME", help="Kubernetes: where; by default as kubectl has it.")
@click.option("--kubeconfig", metavar="FILE", help="Kubernetes: likewise.")
@click.option("--context", metavar="NAME", help="Kubernetes: likewise.")
@click.option(
    "--image", metavar="REFERENCE", help="Kubernetes: of scheduler and workers; needed without --release."
)
@click.option(
    "--release", metavar="NAME", help="Kubernetes: play on this release of the chart, not on a new cluster."
)
def demo(
    provider: str,
    maximum: int | None,
    size: Literal["small", "full"],
    out: Path,
    **place: str | None,
) -> None:
    """Show the whole story: no worker, work, workers, an answer, one worker, none."""
    from dask_tide.demo.place import Place
    from dask_tide.demo.run import main

    given = [f"--{option}" for option, value in place.items() if value is not None]
    if given and provider != "kubernetes":
        raise click.UsageError(f"{', '.join(given)}: only with --provider kubernetes")
    if place["release"] is not None and (maximum is not None or place["image"] is not None):
        raise click.UsageError("with --release, the maximum and the image are the release's")
    sys.exit(main(provider=provider, maximum=maximum, size=size, out=out, place=Place(**place)))


def _read(path: Path) -> list[journals.Line]:
    try:
        lines = list(journals.read(path, partial(click.echo, err=True)))
    except JournalError as error:
        raise click.ClickException(str(error)) from error
    if not lines:
        raise click.ClickException(f"{path} is empty")
    return lines


def _ask(address: str | None, question: Callable[[Any], Any]) -> Any:
    """Call one of the controller's handlers in a scheduler."""
    from distributed.comm.core import CommClosedError
    from distributed.core import rpc
    from distributed.security import Security

    address = address or dask_config.get("scheduler-address", None)
    if not address:
        raise click.UsageError("say which scheduler: --scheduler ADDRESS, or DASK_SCHEDULER_ADDRESS")

    async def ask() -> Any:
        async with rpc(address, connection_args=Security().get_connection_args("client")) as remote:
            # Whoever listens there may be no scheduler, and say nothing.
            return await asyncio.wait_for(question(remote), _ANSWER_S)

    try:
        answer = asyncio.run(ask())
    except (RuntimeError, TypeError) as error:  # of what is configured
        raise click.ClickException(f"{address} cannot be asked: {error}. {_TLS}") from error
    except (OSError, CommClosedError, MemoryError, ValueError) as error:
        hint = f". {_TLS}" if isinstance(error, CommClosedError) else ""
        raise click.ClickException(f"no scheduler answers at {address}: {words(error)}{hint}") from error
    if answer is None:  # what a scheduler replies to an operation that it does not know
        raise click.ClickException(
            f"the scheduler at {address} runs no dask-tide: start it with --preload dask_tide.preload"
        )
    return answer
