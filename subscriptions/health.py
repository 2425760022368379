"""When a subscription is disabled: pure policy over what its endpoint answered. No I/O, no clock.

The answers come in four kinds that matter here; `dispatcher.retry` says which HTTP answer is of which kind. What is
none of them (a worker that died, a message that the endpoint alone gave up) says nothing about the endpoint.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

#: seconds between the first and the latest failure after which an endpoint is given up, where none is set
DISABLE_AFTER = 5 * 86_400.0
#: failures that it takes for that, at least
MIN_FAILURES = 5
#: failures without a success from which on an endpoint is reported as failing
FAILING_FROM = 5
#: 4xx statuses that may speak of one payload rather than of the endpoint; `disable_on: endpoint` spares them
PAYLOAD_4XX = frozenset({400, 409, 413, 414, 415, 422, 431})


class DisabledReason(StrEnum):
    """Why a subscription is disabled."""

    #: its endpoint refused a delivery with a 4xx
    REJECTED = "rejected"
    #: its endpoint answered 410: it will not come back
    GONE = "gone"
    #: nothing succeeded for a long time
    FAILING = "failing"
    #: its endpoint asked for it with the header `webhook-delivery: disable`
    ASKED = "asked"
    #: its name leads to an address that we do not send to
    EGRESS = "egress"
    #: an ordered delivery used up every try, and the rest must not overtake it
    BLOCKED = "blocked"
    #: its owner disabled it
    MANUAL = "manual"
    #: it has not yet shown that it wants what we send
    UNVERIFIED = "unverified"


class DisableOn(StrEnum):
    """Which 4xx answers can disable a subscription."""

    #: all of them
    ANY = "any"
    #: those that speak of the endpoint, not of one payload
    ENDPOINT = "endpoint"


class Kind(StrEnum):
    """What an answer says about an endpoint."""

    #: a 2xx
    SUCCESS = "success"
    #: a failure that may pass: 3xx, 5xx, 408, 423, 425, 429, no answer at all
    FAILURE = "failure"
    #: any other 4xx but 410
    REFUSAL = "refusal"
    #: 410
    GONE = "gone"
    #: the egress guard refused its address for the last time
    EGRESS = "egress"


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """What a subscription's owner wants."""

    #: refusals without a success between them that disable it; 0 means never
    disable_after_4xx: int = 1
    disable_on: DisableOn = DisableOn.ANY
    #: seconds between the first and the latest failure, with no success between
    disable_after: float = DISABLE_AFTER


@dataclass(frozen=True, kw_only=True, slots=True)
class Health:
    """What is remembered of an endpoint's answers."""

    #: refusals since the last success
    refusals: int = 0
    #: failures since the last success, refusals included
    failures: int = 0
    #: when the first of them came, Unix seconds
    failing_since: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What an answer makes of a subscription."""

    health: Health
    #: why it is to be disabled; None leaves it as it is
    disable: DisabledReason | None = None
    #: it has just failed often enough for its owner to hear of it
    failing: bool = False


def judge(
    kind: Kind | None,
    health: Health,
    policy: Policy,
    *,
    now: float,
    status: int | None = None,
    asks_to_stop: bool = False,
    may_disable: bool = True,
) -> Verdict:
    """What an answer makes of its subscription.

    `kind` is None for what says nothing about the endpoint, `now` is Unix seconds. `asks_to_stop` tells of the
    header `webhook-delivery: disable`. `may_disable` is False for the refusal of a delivery that has disabled its
    subscription before: one bad message must not do so for ever.
    """
    if kind is None:
        return Verdict(health=health, disable=DisabledReason.ASKED if asks_to_stop else None)
    after = _noted(kind, health, policy, now=now, status=status)
    return Verdict(
        health=after,
        disable=_reason(
            kind, after, policy, status=status, asks_to_stop=asks_to_stop, may_disable=may_disable, now=now
        ),
        failing=health.failures < FAILING_FROM <= after.failures,
    )


def _noted(kind: Kind, health: Health, policy: Policy, *, now: float, status: int | None) -> Health:
    if kind is Kind.SUCCESS:
        return Health()
    if kind is Kind.REFUSAL and _is_spared(policy, status):
        return health
    since = now if health.failing_since is None else health.failing_since
    return replace(
        health,
        refusals=health.refusals + (kind is Kind.REFUSAL),
        failures=health.failures + 1,
        failing_since=since,
    )


def _reason(
    kind: Kind,
    after: Health,
    policy: Policy,
    *,
    status: int | None,
    asks_to_stop: bool,
    may_disable: bool,
    now: float,
) -> DisabledReason | None:
    if kind is Kind.GONE:
        return DisabledReason.GONE
    if kind is Kind.EGRESS:
        return DisabledReason.EGRESS
    if asks_to_stop:
        return DisabledReason.ASKED
    if kind is Kind.SUCCESS or (kind is Kind.REFUSAL and _is_spared(policy, status)):
        return None
    if kind is Kind.REFUSAL and not may_disable:
        return None
    if kind is Kind.REFUSAL and 0 < policy.disable_after_4xx <= after.refusals:
        return DisabledReason.REJECTED
    if (
        after.failing_since is not None
        and after.failures >= MIN_FAILURES
        and now - after.failing_since >= policy.disable_after
    ):
        return DisabledReason.FAILING
    return None


def _is_spared(policy: Policy, status: int | None) -> bool:
    return policy.disable_on is DisableOn.ENDPOINT and status in PAYLOAD_4XX
