"""The fields of a request against a schema: names, types, and words for what is wrong."""

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from serve_app.errors import InvalidRequestError, quote
from serve_app.requests.body import Form
from serve_app.requests.schema import DECIMAL, allowed_values

Schema = TypeVar("Schema", bound=BaseModel)

_NUMBERS = frozenset(
    {"width", "height", "num_frames", "fps", "num_inference_steps", "guidance_scale", "seed", "seconds"}
)
_BOOLEANS = {"true": True, "false": False}
_INTEGER = re.compile(r"-?[0-9]{1,40}")


def validated(schema: type[Schema], fields: Mapping[str, object]) -> Schema:
    """The fields as the schema has them, those of a form with their types.

    Raises:
        InvalidRequestError: names the first field that is wrong, what was given and what is allowed.
    """
    fields = _typed(fields) if isinstance(fields, Form) else fields
    _check_names(schema, fields)
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        return schema.model_validate(given)
    except ValidationError as error:
        raise _explained(schema, dict(error.errors(include_url=False)[0])) from None


def _check_names(schema: type[BaseModel], fields: Mapping[str, object]) -> None:
    allowed = allowed_values(schema)
    for name, value in fields.items():
        if name.partition("[")[0] == "input_reference":
            if value is None:
                continue
            raise InvalidRequestError(
                "Unsupported parameter: 'input_reference'. This model makes videos from text alone; leave it out.",
                "input_reference",
                "unsupported_parameter",
            )
        if name not in allowed:
            raise InvalidRequestError(
                f"Unknown parameter: {quote(name)}. Allowed are: {', '.join(allowed)}.",
                quote(name)[1:-1] if len(name) <= 60 else None,
                "unknown_parameter",
            )


def _explained(schema: type[BaseModel], error: dict[str, Any]) -> InvalidRequestError:
    name = str(error["loc"][0])
    must = f"It must be {allowed_values(schema)[name]}."
    if error["type"] == "missing":
        return InvalidRequestError(f"Missing required parameter: '{name}'. {must}", name, "missing_required_parameter")
    reason = f" ({error['ctx']['error']})" if error["type"] == "value_error" else ""
    return InvalidRequestError(f"Invalid '{name}': got {quote(error['input'])}{reason}. {must}", name)


def _typed(form: Form) -> dict[str, object]:
    """The fields of a form, whose values are text; what does not have the type of its field is refused later."""
    return {name: _typed_value(name, value) for name, value in form.items()}


def _typed_value(name: str, value: object) -> object:
    if name in _NUMBERS:
        return _number(value)
    return _BOOLEANS.get(value, value) if name == "exact" and isinstance(value, str) else value


def _number(value: object) -> object:
    if not isinstance(value, str):
        return value
    if _INTEGER.fullmatch(value):
        return int(value)
    return float(value) if DECIMAL.fullmatch(value) else value
