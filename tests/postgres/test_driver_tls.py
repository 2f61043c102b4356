"""The driver over TCP and TLS: asyncpg's own handling of ``sslmode`` on top of the guest loop's ``start_tls``.

The server of the wheel is built without TLS, so a proxy in front of it ends the encryption, as PostgreSQL would.
"""

import os
import ssl
from pathlib import Path

import attrs
import pytest
import trio
import trustme
from tests.postgres.conftest import CALL_S, open_connection, open_front, wait_until_nothing_runs, wait_until_running

from dwctl_trio.domain.errors import StoreUnavailable
from dwctl_trio.postgres.trio_asyncpg import connect


@attrs.frozen(kw_only=True)
class Certificates:
    """Of one server, for ``localhost`` and nothing else."""

    server: ssl.SSLContext
    authority: Path
    """Signed the server's certificate."""
    stranger: Path
    """Did not."""

    def parameters(self, mode, root=None):
        return f"sslmode={mode}&sslrootcert={root or self.authority}"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    directory = tmp_path_factory.mktemp("certificates")
    authority, stranger = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(directory / "authority.pem")
    stranger.cert_pem.write_to_path(directory / "stranger.pem")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.set_alpn_protocols(["postgresql"])
    authority.issue_cert("localhost").configure_cert(server)
    return Certificates(server=server, authority=directory / "authority.pem", stranger=directory / "stranger.pem")


@pytest.fixture
async def tls_front(postgres_dsn, certificates):
    async with open_front(postgres_dsn, tls=certificates.server) as front:
        yield front


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full", "prefer"])
async def test_a_connection_is_encrypted(guest_loop, tls_front, certificates, mode):
    dsn = tls_front.dsn("postgres", certificates.parameters(mode), host="localhost")
    async with open_connection(guest_loop, dsn) as connection:
        assert await connection.fetchval("SELECT $1::int + 1", 1) == 2
        assert tls_front.encrypted == 1


async def test_tls_may_start_without_asking_first(guest_loop, tls_front, certificates):
    parameters = certificates.parameters("require") + "&sslnegotiation=direct"
    async with open_connection(guest_loop, tls_front.dsn("postgres", parameters, host="localhost")) as connection:
        assert await connection.fetchval("SELECT 1") == 1
        assert tls_front.encrypted == 1


@pytest.mark.parametrize(
    ("mode", "host", "root"),
    [
        ("verify-full", "localhost", "stranger"),
        ("verify-ca", "localhost", "stranger"),
        ("verify-full", "127.0.0.1", ""),
    ],
)
async def test_a_certificate_that_does_not_fit_is_refused(  # noqa: PLR0913, PLR0917 - fixtures and cases
    guest_loop, tls_front, certificates, mode, host, root
):
    parameters = certificates.parameters(mode, certificates.stranger if root else None)
    with pytest.raises(StoreUnavailable) as refused:
        await connect(guest_loop, tls_front.dsn("postgres", parameters, host=host), call_s=CALL_S)
    assert isinstance(refused.value.__cause__, ssl.SSLError)


async def test_large_values_pass_both_ways_through_tls(guest_loop, tls_front, certificates):
    value = os.urandom(20_000_000)
    async with open_connection(guest_loop, tls_front.dsn("postgres", certificates.parameters("require"))) as connection:
        assert await connection.fetchval("SELECT $1::bytea", value) == value


async def test_a_cancel_request_is_encrypted_too(guest_loop, postgres_dsn, tls_front, certificates):
    async with open_connection(guest_loop, postgres_dsn) as observer:
        database = await observer.fetchval("SELECT current_database()")
        dsn = tls_front.dsn(database, certificates.parameters("verify-full"), host="localhost")
        async with open_connection(guest_loop, dsn) as connection:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connection.execute, "SELECT pg_sleep(60)")
                await wait_until_running(observer)
                nursery.cancel_scope.cancel()
            assert await connection.fetchval("SELECT 1") == 1
            await wait_until_nothing_runs(observer)
        assert tls_front.encrypted == 2


async def test_a_handshake_that_never_ends_is_bounded_and_leaves_nothing_open(guest_loop, postgres_dsn):
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listeners[0], trio.open_nursery() as nursery:

        async def say_yes_and_nothing_more():
            async with await listeners[0].accept() as stream:
                await stream.receive_some(8)
                await stream.send_all(b"S")
                while await stream.receive_some():
                    pass

        nursery.start_soon(say_yes_and_nothing_more)
        port = listeners[0].socket.getsockname()[1]
        with pytest.raises(StoreUnavailable):
            await connect(guest_loop, f"postgresql://postgres@127.0.0.1:{port}/postgres?sslmode=require", call_s=0.05)


async def test_a_server_that_hangs_up_during_the_handshake_is_an_unavailable_store(guest_loop):
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listeners[0], trio.open_nursery() as nursery:

        async def hang_up(step):
            async with await listeners[0].accept() as stream:
                if step:
                    await stream.receive_some(8)
                    await stream.send_all(b"S")
                if step > 1:
                    await stream.receive_some()
                    await stream.send_all(b"this is not TLS")

        port = listeners[0].socket.getsockname()[1]
        for step in range(3):
            nursery.start_soon(hang_up, step)
            with pytest.raises(StoreUnavailable):
                dsn = f"postgresql://postgres@127.0.0.1:{port}/postgres?sslmode=require"
                await connect(guest_loop, dsn, call_s=CALL_S)
