"""How the secrets that sign webhooks are kept: encrypted with a key of the installation, never in the database."""

import base64
import contextlib
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import SecretStr

from deployments.atomic_write import write_atomically
from deployments.errors import MochiServeError
from serve_app.config import WEBHOOK_KEY_BYTES, AppSettings, decode_webhook_key

NONCE_BYTES = 12
# Nothing that is not encrypted begins so: such a secret is `whsec_` and base64.
SEALED = "aes256gcm:"


class LostSecretError(MochiServeError):
    """A secret cannot be read: the key that it was encrypted with is not there."""


class SecretBox:
    """Encrypts and decrypts secrets by AES-256-GCM (NIST SP 800-38D), each bound to its owner.

    Args:
        key: of 32 bytes; without it secrets are kept as they are.
        source: where the key is from, for messages.
    """

    def __init__(self, key: bytes | None = None, source: str = "") -> None:
        self._cipher = None if key is None else AESGCM(key)
        self._source = source

    def seal(self, secret: str, owner: str) -> str:
        """What is to be kept of an owner's secret; one that is sealed stays as it is."""
        if self._cipher is None or secret.startswith(SEALED):
            return secret
        nonce = secrets.token_bytes(NONCE_BYTES)
        return SEALED + base64.b64encode(nonce + self._cipher.encrypt(nonce, secret.encode(), owner.encode())).decode()

    def open(self, kept: str, owner: str) -> str:
        """The secret. Raises LostSecretError."""
        if not kept.startswith(SEALED):
            return kept
        if self._cipher is None:
            raise LostSecretError(
                "the webhook secret is encrypted and there is no key: set webhooks.key as it was when it was made"
            )
        try:
            sealed = base64.b64decode(kept.removeprefix(SEALED), validate=True)
            return self._cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], owner.encode()).decode()
        except (InvalidTag, ValueError):
            raise LostSecretError(
                f"the webhook secret was encrypted with another key than that of {self._source}: put the old one back, "
                "or have a new secret drawn"
            ) from None


CLEAR = SecretBox()


@dataclass(frozen=True, slots=True)
class WebhookKey:
    """Where the key is from: a setting, or a file that is made when it is first needed; without both there is none."""

    value: SecretStr | None = None  # base64
    file: Path | None = None

    def box(self) -> SecretBox:
        """Reads the key.

        Raises:
            LostSecretError: the file cannot be made or read, or holds no key.
        """
        if self.value is not None:
            return SecretBox(decode_webhook_key(self.value.get_secret_value()), "webhooks.key")
        if self.file is None:
            return CLEAR
        try:
            return SecretBox(decode_webhook_key(_ensure_key(self.file)), self.file.name)
        except (OSError, ValueError) as error:
            raise LostSecretError(
                f"{self.file} cannot be used as the key of the webhook secrets ({error}); put the old file back, or "
                "delete it and have new secrets drawn"
            ) from error


def webhook_key(settings: AppSettings) -> WebhookKey:
    """The key of an installation. With Postgres there is no file: each machine of a cluster would have its own."""
    is_local = settings.database_url.startswith("sqlite")
    return WebhookKey(settings.webhooks.key, settings.data_dir.resolve() / "webhook-key" if is_local else None)


def _ensure_key(path: Path) -> str:
    """The content of the file; two processes that make it at once get the same."""
    if not path.exists():
        draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        made = base64.b64encode(secrets.token_bytes(WEBHOOK_KEY_BYTES))
        path.parent.mkdir(mode=stat.S_IRWXU, parents=True, exist_ok=True)
        write_atomically(draft, made, stat.S_IRUSR | stat.S_IWUSR)
        try:
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)
        finally:
            draft.unlink()
    return path.read_text()
