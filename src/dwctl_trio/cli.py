"""The command line: ``dwctl-trio serve``, and what an operator needs around it."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import click
import trio

from dwctl_trio.analytics.usage import BY, parse_since, printable, render_usage_report
from dwctl_trio.app import run_api, run_worker
from dwctl_trio.command import EXIT_FAILURE, EXIT_USAGE, allow_many_connections, fail, prepare_process, run_command
from dwctl_trio.config import WORKERS_MAX, Config, find_warnings, load_config, render_config
from dwctl_trio.config.section import ConfigError
from dwctl_trio.demo import run_demo
from dwctl_trio.observability.log import configure_logging
from dwctl_trio.postgres.database import open_database
from dwctl_trio.postgres.keys import SHOWN_CHARACTERS, PostgresKeyStore
from dwctl_trio.postgres.usage import read_usage
from dwctl_trio.supervisor import run_supervisor
from dwctl_trio.testing.simulator import run_simulator

OWNER_CHARACTERS_MAX = 128
"""An owner stands in every row, log line and index of its requests."""

_config_option = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    default=None,
    help="The configuration file. Without it the defaults and DWCTL_* hold.",
)


@click.group()
@click.version_option(package_name="dwctl-trio")
def main() -> None:
    """The /v1/responses server that never loses a response."""


@main.command()
@_config_option
@click.option("--host", default=None, help="Overrides the configuration.")
@click.option("--port", type=click.IntRange(0, 65535), default=None, help="Overrides the configuration; 0: any.")
@click.option("--workers", type=click.IntRange(1, WORKERS_MAX), default=None, help="Overrides the configuration.")
def serve(config_path: Path | None, host: str | None, port: int | None, workers: int | None) -> None:
    """Serve the API, in one process or in several."""
    config = _load(config_path, host=host, port=port, workers=workers)
    configure_logging(level=config.log_level)
    prepare_process()
    run_command(run_api if config.workers == 1 else run_supervisor, config, config=config)


@main.command()
@_config_option
def worker(config_path: Path | None) -> None:
    """Work on queued responses, and serve nothing."""
    config = _load(config_path)
    if config.limits.queue_workers == 0:
        fail("limits.queue_workers is 0, so this worker would do nothing: set it to 1 or more", EXIT_USAGE)
    configure_logging(level=config.log_level)
    prepare_process()
    run_command(run_worker, config, config=config)


@main.command()
@_config_option
def migrate(config_path: Path | None) -> None:
    """Bring the database's schema up to date."""
    config = _load(config_path)

    async def run() -> None:
        async with open_database(config, migrating=True):
            click.echo("The database's schema is up to date.")

    run_command(run, config=config)


@main.command(name="check-config")
@_config_option
def check_config(config_path: Path | None) -> None:
    """Print the configuration in force, secrets masked, and warn of what would serve nobody."""
    config = _load(config_path)
    click.echo(render_config(config), nl=False)
    for warning in find_warnings(config):
        click.echo(f"dwctl-trio: warning: {warning}", err=True)


@main.group()
def keys() -> None:
    """Create, list and revoke API keys."""


@keys.command(name="create")
@_config_option
@click.option("--owner", required=True, help="Whose requests and responses the key stands for.")
def create_key(config_path: Path | None, owner: str) -> None:
    """Print a new key, once; only its digest is stored."""
    if not owner.strip() or not owner.isprintable() or len(owner) > OWNER_CHARACTERS_MAX:
        fail(f"--owner: expected 1 to {OWNER_CHARACTERS_MAX} printable characters", EXIT_USAGE)

    async def run(store: PostgresKeyStore) -> None:
        click.echo(await store.create_key(owner))

    _run_with_keys(config_path, run)


@keys.command(name="list")
@_config_option
def list_keys(config_path: Path | None) -> None:
    """List all keys by their prefix."""
    rows: list[Any] = []

    async def run(store: PostgresKeyStore) -> None:
        rows.extend(await store.list_keys())

    _run_with_keys(config_path, run)
    for row in rows:  # a slow pager must not keep the embedded database
        state = f"revoked {row['revoked_at']:%Y-%m-%d %H:%M}" if row["revoked_at"] else "live"
        click.echo(f"{row['prefix']}…  {row['created_at']:%Y-%m-%d %H:%M}  {state:<24}  {printable(row['owner'])}")


@keys.command(name="revoke")
@_config_option
@click.argument("prefix")
def revoke_key(config_path: Path | None, prefix: str) -> None:
    """Revoke the key with this PREFIX; it is refused within 5 seconds."""
    shown = prefix[:SHOWN_CHARACTERS].removesuffix("…")  # a whole key will do as well, and is not repeated

    async def run(store: PostgresKeyStore) -> None:
        owner = await store.revoke_key(shown)
        if owner is None:
            fail(f"no live key has the prefix {shown!r}; 'dwctl-trio keys list' shows them", EXIT_FAILURE)
        click.echo(f"Revoked the key {shown}… of {printable(owner)}.")

    _run_with_keys(config_path, run)


@main.command()
@_config_option
@click.option("--since", default="24h", show_default=True, help="How far back: 90s, 30m, 24h, 7d.")
@click.option("--by", type=click.Choice(BY), default="model", show_default=True)
def usage(config_path: Path | None, since: str, by: str) -> None:
    """Show what was used and what it cost, or by tool how often each was called."""
    config = _load(config_path)
    try:
        since_s = parse_since(since)
    except ValueError as error:
        fail(f"--since: {error}", EXIT_USAGE)

    async def run() -> None:
        async with open_database(config) as pool:
            lines = await read_usage(pool, since_s=since_s, by=by)
        click.echo(render_usage_report(lines, by=by))  # a slow pager must not keep the embedded database

    run_command(run, config=config)


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
def simulator(host: str, port: int) -> None:
    """Run the scripted chat-completions upstream alone."""
    allow_many_connections()

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            try:
                url = await nursery.start(run_simulator, host, port)
            except* OSError:
                fail(f"cannot listen on {host}, port {port}; choose another with --host and --port", EXIT_FAILURE)
            click.echo(f"The simulator listens on {url}", err=True)

    run_command(run)


@main.command()
def demo() -> None:
    """Show one response from the first token to the database, with everything it needs."""
    run_command(run_demo)


def _load(path: Path | None, **options: Any) -> Config:
    """The configuration with *options* of the command line, as ``load_config`` takes them, on top."""
    try:
        return load_config(path, **options)
    except ConfigError as error:
        fail(str(error), EXIT_USAGE)


def _run_with_keys(config_path: Path | None, work: Callable[[PostgresKeyStore], Awaitable[None]]) -> None:
    config = _load(config_path)

    async def run() -> None:
        async with open_database(config) as pool:
            await work(PostgresKeyStore(pool))

    run_command(run, config=config)
