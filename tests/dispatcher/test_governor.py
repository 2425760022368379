"""The backlog yields to callers: how its pace follows what they wait for."""

from __future__ import annotations

from dispatcher.delivery.governor import (
    ALONE,
    FASTEST,
    FASTEST_BESIDE,
    KEEP_UP,
    LARGEST_BESIDE,
    LONGEST_GAP,
    SAVED,
    SLOWEST,
    SMALLEST_LEASE,
    Governor,
)


def governor() -> Governor:
    return Governor(lambda: ())


def test_it_starts_as_fast_as_it_can() -> None:
    assert governor().allowance(0.0) == FASTEST * SAVED


def test_slow_commits_slow_it_down_and_quick_ones_let_it_go_on() -> None:
    one = governor()
    one.note(late=0.0, waits=[0.005])
    assert one.pace == FASTEST_BESIDE
    for _ in range(100):
        one.note(late=0.0, waits=[0.005, 0.02])
    assert one.pace == SLOWEST
    one.note(late=0.0, waits=[0.008])
    assert one.pace > SLOWEST


def test_a_disk_that_is_always_slow_is_no_reason() -> None:
    one = governor()
    for _ in range(100):
        one.note(late=0.0, waits=[0.5])
    assert one.pace == FASTEST_BESIDE


def test_a_late_loop_slows_it_down_only_while_there_are_callers() -> None:
    one = governor()
    one.note(late=0.0, waits=[0.005])
    one.note(late=0.01, waits=[])
    assert one.pace == FASTEST_BESIDE / 2
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


def test_beside_callers_a_lease_is_small() -> None:
    one = governor()
    one.note(late=0.0, waits=[0.005])
    assert one.allowance(0.0) == LARGEST_BESIDE
    for _ in range(ALONE):
        one.note(late=0.0, waits=[])
    assert one.allowance(60.0) > LARGEST_BESIDE


def test_it_keeps_up_with_what_comes_in_to_be_leased() -> None:
    one = governor()
    for _ in range(1_000):
        one.expect(40)
        one.note(late=0.0, waits=[0.005, 0.05])
    assert one.pace >= 0.99 * KEEP_UP * 40 * 50


def test_beside_callers_the_sends_of_a_lease_do_not_start_at_once() -> None:
    one = governor()
    assert one.gap == 0.0
    one.note(late=0.0, waits=[0.005])
    # at half of the pace's own distance: sending keeps up with leasing
    assert 0.0 < one.gap <= 0.5 / FASTEST_BESIDE
    for _ in range(100):
        one.note(late=0.0, waits=[0.005, 0.05])
    assert one.gap == LONGEST_GAP
