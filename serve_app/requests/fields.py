"""Checks the fields of a request's body against a schema: names, types, and the messages about what is wrong."""

import re
from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from serve_app.errors import InvalidRequestError, quote
from serve_app.requests.body import Form
from serve_app.requests.client_fields import CLIENT_FIELDS
from serve_app.requests.schema import DECIMAL, allowed_values

Schema = TypeVar("Schema", bound=BaseModel)

_BOOLEANS = {"true": True, "false": False}
MAX_NAME = 60  # characters of a name that is told
_ALIKE = 0.58  # of SequenceMatcher's ratio, from which a name may be meant
_PART_BONUS = 0.25  # added to the ratio where one name is a part of the other
_INTEGER = re.compile(r"-?[0-9]{1,40}")


def check_fields(schema: type[Schema], fields: Mapping[str, object]) -> Schema:
    """The fields as the schema has them. Null stands for a field that is left out.

    Raises:
        InvalidRequestError: names the first field that is wrong, what was given and what is allowed.
    """
    _check_names(schema, fields)
    if isinstance(fields, Form):
        fields = _typed(schema, fields)
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        return schema.model_validate(given)
    except ValidationError as error:
        raise _refusal(schema, dict(error.errors(include_url=False)[0])) from None


def _check_names(schema: type[BaseModel], fields: Iterable[str]) -> None:
    allowed = allowed_values(schema)
    for name in fields:
        if name not in allowed:
            raise InvalidRequestError(
                f"Unknown parameter: {quote(name)}.{_meant(name, allowed)} Allowed are: {', '.join(allowed)}.",
                quote(name)[1:-1] if len(name) <= MAX_NAME else None,
                "unknown_parameter",
            )


def _meant(name: str, allowed: Iterable[str]) -> str:
    """The known field that is nearest to the name, as a question."""
    if len(name) > MAX_NAME:
        return ""

    def likeness(other: str) -> float:
        part = _PART_BONUS if len(name) > 3 and (name in other or other in name) else 0.0
        return SequenceMatcher(None, name, other).ratio() + part

    nearest = max((*allowed, *CLIENT_FIELDS), key=likeness)
    return f" Did you mean '{nearest}'?" if likeness(nearest) >= _ALIKE else ""


def _refusal(schema: type[BaseModel], error: dict[str, Any]) -> InvalidRequestError:
    name = str(error["loc"][0])
    must = f"It must be {allowed_values(schema)[name]}."
    if error["type"] == "missing":
        return InvalidRequestError(f"Missing required parameter: '{name}'. {must}", name, "missing_required_parameter")
    reason = f" ({error['ctx']['error']})" if error["type"] == "value_error" else ""
    return InvalidRequestError(f"Invalid '{name}': got {quote(error['input'])}{reason}. {must}", name)


def _typed(schema: type[BaseModel], form: Form) -> dict[str, object]:
    """The fields of a form, whose values are text; a text that has not the type of its field stays one."""
    types = {info.alias or name: info.annotation for name, info in schema.model_fields.items()}
    return {name: _typed_value(types.get(name), value) for name, value in form.items()}


def _typed_value(field_type: Any, value: object) -> object:
    if not isinstance(value, str):
        return value
    if _takes(field_type, bool):
        return _BOOLEANS.get(value, value)
    if not _takes(field_type, int, float):
        return value
    if _INTEGER.fullmatch(value):
        return int(value)
    return float(value) if DECIMAL.fullmatch(value) else value


def _takes(field_type: Any, *scalars: type) -> bool:
    """Whether the type is one of `scalars`, or a union or an Annotated with one of them in it."""
    return field_type in scalars or any(_takes(part, *scalars) for part in get_args(field_type))
