"""What a supervisor tells its worker on one pipe, and the worker the supervisor on another.

    supervisor ── StartOrder, then STOP and ABORT ──▶ standard input of the worker
    supervisor ◀── READY, when it listens ─────────── its standard output

Rule 1: a pipe that ends says that the other one has: a worker without a supervisor stops by itself. Only the two hold
its ends, and the kernel closes them however a process dies, so no signal of one system only is needed.
Rule 2: a worker is told to stop by its pipe and not by a signal, so that a SIGTERM which somebody sends to all
processes at once is its first one and not its second.
Rule 3: the configuration goes with the order, read and checked once; a worker that is started again gets the same.
"""

import os
import pickle
import struct
from collections.abc import Callable
from contextlib import suppress

import attrs
import structlog
import trio

from dwctl_trio.config import Config
from dwctl_trio.observability.worker_metrics import WorkerPlace

_log = structlog.get_logger(__name__)

READY = b"!"
STOP = b"."
"""End as after SIGTERM."""
ABORT = b"#"
"""End as after the second one."""

_INPUT, _OUTPUT = 0, 1
_LENGTH = struct.Struct(">Q")


@attrs.frozen(kw_only=True)
class StartOrder:
    """What a worker is."""

    config: Config
    """With the port and the database that there are, also where the operator left them to us."""
    place: WorkerPlace


def encode_start(order: StartOrder) -> bytes:
    """*order* as it goes through the pipe, secrets and all: nobody else can read there."""
    body = pickle.dumps(order)
    return _LENGTH.pack(len(body)) + body


def read_start() -> StartOrder | None:
    """The order that this process was started with; None if the supervisor ended before it was given."""
    head = _read(_LENGTH.size)
    body = _read(*_LENGTH.unpack(head)) if head is not None else None
    if body is None:
        return None
    order = pickle.loads(body)  # noqa: S301 - from the process that started us
    assert isinstance(order, StartOrder)
    return order


def _read(length: int) -> bytes | None:
    """So many bytes, and none of what follows; None if there are fewer."""
    read = b""
    while len(read) < length:
        piece = os.read(_INPUT, length - len(read))
        if not piece:
            return None
        read += piece
    return read


def tell_ready() -> None:
    """Tell the supervisor that this worker listens."""
    with suppress(OSError):  # it has ended, and we shall hear of that
        os.write(_OUTPUT, READY)


async def follow_orders(stop: Callable[[], None], abort: Callable[[], None]) -> None:
    """Call *stop* when the supervisor says so, or has ended, and *abort* when it says that."""
    async with trio.lowlevel.FdStream(os.dup(_INPUT)) as orders:
        async for told in orders:
            if STOP in told:
                stop()
            if ABORT in told:
                abort()
    _log.info("supervisor_ended")
    stop()
