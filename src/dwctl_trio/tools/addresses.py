"""Which IP addresses a tool may be at.

Rule 1: public is what IANA's registries call globally reachable, and the lists stand here: the standard library's
differ between releases of Python.
Rule 2: where a registry says neither yes nor no, or names single services within a block, the answer is no.
Rule 3: an address that wraps one of IPv4 is judged by what it wraps if public ones are written so today
(IPv4-mapped, the well-known NAT64 prefix), and refused otherwise (IPv4-compatible, local NAT64, 6to4, Teredo).

Source: IANA IPv4 and IPv6 Special-Purpose Address Registries (RFC 6890); RFC 4291; RFC 6052; RFC 8215; RFC 7526.
"""

import ipaddress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

_NOT_PUBLIC_4 = tuple(
    IPv4Network(block)
    for block in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # shared by a provider's customers
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local, where clouds have their metadata services
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays, given up
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and the broadcast address
    )
)
_GLOBAL_UNICAST_6 = IPv6Network("2000::/3")
"""All that IANA has given out so far; nothing outside of it is public."""
_NOT_PUBLIC_6 = tuple(
    IPv6Network(block)
    for block in (
        "2001::/23",  # protocol assignments: Teredo, benchmarks, ORCHID
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "3fff::/20",  # documentation
    )
)
_NAT64 = IPv6Network("64:ff9b::/96")
_PRIVATE_4 = tuple(
    IPv4Network(block) for block in ("10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")
)
_PRIVATE_6 = tuple(IPv6Network(block) for block in ("::1/128", "fc00::/7"))
_METADATA = frozenset(map(ipaddress.ip_address, ("100.100.100.200", "168.63.129.16", "fd00:ec2::254", "fd20:ce::254")))
"""Metadata services of clouds, some at addresses that look public: they hand out credentials to whoever asks."""


def is_public(text: str) -> bool:
    """Whether *text* is an address, without a zone, that is globally reachable."""
    address = _unwrap(text)
    if address in _METADATA:
        return False
    match address:
        case IPv4Address():
            return not any(address in block for block in _NOT_PUBLIC_4)
        case IPv6Address():
            return address in _GLOBAL_UNICAST_6 and not any(address in block for block in _NOT_PUBLIC_6)
        case _:
            return False


def is_private_network(text: str) -> bool:
    """Whether *text* is an address of this machine or of a private network, and no cloud's metadata service."""
    address = _unwrap(text)
    if address in _METADATA:
        return False
    match address:
        case IPv4Address():
            return any(address in block for block in _PRIVATE_4)
        case IPv6Address():
            return any(address in block for block in _PRIVATE_6)
        case _:
            return False


def _unwrap(text: str) -> IPv4Address | IPv6Address | None:
    """The address that *text* stands for; None if it is none, or only holds within a zone."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv4Address):
        return address
    if address.scope_id is not None:
        return None
    if address in _NAT64:
        return IPv4Address(address.packed[-4:])
    return address.ipv4_mapped or address
