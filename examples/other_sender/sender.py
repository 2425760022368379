"""A webhook sender in one file: it keeps all in memory, signs, retries, and disables endpoints that turn it away.

It is driven by JSON lines on stdin and answers on stdout, so that `dispatcher conformance run` can examine it.
Nothing of the dispatcher is used here; what it needs is Python 3.11 and httpx.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import random
import re
import ssl
import sys
import time
import uuid
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx

EVENT = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
#: seconds between tries, where a subscription has no schedule of its own
SCHEDULE = (5.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0)
#: seconds that an endpoint may have us wait
LONGEST_WAIT = 86_400.0
#: bytes of an answer that we read
MAX_ANSWER = 65_536
#: answers after which an endpoint is sent nothing until somebody enables it, and after which a message is given up
TURNED_AWAY = {401, 403, 410}
REFUSED = {400, 402, 404, 405, 406, 411, 413, 414, 415, 422, 431}


class Refusal(Exception):
    """What was asked for is not taken."""


@dataclass(kw_only=True)
class Message:
    """One event on its way to one endpoint."""

    event: str
    body: bytes
    id: str = field(default_factory=lambda: f"msg_{uuid.uuid4().hex}")
    attempt: int = 0
    #: the endpoint did not take the new secret: sign with the old one first
    by_old_secret: bool = False


@dataclass(kw_only=True)
class Subscription:
    """An endpoint, and what was arranged with it."""

    url: str
    secret: str
    id: str = field(default_factory=lambda: f"sub_{uuid.uuid4().hex}")
    event: str = ""
    schemes: tuple[str, ...] = ("standard",)
    schedule: tuple[float, ...] = SCHEDULE
    timeout: float = 15.0
    active: bool = True
    old_secret: str = ""
    #: Unix time until which the old secret is good
    old_until: float = 0.0
    #: what waits for the endpoint to be enabled
    held: list[Message] = field(default_factory=list)


@dataclass(kw_only=True)
class Answer:
    """What an endpoint said; no status where no whole answer came in time."""

    status: int | None
    headers: httpx.Headers = field(default_factory=httpx.Headers)


def hexadecimal(secret: str, content: bytes, method: str = "sha256") -> str:
    """HMAC by the secret's text."""
    return hmac.new(secret.encode(), content, method).hexdigest()


def standard(secret: str, content: bytes) -> str:
    """The signature of Standard Webhooks: HMAC by the decoded secret."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    return "v1," + base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode()


class Sender:
    """Publishes to whoever subscribed."""

    name = "other-sender 1.0"
    schemes = ("standard", "websub", "github", "timestamped", "servicestack")
    abilities = frozenset(
        {"subscribe", "schedule", "timeout", "state", "enable", "rotate", "callback", "authority"}
        | {f"scheme:{scheme}" for scheme in schemes}
    )

    def __init__(self) -> None:
        self.subscriptions: dict[str, Subscription] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self.context = ssl.create_default_context()
        self.client: httpx.AsyncClient

    # --- the calls ------------------------------------------------------------------------------------------

    async def hello(self, authority: str | None, **_others: Any) -> dict[str, Any]:
        """Say who we are, and trust one more authority. What else is told is for senders that can do more."""
        if authority:
            self.context.load_verify_locations(authority)
        no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
        # No netrc, no proxies, no limit: the deadline of each request is kept by us, as a whole.
        self.client = httpx.AsyncClient(
            verify=self.context, trust_env=False, timeout=None, cookies=no_cookies, limits=httpx.Limits()
        )
        return {"name": self.name, "abilities": sorted(self.abilities)}

    async def subscribe(self, **wish: Any) -> dict[str, Any]:
        """Make a subscription: url, event, secret, schemes, schedule, timeout."""
        unknown = [scheme for scheme in wish["schemes"] if f"scheme:{scheme}" not in self.abilities]
        if unknown:
            raise Refusal(f"there is no scheme {unknown[0]}")
        made = Subscription(url=wish["url"], event=wish["event"], secret=wish["secret"], timeout=wish["timeout"])
        made.schemes = tuple(wish["schemes"]) or made.schemes
        made.schedule = tuple(wish["schedule"]) or made.schedule
        self.subscriptions[made.id] = made
        return {"id": made.id}

    async def publish(self, event: str, payload: str) -> dict[str, Any]:
        """Send an event to all that want it."""
        if not EVENT.fullmatch(event):
            raise Refusal("an event type has letters, digits, _ and full stops")
        for subscription in list(self.subscriptions.values()):
            if subscription.event == event:
                self.start(subscription, Message(event=event, body=base64.b64decode(payload)))
        return {}

    async def call_back(self, url: str, payload: str, secret: str) -> dict[str, Any]:
        """Send one answer to a URL."""
        self.start(Subscription(url=url, secret=secret), Message(event="answer", body=base64.b64decode(payload)))
        return {}

    async def is_active(self, subscription: str) -> dict[str, Any]:
        """Whether a subscription is sent to."""
        return {"active": self.subscriptions[subscription].active}

    async def enable(self, subscription: str) -> dict[str, Any]:
        """Send to a subscription again, also what was held back."""
        found = self.subscriptions[subscription]
        found.active = True
        held, found.held = found.held, []
        for message in held:
            self.start(found, message)
        return {}

    async def rotate(self, subscription: str, secret: str, overlap: float) -> dict[str, Any]:
        """Sign with another secret, and for so many seconds with the old one, too."""
        found = self.subscriptions[subscription]
        found.old_secret, found.old_until, found.secret = found.secret, time.time() + overlap, secret
        return {}

    # --- a message on its way -------------------------------------------------------------------------------

    def start(self, subscription: Subscription, message: Message) -> None:
        """Deliver in the background: nobody waits for another's endpoint."""
        task = asyncio.create_task(self.deliver(subscription, message))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def deliver(self, subscription: Subscription, message: Message) -> None:
        """Try until the message is taken, refused, held back, or tried often enough."""
        while subscription.active:
            message.attempt += 1
            body = self.body(message)
            answer = await self.post(subscription, self.headers(subscription, message, body), body)
            if self.is_success(answer) or self.is_refusal(answer):
                return
            if self.turns_away(answer):
                if len(self.secrets(subscription)) == 1 or message.by_old_secret:
                    subscription.active = False
                message.by_old_secret = True
                continue
            wait = self.wait(subscription, message, answer)
            if wait is None:
                return
            await asyncio.sleep(wait)
        subscription.held.append(message)

    def body(self, message: Message) -> bytes:
        """What is sent: the payload, byte by byte."""
        return message.body

    def secrets(self, subscription: Subscription) -> list[str]:
        """The secrets that are good now, the newest first."""
        is_old_good = time.time() < subscription.old_until
        return [subscription.secret, subscription.old_secret] if is_old_good else [subscription.secret]

    def timestamp(self) -> str:
        """The time of this attempt."""
        return str(int(time.time()))

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> list[tuple[str, str]]:
        """All headers of an attempt."""
        timestamp = self.timestamp()
        headers = [
            ("Content-Type", "application/json"),
            ("User-Agent", self.name.replace(" ", "/")),
            ("Accept-Encoding", "identity"),
            # A connection that is used once cannot have a stranger's answer in it.
            ("Connection", "close"),
            ("webhook-id", message.id),
            ("webhook-timestamp", timestamp),
            ("X-Webhook-Attempt", str(message.attempt)),
        ]
        secrets = self.secrets(subscription)
        for scheme in subscription.schemes:
            headers += self.signature(
                scheme, secrets[::-1] if message.by_old_secret else secrets, message, timestamp, body
            )
        return headers

    def signature(
        self, scheme: str, secrets: list[str], message: Message, timestamp: str, body: bytes
    ) -> list[tuple[str, str]]:
        """The headers of one scheme. Only one has room for a signature by each secret."""
        first = secrets[0]
        match scheme:
            case "standard":
                content = f"{message.id}.{timestamp}.".encode() + body
                return [("webhook-signature", " ".join(standard(secret, content) for secret in secrets))]
            case "github":
                sha1 = ("X-Hub-Signature", f"sha1={hexadecimal(first, body, 'sha1')}")
                return [("X-Hub-Signature-256", f"sha256={hexadecimal(first, body)}"), sha1]
            case "timestamped":
                return [("X-Webhook-Timestamp", timestamp), ("X-Webhook-Signature", hexadecimal(first, body))]
            case "servicestack":
                return [("X-Hub-Signature", f"sha1={hexadecimal(first, body)}")]
            case _:
                return [("X-Hub-Signature", f"sha256={hexadecimal(first, body)}")]

    async def post(self, subscription: Subscription, headers: list[tuple[str, str]], body: bytes) -> Answer:
        """One request. However the endpoint behaves, it takes no longer than agreed, and no more is read than fits."""
        try:
            async with (
                asyncio.timeout(subscription.timeout),
                self.client.stream(
                    "POST", subscription.url, headers=headers, content=body, extensions=self.extensions(subscription)
                ) as response,
            ):
                size = 0
                # raw: nothing is unpacked
                async for piece in response.aiter_raw():
                    size += len(piece)
                    if size > MAX_ANSWER:
                        break
                return Answer(status=response.status_code, headers=response.headers)
        except (httpx.HTTPError, OSError, ValueError):
            return Answer(status=None)

    def extensions(self, subscription: Subscription) -> dict[str, Any]:
        """What httpx is told besides: it would spell the path in its own way."""
        target = "/" + subscription.url.split("#")[0].partition("://")[2].partition("/")[2]
        return {"target": target.encode()}

    # --- what an answer means -------------------------------------------------------------------------------

    def is_success(self, answer: Answer) -> bool:
        """Whether the endpoint has the message."""
        return answer.status is not None and 200 <= answer.status < 300

    def is_refusal(self, answer: Answer) -> bool:
        """Whether another try would change nothing."""
        return answer.status in REFUSED

    def turns_away(self, answer: Answer) -> bool:
        """Whether the endpoint wants nothing from us."""
        return answer.status in TURNED_AWAY

    def wait(self, subscription: Subscription, message: Message, answer: Answer) -> float | None:
        """Seconds until the next try, spread by chance; None: there is none."""
        if message.attempt > len(subscription.schedule):
            return None
        scheduled = subscription.schedule[message.attempt - 1] * random.uniform(0.85, 1.25)
        return max(scheduled, min(self.retry_after(answer), LONGEST_WAIT))

    def retry_after(self, answer: Answer) -> float:
        """Seconds that the endpoint wants us to wait; 0 where it does not say, or nothing that makes sense."""
        text = answer.headers.get("Retry-After", "")
        try:
            return float(text) if text.isdigit() else parsedate_to_datetime(text).timestamp() - time.time()
        except ValueError:
            return 0.0


CALLS = {"hello", "subscribe", "publish", "call_back", "is_active", "enable", "rotate", "send_strictly"}


async def serve(sender: Sender) -> None:
    """Do what is asked, line by line, until stdin ends."""
    while line := await asyncio.to_thread(sys.stdin.buffer.readline):
        asked = json.loads(line)
        number, call = asked.pop("id"), asked.pop("call")
        answer: dict[str, Any] = {"id": number}
        try:
            if call not in CALLS or not hasattr(sender, call):
                raise Refusal(f"there is no call {call}")
            answer["result"] = await getattr(sender, call)(**asked)
        except Refusal as refusal:
            answer["refused"] = str(refusal)
        except (LookupError, TypeError, ValueError) as error:
            answer["error"] = type(error).__name__
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    asyncio.run(serve(Sender()))
