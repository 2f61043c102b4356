"""Calls of HTTP tools: the arguments are posted, the answer's body is the output.

Rule 1: nothing is sent that the tool's schema refuses.
Rule 2: a call takes no longer than its tool's time, whatever it waits for; leaving it closes its connection.
Rule 3: a failure is a sentence for the model: no address, no key, no exception's text.
Rule 4: the configured headers, and the right to be in a private network, are the tool's own origin's: the first
redirect that leaves it leaves them behind.
Rule 5: an answer is whole or a failure; nothing is cut silently.
"""

import ssl
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from importlib.metadata import version
from typing import TypeAlias

import httpcore
import httpx
import trio

from dwctl_trio.domain.errors import ToolFailed
from dwctl_trio.domain.ids import response_id_text
from dwctl_trio.domain.limits import Limits
from dwctl_trio.domain.response import ErrorType
from dwctl_trio.observability.log import get_logger
from dwctl_trio.ports import ToolInvocation
from dwctl_trio.tools.answers import explain_status, read_output
from dwctl_trio.tools.arguments import read_arguments
from dwctl_trio.tools.network import GuardedNetwork
from dwctl_trio.tools.transport import GuardedTransport, is_refused

_SUCCESS = range(200, 300)
_LEADING_ELSEWHERE = frozenset({301, 302, 303, 307, 308})
_KEEPING_THE_POST = frozenset({307, 308})
_USER_AGENT = f"dwctl-trio/{version('dwctl-trio')}"

_NOWHERE = "The tool redirected the call to something that is no address."

_Origin: TypeAlias = tuple[str, str, int | None]

_log = get_logger(__name__)


class HttpToolRunner:
    """Runs HTTP tools; keeps ``ports.ToolRunner``.

    Args:
        limits: Bounds of arguments, outputs, redirects and calls at once.
        tls: Verifies the tools' servers; None: by the certificates that come with httpx.
        network: What connects to an address that the guard has allowed; None: TCP.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        tls: ssl.SSLContext | None = None,
        network: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        self._limits = limits
        self._places = trio.Semaphore(limits.tool_connections, max_value=limits.tool_connections)
        tls = tls or httpx.create_ssl_context(trust_env=False)
        self._public = GuardedTransport(GuardedNetwork(network=network), tls)
        self._private = GuardedTransport(GuardedNetwork(allow_private=True, network=network), tls)

    async def run_tool(self, invocation: ToolInvocation) -> str:
        """See ``ports.ToolRunner``."""
        tool, limits = invocation.tool, self._limits
        body = read_arguments(
            tool.parameters,
            invocation.arguments,
            bytes_max=limits.tool_arguments_bytes,
            depth_max=limits.request_depth,
        )
        too_late = f"No place for the call became free within {tool.timeout_s:g} s; it was not made."
        with trio.move_on_after(tool.timeout_s):
            async with self._places:
                too_late = f"The tool did not answer within {tool.timeout_s:g} s."
                return await self._call(invocation, body)
        raise ToolFailed(ErrorType.TOOL_TIMEOUT, too_late)

    async def _call(self, invocation: ToolInvocation, body: bytes) -> str:
        """The output, after as many redirects as are allowed."""
        tool = invocation.tool
        home = url = httpx.URL(tool.url)
        is_at_home = True
        for _ in range(self._limits.tool_redirects + 1):
            is_at_home = is_at_home and _origin_of(url) == _origin_of(home)
            async with self._send(invocation, url, body, is_at_home=is_at_home) as response:
                if response.status_code in _LEADING_ELSEWHERE:
                    url = _follow(url, response)
                elif response.status_code in _SUCCESS:
                    return await read_output(response, bytes_max=self._limits.tool_output_bytes)
                else:
                    raise _failed(await explain_status(response, secrets=[value for _, value in tool.headers]))
        raise _failed(f"The tool redirected the call more than {self._limits.tool_redirects} times.")

    @asynccontextmanager
    async def _send(
        self, invocation: ToolInvocation, url: httpx.URL, body: bytes, *, is_at_home: bool
    ) -> AsyncIterator[httpx.Response]:
        """The response to one request, for the time of the block; whatever breaks in it is a failure of the tool."""
        tool = invocation.tool
        request = httpx.Request(
            "POST",
            url,
            headers=_headers(invocation, is_at_home=is_at_home),
            content=body,
            extensions={"timeout": {"connect": self._limits.upstream_connect_s}},
        )
        transport = self._private if tool.allow_private and is_at_home else self._public
        try:
            async with aclosing(await transport.handle_async_request(request)) as response:
                yield response
        except httpx.TransportError as error:
            _log.warning("tool_connection_failed", tool=tool.name, reason=type(error.__cause__ or error).__name__)
            raise _explain(error) from error


def _headers(invocation: ToolInvocation, *, is_at_home: bool) -> httpx.Headers:
    response_id = response_id_text(invocation.response_id)
    headers = httpx.Headers({"user-agent": _USER_AGENT, "accept": "application/json, text/*;q=0.9, */*;q=0.5"})
    if is_at_home:
        headers.update(invocation.tool.headers)
    headers.update(
        {
            "content-type": "application/json",
            "accept-encoding": "identity",  # so that the bound on the body is one on memory
            "connection": "close",
            "idempotency-key": f"{response_id}-{invocation.step_id}",
            "x-response-id": response_id,
        }
    )
    return headers


def _follow(url: httpx.URL, response: httpx.Response) -> httpx.URL:
    """Where *response* leads.

    A 301, 302 or 303 would be followed without the arguments, so a tool that answers with one is misconfigured.

    Raises:
        ToolFailed: There it must not be followed.
    """
    if response.status_code not in _KEEPING_THE_POST:
        raise _failed(
            f"The tool answered with a redirect that drops the arguments (status {response.status_code});"
            " its server must use 307 or 308."
        )
    try:
        target = url.join(response.headers["location"])
    except (KeyError, httpx.InvalidURL, ValueError):
        raise _failed(_NOWHERE) from None
    if target.scheme not in {"http", "https"} or not target.host or target.userinfo:
        raise _failed(_NOWHERE)
    if url.scheme == "https" and target.scheme != "https":
        raise _failed("The tool redirected the call from https to http, which is not followed.")
    return target


def _origin_of(url: httpx.URL) -> _Origin:
    return url.scheme, url.host, url.port  # a scheme's own port is None


def _explain(error: httpx.TransportError) -> ToolFailed:
    if is_refused(error):
        return _failed("The tool is at an address where tools are not allowed to be.")
    if isinstance(error, httpx.ConnectTimeout):
        return ToolFailed(ErrorType.TOOL_TIMEOUT, "The tool did not accept a connection in time.")
    if isinstance(error, httpx.ConnectError):
        return _failed("The tool could not be reached.")
    return _failed("The connection to the tool broke before its answer was whole.")


def _failed(message: str) -> ToolFailed:
    return ToolFailed(ErrorType.EXECUTOR_ERROR, message)
