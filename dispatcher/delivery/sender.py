"""One attempt: sign, send, judge, and report what is to be recorded."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence

import structlog

from dispatcher import egress, metrics, retry
from dispatcher.delivery.scrub import Scrubber
from dispatcher.delivery.transport import Request, Response, Timing, Transport
from dispatcher.errors import EgressRefused, SendError
from dispatcher.models import Outcome
from dispatcher.store.accounts import Account
from dispatcher.store.records import AttemptRecord, LeasedDelivery, Report
from subscriptions import signatures
from subscriptions.secrets import Secret, SecretError
from subscriptions.signatures import Scheme, SignatureError

log = structlog.get_logger(__name__)


class Sender:
    """Makes single attempts. It decides nothing: `retry.decide` does, when the report is settled."""

    def __init__(self, transport: Transport, *, deadline: float, user_agent: str, schedule: Sequence[float]) -> None:
        self._transport = transport
        self._deadline = deadline
        self._user_agent = user_agent
        self._schedule = schedule

    async def send(self, delivery: LeasedDelivery, account: Account) -> Report:
        """Make one attempt. Raises nothing but CancelledError: whatever goes wrong is in the report."""
        secret = delivery.callback.secret or account.default_secret
        started, timestamp = time.monotonic(), int(time.time())
        timing = Timing()
        try:
            target = egress.parse(delivery.callback.url.reveal())
            scrubber = Scrubber(delivery.callback, path=target.path, secret=secret)
            headers = [*self._headers(delivery, timestamp), *_signature_headers(delivery, secret, account, timestamp)]
            request = Request(target=target, headers=headers, body=delivery.body.body, deadline=self._deadline)
            response = await self._transport.send(request, timing)
        except SendError as exc:
            answer = retry.Answer(outcome=exc.outcome)
            record = _record(answer, started, timing, error=exc.detail)
        except EgressRefused as exc:
            answer = retry.Answer(outcome=Outcome.EGRESS_REFUSED)
            record = _record(answer, started, timing, error=exc.detail)
        except (SecretError, SignatureError) as exc:
            # The account's default secret was changed to one that cannot serve the task's schemes.
            answer = retry.Answer(outcome=Outcome.INTERNAL_ERROR)
            record = _record(answer, started, timing, error=f"cannot be signed: {exc}")
        except Exception as exc:  # noqa: BLE001 - a fault of ours must not lose the delivery
            # Only the kind is logged: the text of an unforeseen error may hold anything.
            log.error("attempt_failed_inside", delivery=delivery.id, error=type(exc).__qualname__)
            answer = retry.Answer(outcome=Outcome.INTERNAL_ERROR)
            record = _record(answer, started, timing, error="the attempt failed inside the dispatcher")
        else:
            answer = judge(response, now=time.time())
            record = _record(answer, started, timing, response=response, scrubber=scrubber)
        _observe(delivery, answer, record)
        return Report(
            delivery_id=delivery.id,
            attempt=delivery.attempt,
            answer=answer,
            record=record,
            schedule=self._schedule if account.retry_schedule is None else account.retry_schedule,
            jitter=random.uniform(-1, 1),  # noqa: S311 - spreads retries; nothing secret hangs on it
        )

    def _headers(self, delivery: LeasedDelivery, timestamp: int) -> Iterator[tuple[str, str]]:
        yield "Content-Type", delivery.body.content_type
        yield "User-Agent", self._user_agent
        yield "X-Webhook-Delivery", delivery.wire_id
        yield "X-Webhook-Attempt", str(delivery.attempt)
        yield "X-Webhook-Event", delivery.event
        yield "X-Webhook-Timestamp", str(timestamp)
        if delivery.traceparent is not None:
            yield "traceparent", delivery.traceparent
        yield from delivery.body.headers
        yield from delivery.callback.headers


def judge(response: Response, *, now: float) -> retry.Answer:
    """What an answer says. `now` is the wall clock, Unix seconds, for a Retry-After that names a date."""
    headers = {name.lower(): value for name, value in response.headers}
    wishes = {wish.strip().lower() for wish in headers.get("webhook-delivery", "").split(",")}
    return retry.Answer(
        outcome=Outcome.SUCCESS if 200 <= response.status <= 299 else Outcome.HTTP_ERROR,
        status=response.status,
        retry_after=retry.parse_retry_after(headers.get("retry-after"), now=now),
        abort="abort-message" in wishes,
    )


def _signature_headers(
    delivery: LeasedDelivery, secret: Secret | None, account: Account, timestamp: int
) -> list[tuple[str, str]]:
    if secret is None:
        return []
    named = delivery.callback.schemes or account.schemes
    schemes = tuple(map(Scheme, named)) if named else signatures.default_schemes(secret)
    return signatures.sign(
        schemes, secret=secret, delivery_id=delivery.wire_id, timestamp=timestamp, body=delivery.body.body
    )


def _record(
    answer: retry.Answer,
    started: float,
    timing: Timing,
    *,
    error: str | None = None,
    response: Response | None = None,
    scrubber: Scrubber | None = None,
) -> AttemptRecord:
    spent = {"dns": timing.dns, "connect": timing.connect, "tls": timing.tls, "wait": timing.wait}
    kept = ((), None) if response is None or scrubber is None else scrubber.answer(response.headers, response.body)
    return AttemptRecord(
        outcome=answer.outcome,
        status=answer.status,
        error=error,
        started=started,
        ended=time.monotonic(),
        truncated=response is not None and not response.complete,
        response_headers=kept[0],
        response_body=kept[1],
        timing={name: round(ms, 2) for name, ms in spent.items() if ms is not None} or None,
    )


def _observe(delivery: LeasedDelivery, answer: retry.Answer, record: AttemptRecord) -> None:
    seconds = record.ended - record.started
    metrics.attempts.labels(answer.outcome).inc()
    metrics.attempt_seconds.observe(seconds)
    log.info(
        "attempt",
        account=delivery.account,
        delivery=delivery.id,
        attempt=delivery.attempt,
        origin=delivery.callback.origin,
        outcome=str(answer.outcome),
        status=answer.status,
        error=record.error,
        duration_ms=round(seconds * 1000, 1),
    )
