"""The figures of a run, as they are printed and kept in docs/reliability.md."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from statistics import median

from tests.e2e.chaos.conductor import Story
from tests.e2e.chaos.faults import Fault
from tests.e2e.chaos.scene import Scene


def lines(story: Story, scene: Scene, *, seed: str) -> Iterator[str]:
    """Every line of it."""
    yield from _faults(story, scene)
    yield ""
    yield from _totals(story, scene, seed=seed)


def _faults(story: Story, scene: Scene) -> Iterator[str]:
    kinds: dict[str, list[Fault]] = defaultdict(list)
    for fault in story.faults:
        kinds[fault.kind.removesuffix(", once more")].append(fault)
    received = Counter((one.wire_id, one.attempt) for one in scene.arrivals)
    causes = Counter(story.verdict.causes)
    heads = ("times", 5), ("503", 7), ("broken", 8), ("leases", 8), ("in flight", 11), ("again", 7), ("strays", 8)
    yield f"{'fault':<34}" + "".join(f"{head:>{width}}" for head, width in heads) + "  recovered"
    for kind, faults in sorted(kinds.items()):
        leases = {lease for fault in faults for lease in fault.leases}
        back = [fault.recovered for fault in faults if fault.recovered is not None]
        strays = [fault.strays for fault in faults if fault.strays is not None]
        yield (
            f"{kind:<34}{len(faults):>5}{sum(fault.refused for fault in faults):>7}"
            f"{sum(fault.broken for fault in faults):>8}{len(leases) or '':>8}"
            f"{(len(leases & received.keys()) if leases else ''):>11}"
            f"{(sum(causes[lease] for lease in leases) if leases else ''):>7}"
            f"{(sum(strays) if strays else ''):>8}  "
            + (f"{median(back):.1f} s, at most {max(back):.1f} s" if back else "")
        )
    yield f"{'all':<34}{len(story.faults):>5}"


def _totals(story: Story, scene: Scene, *, seed: str) -> Iterator[str]:
    verdict, answers = story.verdict, scene.producers.answers
    states = {} if story.database is None else dict(story.database.states)
    ended = [session for session in scene.watch.sessions.values() if session.ended_at]
    kinds = ", ".join(
        f"{count} after an attempt on record as {kind}" for kind, count in sorted(verdict.duplicates.items())
    )
    yield f"seed                 {seed}"
    yield (
        f"deliveries accepted  {answers.deliveries:>7}   by {answers.requests} answers 202, {answers.replayed} of them"
        f" replayed; {answers.refused} answers 503, {answers.broken} requests broke off"
    )
    yield f"deliveries ended     {sum(states.values()):>7}   {states}; lost: {verdict.lost}"
    yield f"requests received    {verdict.requests:>7}   {verdict.reconnected} of them sent again over a new connection"
    yield f"duplicates           {sum(verdict.duplicates.values()):>7}   {kinds}"
    yield f"attempts interrupted {verdict.interrupted:>7}   of {len(ended)} sessions that ended"
    slowest = max(calm.seconds for calm in story.calms)
    yield f"calms                {len(story.calms):>7}   books compared at each; at rest after {slowest:.1f} s at most"
    yield (
        f"audits               {scene.watch.audits:>7}   of {len(scene.watch.ended)} deliveries and tasks that had"
        f" ended: {len(scene.watch.changed)} changed"
    )
    yield f"seconds              {story.seconds:>7.0f}   {story.shaken:.0f} of them with faults"
    yield f"wrong                {len(verdict.wrong):>7}"
    yield from (f"  {wrong}" for wrong in verdict.wrong[:50])
