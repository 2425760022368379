"""What is wrong with a request, as problem details (RFC 9457)."""

from __future__ import annotations

import re

import msgspec

from dispatcher.bodies import CLOUDEVENTS_JSON, FORM, JSON
from dispatcher.errors import FieldError, Problem
from dispatcher.models import TERMINAL_STATES, BodyMode
from subscriptions.health import DisableOn
from subscriptions.models import OnExhausted, Ordering, Verification
from subscriptions.signatures import HUB_METHODS, Scheme

MEDIA_TYPE = "application/problem+json"
#: seconds after which a client may try again when the database cannot take a write
RETRY_AFTER = 2

_AT = re.compile(r" - at `(?:key in )?\$(?P<path>[^`]*)`\Z")
_FIELD = re.compile(r"Object (?P<what>missing required|contains unknown) field `(?P<name>.*)`\Z", re.DOTALL)
_STEP = re.compile(r"\.(?P<name>[A-Za-z_][A-Za-z0-9_]*)|\[(?P<index>\d+)\]")
_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}\Z")
_EXPECTED = re.compile(r"Expected `(?P<wanted>[^`]+)`")
#: msgspec's words for values of the wrong size; they hold limits, never values
_SIZED = re.compile(r"Expected `[^`]+` (?:of length|>=|<=|>|<|matching)[^`]*", re.DOTALL)

CONTENT_TYPES = (JSON, FORM, CLOUDEVENTS_JSON)
#: fields that take one of a few words
_CHOICES: dict[str, tuple[str, ...]] = {
    "schemes": tuple(Scheme),
    "body": tuple(BodyMode),
    "hub_method": HUB_METHODS,
    "ordering": tuple(Ordering),
    "on_exhausted": tuple(OnExhausted),
    "disable_on": tuple(DisableOn),
    "verification": tuple(Verification),
    "content_type": CONTENT_TYPES,
    "contentType": CONTENT_TYPES,
    "states": TERMINAL_STATES,
    "held": ("release", "discard"),
}


def invalid(field: str, detail: str) -> Problem:
    """A field that was wrong: its JSON pointer, and what would be right."""
    return Problem("validation", "The request is not valid.", errors=[FieldError(field=field, detail=detail)])


def too_large(field: str, limit: int, *, unit: str = "bytes") -> Problem:
    """A field that was larger than we take."""
    return Problem(
        "too-large",
        f"At most {limit} {unit} are taken here.",
        errors=[FieldError(field=field, detail=f"must not have more than {limit} {unit}")],
    )


def not_found(kind: str) -> Problem:
    """There is no such object, or it is another account's."""
    return Problem("not-found", f"There is no such {kind}.")


def cut_off() -> Problem:
    """The answer to a request that a stop did not wait for any longer."""
    detail = "The service stops. Whether this was stored is not known: ask again, with the same Idempotency-Key."
    return Problem("unavailable", detail, retry_after=RETRY_AFTER)


def unavailable() -> Problem:
    """The database cannot take the write now. Hardly ever it did: a COMMIT whose fate could not be looked up."""
    detail = "The database cannot take this now. Try again in a moment, with the same Idempotency-Key."
    return Problem("unavailable", detail, retry_after=RETRY_AFTER)


def of_decoding(error: Exception, prefix: str = "") -> Problem:
    """What was wrong with a JSON body, by field. Values of the body are never repeated."""
    if isinstance(error, msgspec.ValidationError):
        field, detail = _explain(str(error))
        return Problem(
            "validation",
            "The body does not have the right shape.",
            errors=[FieldError(field=prefix + field, detail=detail)],
        )
    if isinstance(error, RecursionError):
        nested = FieldError(field=prefix, detail="must not be nested so deeply")
        return Problem("validation", "The body does not have the right shape.", errors=[nested])
    return Problem("invalid-json", "The body is not valid JSON in UTF-8.")


def _explain(text: str) -> tuple[str, str]:
    at = _AT.search(text)
    pointer = _pointer(at["path"]) if at else ""
    message = text[: at.start()] if at else text
    field = _FIELD.match(message)
    if field:
        # A name of any other form may be a value in the wrong place, so it is not repeated.
        name = field["name"] if _PLAIN_NAME.match(field["name"]) else "…"
        known = field["what"] == "missing required"
        return f"{pointer}/{name}", "is required" if known else "is not a field of this object"
    if _SIZED.fullmatch(message):
        return pointer, message.replace("`", "").replace("Expected", "must be")
    if message.startswith("Invalid enum value"):
        choices = next((_CHOICES[name] for name in pointer.split("/") if name in _CHOICES), ())
        return pointer, f"must be one of {', '.join(choices)}"
    if "datetime" in message:
        return pointer, "must be a time with its offset, as in RFC 3339"
    wanted = _EXPECTED.match(message)
    return pointer, f"must be {wanted['wanted']}" if wanted else "has no valid value"


def _pointer(path: str) -> str:
    return "".join("/" + (step["name"] or step["index"]) for step in _STEP.finditer(path))
