"""A pace kept by several: places that are given out a moment ahead. Time is a number here."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.pace import AHEAD, LONGEST_WAIT, Held, Places, give

NOW = 1_000_000.0
MS = 1000.0


def held(by: str, until: float) -> Held:
    return Held(by=by, until=NOW + until)


class Case:
    """Who asks ten a second for how many, and what comes of it: places and the time to ask again, from now."""

    def __init__(self, before: Held | None, wanted: int, at: list[float], ask_at: float, rate: float = 10.0) -> None:
        self.before = before
        self.wanted = wanted
        self.rate = rate
        self.expected = Places(at=tuple(NOW + one for one in at), ask_at=NOW + ask_at)


@pytest.mark.parametrize(
    "case",
    [
        # nobody has it yet: from now on, as many as are wanted, and no more than fit ahead
        Case(None, 3, [0, 100, 200], 0),
        Case(None, 99, [100.0 * n for n in range(20)], 0),
        # our own go on behind the last
        Case(held("me", -100), 2, [0, 100], 0),
        Case(held("me", -5000), 2, [0, 100], 0),
        Case(held("me", 500), 2, [600, 700], 0),
        Case(held("me", 1900), 9, [2000], 100),
        Case(held("me", 1901), 9, [], 1),
        # another's: none until the last of them is past, to the millisecond
        Case(held("another", 500), 2, [], 600),
        Case(held("another", -99), 2, [], 1),
        Case(held("another", -100), 2, [0, 100], 0),
        # one in five seconds: one at a time, and asked for anew shortly before its time
        Case(None, 3, [0], 3000, rate=0.2),
        Case(held("me", -2999), 3, [], 1, rate=0.2),
        Case(held("me", -3000), 3, [2000], 5000, rate=0.2),
        Case(held("another", -3000), 3, [], 2000, rate=0.2),
        # one in a hundred: asked sooner, since the rate may be another by then
        Case(held("me", 0), 1, [], LONGEST_WAIT * MS, rate=0.01),
        Case(held("another", 0), 1, [], LONGEST_WAIT * MS, rate=0.01),
        # the rate was raised, or lowered, since the last was given out
        Case(held("me", -1000), 1, [0], 0, rate=1.0),
        Case(held("me", -500), 1, [500], 0, rate=1.0),
    ],
)
def test_what_is_given(case: Case) -> None:
    found = give(case.before, to="me", wanted=case.wanted, rate=case.rate, now=NOW)
    assert found.at == pytest.approx(case.expected.at)
    assert found.ask_at == pytest.approx(case.expected.ask_at)


@given(
    rate=st.floats(0.05, 500),
    asked=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 50), st.floats(0, 3000)), min_size=1, max_size=60),
)
def test_however_many_ask_it_is_one_pace(rate: float, asked: list[tuple[str, int, float]]) -> None:
    now, standing, sends = NOW, None, list[tuple[float, str]]()
    for who, wanted, later in asked:
        now += later
        found = give(standing, to=who, wanted=wanted, rate=rate, now=now)
        assert len(found.at) <= wanted
        assert found.ask_at >= now
        assert all(now <= at <= now + AHEAD * MS for at in found.at)
        if found.at:
            standing = Held(by=who, until=found.at[-1])
            sends += [(at, who) for at in found.at]
    assert all(after[0] - before[0] >= 1000 / rate - 1e-3 for before, after in pairwise(sends))
    # two never have places between each other's
    turns = [who for (_, who), (_, other) in pairwise([(0.0, ""), *sends]) if who != other]
    assert len(turns) <= len(asked)


@pytest.mark.parametrize("rate", [0.05, 0.7, 3.0, 20.0, 700.0])
def test_nothing_of_the_rate_is_lost_by_asking_in_time(rate: float) -> None:
    now, standing, sends = NOW, None, list[float]()
    while now < NOW + 30_000:
        found = give(standing, to="me", wanted=10**6, rate=rate, now=now)
        if found.at:
            standing = Held(by="me", until=found.at[-1])
            sends += found.at
        now = max(now + 1, found.ask_at)
    assert sends[0] == NOW
    assert all(after - before == pytest.approx(1000 / rate) for before, after in pairwise(sends))
