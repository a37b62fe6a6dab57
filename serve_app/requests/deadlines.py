"""How long a request gives its video: the text of a duration, in a field of the body or in a header. Pure."""

import re
from collections.abc import Sequence

from serve_app.config import DAY_S, HOUR_S
from serve_app.errors import InvalidRequestError, quote

FIELD = "cancel_after"
HEADER = "Cancel-After"
MIN_S = 5
MAX_S = 7 * DAY_S
PATTERN = r"[0-9]{1,6}(\.[0-9]{1,6})?|([0-9]{1,6}[dhms]){1,4}"
TEXT_SCHEMA = {"type": "string", "pattern": f"^({PATTERN})$"}
ALLOWED = (
    "a duration from 5 seconds to 7 days, as seconds (90) or with units (90s, 5m, 1h30m, 2d); a video that is not "
    "completed by then is cancelled"
)
HEADER_DOCS = {
    "name": HEADER,
    "in": "header",
    "required": False,
    "description": f"{ALLOWED}; the same as the field '{FIELD}'",
    "schema": TEXT_SCHEMA,
}
"""The header in the OpenAPI document."""

_DURATION = re.compile(PATTERN)
_PART = re.compile("([0-9]+)([dhms])")
_UNITS_S = {"d": DAY_S, "h": HOUR_S, "m": 60, "s": 1}


def seconds_of(duration: str | int | float) -> float:
    """The duration in seconds. Raises ValueError with the reason if it is none that is allowed."""
    if isinstance(duration, str):
        if not _DURATION.fullmatch(duration):
            raise ValueError("not a duration")
        parts = _PART.findall(duration)
        duration = sum(int(number) * _UNITS_S[unit] for number, unit in parts) if parts else float(duration)
    if not MIN_S <= duration <= MAX_S:  # before the conversion: an integer may be too large for a float
        raise ValueError("out of range")
    return float(duration)


def add_header(fields: dict[str, object], headers: Sequence[str]) -> None:
    """Put the duration of the header Cancel-After, if there is one, among the fields of the body.

    Args:
        fields: of the body, unchecked; null stands for a field that is left out.
        headers: the values of all headers of this name.

    Raises:
        InvalidRequestError: the header is no duration, or the body has another one.
    """
    if not headers:
        return
    given = ", ".join(headers)
    try:
        header_s = seconds_of(given)
    except ValueError as error:
        raise InvalidRequestError(
            f"Invalid '{HEADER}': got {quote(given)} ({error}). It must be {ALLOWED}.", HEADER
        ) from None
    field = fields.get(FIELD)
    if field is None:
        fields[FIELD] = given
    elif isinstance(field, str | int | float) and _differs(field, header_s):
        raise InvalidRequestError(
            f"The header '{HEADER}' says {quote(given)} and '{FIELD}' {quote(field)}; give only one of them.",
            FIELD,
            "conflicting_parameters",
        )


def _differs(field: str | int | float, header_s: float) -> bool:
    """A field that is no duration does not: it is refused as such."""
    try:
        return seconds_of(field) != header_s
    except ValueError:
        return False
