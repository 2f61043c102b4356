"""The guard against requests to where no tool should be, as a network backend of httpcore.

Rule 1: a name is resolved once; each of its addresses must be allowed, or none is used.
Rule 2: the connection goes to an address that was checked; the name is not asked again, TLS alone still verifies it.
Rule 3: every client library that sits on httpcore or httpx goes through this one guard, redirects included.
Rule 4: whatever happens, no descriptor is left open.

Source: OWASP, "Server-Side Request Forgery Prevention"; CWE-918; CWE-367 (DNS rebinding).
"""

import math
import ssl
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import httpcore
import trio

from dwctl_trio.tools.addresses import is_private_network, is_public

_ADDRESSES_TRIED_MAX = 8
"""Of one name; all of them are checked."""
_CLOSE_S_MAX = 1.0
"""For closing a connection whose handshake was left; a close of TCP never waits."""


class AddressRefused(httpcore.ConnectError):
    """The name has an address where no tool of this kind may be."""


class GuardedNetwork(httpcore.AsyncNetworkBackend):
    """Connects to allowed addresses only.

    Args:
        allow_private: Whether loopback and private networks are allowed beside public addresses. Link-local,
            multicast and reserved addresses and the metadata services of clouds never are.
        network: What connects to an address that was checked.
    """

    def __init__(self, *, allow_private: bool = False, network: httpcore.AsyncNetworkBackend | None = None) -> None:
        self._allow_private = allow_private
        self._network = network or httpcore.TrioBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the signature is httpcore's
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """A connection to the first address of *host* that accepts one; *timeout*, in seconds, is for all of it.

        Raises:
            AddressRefused: One of its addresses is not allowed.
            httpcore.ConnectError: It has no address, or none accepts a connection.
            httpcore.ConnectTimeout: That took too long.
        """
        until = trio.current_time() + (math.inf if timeout is None else timeout)
        try:
            with trio.fail_at(until):
                addresses = (await self.resolve(host, port))[:_ADDRESSES_TRIED_MAX]
        except trio.TooSlowError as error:
            raise httpcore.ConnectTimeout("the name was not resolved in time") from error
        failure: Exception | None = None
        for tried, address in enumerate(addresses):
            share_s = (until - trio.current_time()) / (len(addresses) - tried)  # a dead first must not use it up
            try:
                stream = await self._network.connect_tcp(
                    address, port, max(share_s, 0.0), local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
            else:
                return _Stream(stream)
        raise failure or httpcore.ConnectError("the name has no address")

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        """All addresses of *host*, each allowed; numbers in any spelling are resolved like names.

        Raises:
            AddressRefused: One of them is not.
            httpcore.ConnectError: The name cannot be resolved.
        """
        try:
            found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError("the name could not be resolved") from error
        addresses: dict[str, None] = {}  # in order, each once
        for *_, place in found:
            address, scope = str(place[0]), place[3] if len(place) == 4 else 0  # noqa: PLR2004 - IPv6's form
            if scope or not self._is_allowed(address):
                raise AddressRefused("an address of the name is not allowed")
            addresses[address] = None
        return list(addresses)

    async def connect_unix_socket(
        self,
        path: str,  # noqa: ARG002 - the signature is httpcore's
        timeout: float | None = None,  # noqa: ARG002, ASYNC109 - the same
        socket_options: Iterable[Any] | None = None,  # noqa: ARG002 - the same
    ) -> NoReturn:
        """Refused: a path is no address.

        Raises:
            AddressRefused: Always.
        """
        await trio.lowlevel.checkpoint()
        raise AddressRefused("sockets of this machine are not allowed")

    async def sleep(self, seconds: float) -> None:
        """Wait between two tries, if a client library makes more than one."""
        await trio.sleep(seconds)

    def _is_allowed(self, address: str) -> bool:
        return is_public(address) or (self._allow_private and is_private_network(address))


class _Stream(httpcore.AsyncNetworkStream):
    """A connection that also a cancelled TLS handshake closes; httpcore's own leaves it to the collector."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - httpcore's
        return await self._stream.read(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109 - the same
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the same
    ) -> httpcore.AsyncNetworkStream:
        try:
            return await self._stream.start_tls(ssl_context, server_hostname, timeout)
        except BaseException:
            with trio.move_on_after(_CLOSE_S_MAX, shield=True):
                await self._stream.aclose()
            raise

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
