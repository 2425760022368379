"""Bodies checked against JSON Schema (draft 2020-12 unless it names another), one schema for each event type."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

import referencing
import referencing.exceptions
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for

from dispatcher.errors import ConfigError

#: characters of a pointer that are shown
MAX_POINTER = 200


class SchemaUnusable(Exception):
    """A schema of ours cannot be applied. The text shows nothing of the body."""


def compile_schemas(schemas: Mapping[str, Mapping[str, Any]]) -> dict[str, Validator]:
    """A validator for each event type. Raises ConfigError when a schema is none.

    Nothing is ever fetched: a `$ref` that leads out of its schema makes it unusable.
    """
    made: dict[str, Validator] = {}
    for event, schema in schemas.items():
        kind = validator_for(schema, default=Draft202012Validator)
        try:
            kind.check_schema(dict(schema))
        except SchemaError as exc:
            raise ConfigError(
                f"schemas: the one of {event} is no JSON Schema, at {_pointer(exc.absolute_path)}"
            ) from exc
        # the library's default registry would dial whatever a $ref names
        made[event] = kind(dict(schema), registry=referencing.Registry())
    return made


def parse_json(body: bytes) -> Any:
    """The body's value. Raises ValueError without any of its text: not UTF-8, not JSON, nested too deeply."""
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise ValueError("the body is not JSON") from None


def find_failure(validator: Validator, value: Any) -> tuple[str, str] | None:
    """Where and by which keyword a value fails: a JSON Pointer (RFC 6901) and the keyword. None if it holds.

    Raises SchemaUnusable when the schema cannot be applied.
    """
    try:
        error = best_match(validator.iter_errors(value))
    except referencing.exceptions.Unresolvable:
        raise SchemaUnusable("a $ref of the schema leads nowhere") from None
    except (ArithmeticError, RecursionError, TypeError, ValueError) as exc:
        raise SchemaUnusable(f"the schema could not be applied: {type(exc).__name__}") from None
    return None if error is None else (_pointer(error.absolute_path), str(error.validator))


def _pointer(path: Any) -> str:
    text = "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)
    # the sender names its members: they may be long, or meant for whoever reads the log
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= MAX_POINTER else text[:MAX_POINTER] + "…"


def _no_constant(_name: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")
