import asyncio
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from serve_app.access.special_addresses import BLOCKS, Block, IPAddress, block_of, is_global
from serve_app.access.targets import MAX_LENGTH, AddressInfo, check_target, is_public, system_resolve
from serve_app.errors import InvalidRequestError

SPECIAL = [block for block in BLOCKS if not block.is_global]
# What these are depends on the IPv4 address in them.
STANDS_FOR_IPV4 = {ip_network("::ffff:0:0/96"), ip_network("64:ff9b::/96"), ip_network("2002::/16")}
PUBLIC = ["1.1.1.1", "8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700:4700::1111", "2a00:1450:4001:80e::200e"]


def is_special(address: IPAddress) -> bool:
    """What an IPv6 address that stands for an IPv4 one is, depends on that."""
    stands_for_ipv4 = isinstance(address, IPv6Address) and (address.ipv4_mapped or address.sixtofour)
    return not is_global(address) and not stands_for_ipv4


# Of blocks that are not reached over the internet, without smaller ones in them that are.
special = st.sampled_from(SPECIAL).flatmap(lambda block: st.ip_addresses(network=block.network)).filter(is_special)
special_4 = special.filter(lambda address: address.version == 4)
special_6 = special.filter(lambda address: address.version == 6)
any_4 = st.ip_addresses(v=4)


async def no_names(host: str, port: int) -> Sequence[AddressInfo]:
    """A resolver that knows no name."""
    raise socket.gaierror(socket.EAI_NONAME, "unknown name")


async def refusal(url: str, allow_private: bool = False) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        await check_target(url, allow_private, no_names)
    assert (caught.value.param, caught.value.status) == ("webhook_url", 400)
    return caught.value.message


def embedded(address: IPv4Address) -> list[IPv6Address]:
    """Mapped, NAT64, 6to4."""
    number = int(address)
    return [
        IPv6Address((0xFFFF << 32) | number),
        IPv6Address((0x64_FF9B << 96) | number),
        IPv6Address((0x2002 << 112) | (number << 80) | 1),
    ]


def odd_forms(address: IPv4Address) -> list[str]:
    """What resolvers and browsers take for this address, besides the usual form."""
    number, (a, b, c, d) = int(address), address.packed
    return [
        str(number), hex(number), f"0{number:o}", f"0x{a:x}.{b}.{c}.{d}", f"0{a:o}.0{b:o}.0{c:o}.0{d:o}",
        f"{a}.{number & 0xFFFFFF}", f"{a}.{b}.{number & 0xFFFF}", f"0x{a:X}.0x{number & 0xFFFFFF:x}",
    ]  # fmt: skip


@given(special)
def test_what_is_set_apart_is_not_public(address: IPAddress) -> None:
    assert not is_public(address)
    assert not is_public(str(address))


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: str(block.network))
def test_each_row_of_the_registries(block: Block) -> None:
    first, last = block.network[0], block.network[-1]
    for address in (first, last):
        if block_of(address) == block and block.network not in STANDS_FOR_IPV4:
            assert is_public(address) == block.is_global
            assert is_global(address) == block.is_global


@pytest.mark.parametrize(
    "address", ["192.0.0.192", "192.0.0.11", "192.88.99.1", "100:0:0:1::1", "5f00::1", "2001:1::4"]
)
async def test_addresses_that_some_release_of_python_takes_for_public(address: str) -> None:
    url = f"http://[{address}]/" if ":" in address else f"http://{address}/"
    assert "public" in await refusal(url)
    assert not is_public(address)


def test_no_two_rows_are_of_one_block() -> None:
    assert len({block.network for block in BLOCKS}) == len(BLOCKS)


@pytest.mark.parametrize("address", PUBLIC)
async def test_the_rest_is_public(address: str) -> None:
    assert is_public(address)
    await check_target(f"https://[{address}]/x" if ":" in address else f"https://{address}:8443/x", False, no_names)


@given(any_4)
def test_an_ipv6_address_that_stands_for_an_ipv4_one_is_as_public_as_that(address: IPv4Address) -> None:
    assert {is_public(form) for form in embedded(address)} == {is_public(address)}


@given(st.ip_addresses(v=6))
def test_public_ipv6_is_global_unicast_or_stands_for_public_ipv4(address: IPv6Address) -> None:
    stands_for = address.ipv4_mapped is not None or address in ip_network("64:ff9b::/96")
    assert not is_public(address) or stands_for or address in ip_network("2000::/3")


def test_an_address_of_one_link_is_not_public() -> None:
    assert not is_public("fe80::1%eth0")
    assert not is_public("2606:4700:4700::1111%eth0")
    assert not is_public("2002:101:101::1%eth0")
    with pytest.raises(ValueError):
        is_public("localhost")


@given(special_4)
async def test_no_form_of_a_private_address_is_accepted(address: IPv4Address) -> None:
    hosts = [str(address), f"{address}.", *odd_forms(address), *(f"[{form}]" for form in embedded(address))]
    hosts += [f"[::ffff:{address}]", str(address).translate(str.maketrans("0123456789.", "０１２３４５６７８９。"))]
    for host in hosts:
        for url in (f"http://{host}/", f"https://{host}:8443/x?y=z", f"http://{host}"):
            assert "is refused" in await refusal(url)


@given(any_4)
async def test_odd_forms_are_refused_even_of_public_addresses_and_where_private_ones_are_allowed(
    address: IPv4Address,
) -> None:
    for host in odd_forms(address):
        assume(host != str(address))
        assert "unusual form" in await refusal(f"http://{host}/", allow_private=True)


@given(special_6)
async def test_no_private_ipv6_address_is_accepted(address: IPv6Address) -> None:
    assert "not a public host" in await refusal(f"http://[{address}]/")
    assert "not a public host" in await refusal(f"http://[{address.exploded.upper()}]:80/")
    await check_target(f"http://[{address}]/", True, no_names)


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "LOCALHOST", "localhost.", "a.localhost", "ⓛocalhost", "postgres", "metadata",
        "metadata.google.internal", "metadata.goog", "instance-data.ec2.internal", "a.svc.cluster.local",
        "localhost.localdomain", "printer.home.arpa",
    ],
)  # fmt: skip
async def test_names_of_no_public_host_are_refused(host: str) -> None:
    assert "not a public host" in await refusal(f"http://{host}:9/x")
    await check_target(f"http://{host}:9/x", True, no_names)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "must begin with"),
        ("example.com", "must begin with"),
        ("//example.com/", "must begin with"),
        ("ftp://example.com/", "must begin with"),
        ("file:///etc/passwd", "must begin with"),
        ("gopher://example.com/", "must begin with"),
        ("unix:///run/docker.sock", "must begin with"),
        ("http:///x", "must name a host"),
        ("http:/example.com/", "must name a host"),
        ("http://a..example.com/", "must name a host"),
        ("http://exa%6dple.com/", "must name a host"),
        ("http://[fe80::1%25eth0]/", "must name a host"),
        (f"http://{'a' * 64}.com/", "must name a host"),
        ("http://user:secret@example.com/", "user or a password"),
        ("http://user@example.com/", "user or a password"),
        ("http://1.1.1.1@127.0.0.1/", "user or a password"),
        ("http://example.com/#a", "fragment"),
        ("http://example.com/#", "fragment"),
        ("http://example.com:0/", "port must be"),
        ("http://example.com:65536/", "cannot be read"),
        ("http://example.com:x/", "cannot be read"),
        ("http://[::1", "cannot be read"),
        ("http://exam ple.com/", "white space"),
        ("http://example.com/\r\nHost: x", "white space"),
        ("http://example.com/\x00", "white space"),
        ("http://example.com\\@127.0.0.1/", "white space"),
        ("http://example.com/\u202e", "white space"),
        ("http://example.com/\ud800", "white space"),
        ("http://example.com/" + "a" * MAX_LENGTH, f"at most {MAX_LENGTH}"),
    ],
)
async def test_a_wrong_url_is_refused_and_told_why(url: str, why: str) -> None:
    for allow_private in (False, True):
        message = await refusal(url, allow_private)
        assert why in message
        assert "secret" not in message


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com", "HTTPS://EXAMPLE.com/", "http://example.com:1/", "https://example.com:65535?x=y",
        "https://bücher.example/Ü?q=ä", "https://example.com./hook", "https://a_b.example.com/%20%0a?t=a+b%2B",
        "https://1.2.3.4.example.com/", "https://example.com/?u=http://127.0.0.1/@x", "https://local.example.com/",
        "https://xn--bcher-kva.example/",
    ],
)  # fmt: skip
async def test_a_public_url_is_accepted(url: str) -> None:
    await check_target(url, False, no_names)


async def test_the_longest_url_is_accepted() -> None:
    start = "https://example.com/"
    await check_target(start + "a" * (MAX_LENGTH - len(start)), False, no_names)


@given(st.text(max_size=60), st.booleans())
async def test_nothing_but_a_refusal_comes_of_any_text(rest: str, allow_private: bool) -> None:
    for url in (rest, f"http://{rest}", f"https://example.com:{rest}", f"http://[{rest}]/"):
        try:
            await check_target(url, allow_private, no_names)
        except InvalidRequestError as error:
            assert error.param == "webhook_url"


def info(address: str) -> AddressInfo:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, 443)


class Names:
    """A resolver that knows one name, and tells what it was asked."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> Sequence[AddressInfo]:
        self.asked.append((host, port))
        if not self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "unknown name")
        return [info(address) for address in self.addresses]


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "169.254.169.254", "10.1.2.3", "::ffff:127.0.0.1", "fe80::1"])
async def test_a_name_is_refused_if_any_of_its_addresses_is_private(address: str) -> None:
    for addresses in ([address], ["1.1.1.1", address], [address, "2606:4700:4700::1111"]):
        with pytest.raises(InvalidRequestError, match="hook.example.com.* is not a public host") as caught:
            await check_target("https://hook.example.com/x", False, Names(*addresses))
        assert address not in caught.value.message
        await check_target("https://hook.example.com/x", True, Names(*addresses))


async def test_a_name_with_public_addresses_is_accepted() -> None:
    names = Names("1.1.1.1", "2606:4700:4700::1111")
    await check_target("https://Hook.example.com./x", False, names)
    await check_target("http://hook.example.com:81", False, names)
    assert names.asked == [("hook.example.com", 443), ("hook.example.com", 81)]


async def test_a_name_that_cannot_be_resolved_now_is_accepted() -> None:
    await check_target("https://hook.example.com/", False, Names())


async def test_a_resolver_that_does_not_answer_is_not_waited_for() -> None:
    async def silent(host: str, port: int) -> Sequence[AddressInfo]:
        await asyncio.Event().wait()
        return []

    await check_target("https://hook.example.com/", False, silent, timeout_s=0.01)


async def test_a_wrong_url_is_refused_before_its_name_is_resolved() -> None:
    names = Names("1.1.1.1")
    with pytest.raises(InvalidRequestError):
        await check_target("http://localhost/", False, names)
    assert names.asked == []


async def test_the_system_resolves_addresses_and_its_own_name() -> None:
    assert {info[4][0] for info in await system_resolve("127.0.0.1", 80)} == {"127.0.0.1"}
    assert {is_public(str(info[4][0])) for info in await system_resolve("localhost", 80)} == {False}
    with pytest.raises(OSError):
        await system_resolve(f"{'a' * 64}.example", 80)
