"""What came in, in the order in which it came: to look at, to search, to wait for, to keep."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import string
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dispatcher.conformance.wire.requests import Received
from dispatcher.errors import ConfigError

if TYPE_CHECKING:
    from dispatcher.conformance.receiver.defences import Judgement

#: requests that are kept at most; of more, the newest
CAPACITY = 10_000
#: bytes of memory that the requests which are kept take at most, about
MAX_BYTES = 256 * 1024 * 1024
#: bytes that a header takes beside its characters: two texts and a pair of them. Of thousands of short ones, which is
#: what a head of some KiB may hold, that is the most
_HEADER_BYTES = 200
#: requests that the text of a TimeoutError shows at most
SHOWN = 20

#: stands for the number of a request where all of them were forgotten
CLEARED = 0

#: headers that name the event, in the order in which they are asked; then the body is
_EVENT_HEADERS = ("X-Webhook-Event", "X-GitHub-Event", "ce-type")
#: headers that name the delivery
_DELIVERY_HEADERS = ("X-Webhook-Delivery", "webhook-id", "X-GitHub-Delivery", "ce-id")
#: an event's name in a body; anything else that is called "type" there is none
_EVENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,99}\Z")
_PLAIN = frozenset(string.ascii_letters + string.digits + "._-:/~")
#: characters of a name that are shown at most
_LONGEST_NAME = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One request, and what became of it."""

    request: Received
    #: what the defences found; None when a script answered before they were asked
    judgement: Judgement | None = None
    #: what it is answered; None: nothing yet, or never
    status: int | None = None
    #: the step of a script that answered it
    fault: str | None = None
    #: the work behind the answer is done
    is_processed: bool = False
    #: the kind of error that the work ended with, without its text
    failure: str | None = None
    #: the type of event that it names
    event: str | None = field(default=None, repr=False)
    #: the delivery that it names
    delivery: str | None = field(default=None, repr=False)

    @property
    def is_accepted(self) -> bool:
        """It is answered 2xx."""
        return self.status is not None and self.status // 100 == 2

    def __str__(self) -> str:
        """One line that may be shown to anybody: no path, no header but event and delivery, no body."""
        answer = "not answered" if self.status is None else str(self.status)
        if self.judgement is not None and self.judgement.refusal is not None:
            answer = f"{answer} {self.judgement.refusal.defence}"
        event, delivery = name_shown(self.event), name_shown(self.delivery)
        return f"{self.request.number} {name_shown(self.request.method)} {event} {delivery} {answer}"


@dataclass(slots=True)
class _Kept:
    position: int
    entry: Entry
    size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Criteria:
    """Which requests are meant: those that meet all that is set."""

    path: str | None = field(default=None, repr=False)
    event: str | None = None
    delivery: str | None = None
    #: stands in the body, letter by letter (UTF-8)
    text: str | None = field(default=None, repr=False)
    #: whether it was answered 2xx
    is_accepted: bool | None = None

    def admit(self, entry: Entry) -> bool:
        """Whether an entry is meant."""
        return (
            (self.path is None or entry.request.path == self.path)
            and (self.event is None or entry.event == self.event)
            and (self.delivery is None or entry.delivery == self.delivery)
            and (self.text is None or self.text.encode("utf-8", "surrogatepass") in entry.request.body)
            and (
                self.is_accepted is None or (entry.status is not None and entry.status // 100 == 2) == self.is_accepted
            )
        )


class Inbox:
    """Requests, the newest of them, in the order in which they were complete. For one event loop."""

    def __init__(self, *, capacity: int = CAPACITY, max_bytes: int = MAX_BYTES) -> None:
        if capacity < 1 or max_bytes < 1:
            raise ConfigError("an inbox has room for one request or more")
        self.capacity = capacity
        self.max_bytes = max_bytes
        #: requests that came in all
        self.total = 0
        #: requests that had to make room for newer ones
        self.dropped = 0
        self._kept: OrderedDict[int, _Kept] = OrderedDict()
        self._bytes = 0
        self._watches: set[Watch] = set()

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, request: Received) -> None:
        """Keep a request. The oldest ones make room for it, if they have to."""
        self._remove(request.number)
        self.total += 1
        entry = Entry(request=request, event=event_of(request), delivery=delivery_of(request))
        size = _size_of(request)
        self._kept[request.number] = _Kept(position=self.total, entry=entry, size=size)
        self._bytes += size
        while len(self._kept) > self.capacity or (self._bytes > self.max_bytes and len(self._kept) > 1):
            self._remove(next(iter(self._kept)))
            self.dropped += 1
        self._tell(request.number)

    def note(self, number: int, **changes: Any) -> None:
        """Change what is known of a request: `judgement`, `status`, `fault`, `is_processed`, `failure`.

        A request that had to make room stays gone.
        """
        kept = self._kept.get(number)
        if kept is None:
            return
        kept.entry = replace(kept.entry, **changes)
        self._tell(number)

    def clear(self) -> int:
        """Forget all requests, and tell how many there were. What came in all is still counted."""
        count = len(self._kept)
        self._kept.clear()
        self._bytes = 0
        self._tell(CLEARED)
        return count

    def get(self, number: int) -> Entry | None:
        """The request with this number; None if there is none, or none any more."""
        kept = self._kept.get(number)
        return kept.entry if kept else None

    def entries(
        self,
        *,
        path: str | None = None,
        event: str | None = None,
        delivery: str | None = None,
        text: str | None = None,
        is_accepted: bool | None = None,
    ) -> list[Entry]:
        """The requests that meet all that is set, in their order."""
        return self.find(Criteria(path=path, event=event, delivery=delivery, text=text, is_accepted=is_accepted))

    def find(self, criteria: Criteria) -> list[Entry]:
        """The requests that meet criteria, in their order."""
        return [kept.entry for kept in self._kept.values() if criteria.admit(kept.entry)]

    def count(self, criteria: Criteria) -> int:
        """How many requests meet criteria."""
        return len(self.find(criteria))

    def page(self, criteria: Criteria, *, after: int = 0, limit: int = 100) -> tuple[list[Entry], int | None]:
        """Up to `limit` requests behind a position, and the position to go on from; None: that was all."""
        found: list[Entry] = []
        last = after
        for kept in self._kept.values():
            if kept.position > after and criteria.admit(kept.entry):
                if len(found) == limit:
                    return found, last
                found.append(kept.entry)
                last = kept.position
        return found, None

    async def wait_for(
        self,
        count: int = 1,
        *,
        within: float,
        path: str | None = None,
        event: str | None = None,
        delivery: str | None = None,
        text: str | None = None,
        is_accepted: bool | None = None,
    ) -> list[Entry]:
        """The requests that meet all that is set, as soon as there are `count` of them; those already here count.

        `within` is in seconds. Raises TimeoutError, whose text shows what did come, in a form for anybody's eyes.
        """
        criteria = Criteria(path=path, event=event, delivery=delivery, text=text, is_accepted=is_accepted)
        return await self.wait_until(criteria, count, within=within)

    async def wait_until(self, criteria: Criteria, count: int, *, within: float) -> list[Entry]:
        """As `wait_for`."""
        with self.watch() as watch:
            try:
                async with asyncio.timeout(within):
                    return await self._enough(criteria, count, watch)
            except TimeoutError:
                raise TimeoutError(self._shortfall(criteria, count, within)) from None

    async def _enough(self, criteria: Criteria, count: int, watch: Watch) -> list[Entry]:
        while len(found := self.find(criteria)) < count:
            # Only what changes is looked at again: a search through all at each request would be slow.
            numbers = {entry.request.number for entry in found}
            while len(numbers) < count:
                for number in await watch.changed():
                    entry = self.get(number)
                    if entry is not None and criteria.admit(entry):
                        numbers.add(number)
                    else:
                        numbers.discard(number)
        return found

    def watch(self) -> Watch:
        """Tells of requests that come or change, within the block."""
        return Watch(self._watches)

    def export(self) -> Iterator[str]:
        """Every request with all that it holds, one JSON object a line; body and raw bytes are base64."""
        entries = [kept.entry for kept in self._kept.values()]
        return (json.dumps(record(entry)) + "\n" for entry in entries)

    def _remove(self, number: int) -> None:
        kept = self._kept.pop(number, None)
        if kept is not None:
            self._bytes -= kept.size

    def _tell(self, number: int) -> None:
        for watch in self._watches:
            watch.tell(number)

    def _shortfall(self, criteria: Criteria, count: int, within: float) -> str:
        here = [kept.entry for kept in self._kept.values()]
        met = sum(criteria.admit(entry) for entry in here)
        # Which path or text was waited for is not shown: either may be a secret.
        wanted = [
            *(f"{word} {name_shown(value)}" for word, value in _names(criteria) if value is not None),
            *(word for word, value in (("a path", criteria.path), ("a text", criteria.text)) if value is not None),
            *(() if criteria.is_accepted is None else ("a 2xx answer" if criteria.is_accepted else "no 2xx answer",)),
        ]
        asked = f" with {', '.join(wanted)}" if wanted else ""
        lines = [f"{met} of {count} requests{asked} came within {within:g} s; {len(here)} came in all"]
        if len(here) > SHOWN:
            lines.append(f"  (the last {SHOWN} of them)")
        lines += [f"  {entry}" for entry in here[-SHOWN:]]
        return "\n".join(lines)


class Watch:
    """A context manager that tells which requests came or changed while it was open."""

    def __init__(self, watches: set[Watch]) -> None:
        self._watches = watches
        # A dict, for its order: each number once, however often it changed since it was last asked for.
        self._numbers: dict[int, None] = {}
        self._event = asyncio.Event()

    def __enter__(self) -> Watch:
        self._watches.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._watches.discard(self)

    def tell(self, number: int) -> None:
        """A request came or changed."""
        if number == CLEARED:
            self._numbers.clear()
        self._numbers[number] = None
        if len(self._numbers) > CAPACITY:
            del self._numbers[next(iter(self._numbers))]
        self._event.set()

    async def changed(self) -> list[int]:
        """The numbers of the requests that came or changed since it was last asked; waits for the first.

        CLEARED among them says that the others are all there are.
        """
        await self._event.wait()
        self._event.clear()
        numbers = list(self._numbers)
        self._numbers.clear()
        return numbers


def _names(criteria: Criteria) -> Iterable[tuple[str, str | None]]:
    return (("event", criteria.event), ("delivery", criteria.delivery))


def _size_of(request: Received) -> int:
    headers = sum(len(name) + len(value) + _HEADER_BYTES for name, value in request.headers)
    return len(request.raw) + len(request.body) + len(request.target) + headers


def event_of(request: Received) -> str | None:
    """The type of event that a request names, in a header or as `type` in its JSON body; None if it names none."""
    for name in _EVENT_HEADERS:
        if value := request.header(name):
            return value
    try:
        content = json.loads(request.body)
    except (ValueError, RecursionError):
        return None
    kind = content.get("type") if isinstance(content, dict) else None
    return kind if isinstance(kind, str) and _EVENT_NAME.match(kind) else None


def delivery_of(request: Received) -> str | None:
    """The delivery that a request names; None if it names none."""
    return next((value for name in _DELIVERY_HEADERS if (value := request.header(name))), None)


def name_shown(name: str | None) -> str:
    """A name from the wire as it may stand in a line: short, without anything that could write to a terminal."""
    if not name:
        return "-"
    cut = name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}~"
    return "".join(character if character in _PLAIN else "?" for character in cut)


def record(entry: Entry) -> dict[str, Any]:
    """All of an entry, as JSON has it. Nothing is masked."""
    request, judgement = entry.request, entry.judgement
    return {
        "number": request.number,
        "at": request.at,
        "connection": request.connection,
        "remote": request.remote,
        "is_tls": request.is_tls,
        "method": request.method,
        "target": request.target,
        "headers": [list(header) for header in request.headers],
        "body": base64.b64encode(request.body).decode(),
        "raw": base64.b64encode(request.raw).decode(),
        "is_complete": request.is_complete,
        "event": entry.event,
        "delivery": entry.delivery,
        "status": entry.status,
        "fault": entry.fault,
        "is_processed": entry.is_processed,
        "failure": entry.failure,
        "judgement": None if judgement is None else judged(judgement),
    }


def judged(judgement: Judgement) -> dict[str, Any]:
    """A judgement, as JSON has it."""
    refusal = judgement.refusal
    return {
        "passed": list(judgement.passed),
        "off": list(judgement.off),
        "refusal": None
        if refusal is None
        else {"defence": refusal.defence, "status": refusal.reply.status, "reason": refusal.reason},
        "is_repeat": judgement.is_repeat,
        "verdicts": [
            {"scheme": one.scheme, "is_good": one.is_good, "reason": one.reason, "key": one.key}
            for one in judgement.verdicts
        ],
    }
