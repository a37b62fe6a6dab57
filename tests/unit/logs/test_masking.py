"""What is taken out of lines, and what is left in them."""

import pytest
from pydantic import SecretStr

from deployments.logs.masking import HIDDEN, Mask, secrets_of
from serve_app.config import AppArgs
from tests.support import ROOT

KEY = "ms-" + "k" * 43


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("postgresql+psycopg://mochi:pw@db:5432/mochi is away", "postgresql+psycopg://mochi:***@db:5432/mochi is away"),
        (f"Authorization: Bearer {KEY}", "Authorization: Bearer ***"),
        (f"the key {KEY} of acme", "the key ms-*** of acme"),
        ("signed with whsec_c2VjcmV0c2VjcmV0", "signed with whsec_***"),
        ("HF_TOKEN is hf_abcdefghijklmnopqrst", "HF_TOKEN is hf_***"),
        (
            "GET /b/videos/1.mp4?X-Amz-Credential=AKIA%2F1&X-Amz-Date=1&X-Amz-Signature=0f0f HTTP/1.1",
            "GET /b/videos/1.mp4?X-Amz-Credential=***&X-Amz-Date=1&X-Amz-Signature=*** HTTP/1.1",
        ),
        ("{'secret_key': 'abc', 'bucket': 'b'}", "{'secret_key': '***', 'bucket': 'b'}"),
        ('{"password":"a b"}', '{"password":"***"}'),
        ("connect with password=abc, sslmode=on", "connect with password=***, sslmode=on"),
    ],
)
def test_what_looks_like_a_secret_is_hidden(text: str, masked: str) -> None:
    assert Mask()(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:8000/v1/videos is ready",
        "[video_01a21f937e092bf4c574cfbf49228356] sampling done: {'load': 0.0112, 'denoise': 0.5068}",
        "a step takes 12 bytes for each token of a row on cpu",
        "the basic profile has no key; monkey=1",
        "encoding: replica ccbr5c5a on cpu (1 thread) has 4 slots",
    ],
)
def test_all_else_stays(text: str) -> None:
    assert Mask()(text) == text


def test_known_secrets_are_hidden_wherever_they_stand() -> None:
    mask = Mask(["p/w+of the db", "p/w+of"])
    assert mask("xp/w+of the dby p%2Fw%2Bof%20the%20db p%2Fw%2Bof+the+db") == f"x{HIDDEN}y {HIDDEN} {HIDDEN}"


def test_a_short_secret_is_a_word_as_others() -> None:
    assert Mask(["mochi"])("mochi-serve") == "mochi-serve"


def test_the_secrets_of_settings_are_found_at_every_depth() -> None:
    given = {
        "database": {"url": "postgresql+psycopg://u:the%2Fpassword@h/d"},
        "storage": {"endpoint": "h:1", "access_key": "the-access-key", "secret_key": "the-secret-key"},
        "tracing": {"headers": {"authorization": "the-collectors-key"}},
        "webhooks": {"key": "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="},
    }
    held = AppArgs(config=str(ROOT / "configs" / "shapes.yaml"), settings=given).load({})
    assert set(secrets_of(held)) == {
        "postgresql+psycopg://u:the%2Fpassword@h/d",
        "the%2Fpassword",
        "the/password",
        "the-access-key",
        "the-secret-key",
        "the-collectors-key",
        "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=",
    }
    assert list(secrets_of([SecretStr("one")], {"a": SecretStr("two")}, None)) == ["one", "two"]
