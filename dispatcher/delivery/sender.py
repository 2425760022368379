"""One attempt: sign, send, judge, and report what is to be recorded."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence, Set

import structlog
from msgspec.structs import replace

from dispatcher import egress, logs, metrics, retry
from dispatcher.delivery import handshake
from dispatcher.delivery.handshake import Handshakes
from dispatcher.delivery.scrub import Scrubber, is_plain
from dispatcher.delivery.signing import Signing, choose
from dispatcher.delivery.transport import Request, Response, Timing, Transport
from dispatcher.egress import Target
from dispatcher.errors import EgressRefused, SendError
from dispatcher.models import DeliveryKind, Outcome
from dispatcher.store.accounts import Account
from dispatcher.store.records import AttemptRecord, LeasedDelivery, Report
from subscriptions.models import Headers
from subscriptions.secrets import Secret, SecretError
from subscriptions.signatures import SignatureError

log = structlog.get_logger(__name__)

#: one structured line per attempt
_LINE = logs.Line("attempt", "account", "delivery", "attempt", "origin", "outcome", "status", "error", "duration_ms")


class Sender:
    """Makes single attempts. It decides nothing: `retry.decide` does, when the report is settled."""

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

    async def send(self, delivery: LeasedDelivery, account: Account) -> Report:
        """Make one attempt. Raises nothing but CancelledError: whatever goes wrong is in the report."""
        started, now = time.monotonic(), self._clock()
        timing, granted_rate = Timing(), None
        try:
            target = egress.parse(delivery.endpoint.url.reveal())
            signing = choose(delivery, account, now=int(now * 1000))
            request = self._request(delivery, target, signing, int(now))
            response = await self._transport.send(request, timing)
        except SendError as exc:
            answer = retry.Answer(outcome=exc.outcome)
            record = _record(answer, started, timing, error=exc.detail)
        except EgressRefused as exc:
            answer = retry.Answer(outcome=Outcome.EGRESS_REFUSED)
            record = _record(answer, started, timing, error=exc.detail)
        except (SecretError, SignatureError) as exc:
            # The account's default secret was changed to one that cannot serve the task's schemes, or every secret
            # of a subscription is over.
            answer = retry.Answer(outcome=Outcome.INTERNAL_ERROR)
            record = _record(answer, started, timing, error=f"cannot be signed: {exc}")
        except Exception as exc:  # noqa: BLE001 - a fault of ours must not lose the delivery
            # Only the kind is logged: the text of an unforeseen error may hold anything.
            log.error("attempt_failed_inside", delivery=delivery.id, error=type(exc).__qualname__)
            answer = retry.Answer(outcome=Outcome.INTERNAL_ERROR)
            record = _record(answer, started, timing, error="the attempt failed inside the dispatcher")
        else:
            answer, refused = self._judge(delivery, response, other_secret=signing.other_secret)
            if delivery.kind is DeliveryKind.HANDSHAKE:
                granted_rate = handshake.granted_rate(_by_name(response))
            kept: tuple[Headers, str | None] = response.headers, None
            if not is_plain(response.headers, response.body):
                scrubber = Scrubber(
                    tuple(request.headers) if delivery.kind is DeliveryKind.HANDSHAKE else delivery.endpoint.headers,
                    path=target.path,
                    secrets=self._secrets(delivery, signing),
                )
                kept = scrubber.answer(response.headers, response.body)
            record = _record(answer, started, timing, error=refused, kept=kept, truncated=not response.complete)
        _observe(delivery, answer, record)
        return Report(
            delivery_id=delivery.id,
            attempt=delivery.attempt,
            answer=answer,
            record=record,
            schedule=self._schedule_of(delivery, account),
            jitter=random.uniform(-1, 1),  # noqa: S311 - spreads retries; nothing secret hangs on it
            granted_rate=granted_rate,
            version=delivery.endpoint.version,
        )

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

    def _judge(
        self, delivery: LeasedDelivery, response: Response, *, other_secret: bool
    ) -> tuple[retry.Answer, str | None]:
        """What an answer says, and in words why it is no success although it looks like one."""
        answer = judge(response, now=self._clock(), other_secret=other_secret)
        if delivery.kind is not DeliveryKind.HANDSHAKE or answer.outcome is not Outcome.SUCCESS:
            return answer, None
        if self._handshakes.is_granted(_by_name(response)):
            return answer, None
        return replace(answer, outcome=Outcome.HTTP_ERROR), "the answer does not name us in WebHook-Allowed-Origin"

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


def _record(
    answer: retry.Answer,
    started: float,
    timing: Timing,
    *,
    error: str | None = None,
    kept: tuple[Headers, str | None] = ((), None),
    truncated: bool = False,
) -> AttemptRecord:
    """`kept` are headers and body of the answer, scrubbed."""
    return AttemptRecord(
        outcome=answer.outcome,
        status=answer.status,
        error=error,
        started=started,
        ended=time.monotonic(),
        truncated=truncated,
        response_headers=kept[0],
        response_body=kept[1],
        timing=_stages(timing),
    )


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


def _observe(delivery: LeasedDelivery, answer: retry.Answer, record: AttemptRecord) -> None:
    seconds = record.ended - record.started
    metrics.attempts_of(answer.outcome).inc()
    metrics.attempt_seconds.observe(seconds)
    _LINE.write(
        delivery.account,
        delivery.id,
        delivery.attempt,
        delivery.endpoint.origin,
        str(answer.outcome),
        answer.status,
        record.error,
        round(seconds * 1000, 1),
    )
