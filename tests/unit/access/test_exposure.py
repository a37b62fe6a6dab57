"""Whether the app may listen where it was told to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.access.exposure import check_exposure, is_loopback, is_loopback_header, keys_needed, no_keys_notice
from serve_app.access.tenants import AccessTable, ApiKey, Tenant
from serve_app.config import AccessMode
from serve_app.errors import ConfigError
from serve_app.jobs import Tier

LOCAL = ("127.0.0.1", "127.0.0.53", "::1", "[::1]", "localhost", "127.1")
OPEN = ("0.0.0.0", "::", "[::]", "", "192.168.1.10", "8.8.8.8", "fe80::1", "no-such-host.invalid", "a" * 300)


@pytest.mark.parametrize("host", LOCAL)
def test_on_loopback_no_keys_are_needed(host: str) -> None:
    assert is_loopback(host)
    check_exposure(host, "auto")


@pytest.mark.parametrize("host", OPEN)
def test_in_the_open_it_must_be_said_who_may(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(ConfigError) as caught:
        check_exposure(host, "auto")
    told = str(caught.value)
    for part in ("access.mode: keys", "open-to-anyone", "mochi-serve keys create", "127.0.0.1", repr(host)):
        assert part in told
    check_exposure(host, "keys")
    check_exposure(host, "open-to-anyone")


def test_without_http_nothing_is_exposed() -> None:
    check_exposure(None, "auto")


@pytest.mark.parametrize(("mode", "needed"), [("auto", False), ("keys", True), ("open-to-anyone", False)])
def test_only_one_mode_needs_keys(mode: AccessMode, needed: bool) -> None:
    assert keys_needed(mode) is needed


def test_no_key_at_all_is_told() -> None:
    acme = Tenant("acme", Tier.STANDARD, "whsec_x", 0.0)
    key = ApiKey("key_1", "acme", "hash", "ms-abcde", "", 0.0)
    empty = AccessTable(1, {"acme": acme}, {})
    notice = no_keys_notice("keys", empty)
    assert notice is not None and "mochi-serve keys create --tenant NAME" in notice
    assert no_keys_notice("keys", AccessTable(1, {"acme": acme}, {"hash": key})) is None
    assert no_keys_notice("auto", empty) is None


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LocalHost:8000",
        "localhost.",
        "app.localhost:80",
        "127.0.0.1",
        "127.9.9.9:1",
        "[::1]",
        "[::1]:8000",
    ],
)
def test_headers_that_name_this_machine(host: str) -> None:
    assert is_loopback_header(host)


@pytest.mark.parametrize(
    "host",
    [
        "",
        " ",
        "localhost.evil.example",
        "notlocalhost",
        "127.0.0.1.nip.io",
        "2130706433",
        "0x7f.1",
        "127.1",
        "[::",
        "::1",
    ]
    + ["[::ffff:8.8.8.8]", "10.0.0.1", "localhost/x", "evil@localhost", "localhost\\evil", "localhost#x", "①②⑦.0.0.1"],
)
def test_other_headers(host: str) -> None:
    assert not is_loopback_header(host)


@given(st.text())
def test_any_header_has_an_answer(host: str) -> None:
    assert is_loopback_header(host) in (True, False)
