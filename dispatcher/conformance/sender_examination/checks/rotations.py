"""What receivers that know one secret live through while it is rotated with an overlap."""

from __future__ import annotations

from dispatcher.conformance.sender_examination.checks.judging import SHOULD, check, first
from dispatcher.conformance.sender_examination.scenario import Observed
from dispatcher.conformance.sender_examination.scenarios.rotations import MANY, ONE
from dispatcher.conformance.sender_examination.stage import Seen
from dispatcher.conformance.sources import CONTRACT, STANDARD


def _taken(seen: Observed, name: str, *, at_once: bool) -> str | None:
    """What is wrong unless the receiver took each message; at the first attempt, where that is to be expected."""
    subject = seen[name]
    scheme = name.partition("-")[2]
    secret = str(seen.facts["new"]) if name.startswith("new") else None
    if not subject.seen:
        return "no request came"

    def is_good(one: Seen) -> bool:
        return subject.verify(scheme, one.request, secret=secret).is_good

    messages = list(subject.messages.values())
    if is_lost := [ones for ones in messages if not any(is_good(one) for one in ones)]:
        return f"it refused a message all of the {len(is_lost[0])} times that it came"
    if len(messages) < len(subject.published):
        return f"{len(messages)} of {len(subject.published)} messages came"
    late = [ones for ones in messages if at_once and not is_good(ones[0])]
    return "it had to refuse a first attempt, although the header has room for both signatures" if late else None


@check(
    "ROT-04",
    SHOULD,
    "overlap",
    STANDARD,
    "In the overlap a receiver of the new secret takes what has room for two signatures at once.",
)
def _(seen: Observed) -> str | None:
    return _taken(seen, f"new-{MANY}", at_once=True)


@check(
    "ROT-05",
    SHOULD,
    "overlap",
    STANDARD,
    "In the overlap a receiver of the old secret takes what has room for two signatures at once.",
)
def _(seen: Observed) -> str | None:
    return _taken(seen, f"old-{MANY}", at_once=True)


@check(
    "ROT-06",
    SHOULD,
    "overlap",
    CONTRACT,
    "In the overlap a receiver of the new secret takes what has room for one signature, if need be at another attempt.",
)
def _(seen: Observed) -> str | None:
    return _taken(seen, f"new-{ONE}", at_once=False)


@check(
    "ROT-07",
    SHOULD,
    "overlap",
    CONTRACT,
    "In the overlap a receiver of the old secret takes what has room for one signature, if need be at another attempt.",
)
def _(seen: Observed) -> str | None:
    return _taken(seen, f"old-{ONE}", at_once=False)


@check("ROT-08", SHOULD, "overlap", CONTRACT, "In the overlap no receiver of either secret is disabled.")
def _(seen: Observed) -> str | None:
    active = seen.facts["active"]
    assert isinstance(active, dict)
    if disabled := [name for name, is_active in active.items() if not is_active]:
        return f"{disabled[0]} is disabled"
    return first(
        f"{name}: the second message did not come"
        for name, subject in seen.subjects.items()
        if len(subject.messages) < len(subject.published)
    )
