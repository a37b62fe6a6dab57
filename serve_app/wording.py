"""How a value that a client sent is quoted back in an error message: short, printable, never a failure itself."""

import json

LONGEST = 60


def shown(value: object) -> str:
    """A few characters that tell `value`, as JSON; lists and objects only by their kind."""
    match value:
        case list():
            return "a list"
        case dict():
            return "an object"
        case str() if len(value) > LONGEST:
            return f"{_quoted(value[:LONGEST])}... ({len(value)} characters)"
        case str():
            return _quoted(value)
        case None | bool() | int() | float():
            return _shortened(json.dumps(value))
    return "a file" if isinstance(value, UploadedFile) else f"a {type(value).__name__}"


class UploadedFile:
    """Stands for a file part of a multipart body where the API takes text."""


def _quoted(text: str) -> str:
    printable = json.dumps(text, ensure_ascii=False)
    return printable.encode("utf-8", "backslashreplace").decode("utf-8")


def _shortened(number: str) -> str:
    return number if len(number) <= LONGEST else f"{number[:LONGEST]}... ({len(number)} digits)"
