"""The backlog yields to callers: how its pace follows what they wait for."""

from __future__ import annotations

from dispatcher.delivery.governor import ALONE, FASTEST, SAVED, SLOWEST, SMALLEST_LEASE, Governor


def governor() -> Governor:
    return Governor(lambda: ())


def test_it_starts_as_fast_as_it_can() -> None:
    assert governor().allowance(0.0) == FASTEST * SAVED


def test_slow_commits_slow_it_down_and_quick_ones_let_it_go_on() -> None:
    one = governor()
    one.note(late=0.0, waits=[0.005])
    assert one.pace == FASTEST
    for _ in range(100):
        one.note(late=0.0, waits=[0.005, 0.02])
    assert one.pace == SLOWEST
    one.note(late=0.0, waits=[0.008])
    assert one.pace > SLOWEST


def test_a_disk_that_is_always_slow_is_no_reason() -> None:
    one = governor()
    for _ in range(100):
        one.note(late=0.0, waits=[0.5])
    assert one.pace == FASTEST


def test_a_late_loop_slows_it_down_only_while_there_are_callers() -> None:
    one = governor()
    one.note(late=0.01, waits=[0.005])
    assert one.pace < FASTEST
    for _ in range(10 * ALONE):
        one.note(late=0.01, waits=[])
    assert one.pace == FASTEST


def test_what_was_leased_has_to_be_saved_up_again() -> None:
    one = governor()
    for _ in range(200):
        one.note(late=0.0, waits=[0.005, 0.05])
    assert one.pace == SLOWEST
    one.spend(one.allowance(0.0))
    assert one.allowance(0.0) == 0
    ready = one.ready_in()
    assert ready > 0
    assert one.allowance(ready / 2) == 0
    assert one.allowance(ready + 0.001) >= SMALLEST_LEASE


def test_nothing_is_saved_up_beyond_a_moment() -> None:
    one = governor()
    one.allowance(0.0)
    assert one.allowance(3600.0) == FASTEST * SAVED
