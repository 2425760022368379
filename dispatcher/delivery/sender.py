"""Attempts: sign, send, judge, and report what is to be recorded.

All that begin together, and all that end together, take each step together (`dispatcher.rounds`).
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set

import structlog
from msgspec.structs import replace

from dispatcher import egress, logs, metrics, retry
from dispatcher.delivery import handshake
from dispatcher.delivery.handshake import Handshakes
from dispatcher.delivery.scrub import Scrubber, is_plain
from dispatcher.delivery.signing import Signing, choose
from dispatcher.delivery.transport import Exchange, Request, Response, Timing, Transport
from dispatcher.egress import Target
from dispatcher.errors import EgressRefused, SendError
from dispatcher.models import DeliveryKind, Outcome
from dispatcher.rounds import Rounds, each
from dispatcher.store.accounts import Account
from dispatcher.store.records import AttemptRecord, LeasedDelivery, Report
from subscriptions.models import Headers
from subscriptions.secrets import Secret, SecretError
from subscriptions.signatures import SignatureError

log = structlog.get_logger(__name__)

#: one structured line per attempt
_LINE = logs.Line("attempt", "account", "delivery", "attempt", "origin", "outcome", "status", "error", "duration_ms")


class Attempt(Exchange):
    """One attempt of a delivery: what it needs on its way, and what is to be recorded of it."""

    __slots__ = ("_made", "account", "delivery", "error", "judged", "record", "report", "signing", "started", "target")

    started: float
    target: Target
    signing: Signing
    judged: retry.Answer
    record: AttemptRecord

    def __init__(self, delivery: LeasedDelivery, account: Account, made: Callable[[Attempt], None]) -> None:
        """`made` is called when its request is over."""
        super().__init__(Timing())
        self.delivery = delivery
        self.account = account
        self._made = made
        #: why it is no success, in words
        self.error: str | None = None
        #: what is to be settled; None where something of ours failed on the way to it
        self.report: Report | None = None

    def over(self) -> None:
        """Its request is over."""
        self._made(self)


class Sender:
    """Makes attempts. It decides nothing: `retry.decide` does, when the reports are settled."""

    def __init__(
        self,
        transport: Transport,
        *,
        deadline: float,
        user_agent: str,
        schedule: Sequence[float],
        handshakes: Handshakes,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`clock` tells seconds since the epoch: the database's, with which secrets begin and end."""
        self._transport = transport
        self._deadline = deadline
        self._user_agent = user_agent
        self._schedule = schedule
        self._handshakes = handshakes
        self._clock = clock
        self._over = Rounds(self._conclude)
        #: told of attempts that were made, each once, never before `begin` has returned
        self.on_made: Callable[[Sequence[Attempt]], None] = lambda _attempts: None

    def attempt(self, delivery: LeasedDelivery, account: Account) -> Attempt:
        """An attempt that is about to begin."""
        return Attempt(delivery, account, self._over.join)

    def begin(self, attempts: Sequence[Attempt]) -> None:
        """Make these attempts. Raises nothing: whatever goes wrong is in their reports."""
        started, now = time.monotonic(), self._clock()
        chosen = each(lambda attempt: self._choose(attempt, started, now), attempts, failed=_fail)
        signed = each(lambda attempt: self._sign(attempt, int(now)), chosen, failed=_fail)
        self._transport.begin(signed)

    def abandon(self, attempt: Attempt) -> None:
        """Cut it off; nobody is told of it any more."""
        self._transport.abandon(attempt)

    # Before the request

    def _choose(self, attempt: Attempt, started: float, now: float) -> None:
        attempt.started = started
        attempt.target = egress.parse(attempt.delivery.endpoint.url.reveal())
        attempt.signing = choose(attempt.delivery, attempt.account, now=int(now * 1000))

    def _sign(self, attempt: Attempt, timestamp: int) -> None:
        attempt.request = self._request(attempt.delivery, attempt.target, attempt.signing, timestamp)

    def _request(self, delivery: LeasedDelivery, target: Target, signing: Signing, timestamp: int) -> Request:
        deadline = delivery.endpoint.timeout or self._deadline
        if delivery.kind is DeliveryKind.HANDSHAKE:
            asked = self._handshakes.headers(delivery.id, delivery.endpoint.rate_limit)
            headers = [("User-Agent", self._user_agent), *asked]
            return Request(method="OPTIONS", target=target, headers=headers, body=b"", deadline=deadline)
        headers = [*self._headers(delivery, timestamp), *signing.headers(delivery, target, timestamp)]
        return Request(target=target, headers=headers, body=delivery.body.body, deadline=deadline)

    def _secrets(self, delivery: LeasedDelivery, signing: Signing) -> Iterator[Secret]:
        """What an endpoint may know of us and tell: also a secret that signs later, and with what it can grant."""
        yield from (key.secret for key in signing.keys)
        yield from (valid.key.secret for valid in delivery.endpoint.keys)
        if delivery.kind is DeliveryKind.HANDSHAKE:
            yield from self._handshakes.secrets(delivery.id)

    def _headers(self, delivery: LeasedDelivery, timestamp: int) -> list[tuple[str, str]]:
        headers = [
            ("Content-Type", delivery.body.content_type),
            ("User-Agent", self._user_agent),
            ("X-Webhook-Delivery", delivery.wire_id),
            ("X-Webhook-Attempt", str(delivery.attempt)),
            ("X-Webhook-Event", delivery.event),
            ("X-Webhook-Timestamp", str(timestamp)),
        ]
        if delivery.traceparent is not None:
            headers.append(("traceparent", delivery.traceparent))
        if delivery.endpoint.by_handshake:
            headers.append(self._handshakes.named)
        return [*headers, *delivery.body.headers, *delivery.endpoint.headers]

    # After it

    def _conclude(self, attempts: list[Attempt]) -> None:
        now, ended = self._clock(), time.monotonic()
        try:
            judged = each(lambda attempt: self._judge(attempt, now), attempts, failed=_log_fault)
            recorded = each(lambda attempt: self._record(attempt, ended), judged, failed=_log_fault)
            reported = each(self._report, recorded, failed=_log_fault)
        finally:
            # Whatever failed, their places are free.
            self.on_made(attempts)
        _observe(reported)

    def _judge(self, attempt: Attempt, now: float) -> None:
        """Say what an answer means, or what there is in place of one."""
        if not isinstance(attempt.answer, Response):
            outcome, attempt.error = _failure(attempt.answer, attempt.delivery)
            attempt.judged = retry.Answer(outcome=outcome)
            return
        attempt.judged = judge(attempt.answer, now=now, other_secret=attempt.signing.other_secret)
        is_handshake = attempt.delivery.kind is DeliveryKind.HANDSHAKE
        if is_handshake and attempt.judged.outcome is Outcome.SUCCESS and not self._grants(attempt.answer):
            attempt.judged = replace(attempt.judged, outcome=Outcome.HTTP_ERROR)
            attempt.error = "the answer does not name us in WebHook-Allowed-Origin"

    def _grants(self, response: Response) -> bool:
        return self._handshakes.is_granted(_by_name(response))

    def _record(self, attempt: Attempt, ended: float) -> None:
        response = attempt.answer
        kept: tuple[Headers, str | None] = (), None
        truncated = False
        if isinstance(response, Response):
            truncated = not response.complete
            kept = response.headers, None
            if not is_plain(response.headers, response.body):
                kept = self._scrubber(attempt).answer(response.headers, response.body)
        attempt.record = AttemptRecord(
            outcome=attempt.judged.outcome,
            status=attempt.judged.status,
            error=attempt.error,
            started=attempt.started,
            ended=ended,
            truncated=truncated,
            response_headers=kept[0],
            response_body=kept[1],
            timing=_stages(attempt.timing),
        )

    def _scrubber(self, attempt: Attempt) -> Scrubber:
        delivery = attempt.delivery
        is_handshake = delivery.kind is DeliveryKind.HANDSHAKE
        return Scrubber(
            tuple(attempt.request.headers) if is_handshake else delivery.endpoint.headers,
            path=attempt.target.path,
            secrets=self._secrets(delivery, attempt.signing),
        )

    def _report(self, attempt: Attempt) -> None:
        delivery, response = attempt.delivery, attempt.answer
        granted_rate: float | None = None
        if delivery.kind is DeliveryKind.HANDSHAKE and isinstance(response, Response):
            granted_rate = handshake.granted_rate(_by_name(response))
        attempt.report = Report(
            delivery_id=delivery.id,
            attempt=delivery.attempt,
            answer=attempt.judged,
            record=attempt.record,
            schedule=self._schedule_of(delivery, attempt.account),
            jitter=random.uniform(-1, 1),  # noqa: S311 - spreads retries; nothing secret hangs on it
            granted_rate=granted_rate,
            version=delivery.endpoint.version,
        )

    def _schedule_of(self, delivery: LeasedDelivery, account: Account) -> Sequence[float]:
        if delivery.kind is not DeliveryKind.MESSAGE:
            # Whoever asked is waiting for the answer.
            return ()
        own = delivery.endpoint.retry_schedule
        if own is None:
            own = account.retry_schedule
        return self._schedule if own is None else own


def judge(response: Response, *, now: float, other_secret: bool = False) -> retry.Answer:
    """What an answer says. `now` is the wall clock, Unix seconds, for a Retry-After that names a date."""
    retry_after: str | None = None
    wishes: Set[str] = frozenset()
    for name, value in response.headers:
        lowered = name.lower()
        if lowered == "retry-after":
            retry_after = value
        elif lowered == "webhook-delivery":
            # A list may come in several lines (RFC 9110, section 5.3).
            wishes |= {wish.strip().lower() for wish in value.split(",")}
    return retry.Answer(
        outcome=Outcome.SUCCESS if 200 <= response.status <= 299 else Outcome.HTTP_ERROR,
        status=response.status,
        retry_after=retry.parse_retry_after(retry_after, now=now),
        abort="abort-message" in wishes,
        disable="disable" in wishes,
        other_secret=other_secret,
    )


def _by_name(response: Response) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers}


def _fail(attempt: Attempt, exc: Exception) -> None:
    """There will be no request."""
    attempt.answer = exc
    attempt.over()


def _log_fault(attempt: Attempt, exc: Exception) -> None:
    # Without a report the lease stays in the database until it is found that nobody works on it.
    # Only the kind is logged: the text of an unforeseen error may hold anything.
    log.error("attempt_failed_inside", delivery=attempt.delivery.id, error=type(exc).__qualname__)


def _failure(exc: Exception | None, delivery: LeasedDelivery) -> tuple[Outcome, str]:
    """What there is in place of an answer, also in words."""
    match exc:
        case SendError():
            return exc.outcome, exc.detail
        case EgressRefused():
            return Outcome.EGRESS_REFUSED, exc.detail
        case SecretError() | SignatureError():
            # The account's default secret was changed to one that cannot serve the task's schemes, or every secret
            # of a subscription is over.
            return Outcome.INTERNAL_ERROR, f"cannot be signed: {exc}"
        case _:
            # A fault of ours must not lose the delivery.
            log.error("attempt_failed_inside", delivery=delivery.id, error=type(exc).__qualname__)
            return Outcome.INTERNAL_ERROR, "the attempt failed inside the dispatcher"


def _stages(timing: Timing) -> dict[str, float | bool] | None:
    """What is kept of it; None where no stage was reached."""
    took: dict[str, float | bool] = {}
    if timing.dns is not None:
        took["dns"] = round(timing.dns, 2)
    if timing.connect is not None:
        took["connect"] = round(timing.connect, 2)
    if timing.tls is not None:
        took["tls"] = round(timing.tls, 2)
    if timing.wait is not None:
        took["wait"] = round(timing.wait, 2)
    if timing.reconnected:
        took["reconnected"] = True
    return took or None


def _observe(attempts: Sequence[Attempt]) -> None:
    """Count and log attempts."""
    for outcome, count in Counter(attempt.record.outcome for attempt in attempts).items():
        metrics.attempts_of(outcome).inc(count)
    for attempt in attempts:
        metrics.attempt_seconds.observe(attempt.record.ended - attempt.record.started)
    _LINE.write(map(_logged, attempts))


def _logged(attempt: Attempt) -> tuple[str | float | None, ...]:
    delivery, record = attempt.delivery, attempt.record
    return (
        delivery.account,
        delivery.id,
        delivery.attempt,
        delivery.endpoint.origin,
        str(record.outcome),
        record.status,
        record.error,
        round((record.ended - record.started) * 1000, 1),
    )
