"""Bodies checked against JSON Schema (draft 2020-12 unless it names another), one schema for each event type."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import referencing
import referencing.exceptions
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError, best_match
from jsonschema.protocols import Validator
from jsonschema.validators import extend, validator_for

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
        # Where a $ref leads back to a schema that names its draft, the library would go on with a class of its own.
        content = {name: value for name, value in schema.items() if name != "$schema"}
        extended = extend(kind, {"uniqueItems": _unique_items})  # type: ignore[no-untyped-call]  # its types are not told
        # the library's default registry would dial whatever a $ref names
        made[event] = extended(content, registry=referencing.Registry())
    return made


def _unique_items(_validator: Validator, wanted: object, value: object, _schema: object) -> Iterator[ValidationError]:
    """In a time in proportion: the library compares each with each, and a body of some KiB keeps it for minutes."""
    if wanted is True and isinstance(value, list):
        texts = {json.dumps(_alike(one), sort_keys=True) for one in value}
        if len(texts) < len(value):
            yield ValidationError("has non-unique elements")


def _alike(value: Any) -> Any:
    """The same for all that JSON Schema takes for equal (draft 2020-12, core, section 4.2.2): 1 and 1.0."""
    if isinstance(value, dict):
        return {name: _alike(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_alike(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


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
