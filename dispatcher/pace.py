"""A pace that several processes keep as one does: each send has a place in it, given out a moment ahead.

Whoever gets places holds the pace until the last of them is past, and gets the next ones before others can: so one
process at a time sends, and with one memory of what the endpoint can take. One that has nothing to send any more, has
died, or does not get round to it, holds it no longer than that. (Places are those of virtual scheduling, as in the
generic cell rate algorithm of ITU-T I.371.)

Moments are milliseconds since the epoch, of the clock that all of them share.
"""

from __future__ import annotations

from dataclasses import dataclass

#: seconds for which places are given out ahead
AHEAD = 2.0
#: seconds after which somebody who got none asks again at the latest: another rate may have been set meanwhile
LONGEST_WAIT = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """How a pace stands."""

    #: who holds it
    by: str
    #: the last place that was given out
    until: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """What somebody gets who asks for places."""

    #: when to send, one after the other; fewer than were asked for, or none
    at: tuple[float, ...]
    #: when to ask for more
    ask_at: float


def give(held: Held | None, *, to: str, wanted: int, rate: float, now: float) -> Places:
    """The next places in a pace of `rate` sends a second. None while another holds it."""
    gap, ahead = 1000 / rate, 1000 * AHEAD
    first = now if held is None else max(now, held.until + gap)
    if held is not None and held.by != to and first > now:
        return Places(at=(), ask_at=min(first, now + 1000 * LONGEST_WAIT))
    room = 0 if first > now + ahead else max(1, int((now + ahead - first) / gap))
    count = min(wanted, room)
    ask_at = max(now, first + count * gap - ahead)
    return Places(
        at=tuple(first + number * gap for number in range(count)), ask_at=min(ask_at, now + 1000 * LONGEST_WAIT)
    )
