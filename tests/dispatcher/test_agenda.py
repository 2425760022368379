"""The agenda, against a plain dict."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dispatcher.delivery.agenda import Agenda


def test_the_earlier_of_two_hints_counts() -> None:
    agenda = Agenda()
    agenda.note("a", 5.0)
    agenda.note("a", 3.0)
    agenda.note("a", 9.0)
    assert agenda.next_due() == 3.0
    assert agenda.take_due(2.9, 10) == []
    assert agenda.take_due(3.0, 10) == ["a"]
    assert agenda.next_due() is None
    assert len(agenda) == 0


def test_due_is_told_without_taking() -> None:
    agenda = Agenda()
    agenda.note("a", 5.0)
    assert not agenda.is_due("a", 4.9)
    assert agenda.is_due("a", 5.0)
    assert not agenda.is_due("b", 5.0)


def test_what_is_left_behind_does_not_pile_up() -> None:
    agenda = Agenda()
    for _ in range(10_000):
        agenda.note("a", 1e9)
        agenda.note("a", 1.0)
        assert agenda.take_due(1.0, 1) == ["a"]
    assert len(agenda._heap) < 1_000


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 20)), max_size=60), st.integers(0, 20))
def test_it_agrees_with_a_dict(notes: list[tuple[str, int]], now: int) -> None:
    agenda = Agenda()
    model: dict[str, float] = {}
    for lane, due in notes:
        agenda.note(lane, due)
        model[lane] = min(due, model.get(lane, due))
    assert agenda.next_due() == min(model.values(), default=None)
    taken = agenda.take_due(now, 100)
    assert sorted(taken) == sorted(lane for lane, due in model.items() if due <= now)
    assert [model[lane] for lane in taken] == sorted(model[lane] for lane in taken)
    assert agenda.next_due() == min((due for due in model.values() if due > now), default=None)
