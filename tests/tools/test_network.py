"""Where tools may be: the table of addresses, names that change their minds, and what is never tried."""

import gc
from typing import Any

import httpcore
import pytest
import trio
from tests.tools.places import PUBLIC, LocalNetwork, Names

from dwctl_trio.testing.tool_server import open_tool_server
from dwctl_trio.tools.network import AddressRefused, GuardedNetwork

LOOPBACK_AND_PRIVATE = [
    "127.0.0.1",
    "127.255.255.254",
    "127.1",
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "0177.0.0.1",
    "017700000001",
    "10.0.0.1",
    "167772161",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "192.168.257",
    "100.64.0.1",
    "100.127.255.255",
    "::1",
    "0:0:0:0:0:0:0:1",
    "fc00::1",
    "fd12:3456:789a::1",
    "::ffff:127.0.0.1",
    "::ffff:7f00:1",
    "::ffff:10.0.0.1",
    "::ffff:192.168.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::10.0.0.1",
]
"""Refused unless private networks are allowed."""

NEVER = [
    "0.0.0.0",
    "0",
    "0.1.2.3",
    "169.254.169.254",
    "2852039166",
    "0xa9fea9fe",
    "0251.0376.0251.0376",
    "169.254.0.1",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.1",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::127.0.0.1",
    "::8.8.8.8",
    "::ffff:169.254.169.254",
    "::ffff:0.0.0.0",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::a9fe:a9fe",
    "64:ff9b:1:7f00:0:100::",
    "64:ff9b:1::808:808",
    "100::1",
    "2001::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:2::1",
    "2001:10::1",
    "2001:20::1",
    "2001:db8::1",
    "2002:7f00:1::1",
    "2002:a9fe:a9fe::1",
    "2002:808:808::1",
    "3fff::1",
    "4000::1",
    "5f00::1",
    "fd00:ec2::254",
    "fd20:ce::254",
    "fe80::1",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
]
"""Refused whatever is allowed."""

ALLOWED = [
    "8.8.8.8",
    "134744072",
    "0x08.0x08.0x08.0x08",
    "1.1.1.1",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "128.0.0.1",
    "169.253.255.255",
    "172.15.255.255",
    "172.32.0.0",
    "192.0.1.1",
    "198.17.255.255",
    "198.20.0.0",
    "223.255.255.255",
    "2606:4700:4700::1111",
    "2001:4860:4860::8888",
    "2001:200::1",
    "2a00:1450:4001:800::200e",
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
]
"""Public addresses, many of them just beside a block that is not."""


async def is_refused(host: str, *, allow_private: bool = False) -> bool:
    """Whether the guard refuses *host*; nothing is connected to."""
    network = LocalNetwork()
    with pytest.raises(httpcore.ConnectError) as caught:
        await GuardedNetwork(allow_private=allow_private, network=network).connect_tcp(host, 80)
    refused = isinstance(caught.value, AddressRefused)
    assert bool(network.dialled) is not refused, host
    return refused


async def test_every_address_of_the_table_is_refused_and_every_public_one_is_not() -> None:
    allowed = [host for host in LOOPBACK_AND_PRIVATE + NEVER if not await is_refused(host)]
    refused = [host for host in ALLOWED if await is_refused(host)]

    print(f"SSRF: {len(LOOPBACK_AND_PRIVATE + NEVER)} addresses refused, {len(ALLOWED)} public ones allowed")
    assert (allowed, refused) == ([], [])


async def test_private_networks_can_be_allowed_and_nothing_else_can() -> None:
    allowed = [host for host in NEVER if not await is_refused(host, allow_private=True)]
    refused = [host for host in LOOPBACK_AND_PRIVATE + ALLOWED if await is_refused(host, allow_private=True)]

    print(f"SSRF: with private networks allowed, {len(NEVER)} addresses are refused all the same")
    assert (allowed, refused) == ([], [])


@pytest.mark.parametrize("host", LOOPBACK_AND_PRIVATE + NEVER)
async def test_a_name_is_refused_as_its_address_is(host: str) -> None:
    found = await trio.socket.getaddrinfo(host, 80, type=trio.socket.SOCK_STREAM)
    Names(tool_example=[[str(place[0]) for *_, place in found]])

    assert await is_refused("tool.example")


@pytest.mark.parametrize(
    "addresses",
    [
        [PUBLIC, "10.0.0.1"],
        ["10.0.0.1", PUBLIC],
        [PUBLIC, "::1"],
        [PUBLIC, "2606:4700:4700::1111", "169.254.169.254"],
        [("fe80::1", 2)],
        [("2606:4700:4700::1111", 1)],
        ["2606:4700:4700::1111%lo"],
    ],
    ids=str,
)
async def test_one_address_that_is_not_allowed_spoils_the_name(addresses: list[Any]) -> None:
    Names(tool_example=[addresses])

    assert await is_refused("tool.example")


@pytest.mark.parametrize("host", ["fe80::1%lo", "fe80::1%1", "ff02::1%lo"])
async def test_an_address_within_a_zone_is_never_connected_to(host: str) -> None:
    network = LocalNetwork()

    with pytest.raises(httpcore.ConnectError):
        await GuardedNetwork(allow_private=True, network=network).connect_tcp(host, 80)

    assert network.dialled == []


async def test_localhost_is_refused_by_whatever_names_this_machine_has() -> None:
    for host in ("localhost", "localhost.", "LOCALHOST"):
        with pytest.raises(httpcore.ConnectError):
            await GuardedNetwork(network=LocalNetwork()).connect_tcp(host, 80)


async def test_a_name_that_changes_its_mind_is_asked_once_and_the_checked_address_is_called() -> None:
    names = Names(rebinding_example=[[PUBLIC], ["127.0.0.1"]])
    async with open_tool_server() as server:
        network = LocalNetwork(server.origin)

        stream = await GuardedNetwork(network=network).connect_tcp("rebinding.example", 8080)
        await stream.aclose()

        assert names.asked == ["rebinding.example"]
        assert network.dialled == [(PUBLIC, 8080)]
        assert await is_refused("rebinding.example")  # the second connection asks again, and is refused


async def test_over_real_sockets_the_checked_address_is_the_one_that_is_called() -> None:
    async with open_tool_server() as server:
        names = Names(rebinding_example=[["127.0.0.1"], ["127.0.0.2"]])
        port = int(server.origin.rpartition(":")[2])

        stream = await GuardedNetwork(allow_private=True).connect_tcp("rebinding.example", port)
        peer = stream.get_extra_info("server_addr")
        await stream.aclose()

        assert (peer, names.asked) == (("127.0.0.1", port), ["rebinding.example"])


async def test_an_address_that_is_dead_is_followed_by_the_next_that_was_checked() -> None:
    Names(tool_example=[["2606:4700:4700::1111", PUBLIC]])
    async with open_tool_server() as server:
        network = LocalNetwork(server.origin, dead=["2606:4700:4700::1111"])

        stream = await GuardedNetwork(network=network).connect_tcp("tool.example", 80, timeout=5.0)
        await stream.aclose()

        assert [host for host, _ in network.dialled] == ["2606:4700:4700::1111", PUBLIC]


async def test_a_name_with_very_many_addresses_is_not_tried_for_ever() -> None:
    Names(tool_example=[[f"8.8.{high}.{low}" for high in range(4) for low in range(250)]])
    network = LocalNetwork()

    with pytest.raises(httpcore.ConnectError):
        await GuardedNetwork(network=network).connect_tcp("tool.example", 80)

    assert len(network.dialled) == 8


async def test_a_name_that_nobody_knows_or_that_is_none_cannot_be_reached() -> None:
    Names(tool_example=[[]])
    for host in ("tool.example", "unknown.example", "a" * 300 + ".example", "\0", "xn--"):
        with pytest.raises(httpcore.ConnectError) as caught:
            await GuardedNetwork(network=LocalNetwork()).connect_tcp(host, 80)
        assert not isinstance(caught.value, AddressRefused)


async def test_a_resolver_that_does_not_answer_is_left_in_time(autojump_clock: trio.testing.MockClock) -> None:
    class Silent(Names):
        async def getaddrinfo(self, *_: Any, **__: Any) -> Any:
            await trio.sleep_forever()

    Silent()

    with pytest.raises(httpcore.ConnectTimeout):
        await GuardedNetwork(network=LocalNetwork()).connect_tcp("tool.example", 80, timeout=5.0)

    assert trio.current_time() == pytest.approx(5.0)


async def test_sockets_of_this_machine_are_refused() -> None:
    with pytest.raises(AddressRefused):
        await GuardedNetwork(allow_private=True).connect_unix_socket("/run/service.sock")
    gc.collect()
