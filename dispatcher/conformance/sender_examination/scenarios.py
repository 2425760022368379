"""The situations that a sender is put into. Each plays at paths of its own, so all of them play at once.

What is a matter of hours in production is a matter of seconds here: the sender is given short schedules and deadlines.
Its clock is left alone.

A busy machine makes everything later and nothing earlier. So what has to come is waited for, not slept for; what is
measured is the shortest of several; and a silence is counted in moments, which a busy machine stretches.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from dispatcher.conformance.certificates import Authority
from dispatcher.conformance.sender_examination.senders import Refused
from dispatcher.conformance.sender_examination.stage import PATIENT, Seen, Stage, Subject

#: seconds within which what has to come comes
PROMPT = 10.0
#: seconds of silence after which nothing more is expected
SILENCE = 2.0
#: a deadline for one request, seconds, where a scenario lets it pass
DEADLINE = 1.0
#: seconds between tries where they have to be quick, and where they have to fall into different seconds, whatever
#: chance takes away
QUICK = (0.2,)
SPACED = (3.4,)
#: the same, where the distances themselves are looked at
RISING = (0.4, 0.9, 4.0)
#: seconds between the first messages to endpoints that must not meet in one wave
APART = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Observed:
    """What came of a scenario."""

    subjects: dict[str, Subject]
    #: whatever else was found out, by name
    facts: dict[str, object] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Subject:
        return self.subjects[name]

    @property
    def seen(self) -> list[Seen]:
        """The requests to all subjects."""
        return [one for subject in self.subjects.values() for one in subject.seen]

    @property
    def messages(self) -> list[list[Seen]]:
        """The requests of each message."""
        return [ones for subject in self.subjects.values() for ones in subject.messages.values()]

    @property
    def gaps(self) -> list[list[float]]:
        """Of each message the seconds between one request and the next."""
        return [gaps for subject in self.subjects.values() for gaps in subject.gaps]

    @property
    def published(self) -> int:
        """How many messages there should be."""
        return sum(len(subject.published) for subject in self.subjects.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """One situation."""

    name: str
    #: a sentence: what is done in it
    title: str
    #: what the sender has to be able to do
    needs: frozenset[str]
    play: Callable[[Stage, Authority], Awaitable[Observed]]


SCENARIOS: dict[str, Scenario] = {}

_Play = Callable[[Stage, Authority], Awaitable[Observed]]


def _scenario(title: str, *needs: str) -> Callable[[_Play], _Play]:
    def register(play: _Play) -> _Play:
        name = play.__name__.strip("_").replace("_", "-")
        SCENARIOS[name] = Scenario(name=name, title=title, needs=frozenset(needs) | {"subscribe"}, play=play)
        return play

    return register


def _observed(*subjects: Subject, **facts: object) -> Observed:
    return Observed(subjects={one.name: one for one in subjects}, facts=facts)


async def _quiet(*, most: float) -> None:
    """Wait until the rush of the beginning is over, in which all scenarios start: distances are measured after it.

    Whether it is shows by how late we are woken ourselves. A machine that never comes to rest is waited for no longer
    than `most` seconds.
    """
    end = time.monotonic() + most
    calm = 0
    while calm < 10 and time.monotonic() < end:
        began = time.monotonic()
        await asyncio.sleep(_BLINK)
        calm = calm + 1 if time.monotonic() - began < 1.5 * _BLINK else 0


#: seconds
_BLINK = 0.05


async def _deliver(stage: Stage, subject: Subject, *, times: int = 1, requests: int = 1, **wish: object) -> None:
    """Subscribe, publish, and wait until so many requests of each message have come, and then for silence."""
    await stage.subscribe(subject, **wish)  # type: ignore[arg-type]  # passed through
    await stage.publish(subject, times=times)
    for count in range(1, times * requests + 1):
        # each in its own time: a late one makes all that follow late
        if not await subject.wait(count, within=PROMPT):
            break
    await subject.rest(SILENCE)


# --- what is sent -----------------------------------------------------------------------------------------

#: bytes that a sender which parses and writes anew does not keep
ODD_PAYLOADS = (
    b'{"n": 1}',
    b'{ "big" : 12345678901234567890123, "tiny":1e-400,\n"escaped":"\\u00e9\\/", '
    b'"plain":"\xc3\xa9\xe2\x82\xac\xf0\x9f\x90\x9d" }',
    b'[1.0, 10E2, {"b":1,"a":2,"b":3}]',
)


@_scenario("Three events with unusual bytes go to a URL with escapes and a query; every answer sets a cookie.")
async def _plain(stage: Stage, _authority: Authority) -> Observed:
    subject = stage.place("plain", "set-cookie", rest="/a%2Fb%20c;p=1?x=1&y=%C3%A9&x=2")
    await stage.subscribe(subject)
    for payload in ODD_PAYLOADS:
        await stage.publish(subject, payload)
        await subject.wait(len(subject.published), within=PROMPT)
    await subject.rest(SILENCE)
    return _observed(subject, refusals=stage.refusals)


def _signed_by(scheme: str) -> None:
    async def play(stage: Stage, _authority: Authority) -> Observed:
        subject = stage.place("signed", "500,200", schemes=(scheme,))
        other = stage.place("other", schemes=(scheme,))
        await stage.subscribe(subject, schedule=SPACED)
        await stage.subscribe(other)
        for payload in ODD_PAYLOADS:
            await stage.publish(subject, payload)
        await stage.publish(other)
        await asyncio.gather(subject.wait(2 * len(ODD_PAYLOADS), within=PROMPT), other.wait(1, within=PROMPT))
        return _observed(subject, other)

    name = f"signed-by-{scheme}"
    SCENARIOS[name] = Scenario(
        name=name,
        title=f"Three events are signed by {scheme}, and sent twice each.",
        needs=frozenset({"subscribe", "schedule", f"scheme:{scheme}"}),
        play=play,
    )


for _name in (
    "websub",
    "github",
    "standard",
    "standard-ed25519",
    "timestamped",
    "servicestack",
    "rfc9421",
    "rfc9421-ed25519",
):
    _signed_by(_name)


@_scenario(
    "Event types with line breaks and header-like text are subscribed to and published, where the sender takes them."
)
async def _injection(stage: Stage, _authority: Authority) -> Observed:
    subject = stage.place("injection")
    await stage.subscribe(subject)
    await stage.publish(subject)
    others = [stage.place(f"injection-{n}") for n in range(len(_INJECTIONS))]
    for other, text in zip(others, _INJECTIONS, strict=True):
        other.event += text
        with contextlib.suppress(Refused):
            await stage.subscribe(other)
        with contextlib.suppress(Refused):
            await stage.publish(other)
    await subject.wait(1, within=PROMPT)
    await asyncio.gather(*(other.rest(SILENCE) for other in others))
    return _observed(subject, *others, refusals=stage.refusals)


_INJECTIONS = ("\r\nX-Injected: 1", "\nX-Injected: 1", "\rX-Injected: 1", "\x00")


@_scenario("An answer to a task goes to a URL that carries a token.", "callback")
async def _callback(stage: Stage, _authority: Authority) -> Observed:
    token = "eyJhbGciOiJIUzI1NiJ9.eyJleHAiOjQxMDI0NDQ4MDB9.c2lnbmF0dXJlLW9mLXRoZS10b2tlbg"  # noqa: S105 - made up
    subject = stage.place("callback", rest=f"/{token}")
    subject.published.append(ODD_PAYLOADS[1])
    await stage.sender.call_back(subject.url, ODD_PAYLOADS[1], secret=subject.secret)
    await subject.wait(1, within=PROMPT)
    return _observed(subject, token=token)


# --- when it is sent again --------------------------------------------------------------------------------


@_scenario("At each of twelve endpoints an event is refused with 500, 503 and 502, and then taken.", "schedule")
async def _retries(stage: Stage, _authority: Authority) -> Observed:
    # One event each: a sender may well spare an endpoint at which everything fails.
    rest = "/a%2Fb?x=1&y=%C3%A9"
    subjects = [stage.place(f"endpoint-{n}", "500,503,502,200", rest=rest) for n in range(1, 13)]

    async def play(turn: int, subject: Subject) -> None:
        await asyncio.sleep(turn * APART)
        await _deliver(stage, subject, requests=4, schedule=RISING)

    await _quiet(most=PROMPT)
    await asyncio.gather(*(play(turn, one) for turn, one in enumerate(subjects)))
    return _observed(*subjects)


@_scenario("An event is answered 500 for ever.", "schedule")
async def _exhausted(stage: Stage, _authority: Authority) -> Observed:
    subject = stage.place("exhausted", "500")
    await _deliver(stage, subject, requests=4, schedule=QUICK * 3)
    return _observed(subject, tries=4)


@_scenario("Each 2xx is a success.", "schedule")
async def _successes(stage: Stage, _authority: Authority) -> Observed:
    return await _one_each(stage, ["200", "201", "202", "204", "226", "299"])


@_scenario("What speaks of a passing trouble is answered once; then 200.", "schedule")
async def _passing(stage: Stage, _authority: Authority) -> Observed:
    return await _one_each(stage, ["408", "429", "500", "502", "503", "504"], then="200")


@_scenario("Refusals that another try will not change.", "schedule")
async def _refusals(stage: Stage, _authority: Authority) -> Observed:
    return await _one_each(stage, ["400", "401", "403", "404", "405", "413", "422"])


@_scenario("Not a success: answers that are no 2xx and yet no error.", "schedule")
async def _in_between(stage: Stage, _authority: Authority) -> Observed:
    return await _one_each(stage, ["300", "304", "199"], then="200")


@_scenario("Connections that break: before an answer, within it, or by a reset.", "schedule")
async def _broken(stage: Stage, _authority: Authority) -> Observed:
    # Some take a while to see that what came is no answer, and may.
    return await _one_each(stage, ["close", "reset", "garbage", "http09"], then="200", deadline=5.0)


async def _one_each(stage: Stage, answers: list[str], *, then: str = "", deadline: float = PATIENT) -> Observed:
    """A subject for each answer."""
    subjects = [stage.place(f"{answer}", f"{answer},{then}" if then else answer) for answer in answers]
    await asyncio.gather(
        *(_deliver(stage, one, requests=2 if then else 1, schedule=QUICK, deadline=deadline) for one in subjects)
    )
    return _observed(*subjects)


@_scenario("Redirects of every kind point to another path of the receiver.", "schedule")
async def _redirects(stage: Stage, _authority: Authority) -> Observed:
    elsewhere = stage.place("elsewhere")
    subjects = [
        stage.place(str(status), f"redirect;status={status};to={elsewhere.url},200")
        for status in (301, 302, 303, 307, 308)
    ]
    await asyncio.gather(*(_deliver(stage, one, requests=2, schedule=QUICK) for one in subjects))
    return _observed(elsewhere, *subjects)


@_scenario("Retry-After in both forms, of the past, and as garbage.", "schedule")
async def _retry_after(stage: Stage, _authority: Authority) -> Observed:
    subjects = [
        stage.place("seconds", "429;retry-after=3,200"),
        stage.place("unavailable", "503;retry-after=3,200"),
        stage.place("date", "429;retry-after-date=4,200"),
        stage.place("past", "429;retry-after-date=-3600,200"),
        stage.place("zero", "429;retry-after=0,200"),
        stage.place("garbage", "429;retry-after-raw=soon,200"),
    ]
    await asyncio.gather(*(_deliver(stage, one, requests=2, schedule=(1.0,)) for one in subjects))
    return _observed(*subjects)


# --- what an endpoint can do to a sender ------------------------------------------------------------------


@_scenario("Answers that would never end, each with a deadline of a second.", "schedule", "timeout")
async def _endless(stage: Stage, _authority: Authority) -> Observed:
    # Floods are slowed down: what is looked at is whether they are cut, and not how fast the machine is.
    slow = ";pause=0.01"
    faults = {
        "hang": "", "slow-headers": "", "endless-headers": slow, "interim-flood": slow, "drip": "", "huge": slow
    }  # fmt: skip
    # The last two begin with a good head: some take that for a success, some try again, which is the same for ever.
    subjects = [
        stage.place(fault, f"{fault}{settings}" + ("" if fault in {"drip", "huge"} else ",200"))
        for fault, settings in faults.items()
    ]

    async def play(subject: Subject) -> None:
        requests = 1 if subject.name in {"drip", "huge"} else 2
        await _deliver(stage, subject, times=2, requests=requests, schedule=QUICK, deadline=DEADLINE)
        await subject.over(within=PROMPT)

    await asyncio.gather(*(play(one) for one in subjects))
    return _observed(*subjects)


@_scenario("An endpoint takes two seconds to answer, which is within the deadline.", "timeout")
async def _slow(stage: Stage, _authority: Authority) -> Observed:
    subject = stage.place("slow", "late;after=2,200")
    await _deliver(stage, subject, schedule=QUICK, deadline=PROMPT)
    await subject.over(within=PROMPT)
    await subject.rest(SILENCE)
    return _observed(subject)


@_scenario("An endpoint answers as a whole, and resets the connection a moment later.")
async def _torn(stage: Stage, _authority: Authority) -> Observed:
    subject = stage.place("torn", "torn,200")
    await _deliver(stage, subject, schedule=QUICK)
    return _observed(subject)


@_scenario("One endpoint asks to be left alone for a minute; another is in good health.")
async def _patience(stage: Stage, _authority: Authority) -> Observed:
    busy, healthy = stage.place("busy", "429;retry-after=60,200"), stage.place("healthy")
    await stage.subscribe(busy, schedule=QUICK)
    await stage.subscribe(healthy)
    await stage.publish(busy)
    await busy.wait(1, within=PROMPT)
    await busy.over(within=PROMPT)
    # until the sender has understood what it was asked
    await busy.rest(SILENCE / 2)
    await stage.publish(healthy)
    await healthy.wait(1, within=PROMPT)
    return _observed(busy, healthy)


@_scenario("Two subscriptions want events whose types begin alike, and each type is published.")
async def _routes(stage: Stage, _authority: Authority) -> Observed:
    short, long, deep = stage.place("short"), stage.place("long"), stage.place("deep")
    long.event, deep.event = f"{short.event}x", f"{short.event}.x"
    subjects = (short, long, deep)
    for subject in subjects:
        await stage.subscribe(subject)
    for n, subject in enumerate(subjects):
        await stage.publish(subject, b'{"route": %d}' % n)
    await asyncio.gather(*(one.wait(1, within=PROMPT) for one in subjects))
    await asyncio.gather(*(one.rest(SILENCE) for one in subjects))
    return _observed(*subjects)


@_scenario("An endpoint sends a second answer that nobody asked for.")
async def _second_answer(stage: Stage, _authority: Authority) -> Observed:
    subject = stage.place("second-answer", "second-answer;status=200")
    await stage.subscribe(subject)
    for _ in range(4):
        await stage.publish(subject)
        await subject.wait(len(subject.published), within=SILENCE)
    await subject.rest(SILENCE)
    return _observed(subject)


@_scenario("One endpoint hangs with thirty events; another is in good health.", "timeout")
async def _neighbours(stage: Stage, _authority: Authority) -> Observed:
    hanging, healthy = stage.place("hanging", "hang"), stage.place("healthy")
    await stage.subscribe(hanging, deadline=PATIENT)
    await stage.subscribe(healthy)
    await stage.publish(hanging, times=30)
    await hanging.wait(1, within=PROMPT)
    delays: list[float] = []
    for count in range(1, 6):
        began = time.monotonic()
        await stage.publish(healthy)
        await healthy.wait(count, within=PROMPT)
        delays.append(time.monotonic() - began)
    return _observed(hanging, healthy, delays=delays)


# --- whom it sends to -------------------------------------------------------------------------------------


@_scenario("410 Gone is answered; two more events follow.", "state", "schedule")
async def _gone(stage: Stage, _authority: Authority) -> Observed:
    return await _turned_away(stage, "410")


@_scenario("401 is answered; two more events follow.", "state")
async def _unauthorized(stage: Stage, _authority: Authority) -> Observed:
    return await _turned_away(stage, "401")


async def _turned_away(stage: Stage, answer: str) -> Observed:
    subject = stage.place("subject", answer)
    await stage.subscribe(subject, schedule=QUICK)
    assert subject.subscribed is not None
    was_active = await stage.sender.is_active(subject.subscribed.id)
    await stage.publish(subject)
    await subject.wait(1, within=PROMPT)
    await subject.rest(SILENCE)
    active = await _stays_active(stage, subject)
    before = len(subject.seen)
    await stage.publish(subject, times=2)
    await subject.rest(SILENCE)
    return _observed(subject, was_active=was_active, active=active, before=before)


async def _stays_active(stage: Stage, subject: Subject) -> bool:
    """Whether a subscription is still active after all the time that a slow sender may need to disable it."""
    assert subject.subscribed is not None
    end = time.monotonic() + PROMPT / 2
    while await stage.sender.is_active(subject.subscribed.id):
        if time.monotonic() > end:
            return True
        await asyncio.sleep(0.1)
    return False


@_scenario("An endpoint refuses with 401, three more events follow, it is mended and enabled.", "state", "enable")
async def _enabling(stage: Stage, _authority: Authority) -> Observed:
    subject = stage.place("subject", "401")
    await _deliver(stage, subject, schedule=QUICK)
    await _stays_active(stage, subject)
    for n in range(3):
        await stage.publish(subject, b'{"later": %d}' % n)
    await subject.rest(SILENCE)
    before = len(subject.seen)
    subject.script = ("200",)
    assert subject.subscribed is not None
    await stage.sender.enable(subject.subscribed.id)
    await subject.until(lambda: not subject.missing(before), within=PROMPT)
    await subject.rest(SILENCE)
    active = await stage.sender.is_active(subject.subscribed.id)
    return _observed(subject, before=before, active=active)


@_scenario("A secret is rotated with an overlap; receivers know one or the other.", "rotate", "schedule")
async def _rotation(stage: Stage, _authority: Authority) -> Observed:
    both = stage.place("both", schemes=("standard",))
    old = stage.place("old", "401,200", schemes=("websub",))
    for subject in (both, old):
        await stage.subscribe(subject)
        assert subject.subscribed is not None
        await stage.sender.rotate(subject.subscribed.id, _NEW_SECRET, overlap=3600.0)
        await stage.publish(subject)
    await asyncio.gather(both.wait(1, within=PROMPT), old.wait(2, within=PROMPT))
    at_once = stage.place("at-once", schemes=("standard",))
    await stage.subscribe(at_once)
    assert at_once.subscribed is not None
    await stage.sender.rotate(at_once.subscribed.id, _NEW_SECRET, overlap=0.0)
    # The sender may use a moment to make the change known everywhere.
    await at_once.rest(SILENCE)
    await stage.publish(at_once)
    await at_once.wait(1, within=PROMPT)
    return _observed(both, old, at_once, new=_NEW_SECRET)


_NEW_SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"  # noqa: S105 - of the kit's own subjects


@_scenario("TLS with certificates that are not to be trusted, and one that is.", "schedule", "authority")
async def _tls(stage: Stage, authority: Authority) -> Observed:
    contexts = {
        "good": authority.context(["localhost"]),
        "expired": authority.context(["localhost"], expired=True),
        "other-host": authority.context(["other.example"]),
        "self-signed": authority.context(["localhost"], self_signed=True),
    }
    subjects = [stage.place(name, origin=await stage.listen(context)) for name, context in contexts.items()]
    for subject in subjects:
        await stage.subscribe(subject, schedule=QUICK)
        await stage.publish(subject)
    # A certificate that was refused is a handshake that came to nothing: then there is no need to wait for silence.
    await asyncio.gather(*(stage.dialled(one, within=PROMPT) for one in subjects))
    await asyncio.gather(*(one.rest(SILENCE) for one in subjects))
    return _observed(*subjects)


#: spellings that lead to this machine and no further; what an attacker would try first
SPELLINGS = (
    "127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "127.1", "2130706433", "0x7f000001", "0177.0.0.1",
    "127.0.0.1.", "user@127.0.0.1",
)  # fmt: skip


@_scenario("The sender runs as in production, and is given URLs that lead to its own machine.", "strict")
async def _own_machine(stage: Stage, _authority: Authority) -> Observed:
    port = stage.origin.rpartition(":")[2]
    urls = [f"{scheme}://{spelling}:{port}/strict" for scheme in ("http", "https") for spelling in SPELLINGS]
    taken = [url for url in urls if not await stage.sender.refuses(url)]
    await asyncio.sleep(SILENCE)
    arrived = sum(request.path == "/strict" for request in stage.strays)
    return _observed(taken=[url.partition("://")[2].rpartition(":")[0] for url in taken], arrived=arrived)
