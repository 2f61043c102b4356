"""The nursery of a request, shared by its view, its loop and its SSE writer.

quart-trio opens one nursery a request, in which a watcher waits for the client's disconnect and cancels the rest.
Our connection lets the view start the loop in that very nursery, so that the scope spans view and body: Quart sends
the HTTP head before it enters a body, so the head could not be held back from inside one, and a nursery opened in
the view and closed in the body is corrupted by a disconnect in between.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit

import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, HTTPScope
from quart.wrappers import Request
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection

LAST_SEND_S_MAX = 30.0
"""For the last bytes of an answer, which a client may be slow to take; the write deadline ends it earlier."""

_leave: ContextVar[Callable[[], None] | None] = ContextVar("request_leave", default=None)
_endings: ContextVar[list[Callable[[], None]]] = ContextVar("request_endings")
_request_nursery: ContextVar[trio.Nursery | None] = ContextVar("request_nursery", default=None)


def request_nursery() -> trio.Nursery:
    """The nursery of the request that the calling view serves."""
    nursery = _request_nursery.get()
    assert nursery is not None, "a view serves a request"
    return nursery


def at_request_end(callback: Callable[[], None]) -> None:
    """Call *callback* when everything in the request's nursery has ended; it must not raise."""
    _endings.get().append(callback)


def begin_request(leave: Callable[[], None] | None = None) -> list[Callable[[], None]]:
    """Begin a request in the calling task; return what ``end_request`` is to be given.

    Args:
        leave: To be called as well.
    """
    endings: list[Callable[[], None]] = [] if leave is None else [leave]
    _endings.set(endings)
    return endings


def end_request(endings: list[Callable[[], None]]) -> None:
    """End the request of the calling task: tell those who asked, in the order in which they did.

    The task forgets what it knew of the request: a nursery knows its task, and the two would outlive the connection
    until the next full collection of garbage, which stops everything for as long as it takes.
    """
    for callback in endings:
        callback()
    _endings.set([])
    _request_nursery.set(None)


def enter_nursery(nursery: trio.Nursery) -> None:
    """Have *nursery* be the one of the request that the calling task serves."""
    _request_nursery.set(nursery)


def plain_path(path: str) -> str:
    """The path of a request whose target may be a whole URL (RFC 9112, section 3.2.2); no known one if it is wrong."""
    if path.startswith("/"):
        return path
    try:
        return urlsplit(path).path
    except ValueError:
        return " "


@contextmanager
def entering(leave: Callable[[], None]) -> Iterator[None]:
    """Have the request that is begun in the block call *leave* at its end, or now if it fails to begin."""
    token = _leave.set(leave)
    try:
        yield
    except BaseException:
        leave()
        raise
    finally:
        _leave.reset(token)


class RequestConnection(TrioASGIHTTPConnection):
    """Quart's handler of one HTTP request, with its nursery open to the view.

    It also mends a fault of quart-trio 0.12 on hypercorn 0.18: after the last body message hypercorn tells the
    application of a disconnect, which makes quart-trio cancel the task that is just inside hypercorn's own clean-up;
    a connection is then neither closed on ``Connection: close`` nor ever timed out when idle. The last send is
    therefore shielded. Mended upstream when the keep-alive tests pass without ``finish``.
    """

    def __init__(self, app: QuartTrio, scope: HTTPScope) -> None:
        scope["path"] = (
            plain_path(scope["path"]) or "*"
        )  # Quart itself fails at a URL that is none, and at an empty path
        super().__init__(app, scope)

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Serve one request, then tell those who asked that it has ended."""
        endings = begin_request(_leave.get())
        try:
            await super().__call__(receive, send)
        finally:
            end_request(endings)

    async def handle_request(  # type: ignore[override]  # as quart-trio itself
        self, nursery: trio.Nursery, request: Request, send: ASGISendCallable
    ) -> None:
        """Serve the request in *nursery*."""
        enter_nursery(nursery)

        async def finish(message: Any) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                with trio.move_on_after(LAST_SEND_S_MAX, shield=True):
                    await send(message)
            else:
                await send(message)

        await super().handle_request(nursery, request, finish)
