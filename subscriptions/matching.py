"""Who wants an event: event types, patterns, and one account's subscriptions indexed by pattern.

An event type is segments with dots between them, such as `order.paid`. A pattern is a type in which a whole
segment may be `*`, that is any one segment, and the last may be `**`, that is one or more of any. What a
listener wants beyond the type, its filter says (`subscriptions.filters`).

The index holds no tree. It knows the few shapes that its patterns have (how many segments, and which of them
are `*`), writes an event type in each of these shapes, and looks up what comes out: `a.b` is `a.b`, `a.*`,
`*.b`, `a.**` and so on. So a look-up costs what matches plus the number of shapes, not of subscriptions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from subscriptions.filters import Filter, FilterFailed

#: characters of an event type or of a pattern
MAX_LENGTH = 100

_EVENT_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SEGMENT = re.compile(r"[A-Za-z0-9_-]*")
_ONE = "*"
_REST = "**"


class PatternError(ValueError):
    """An event type or a pattern that cannot be used. The text says what would be right."""


def check_event_type(text: str) -> str:
    """`text`, if it can be the type of an event; PatternError otherwise."""
    if not 1 <= len(text) <= MAX_LENGTH:
        raise PatternError(f"An event type has 1 to {MAX_LENGTH} characters.")
    if not _EVENT_TYPE.fullmatch(text):
        raise PatternError(
            "An event type consists of ASCII letters, digits, dots, hyphens and underscores,"
            " and begins with a letter or a digit, such as `order.paid`."
        )
    return text


def check_pattern(text: str) -> str:
    """`text`, if it can be a pattern; PatternError otherwise.

    Every event type is a pattern, too: one that matches only itself.
    """
    if not 1 <= len(text) <= MAX_LENGTH:
        raise PatternError(f"An event pattern has 1 to {MAX_LENGTH} characters.")
    *others, last = text.split(".")
    if _REST in others:
        raise PatternError("In an event pattern `**` is the last segment, as in `order.**`, or all of it.")
    for segment in (*others, last):
        if segment in {_ONE, _REST}:
            continue
        if _ONE in segment:
            raise PatternError("In an event pattern a star is a whole segment, as in `order.*` or `*.paid`.")
        if not _SEGMENT.fullmatch(segment):
            raise PatternError(
                "An event pattern consists of ASCII letters, digits, hyphens and underscores, in segments with"
                " dots between them, such as `order.paid`; a whole segment may be `*`, the last one `**`."
            )
    if text[0] in "._-":
        raise PatternError("An event pattern begins with a letter, a digit or a star.")
    return text


@dataclass(frozen=True, kw_only=True, slots=True)
class Listener:
    """What matching needs to know of a subscription."""

    #: the subscription's id
    id: str
    #: as `check_pattern` let them through; an event matches if one of them does
    patterns: tuple[str, ...]
    #: what the payload must satisfy, if anything
    filter: Filter | None


class Audience:
    """One account's subscriptions, indexed by pattern. It does not change once it is built."""

    __slots__ = ("_listeners", "_places", "_rests", "_shapes")

    def __init__(self, listeners: Iterable[Listener]) -> None:
        self._listeners = tuple(listeners)
        #: pattern -> where in `_listeners` those stand that have it, ascending
        self._places: dict[str, list[int]] = {}
        #: number of segments -> the sets of starred ones, among patterns of fixed length
        self._shapes: dict[int, set[tuple[int, ...]]] = {}
        #: the same for the segments before a final `**`
        self._rests: dict[int, set[tuple[int, ...]]] = {}
        for place, listener in enumerate(self._listeners):
            for pattern in dict.fromkeys(listener.patterns):
                self._add(pattern, place)

    def __len__(self) -> int:
        return len(self._listeners)

    def candidates(self, event_type: str) -> list[Listener]:
        """The listeners with a pattern that matches, each once, in the order in which they were given.

        Their filters are still to be asked: `evaluate` does. `event_type` is one that `check_event_type` lets
        through; a type with a star, which it never does, matches nothing.
        """
        if _ONE in event_type:
            return []
        found = [self._places[pattern] for pattern in self._patterns_of(event_type) if pattern in self._places]
        places = found[0] if len(found) == 1 else sorted(set().union(*found))
        return [self._listeners[place] for place in places]

    def _add(self, pattern: str, place: int) -> None:
        self._places.setdefault(pattern, []).append(place)
        if _ONE not in pattern:
            return
        segments = pattern.split(".")
        shapes = self._shapes
        if segments[-1] == _REST:
            segments.pop()
            shapes = self._rests
        stars = tuple(at for at, segment in enumerate(segments) if segment == _ONE)
        shapes.setdefault(len(segments), set()).add(stars)

    def _patterns_of(self, event_type: str) -> Iterable[str]:
        # every pattern that matches this type and has a shape that occurs here, each once
        yield event_type
        segments = event_type.split(".")
        for stars in self._shapes.get(len(segments), ()):
            yield ".".join(_starred(segments, stars))
        for length, shapes in self._rests.items():
            if length < len(segments):
                for stars in shapes:
                    yield ".".join([*_starred(segments[:length], stars), _REST])


@dataclass(frozen=True, kw_only=True, slots=True)
class Skip:
    """A subscription that gets no delivery of an event that its patterns match, though nobody decided so."""

    subscription_id: str
    #: `filter`: its filter could not be evaluated
    reason: str
    #: a sentence for the subscription's owner; it repeats nothing of the payload
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Matched:
    """What became of some candidates, in their order."""

    #: the subscriptions that get the event
    ids: list[str]
    #: those whose filter failed; one whose filter says no is in neither list
    skipped: list[Skip]


def evaluate(candidates: Sequence[Listener], payload: object) -> Matched:
    """Ask the filters of `candidates`. One that fails costs the others nothing.

    `payload` is parsed JSON, nested at most 64 deep. It is needed, and looked at, only if a candidate has a
    filter. A filter runs for tens of milliseconds at worst, so long lists are better asked slice by slice.
    """
    ids: list[str] = []
    skipped: list[Skip] = []
    for listener in candidates:
        try:
            wanted = listener.filter is None or listener.filter.accepts(payload)
        except FilterFailed as failure:
            skipped.append(Skip(subscription_id=listener.id, reason="filter", detail=failure.reason))
            continue
        if wanted:
            ids.append(listener.id)
    return Matched(ids=ids, skipped=skipped)


def _starred(segments: Sequence[str], stars: tuple[int, ...]) -> list[str]:
    result = list(segments)
    for at in stars:
        result[at] = _ONE
    return result
