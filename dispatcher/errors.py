"""Every error of ours, in one small tree.

    DispatcherError
    ├── ConfigError          settings, keyring or data directory cannot be used; says what to do
    ├── OutboxRefused        what was to be written into the outbox is not valid; nothing was written
    ├── EgressRefused        an address, host, port or URL that we do not send to
    ├── SendError            an attempt that ended without a usable answer; carries its outcome
    ├── StoreError
    │   ├── StoreUnavailable the database cannot take the write now (locked, full, away): try again
    │   │   └── StoreContended   another process was at the same rows: try again at once
    │   └── LeaseLost        the row is no longer ours to change
    ├── ProcessorError       raised by processor code; its text is safe to show to the caller
    └── Problem              an answer of the HTTP API (RFC 9457)

Texts of these errors may reach logs and callers, so none of them ever holds a secret, a token, or the
path of a callback URL.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dispatcher.models import Outcome


class DispatcherError(Exception):
    """Any error of ours."""


class ConfigError(DispatcherError):
    """Settings, keyring or data directory cannot be used. The text says what to do about it."""


class EgressRefused(DispatcherError):
    """We do not send there. `detail` names the part of the URL; it never repeats it."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class OutboxRefused(DispatcherError, ValueError):
    """What was to be written into the outbox is not valid, and was not written. The text names what is wrong."""

    @classmethod
    def of(cls, problem: Problem) -> OutboxRefused:
        """A problem, in one line."""
        errors = [f"{error.field.removeprefix('/')}: {error.detail}" for error in problem.errors]
        return cls("; ".join(errors) or problem.detail)


class SendError(DispatcherError):
    """An attempt that ended without a usable answer."""

    def __init__(self, outcome: Outcome, detail: str) -> None:
        super().__init__(detail)
        self.outcome = outcome
        self.detail = detail


class StoreError(DispatcherError):
    """The database did not do what was asked."""


class StoreUnavailable(StoreError):
    """The database cannot take the write now: locked, full or away. Try again.

    Nothing was stored, but where the fate of a COMMIT could not be looked up.
    """


class StoreContended(StoreUnavailable):
    """Another process was at the same rows in the same moment. Nothing was stored; the same again is likely to be."""


class LeaseChanged(StoreContended):
    """A lease is not as it was remembered. Nothing was stored; tried again, it is read."""


class LeaseLost(StoreError):
    """The row is no longer ours to change: its lease ended, or another attempt has it."""


class ProcessorError(DispatcherError):
    """Raise this in a processor to tell the caller why: its text is put into the result as it stands.

    The text of any other exception stays in our log, since it may hold what the caller must not see.
    """

    def __init__(self, message: str, *, retry: bool = False) -> None:
        super().__init__(message)
        self.message = message
        #: whether another try may help; False ends the task at once
        self.retry = retry


@dataclass(frozen=True, kw_only=True)
class FieldError:
    """One field that was wrong: a JSON pointer (RFC 6901) and what would be right. Never the value."""

    field: str
    detail: str


#: slug -> (HTTP status, title); the `type` of a problem is `/problems/<slug>`
PROBLEMS: dict[str, tuple[int, str]] = {
    "invalid-json": (422, "The body is not valid JSON"),
    "validation": (422, "The request is not valid"),
    "too-large": (413, "The request is too large"),
    "egress": (422, "The URL is not one we send to"),
    "token-expired": (422, "The callback's token ends too soon"),
    "unknown-type": (422, "No processor has this name"),
    "idempotency-mismatch": (422, "The idempotency key was used with another body"),
    "conflict": (409, "The object is in a state that does not allow this"),
    "callback-wiped": (409, "The callback URL has been wiped"),
    "unauthorized": (401, "A valid token is needed"),
    "forbidden": (403, "The token does not allow this"),
    "not-found": (404, "There is no such object"),
    "rate-limited": (429, "Too many requests"),
    "quota": (403, "The account's quota is used up"),
    "unavailable": (503, "The service cannot take this now"),
}


class Problem(DispatcherError):
    """An answer of the HTTP API that is not a success, as problem details (RFC 9457)."""

    def __init__(
        self,
        slug: str,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        status: int | None = None,
        retry_after: int | None = None,
        extra: dict[str, object] | None = None,
    ) -> None:
        super().__init__(detail)
        self.slug = slug
        self.status = status or PROBLEMS[slug][0]
        self.title = PROBLEMS[slug][1]
        self.detail = detail
        self.errors = tuple(errors)
        #: whole seconds for the Retry-After header, where waiting may help
        self.retry_after = retry_after
        #: further members of the problem object, such as `earliest_exp`
        self.extra = extra or {}

    def as_dict(self) -> dict[str, object]:
        """The members of the problem object, in the order RFC 9457 lists them."""
        body: dict[str, object] = {
            "type": f"/problems/{self.slug}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
        }
        if self.errors:
            body["errors"] = [{"field": error.field, "detail": error.detail} for error in self.errors]
        return body | self.extra
