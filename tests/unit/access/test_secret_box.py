"""Secrets of webhooks are encrypted with a key that is not in the database."""

import base64
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import SecretStr

from serve_app.access.secret_box import CLEAR, LostSecretError, SecretBox, WebhookKey, webhook_key
from serve_app.config import load_settings
from tests.support import ROOT

KEY = base64.b64encode(bytes(range(32))).decode()
SECRET = "whsec_" + base64.b64encode(bytes(24)).decode()
BOX = WebhookKey(SecretStr(KEY)).box()


def test_a_sealed_secret_is_opened_by_the_same_key_and_owner_alone() -> None:
    kept = BOX.seal(SECRET, "acme")
    assert SECRET not in kept and len(kept) <= 128
    assert kept != BOX.seal(SECRET, "acme")
    assert BOX.open(kept, "acme") == SECRET
    assert BOX.seal(kept, "acme") == kept
    other = SecretBox(bytes(32), "webhook-key")
    for box, owner, text in ((other, "acme", kept), (BOX, "other", kept), (BOX, "acme", kept[:-8]), (CLEAR, "a", kept)):
        with pytest.raises(LostSecretError) as caught:
            box.open(text, owner)
        assert SECRET not in str(caught.value) and KEY not in str(caught.value)


def test_what_was_kept_as_it_is_can_be_read() -> None:
    assert BOX.open(SECRET, "acme") == CLEAR.open(SECRET, "acme") == CLEAR.seal(SECRET, "acme") == SECRET


def test_the_file_of_the_key_is_made_once(tmp_path: Path) -> None:
    key = WebhookKey(file=tmp_path / "data" / "webhook-key")
    with ThreadPoolExecutor(8) as pool:
        boxes = list(pool.map(lambda _: key.box(), range(8)))
    kept = boxes[0].seal(SECRET, "acme")
    assert {box.open(kept, "acme") for box in [*boxes, key.box()]} == {SECRET}
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["webhook-key"]
    assert (tmp_path / "data" / "webhook-key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", ["", "short", base64.b64encode(bytes(31)).decode()])
def test_a_file_that_is_no_key_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "webhook-key").write_text(content)
    with pytest.raises(LostSecretError, match="webhook-key cannot be used as the key"):
        WebhookKey(file=tmp_path / "webhook-key").box()


def test_where_the_key_is_from(tmp_path: Path) -> None:
    profile = str(ROOT / "configs" / "shapes.yaml")
    environ = {"MOCHI_SERVE__DATA_DIR": str(tmp_path)}
    assert webhook_key(load_settings(profile, environ)) == WebhookKey(file=tmp_path / "webhook-key")
    environ["MOCHI_SERVE__DATABASE__URL"] = "postgresql+psycopg://u:p@h/d"
    assert webhook_key(load_settings(profile, environ)) == WebhookKey()
    environ["MOCHI_SERVE__WEBHOOKS__KEY"] = KEY
    assert webhook_key(load_settings(profile, environ)) == WebhookKey(SecretStr(KEY))
