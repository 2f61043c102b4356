"""A request's head to Quart's request, with all that its ASGI connection gives it."""

from typing import Any, TypeAlias
from urllib.parse import unquote

from quart.wrappers import Request
from quart_trio import QuartTrio
from werkzeug.datastructures import Headers

from dwctl_trio.http.connection import plain_path
from dwctl_trio.http.request_reader import RequestHead

Address: TypeAlias = tuple[str, int] | None
"""A host and a port; None where there are none."""


def make_request(app: QuartTrio, head: RequestHead, *, client: Address, server: Address) -> Request:
    """The request of *app* with this head, which came from *client* to *server*."""
    raw_path, _, query = head.target.partition(b"?")
    path, method, version = unquote(raw_path.decode()), head.method.decode().upper(), head.version.decode()
    headers = Headers([(name.decode("latin1"), value.decode("latin1")) for name, value in head.headers])
    headers["Remote-Addr"] = client[0] if client is not None else "<local>"
    if version < "1.1":
        headers.setdefault("Host", app.config["SERVER_NAME"] or "")
    scope: Any = {
        "type": "http",
        "asgi": {"spec_version": "2.1", "version": "3.0"},
        "http_version": version,
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": raw_path,
        "query_string": query,
        "root_path": "",
        "headers": head.headers,
        "client": client,
        "server": server,
        "extensions": {},
    }
    return app.request_class(
        method,
        "http",
        plain_path(path),
        query,
        headers,
        "",
        version,
        max_content_length=app.config["MAX_CONTENT_LENGTH"],
        body_timeout=app.config["BODY_TIMEOUT"],
        send_push_promise=_push_nothing,
        scope=scope,
    )


async def _push_nothing(path: str, headers: Headers) -> None:
    """HTTP/1.1 has no such thing."""
