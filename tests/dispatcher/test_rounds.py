"""What comes together is done together, and one that fails is no matter of the others."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from dispatcher.rounds import MOST, Rounds, each, tell


async def test_what_joins_in_one_round_is_done_together() -> None:
    done: list[list[int]] = []
    rounds = Rounds[int](done.append)
    for number in range(3):
        rounds.join(number)
    assert done == []
    await asyncio.sleep(0)
    rounds.join(3)
    await asyncio.sleep(0)
    assert done == [[0, 1, 2], [3]]


@pytest.mark.parametrize(("count", "sizes"), [(MOST, [MOST]), (MOST + 1, [MOST, 1]), (3 * MOST, [MOST] * 3)])
async def test_a_round_is_no_longer_than_others_can_wait(count: int, sizes: list[int]) -> None:
    done: list[list[int]] = []
    rounds = Rounds[int](done.append)
    for number in range(count):
        rounds.join(number)
    for _ in sizes:
        await asyncio.sleep(0)
    assert [len(items) for items in done] == sizes
    assert [item for items in done for item in items] == list(range(count))


async def test_all_are_done_where_nothing_is_won_by_waiting() -> None:
    done: list[list[int]] = []
    rounds = Rounds[int](done.append, most=None)
    for number in range(3 * MOST):
        rounds.join(number)
    await asyncio.sleep(0)
    assert done == [list(range(3 * MOST))]


async def test_what_joins_while_a_round_is_done_has_the_next_one() -> None:
    done: list[list[int]] = []

    def work(items: list[int]) -> None:
        done.append(items)
        if items == [0]:
            rounds.join(1)

    rounds = Rounds(work)
    rounds.join(0)
    await asyncio.sleep(0)
    assert done == [[0]]
    await asyncio.sleep(0)
    assert done == [[0], [1]]


def test_a_step_is_taken_with_each() -> None:
    failed: list[tuple[int, str]] = []

    def step(number: int) -> None:
        if number % 2:
            raise ValueError("odd")

    taken = each(step, range(5), failed=lambda number, error: failed.append((number, str(error))))
    assert taken == [0, 2, 4]
    assert failed == [(1, "odd"), (3, "odd")]


def test_one_whose_failure_cannot_be_told_is_no_matter_of_the_others() -> None:
    told: list[int] = []

    def step(number: int) -> None:
        if number % 2:
            raise ValueError("odd")

    def failed(number: int, error: Exception) -> None:
        if number == 1:
            raise RuntimeError("a secret") from error
        told.append(number)

    with capture_logs() as logged:
        taken = each(step, range(5), failed=failed)
    assert (taken, told) == ([0, 2, 4], [3])
    assert logged == [{"event": "round_failed_inside", "error": "RuntimeError", "log_level": "error"}]


async def test_who_waits_is_told_and_who_has_gone_is_not() -> None:
    loop = asyncio.get_running_loop()
    good, bad, gone = (loop.create_future() for _ in range(3))
    gone.cancel()
    for waiting, outcome in ((good, 1), (bad, ValueError("odd")), (gone, 2)):
        tell(waiting, outcome)
    assert await good == 1
    with pytest.raises(ValueError, match="odd"):
        await bad
    assert gone.cancelled()
