"""Takes secrets out of lines of a log: those that the settings hold, wherever they stand, and what looks like one."""

import re
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import quote, quote_plus, unquote, urlsplit

from pydantic import BaseModel, SecretStr

HIDDEN = "***"
SHORTEST = 8
"""Characters. A shorter secret is hidden only where it looks like one: it may be a word of every second line."""

_NAMES = (
    r"x-amz-(?:signature|credential|security-token)|awsaccesskeyid|signature|sig|access_token|refresh_token|token"
    r"|api[_-]?key|access_key|secret_key|secret_access_key|password|passwd|secret"
)
# Each has what stays before the secret as its first group.
_FORMS = (
    r"(://[^\s/:@]*:)[^\s/@]+(?=@)",  # a URL's password
    r"\b(ms-)[A-Za-z0-9_-]{43}",  # our API keys
    r"\b(whsec_)[A-Za-z0-9+/=_-]{8,}",  # what signs webhooks
    r"\b(hf_)[A-Za-z0-9]{16,}",  # of the Hugging Face hub
    r"\b((?:Bearer|Basic)\s+)[A-Za-z0-9._~+/=-]{8,}",
    rf"((?<![A-Za-z0-9])(?:{_NAMES})=)[^&\s\"'<>,;)]+",  # a signed link, a line of settings
    rf"(['\"](?:{_NAMES})['\"]\s*:\s*['\"])[^'\"]+",  # a mapping
)
_FORM = re.compile("|".join(f"(?:{form})" for form in _FORMS), re.IGNORECASE)


class Mask:
    """Hides secrets.

    Args:
        secrets: hidden wherever they stand, as they are and as a URL writes them.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        written = {form for one in secrets for form in (one, quote(one, safe=""), quote_plus(one))}
        longest_first = sorted((one for one in written if len(one) >= SHORTEST), key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def __call__(self, text: str) -> str:
        """The text without secrets."""
        if self._known is not None:
            text = self._known.sub(HIDDEN, text)
        return _FORM.sub(lambda found: (found[found.lastindex] if found.lastindex else "") + HIDDEN, text)


def secrets_of(*parts: object) -> Iterator[str]:
    """The secrets of settings, and of URLs among them the password."""
    for part in parts:
        match part:
            case SecretStr():
                yield from _of_text(part.get_secret_value())
            case BaseModel():
                yield from secrets_of(*(value for _, value in part))
            case Mapping():
                yield from secrets_of(*part.values())
            case list() | tuple():
                yield from secrets_of(*part)


def _of_text(secret: str) -> Iterator[str]:
    yield secret
    try:
        password = urlsplit(secret).password
    except ValueError:  # no URL
        return
    if password:
        yield password
        yield unquote(password)
