"""One attempt, as far as the sender decides it: headers, signatures, and what an answer says.

respx stands in for the network here, and only here: it bypasses our transport, which has tests on real sockets.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import hmac
import time
from collections.abc import AsyncIterator
from email.utils import formatdate

import httpx
import pytest
import respx
from msgspec.structs import replace
from standardwebhooks import Webhook

from dispatcher.bodies import Body
from dispatcher.delivery.handshake import Handshakes
from dispatcher.delivery.httpx_transport import HttpxTransport
from dispatcher.delivery.resolver import Resolver
from dispatcher.delivery.sender import Sender
from dispatcher.egress import EgressPolicy
from dispatcher.models import Outcome
from dispatcher.store.accounts import Account
from dispatcher.store.records import Callback, Endpoint, LeasedDelivery, Report
from subscriptions.keyring import Keyring
from subscriptions.secrets import Secret

#: nothing listens there; a request that respx did not catch would end on this machine
ORIGIN = "http://127.0.0.1:9"
PATH = "/results/42/s3cr3t-t0ken"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLw4V"
ACCOUNT = Account(id="acme")

DELIVERY = LeasedDelivery(
    id="0" * 31 + "2",
    wire_id="0" * 31 + "1",
    account="acme",
    lane=f"acme {ORIGIN}",
    session="of-ours",
    attempt=3,
    event="invoice.total",
    endpoint=Endpoint.of_callback(
        Callback(
            url=Secret(ORIGIN + PATH),
            secret=Secret(SECRET),
            headers=(("X-Secret", "shared"),),
            schemes=None,
            origin=ORIGIN,
            fingerprint="0" * 16,
            token="opaque",
            window_end=None,
        ),
        account="acme",
    ),
    body=Body(b'{"n" : 1}', "application/json", (("ce-id", "1"),)),
    traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
)


@pytest.fixture
async def sender() -> AsyncIterator[Sender]:
    resolver = Resolver()
    transport = HttpxTransport(resolver=resolver, policy=EgressPolicy.dev())
    handshakes = Handshakes(origin="sender.example", public_url=None, keyring=Keyring.generate())
    yield Sender(transport, deadline=5.0, user_agent="tester/1", schedule=(5.0, 30.0), handshakes=handshakes)
    await transport.aclose()
    await resolver.aclose()


async def made(sender: Sender, delivery: LeasedDelivery, account: Account) -> Report:
    """Make one attempt."""
    waiting = asyncio.get_running_loop().create_future()
    sender.on_made = waiting.set_result
    sender.begin([sender.attempt(delivery, account)])
    [attempt] = await waiting
    assert attempt.report is not None
    report: Report = attempt.report
    return report


async def attempt(
    sender: Sender,
    answer: httpx.Response | Exception,
    *,
    delivery: LeasedDelivery = DELIVERY,
    account: Account = ACCOUNT,
) -> tuple[Report, httpx.Request]:
    """Send a delivery to an endpoint that gives this answer."""
    with respx.mock(using="httpcore") as endpoint:
        route = endpoint.post(ORIGIN + PATH)
        if isinstance(answer, Exception):
            route.mock(side_effect=answer)
        else:
            route.mock(return_value=answer)
        report = await made(sender, delivery, account)
        return report, route.calls.last.request


async def test_the_request_says_all_that_the_contract_says(sender: Sender) -> None:
    report, request = await attempt(sender, httpx.Response(200))
    headers = request.headers
    assert request.content == b'{"n" : 1}'
    assert headers["Content-Type"] == "application/json"
    assert headers["User-Agent"] == "tester/1"
    assert headers["X-Webhook-Delivery"] == DELIVERY.wire_id
    assert headers["X-Webhook-Attempt"] == "3"
    assert headers["X-Webhook-Event"] == "invoice.total"
    assert abs(int(headers["X-Webhook-Timestamp"]) - time.time()) < 5
    assert headers["X-Secret"] == "shared"
    assert headers["ce-id"] == "1"
    assert headers["traceparent"] == DELIVERY.traceparent
    assert (
        headers["X-Hub-Signature"] == "sha256=" + hmac.new(SECRET.encode(), request.content, hashlib.sha256).hexdigest()
    )
    Webhook(SECRET).verify(request.content, dict(headers))
    assert (report.delivery_id, report.attempt, report.schedule) == (DELIVERY.id, 3, (5.0, 30.0))
    assert -1 <= report.jitter <= 1


async def test_who_agreed_by_a_handshake_is_told_each_time_who_sends(sender: Sender) -> None:
    """HTTP 1.1 Web Hooks for Event Delivery 1.0.2, section 4.1.2."""
    agreed = replace(DELIVERY, endpoint=replace(DELIVERY.endpoint, by_handshake=True))
    for delivery, named in ((agreed, ["sender.example"]), (DELIVERY, [])):
        _, request = await attempt(sender, httpx.Response(200), delivery=delivery)
        assert request.headers.get_list("WebHook-Request-Origin") == named


def unsigned(delivery: LeasedDelivery, **changes: object) -> LeasedDelivery:
    return replace(delivery, endpoint=replace(delivery.endpoint, **{"keys": (), **changes}))


@pytest.mark.parametrize(
    ("delivery", "account", "signed_with"),
    [
        (unsigned(DELIVERY), ACCOUNT, set()),
        (DELIVERY, ACCOUNT, {"x-hub-signature", "webhook-signature"}),
        (
            unsigned(DELIVERY),
            dataclasses.replace(ACCOUNT, default_secret=Secret(SECRET)),
            {"x-hub-signature", "webhook-signature"},
        ),
        (unsigned(DELIVERY), dataclasses.replace(ACCOUNT, default_secret=Secret("not base64!")), {"x-hub-signature"}),
        (DELIVERY, dataclasses.replace(ACCOUNT, schemes=("standard",)), {"webhook-signature"}),
        (
            replace(DELIVERY, endpoint=replace(DELIVERY.endpoint, schemes=("websub",))),
            dataclasses.replace(ACCOUNT, schemes=("standard",)),
            {"x-hub-signature"},
        ),
    ],
)
async def test_which_secret_and_which_schemes(
    sender: Sender, delivery: LeasedDelivery, account: Account, signed_with: set[str]
) -> None:
    _, request = await attempt(sender, httpx.Response(200), delivery=delivery, account=account)
    assert {name for name in request.headers if "signature" in name} == signed_with


@pytest.mark.parametrize(
    ("answer", "outcome", "status", "abort"),
    [
        (httpx.Response(200), Outcome.SUCCESS, 200, False),
        (httpx.Response(299), Outcome.SUCCESS, 299, False),
        (httpx.Response(300), Outcome.HTTP_ERROR, 300, False),
        (httpx.Response(410), Outcome.HTTP_ERROR, 410, False),
        (httpx.Response(500, headers={"webhook-delivery": "abort-message"}), Outcome.HTTP_ERROR, 500, True),
        (httpx.Response(500, headers={"Webhook-Delivery": "disable, Abort-Message"}), Outcome.HTTP_ERROR, 500, True),
        (httpx.Response(500, headers={"webhook-delivery": "disable"}), Outcome.HTTP_ERROR, 500, False),
        (httpx.ConnectError("refused"), Outcome.CONNECTION_ERROR, None, False),
        (RuntimeError("a bug with a secret in it"), Outcome.INTERNAL_ERROR, None, False),
    ],
)
async def test_what_an_answer_says(
    sender: Sender, answer: httpx.Response | Exception, outcome: Outcome, status: int | None, abort: bool
) -> None:
    report, _ = await attempt(sender, answer)
    assert (report.answer.outcome, report.answer.status, report.answer.abort) == (outcome, status, abort)
    assert (report.record.outcome, report.record.status) == (outcome, status)
    assert "secret in it" not in (report.record.error or "")


async def test_a_secret_that_cannot_serve_the_scheme_is_told_not_shown(sender: Sender) -> None:
    delivery = unsigned(DELIVERY, schemes=("standard",))
    account = dataclasses.replace(ACCOUNT, default_secret=Secret("not base64!"))
    report = await made(sender, delivery, account)
    assert report.answer.outcome is Outcome.INTERNAL_ERROR
    assert "base64" in (report.record.error or "")
    assert "not base64!" not in (report.record.error or "")


@pytest.mark.parametrize("as_date", [False, True])
async def test_retry_after_is_read(sender: Sender, as_date: bool) -> None:
    value = formatdate(time.time() + 90, usegmt=True) if as_date else "90"
    report, _ = await attempt(sender, httpx.Response(429, headers={"Retry-After": value}))
    assert report.answer.retry_after is not None
    assert 80 <= report.answer.retry_after <= 91


async def test_the_accounts_schedule_goes_before_the_installations(sender: Sender) -> None:
    report, _ = await attempt(sender, httpx.Response(500), account=dataclasses.replace(ACCOUNT, retry_schedule=(1.0,)))
    assert report.schedule == (1.0,)


async def test_what_is_kept_of_an_answer_is_scrubbed(sender: Sender) -> None:
    answer = httpx.Response(500, headers={"Location": f"/again{PATH}"}, text=f"no such path: {PATH} ({SECRET})")
    report, _ = await attempt(sender, answer)
    kept = str((report.record.response_headers, report.record.response_body))
    assert "s3cr3t-t0ken" not in kept
    assert SECRET not in kept
    assert "no such path" in kept
