"""A pytest plugin: fixtures that receive webhooks from a sender under test, and send them to a receiver under test.

    def test_the_shop_tells_of_orders(webhook_receiver, shop):
        shop.subscribe(webhook_receiver.url + "/hooks", secret=webhook_receiver.secret)
        shop.order()
        [entry] = webhook_receiver.expect(event="order.paid", within=5)

    def test_my_endpoint_takes_no_forgeries(webhook_sender, my_endpoint):
        assert webhook_sender.send(my_endpoint.url, secret=my_endpoint.secret).status_code == 202
        assert webhook_sender.send(my_endpoint.url, secret="another").status_code == 401

Loading it imports nothing but pytest and the standard library; the rest comes with the first fixture that is used.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import secrets
import threading
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

if TYPE_CHECKING:
    import httpx

    from dispatcher.conformance.receiver.defences import Policy
    from dispatcher.conformance.receiver.inbox import Entry
    from dispatcher.conformance.receiver.receiver import Receiver

T = TypeVar("T")

#: seconds that a receiver has to start, and to end
_PATIENCE = 10.0
#: schemes that the receiver of a test verifies unless `webhook_policy` says otherwise; one has to hold
_SCHEMES = ("websub", "github", "standard", "timestamped", "rfc9421")


class WebhookReceiver:
    """A receiver that runs beside a test. Its `repr` shows no secret."""

    def __init__(self, policy: Policy, *, secret: str) -> None:
        #: what a sender is to sign with
        self.secret = secret
        #: scheme, host and port; every path is taken
        self.url = ""
        self._policy = policy
        self._receiver: Receiver | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Event | None = None
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name="webhook-receiver", daemon=True)

    def __repr__(self) -> str:
        return f"<WebhookReceiver on {self.url or 'no port'}>"

    def start(self) -> None:
        """Listen. Raises what the start ran into."""
        self._thread.start()
        if not self._ready.wait(_PATIENCE):
            raise TimeoutError("the webhook receiver did not start in time")
        self._raise_error()

    def close(self) -> None:
        """End it, and wait until it has. Raises what the end ran into."""
        if self._loop is not None and self._ending is not None and not self._loop.is_closed():
            with contextlib.suppress(RuntimeError):  # it ended by itself this moment
                self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join(_PATIENCE)
        if self._thread.is_alive():
            raise TimeoutError("the webhook receiver did not end in time")
        self._raise_error()

    @property
    def requests(self) -> list[Entry]:
        """All requests until now, in their order, whatever they were answered."""
        return self._call(self._entries())

    def expect(
        self,
        *,
        event: str | None = None,
        delivery: str | None = None,
        path: str | None = None,
        text: str | None = None,
        within: float = 5.0,
        count: int = 1,
        is_accepted: bool | None = True,
    ) -> list[Entry]:
        """Wait for `count` requests that meet all that is set, and were answered 2xx; those already here count.

        With `is_accepted=None` any answer will do. In an async test, whose loop the sender may need, await
        `expect_async`. Fails the test after `within` seconds, and shows what did come.
        """
        __tracebackhide__ = True
        criteria = {"event": event, "delivery": delivery, "path": path, "text": text, "is_accepted": is_accepted}
        try:
            return self._call(self._wait(count, within, criteria), within=within + _PATIENCE)
        except TimeoutError as exc:
            shortfall = str(exc)
        raise AssertionError(shortfall)

    async def expect_async(self, *, within: float = 5.0, count: int = 1, **criteria: Any) -> list[Entry]:
        """As `expect`, without blocking the loop of the test."""
        __tracebackhide__ = True
        criteria = {"is_accepted": True} | criteria
        try:
            return await asyncio.wrap_future(self._begin(self._wait(count, within, criteria)))
        except TimeoutError as exc:
            shortfall = str(exc)
        raise AssertionError(shortfall)

    def answer(self, path: str, script: str) -> None:
        """What a path answers from now on, such as "500,500,ok"; * is any path, and no script what it was before."""
        self._call(self._answer(path, script))

    def forget(self) -> None:
        """Forget all requests until now."""
        self._call(self._forget())

    def callback_url(self, *, ttl: float = 3600.0, **claims: str) -> str:
        """A callback URL with a token, if `webhook_policy` has an issuer for it. Raises ConfigError."""
        return self._call(self._callback_url(ttl, claims))

    # --- in the other thread --------------------------------------------------------------------------------

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _main(self) -> None:
        try:
            asyncio.run(self._run())
        except BaseException as exc:  # noqa: BLE001 - whoever starts it is to see it
            self._error = exc
        finally:
            self._ready.set()

    async def _run(self) -> None:
        import structlog  # noqa: PLC0415 - see above

        from dispatcher.conformance.receiver.receiver import Receiver  # noqa: PLC0415 - see above

        # By the standard library, whose lines pytest shows beside a failure: structlog's own default is stdout, where
        # `capsys` is to find what the code under test has printed and nothing else.
        log = structlog.wrap_logger(
            logging.getLogger(Receiver.__module__),
            processors=[
                structlog.stdlib.filter_by_level,
                structlog.processors.KeyValueRenderer(key_order=["event"]),
            ],
            wrapper_class=structlog.stdlib.BoundLogger,
        )
        async with Receiver(self._policy, log=log) as self._receiver:
            self._loop, self._ending = asyncio.get_running_loop(), asyncio.Event()
            self.url = self._receiver.url
            self._ready.set()
            await self._ending.wait()

    @property
    def _running(self) -> Receiver:
        if self._receiver is None:
            raise RuntimeError("the webhook receiver is not running")
        return self._receiver

    async def _entries(self) -> list[Entry]:
        return self._running.inbox.entries()

    async def _wait(self, count: int, within: float, criteria: Mapping[str, Any]) -> list[Entry]:
        return await self._running.inbox.wait_for(count, within=within, **criteria)

    async def _answer(self, path: str, script: str) -> None:
        self._running.script(path, script)

    async def _forget(self) -> None:
        self._running.inbox.clear()

    async def _callback_url(self, ttl: float, claims: Mapping[str, str]) -> str:
        return self._running.callback_url(ttl=ttl, **claims)

    def _begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        if self._loop is None or self._loop.is_closed():
            work.close()
            raise RuntimeError("the webhook receiver is not running")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _call(self, work: Coroutine[Any, Any, T], *, within: float = _PATIENCE) -> T:
        __tracebackhide__ = True
        return self._begin(work).result(within)


class WebhookSender:
    """Signs requests and sends them; and signs them wrong, where a test asks for that. Its `repr` shows no secret."""

    def __init__(self, *, secret: str) -> None:
        #: signs, unless `send` is told another
        self.secret = secret
        #: the private key of the -ed25519 schemes
        self.seed = secrets.token_bytes(32)

    def __repr__(self) -> str:
        return "<WebhookSender>"

    @property
    def public_key(self) -> str:
        """The public key of the -ed25519 schemes, `whpk_…`."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415 - see above

        public = Ed25519PrivateKey.from_private_bytes(self.seed).public_key().public_bytes_raw()
        return "whpk_" + base64.b64encode(public).decode()

    def send(
        self,
        url: str,
        *,
        event: str = "test.event",
        payload: object = None,
        scheme: str | Sequence[str] = "standard",
        secret: str | None = None,
        method: str = "POST",
        delivery: str | None = None,
        attempt: int = 1,
        age: float = 0.0,
        headers: Mapping[str, str | None] | None = None,
        tampered_body: bytes | None = None,
        is_signed: bool = True,
        timeout: float = 10.0,
        verify: Any = True,
    ) -> httpx.Response:
        """Sign a request by one scheme or several, send it, and return what it was answered.

        `payload` is JSON, or bytes as they are. To send what is to be refused: another `secret`; an `age` in seconds,
        below 0 for the future; the `delivery` of an earlier one; `tampered_body` in place of the body that was signed;
        `headers` put in place of those that were signed, or None to leave one out; `is_signed=False`. `verify` is an
        SSLContext, or False. Raises ConfigError for what cannot be signed, httpx.HTTPError when nobody answers.
        """
        import httpx  # noqa: PLC0415 - see above

        target = str(httpx.URL(url))
        body = payload if isinstance(payload, bytes) else json.dumps({} if payload is None else payload).encode()
        identity, moment = delivery or secrets.token_hex(16), int(time.time() - age)
        base = {
            "Content-Type": "application/json",
            "User-Agent": "webhook-dispatcher-conformance",
            "X-Webhook-Delivery": identity,
            "X-Webhook-Attempt": str(attempt),
            "X-Webhook-Event": event,
            "X-Webhook-Timestamp": str(moment),
        }
        schemes = ([scheme] if isinstance(scheme, str) else list(scheme)) if is_signed else []
        for name in schemes:
            made = self._signed(name, secret, method=method, url=target, headers=base, body=body, moment=moment)
            for key, value in made:
                # both forms of Standard Webhooks stand in one header
                base[key] = f"{base[key]} {value}" if key == "webhook-signature" and key in base else value
        sent = _overlaid(base, headers or {})
        with httpx.Client(trust_env=False, verify=verify, timeout=timeout) as client:
            return client.request(
                method, target, headers=sent, content=body if tampered_body is None else tampered_body
            )

    def _signed(
        self,
        scheme: str,
        secret: str | None,
        *,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes,
        moment: int,
    ) -> list[tuple[str, str]]:
        from dispatcher.conformance.signatures.schemes import Key, sign  # noqa: PLC0415 - see above

        return sign(
            scheme,
            Key(secret=self.secret if secret is None else secret, seed=self.seed),
            method=method,
            url=url,
            headers=tuple(headers.items()),
            body=body,
            message_id=headers["X-Webhook-Delivery"],
            timestamp=moment,
        )


def _overlaid(base: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    """Headers with these in place of those of the same name, however it is written."""
    changed = {name.lower() for name in changes}
    kept = {name: value for name, value in base.items() if name.lower() not in changed}
    return kept | {name: value for name, value in changes.items() if value is not None}


# --- fixtures -------------------------------------------------------------------------------------------------


@pytest.fixture
def webhook_secret() -> str:
    """The secret of `webhook_receiver` and `webhook_sender`. Override it to have one of your own."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode()


@pytest.fixture
def webhook_policy(webhook_secret: str) -> Policy:
    """The defences of `webhook_receiver`: a signature by any scheme with a shared secret. Override it for others."""
    from dispatcher.conformance.receiver.policy import Policy  # noqa: PLC0415 - see above
    from dispatcher.conformance.signatures.schemes import Key  # noqa: PLC0415 - see above

    return Policy(signature_schemes=_SCHEMES, keys=(Key(secret=webhook_secret),))


@pytest.fixture
def webhook_receiver(webhook_secret: str, webhook_policy: Policy) -> Iterator[WebhookReceiver]:
    """A receiver on a free port of 127.0.0.1, for senders under test."""
    receiver = WebhookReceiver(webhook_policy, secret=webhook_secret)
    try:
        receiver.start()
        yield receiver
    finally:
        receiver.close()


@pytest.fixture
def webhook_sender(webhook_secret: str) -> WebhookSender:
    """A sender, for receivers under test."""
    return WebhookSender(secret=webhook_secret)
