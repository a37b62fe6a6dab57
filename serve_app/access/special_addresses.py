"""Addresses with a special purpose, and whether they are reached over the internet: IANA's two registries, as data.

The standard library's tables depend on the release of Python: 3.11.7 takes 192.0.0.192 for a host of the internet. Here
is each row of the IPv4 and IPv6 Special-Purpose Address Registries (RFC 6890, kept at iana.org/assignments/
iana-ipv4-special-registry and .../iana-ipv6-special-registry), and after them what is set apart elsewhere. Where the
registry says "N/A" for globally reachable (tunnels, retired relays), it is not reached.
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import NamedTuple

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network


class Block(NamedTuple):
    """A row of a registry."""

    network: IPNetwork
    name: str
    source: str
    is_global: bool


def _block(network: str, name: str, source: str, is_global: bool = False) -> Block:
    return Block(ip_network(network), name, source, is_global)


BLOCKS = (
    _block("0.0.0.0/8", "this network", "RFC 791, 3.2"),
    _block("0.0.0.0/32", "this host on this network", "RFC 1122, 3.2.1.3"),
    _block("10.0.0.0/8", "private use", "RFC 1918"),
    _block("100.64.0.0/10", "shared address space", "RFC 6598"),
    _block("127.0.0.0/8", "loopback", "RFC 1122, 3.2.1.3"),
    _block("169.254.0.0/16", "link local", "RFC 3927"),
    _block("172.16.0.0/12", "private use", "RFC 1918"),
    _block("192.0.0.0/24", "IETF protocol assignments", "RFC 6890, 2.1"),
    _block("192.0.0.0/29", "IPv4 service continuity prefix", "RFC 7335"),
    _block("192.0.0.8/32", "IPv4 dummy address", "RFC 7600"),
    _block("192.0.0.9/32", "port control protocol anycast", "RFC 7723", True),
    _block("192.0.0.10/32", "traversal using relays around NAT anycast", "RFC 8155", True),
    _block("192.0.0.170/32", "NAT64/DNS64 discovery", "RFC 7050, 2.2"),
    _block("192.0.0.171/32", "NAT64/DNS64 discovery", "RFC 7050, 2.2"),
    _block("192.0.2.0/24", "documentation (TEST-NET-1)", "RFC 5737"),
    _block("192.31.196.0/24", "AS112-v4", "RFC 7535", True),
    _block("192.52.193.0/24", "AMT", "RFC 7450", True),
    _block("192.88.99.0/24", "6to4 relay anycast, retired", "RFC 7526"),
    _block("192.88.99.2/32", "6a44 relay anycast", "RFC 6751"),
    _block("192.168.0.0/16", "private use", "RFC 1918"),
    _block("192.175.48.0/24", "direct delegation AS112 service", "RFC 7534", True),
    _block("198.18.0.0/15", "benchmarking", "RFC 2544"),
    _block("198.51.100.0/24", "documentation (TEST-NET-2)", "RFC 5737"),
    _block("203.0.113.0/24", "documentation (TEST-NET-3)", "RFC 5737"),
    _block("240.0.0.0/4", "reserved", "RFC 1112, 4"),
    _block("255.255.255.255/32", "limited broadcast", "RFC 8190"),
    _block("::1/128", "loopback address", "RFC 4291"),
    _block("::/128", "unspecified address", "RFC 4291"),
    _block("::ffff:0:0/96", "IPv4-mapped address", "RFC 4291"),
    _block("64:ff9b::/96", "IPv4-IPv6 translation", "RFC 6052", True),
    _block("64:ff9b:1::/48", "IPv4-IPv6 translation", "RFC 8215"),
    _block("100::/64", "discard-only address block", "RFC 6666"),
    _block("100:0:0:1::/64", "dummy IPv6 prefix", "RFC 9780"),
    _block("2001::/23", "IETF protocol assignments", "RFC 2928"),
    _block("2001::/32", "Teredo", "RFC 4380"),
    _block("2001:1::1/128", "port control protocol anycast", "RFC 7723", True),
    _block("2001:1::2/128", "traversal using relays around NAT anycast", "RFC 8155", True),
    _block("2001:1::3/128", "DNS-SD service registration protocol anycast", "RFC 9665", True),
    _block("2001:2::/48", "benchmarking", "RFC 5180"),
    _block("2001:3::/32", "AMT", "RFC 7450", True),
    _block("2001:4:112::/48", "AS112-v6", "RFC 7535", True),
    _block("2001:10::/28", "ORCHID, retired", "RFC 4843"),
    _block("2001:20::/28", "ORCHIDv2", "RFC 7343", True),
    _block("2001:30::/28", "drone remote ID protocol entity tags", "RFC 9374", True),
    _block("2001:db8::/32", "documentation", "RFC 3849"),
    _block("2002::/16", "6to4", "RFC 3056"),
    _block("2620:4f:8000::/48", "direct delegation AS112 service", "RFC 7534", True),
    _block("3fff::/20", "documentation", "RFC 9637"),
    _block("5f00::/16", "segment routing SIDs", "RFC 9602"),
    _block("fc00::/7", "unique local", "RFC 4193"),
    _block("fe80::/10", "link-local unicast", "RFC 4291"),
    # Not in the registries.
    _block("168.63.129.16/32", "Azure's platform services, from within each of its machines", "Microsoft"),
    _block("224.0.0.0/4", "multicast", "RFC 5771"),
    _block("::/96", "IPv4-compatible address, retired", "RFC 4291, 2.5.5.1"),
    _block("fec0::/10", "site-local unicast, retired", "RFC 3879"),
    _block("ff00::/8", "multicast", "RFC 4291, 2.7"),
)
_BY_VERSION = {
    version: sorted(
        (block for block in BLOCKS if block.network.version == version), key=lambda block: -block.network.prefixlen
    )
    for version in (4, 6)
}


def block_of(address: IPAddress) -> Block | None:
    """The smallest block that the address is in; None for one without a special purpose."""
    return next((block for block in _BY_VERSION[address.version] if address in block.network), None)


def is_global(address: IPAddress) -> bool:
    """Whether the registries let the address be reached over the internet."""
    block = block_of(address)
    return block is None or block.is_global
