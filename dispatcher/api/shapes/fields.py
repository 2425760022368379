"""What several shapes are made of: names, URLs, moments, and raw JSON of the caller's."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from msgspec import Meta, Raw, Struct

from dispatcher.limits import MAX_RETRIES, MAX_RETRY_DELAY
from subscriptions.signatures import Scheme

#: PostgreSQL holds every character but this one
WITHOUT_NUL = r"^[^\x00]*$"

# `$` also matches before a line end at the end; `\Z` would not do, since JSON Schema does not have it
TypeName = Annotated[
    str,
    Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$(?!\n)", description="The name of a task type or an event type."),
]
Url = Annotated[
    str,
    Meta(
        min_length=1,
        description="An https URL. It is treated as a credential: encrypted, never shown.",
        examples=["https://api.example.com/results/42/eyJhbGciOiJIUzI1NiJ9.eyJyZXNfaWQiOjQyfQ.c2lnbmF0dXJl"],
        extra_json_schema={"format": "uri", "maxLength": 8192},
    ),
]
SecretText = Annotated[
    str, Meta(min_length=8, max_length=255, description="Signs the deliveries. It is never shown again.")
]
RetrySchedule = Annotated[
    list[Annotated[float, Meta(gt=0, le=MAX_RETRY_DELAY)]],
    Meta(max_length=MAX_RETRIES, description="Delays between tries, seconds."),
]
Moment = Annotated[datetime, Meta(tz=True, description="A time with its offset (RFC 3339).")]
Schemes = Annotated[list[Scheme], Meta(min_length=1, description="Signature schemes to use.")]
CustomHeaders = Annotated[
    dict[str, str],
    Meta(
        description="Further headers of the deliveries. Their values are stored encrypted.",
        extra_json_schema={"maxProperties": 20},
    ),
]
#: a problem within another answer
ProblemObject = Annotated[dict[str, Any], Meta(extra_json_schema={"$ref": "#/components/schemas/ProblemDetails"})]
#: a moment as it is shown
Time = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]


def null() -> Raw:
    """JSON's null, for the default of a field of raw JSON."""
    return Raw(b"null")


class Request(Struct, forbid_unknown_fields=True, kw_only=True):
    """What all requests have in common: a field we do not know is an error."""
