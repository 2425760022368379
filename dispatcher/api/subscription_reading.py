"""Reads subscriptions, secrets and redeliveries out of requests: every check, each error with its field."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

from msgspec import UNSET, UnsetType

from dispatcher.api import shapes
from dispatcher.api.checking import check_schemes, read_secret
from dispatcher.api.problems import invalid
from dispatcher.api.reading import Reader
from dispatcher.models import BodyMode
from dispatcher.store.accounts import Account
from dispatcher.store.notices import NoticeType
from dispatcher.store.redelivering import MISSED, Criteria
from dispatcher.store.rotating import Rotation
from dispatcher.window import MAX_EXPIRY
from subscriptions.filters import FilterError, compile_filter
from subscriptions.matching import PatternError, check_pattern
from subscriptions.models import OVERLAP, Draft, Subscription
from subscriptions.secrets import Secret, SigningKey, generate, generate_seed

Value = TypeVar("Value")

#: what an operational endpoint is called
OPERATIONAL_NAME = "operational endpoint"

#: the body that a content type stands for where none is named
_BODIES: dict[shapes.ContentType, BodyMode] = {
    "application/json": BodyMode.RAW,
    "application/x-www-form-urlencoded": BodyMode.FORM,
    "application/cloudevents+json": BodyMode.CLOUDEVENTS_STRUCTURED,
}
#: fields that the shapes have checked already
_PLAIN = (
    "hub_method",
    "ordering",
    "on_exhausted",
    "rate_limit",
    "disable_after_4xx",
    "disable_on",
    "disable_after",
    "hold_for",
)
_LINE_ENDS = "\n\r\t"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


# --- subscriptions ----------------------------------------------------------------------------------------


def new_draft(reader: Reader, request: shapes.SubscriptionRequest, account: Account) -> tuple[Draft, SigningKey]:
    """A subscription that is to be created, and what will sign. Raises Problem."""
    config = request.config
    fields = {"verification": account.verification, **_fields(reader, request, account)}
    draft = Draft(
        name=_name(request.name),
        events=_events(request.events),
        **_location(reader, config.url, "/config/url", account),
        body_mode=_body_mode(BodyMode.RAW, request.body, _content_type(config)),
        **fields,
    )
    key = _signing_key(config.secret, "/config/secret")
    _check_schemes(draft.schemes, account, key, field="/schemes", secret_field="/config/secret")  # noqa: S106 - a place
    return draft, key


def edit(
    reader: Reader, request: shapes.SubscriptionChange, account: Account
) -> Callable[[Subscription], Draft] | None:
    """What a change makes of a subscription; None if it changes nothing. Raises Problem, and so may the edit."""
    fields = _fields(reader, request, account)
    if request.name is not UNSET:
        fields["name"] = _name(request.name)
    if request.events is not UNSET:
        fields["events"] = _events(request.events)
    config = shapes.SubscriptionConfigChange() if request.config is UNSET else request.config
    if config.url is not UNSET:
        fields.update(_location(reader, config.url, "/config/url", account))
    content_type = _content_type(config)
    _body_mode(BodyMode.RAW, request.body, content_type)
    if not fields and request.body is UNSET and content_type is UNSET:
        return None

    def edited(before: Subscription) -> Draft:
        if "schemes" in fields:
            for key in _signing_from_now_on(before):
                _check_schemes(fields["schemes"], account, key, field="/schemes", secret_field="/schemes")  # noqa: S106 - a place
        mode = _body_mode(BodyMode(before.body_mode), request.body, content_type)
        return replace(before, **fields, body_mode=mode)

    return edited


def wanted_active(request: shapes.SubscriptionFields) -> bool | UnsetType:
    """Whether a request wants a subscription to be active, if it says so. Raises Problem."""
    return _either(request.is_active, request.is_active_alias, "/isActive", "is_active")


def operational_draft(reader: Reader, request: shapes.OperationalRequest, account: Account) -> tuple[Draft, SigningKey]:
    """An account's operational endpoint, and what will sign. Raises Problem."""
    at = "/operational_endpoint"
    draft = Draft(
        name=OPERATIONAL_NAME,
        events=tuple(NoticeType),
        **_location(reader, request.url, f"{at}/url", account),
        schemes=_tuple(request.schemes),
        headers=reader.headers(request.headers or {}, f"{at}/headers"),
        operational=True,
    )
    key = _signing_key(request.secret, f"{at}/secret")
    _check_schemes(draft.schemes, account, key, field=f"{at}/schemes", secret_field=f"{at}/secret")
    return draft, key


def content_type_of(mode: BodyMode) -> shapes.ContentType:
    """The content type of a body."""
    return next((content_type for content_type, body in _BODIES.items() if body is mode), "application/json")


def _fields(reader: Reader, request: shapes.SubscriptionFields, account: Account) -> dict[str, Any]:
    """What a request says of a subscription, as fields of a draft; null is the default."""
    checks: dict[str, Callable[[Any], Any]] = {
        "description": _description,
        "schemes": _tuple,
        "headers": lambda headers: reader.headers(headers or {}, "/headers"),
        "filter": _filter,
        "retry_schedule": _tuple,
        "timeout": lambda seconds: _timeout(seconds, reader.settings.longest_send),
        "verification": lambda verification: verification or account.verification,
        **{name: partial(_or_default, name) for name in _PLAIN},
    }
    said = {name: getattr(request, name) for name in checks}
    fields = {name: checks[name](value) for name, value in said.items() if value is not UNSET}
    if bytes(request.metadata):
        fields["metadata"] = reader.metadata(request.metadata, "/metadata")
    return fields


def _or_default(name: str, value: Any) -> Any:
    return Draft.__dataclass_fields__[name].default if value is None else value


def _tuple(values: Sequence[Any] | None) -> tuple[Any, ...] | None:
    return None if values is None else tuple(values)


def _name(text: str) -> str:
    if not text.isprintable():
        raise invalid("/name", "must consist of printable characters")
    return text


def _description(text: str | None) -> str | None:
    if text is not None and any(
        unicodedata.category(character) in {"Cc", "Cs"} and character not in _LINE_ENDS for character in text
    ):
        raise invalid("/description", "must not hold control characters")
    return text


def _events(patterns: Sequence[str]) -> tuple[str, ...]:
    for index, pattern in enumerate(patterns):
        try:
            check_pattern(pattern)
        except PatternError as exc:
            raise invalid(f"/events/{index}", str(exc)) from None
    return tuple(dict.fromkeys(patterns))


def _filter(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        return compile_filter(text).text
    except FilterError as exc:
        raise invalid("/filter", str(exc)) from None


def _timeout(seconds: float | None, longest: float) -> float | None:
    if seconds is not None and seconds > longest:
        raise invalid("/timeout", f"must be float <= {longest:g}")
    return seconds


def _location(reader: Reader, url: str, field: str, account: Account) -> dict[str, Any]:
    target = reader.target(url, field)
    fingerprint = reader.keyring.fingerprint(url, account=account.id)
    return {"url": Secret(url), "origin": target.origin, "fingerprint": fingerprint}


def _content_type(
    config: shapes.SubscriptionConfig | shapes.SubscriptionConfigChange,
) -> shapes.ContentType | UnsetType | None:
    return _either(config.content_type, config.content_type_alias, "/config/contentType", "content_type")


def _body_mode(
    before: BodyMode, body: BodyMode | UnsetType | None, content_type: shapes.ContentType | UnsetType | None
) -> BodyMode:
    if body is UNSET:
        wanted = content_type_of(before) if content_type is UNSET else content_type or "application/json"
        return before if content_type_of(before) == wanted else _BODIES[wanted]
    mode = body or BodyMode.RAW
    if content_type is not UNSET and content_type is not None and content_type_of(mode) != content_type:
        raise invalid("/config/content_type", "must be that of `body`, or be left out")
    return mode


def _either(value: Value | UnsetType, alias: Value | UnsetType, field: str, name: str) -> Value | UnsetType:
    if value is not UNSET and alias is not UNSET:
        raise invalid(field, f"is another spelling of {name}; give one of them")
    return alias if value is UNSET else value


# --- secrets ----------------------------------------------------------------------------------------------


def new_rotation(request: shapes.RotateRequest) -> Rotation:
    """A new secret, and what becomes of the others. Raises Problem."""
    overlap = OVERLAP if request.overlap is UNSET else request.overlap
    if request.revoke_now:
        if request.overlap is not UNSET and request.overlap > 0:
            raise invalid("/revoke_now", "contradicts overlap; give one of them")
        if request.valid_from is not None:
            raise invalid("/revoke_now", "contradicts valid_from; give one of them")
        overlap = 0.0
    start = None if request.valid_from is None else _ms(request.valid_from)
    end = None if request.valid_until is None else _ms(request.valid_until)
    if end is not None and end <= max(now_ms(), start or 0):
        raise invalid("/valid_until", "must be later than valid_from, and than now")
    return Rotation(
        key=_signing_key(request.secret, "/secret"),
        valid_from=start,
        valid_until=end,
        overlap=overlap,
    )


def rotation_check(account: Account) -> Callable[[Subscription, SigningKey], None]:
    """What makes sure that a new secret can serve a subscription's schemes; raises Problem if it cannot."""

    def check(subscription: Subscription, key: SigningKey) -> None:
        _check_schemes(subscription.schemes, account, key, field="/secret", secret_field="/secret")  # noqa: S106 - a place

    return check


def _signing_key(text: str | None, field: str) -> SigningKey:
    return SigningKey(secret=read_secret(text, field) or generate(), seed=generate_seed())


def _signing_from_now_on(subscription: Subscription) -> list[SigningKey]:
    """Keys that schemes must suit: the one that signs now, and those that will."""
    now = now_ms()
    keys = [key.key for key in subscription.keys if key.valid_from > now]
    return [*keys, *subscription.keys_at(now)[:1]]


def _check_schemes(
    schemes: tuple[str, ...] | None, account: Account, key: SigningKey, *, field: str, secret_field: str
) -> None:
    named = schemes or account.schemes
    if named is not None:
        check_schemes(named, key.secret, field if schemes else secret_field, has_key_pair=True)


# --- redeliveries -----------------------------------------------------------------------------------------


def new_criteria(request: shapes.Recovery | shapes.RedeliverRequest, *, subscription_id: str | None) -> Criteria:
    """Which deliveries are sent again. Raises Problem."""
    since = _ms(request.since)
    if since > now_ms():
        raise invalid("/since", "must not be in the future")
    until = None if request.until is None else _ms(request.until)
    if until is not None and until <= since:
        raise invalid("/until", "must be later than since")
    states: Sequence[str] = MISSED
    type_ = None
    if isinstance(request, shapes.RedeliverRequest):
        states, type_ = request.states or MISSED, request.type
    return Criteria(
        states=tuple(dict.fromkeys(str(state) for state in states)),
        subscription_id=subscription_id,
        type=type_,
        since=since,
        until=until,
    )


def now_ms() -> int:
    """This process's clock, milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def _ms(moment: datetime) -> int:
    # An offset can lead beyond the first and the last year that a date can show.
    return round(min(max((moment - _EPOCH).total_seconds(), 0.0), MAX_EXPIRY) * 1000)
