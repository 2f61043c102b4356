"""Logs: one line an event, JSON unless a person is watching.

Rule 1: an event is a snake_case noun phrase, its data are key-values; nothing is interpolated.
Rule 2: no bodies, no keys.
"""

import json
import logging
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any, TextIO

import msgspec
import structlog


def get_logger(name: str) -> Any:
    """The logger of a module."""
    return structlog.get_logger(name)


class _Writer:
    """Writes lines to a stream; one that cannot be written to (a full disk, a closed pipe) decides no answer.

    Args:
        stream: Where to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def msg(self, line: str) -> None:
        """Write *line*, or lose it."""
        with suppress(OSError, ValueError):
            self._stream.write(line + "\n")
            self._stream.flush()

    debug = info = warning = error = critical = exception = log = fatal = msg


def configure_logging(stream: TextIO = sys.stderr, *, level: str = "info", worker: int | None = None) -> None:
    """Send all logs to *stream*: coloured lines to a terminal, JSON to anything else.

    Args:
        stream: Where to.
        level: The least severe level that is written: ``debug``, ``info``, ``warning`` or ``error``.
        worker: Which of several processes this is, told in every line; None if it is the only one.
    """
    watched = stream.isatty()
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if worker is not None:
        processors.append(lambda _logger, _method, event: event | {"worker": worker})
    if watched:
        # The prettier tracebacks show local variables, and so bodies and keys.
        processors.append(structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback))
    else:
        processors += [structlog.processors.format_exc_info, _render_json]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=lambda *_: _Writer(stream),
        cache_logger_on_first_use=True,
    )


def _render_json(_logger: object, _level: str, event: MutableMapping[str, Any]) -> str:
    """*event* as one line of ASCII, which any stream takes, with a blank behind each comma and colon."""
    try:
        line = msgspec.json.format(msgspec.json.encode(event), indent=0)
    except (TypeError, ValueError):  # a value of some other kind, or half of a surrogate pair
        return json.dumps(event, default=repr)
    return line.decode() if line.isascii() else json.dumps(event, default=repr)
