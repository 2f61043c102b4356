"""How a command runs and ends: what it takes of the machine, and what goes wrong on purpose as one line.

Rule: a line on standard error says what was wrong and what to do; the status is 1, or 2 for a wrong configuration.
"""

import gc
import resource
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import NoReturn

import click
import trio

from dwctl_trio.config import Config
from dwctl_trio.config.url import mask_url
from dwctl_trio.domain.errors import DwctlError, StoreUnavailable

EXIT_FAILURE = 1
EXIT_USAGE = 2
_EXIT_INTERRUPTED = 130
_NAME = "dwctl-trio"
_COLLECTION_THRESHOLDS = (10_000, 10, 1_000)
"""Objects until a young collection, of 1 to 3 ms; of these until an older one; and of those until a full one."""


def prepare_process() -> None:
    """Make this process one that serves many: descriptors, and a garbage collector that pauses it for less."""
    allow_many_connections()
    _spare_the_collector()


def allow_many_connections() -> None:
    """Take all file descriptors that we may: a stream needs two, and many systems give 1,024 to begin with."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # then we make do with what we have
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _spare_the_collector() -> None:
    """Take what was imported, which lives as long as the process, out of the collector's sight.

    It is most of all there is while little is served. Measured, a full collection takes 3 ms then, and 55 ms otherwise,
    in which all wait. With a thousand streams it takes 150 ms, and Python's own thresholds made one every ten seconds;
    what a request leaves behind goes by itself (``tests/performance/test_garbage.py``), so that they may be rare.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECTION_THRESHOLDS)


def run_command(
    function: Callable[..., Awaitable[object]], *args: object, config: Config | None = None, name: str = _NAME
) -> None:
    """Run a command to its end; what fails on purpose is one line, not a traceback.

    Args:
        function: The command.
        args: Its arguments.
        config: What it runs on; None if it needs no database.
        name: Who says what goes wrong.
    """
    try:
        trio.run(partial(_ungrouped, function, *args))
    except BrokenPipeError:
        raise  # whoever reads our output has left; click ends quietly
    except StoreUnavailable as error:
        fail(_describe_unavailable(error, config), EXIT_FAILURE, name)
    except (DwctlError, OSError) as error:
        fail(str(error), EXIT_FAILURE, name)
    except KeyboardInterrupt:
        sys.exit(_EXIT_INTERRUPTED)


def fail(message: str, status: int, name: str = _NAME) -> NoReturn:
    """Say *message* on one line of standard error, and end with *status*."""
    click.echo(f"{name}: {' / '.join(message.splitlines())}", err=True)
    sys.exit(status)


def _describe_unavailable(error: StoreUnavailable, config: Config | None) -> str:
    """Which database failed, how, and what to do; PostgreSQL's words name the user and the database at the most."""
    cause = f": {error.__cause__}" if isinstance(error.__cause__, Exception) else ""
    if config is None or config.database_url is None:
        return f"{error}{cause}"
    place = mask_url(config.database_url)
    return f"{error} ({place}){cause}. Start PostgreSQL there and let this user in, or correct database_url"


async def _ungrouped(function: Callable[..., Awaitable[object]], *args: object) -> None:
    """Run *function*; a group that holds a single error raises that error."""
    try:
        await function(*args)
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        raise error from None
