"""Lanes and turns: width, circuit, and fair choice among lanes and accounts. Time is a number here."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from msgspec.structs import replace

from dispatcher.bodies import Body
from dispatcher.delivery.lanes import (
    AHEAD,
    AHEAD_BYTES,
    CIRCUIT_FAILURES,
    EARLY,
    FIRST_QUIET,
    FIRST_WIDTH,
    LARGEST_QUEUE,
    LAST_QUIET,
    PROBE_WIDTH,
    Lane,
    Lanes,
    Turn,
)
from dispatcher.models import DeliveryKind, Outcome
from dispatcher.pace import AHEAD as PACED_AHEAD
from dispatcher.store.records import Endpoint, LeasedDelivery
from subscriptions.secrets import Secret

_numbers = iter(range(10**9))


def leased(
    lane: str, size: int = 10, *, rate: float | None = None, kind: DeliveryKind = DeliveryKind.MESSAGE
) -> LeasedDelivery:
    """A delivery in a lane."""
    number = f"{next(_numbers):032x}"
    return LeasedDelivery(
        session="of-ours",
        id=number,
        wire_id=number,
        account=lane.split(maxsplit=1)[0],
        lane=lane,
        attempt=1,
        event="relay",
        kind=kind,
        endpoint=Endpoint(url=Secret("https://x/y"), origin="https://x", key_id="x", rate_limit=rate),
        body=Body(b"x" * size, "application/json"),
        traceparent=None,
    )


def lanes_with(*, widest: int = 64, max_bytes: int = 10**9, slots: int = 10**6, max_in_flight: int = 10**6) -> Lanes:
    return Lanes(widest=widest, max_bytes=max_bytes, slots=slots, max_in_flight=max_in_flight)


class TestWidth:
    """A lane proves itself before much is sent to it."""

    def test_it_starts_narrow_and_doubles_to_its_limit(self) -> None:
        lane = Lane("a x", widest=10)
        widths = [lane.width]
        for _ in range(4):
            lane.note(Outcome.SUCCESS, 200, 0.0)
            widths.append(lane.width)
        assert widths == [FIRST_WIDTH, 4, 8, 10, 10]

    def test_failures_halve_it_down_to_one(self) -> None:
        lane = Lane("a x", widest=64)
        lane.width = 8
        for expected in (4, 2, 1, 1):
            lane.note(Outcome.TIMEOUT, None, 0.0)
            assert lane.width == expected

    @pytest.mark.parametrize(
        ("outcome", "status", "is_failure"),
        [
            (Outcome.SUCCESS, 200, False),
            (Outcome.HTTP_ERROR, 302, False),
            (Outcome.HTTP_ERROR, 404, False),
            (Outcome.HTTP_ERROR, 407, False),
            (Outcome.HTTP_ERROR, 408, True),
            (Outcome.HTTP_ERROR, 409, False),
            (Outcome.HTTP_ERROR, 429, True),
            (Outcome.HTTP_ERROR, 499, False),
            (Outcome.HTTP_ERROR, 500, True),
            (Outcome.TIMEOUT, None, True),
            (Outcome.DNS_ERROR, None, True),
            (Outcome.EGRESS_REFUSED, None, True),
            (Outcome.INTERNAL_ERROR, None, False),
        ],
    )
    def test_what_speaks_of_the_endpoint_and_what_of_the_message(
        self, outcome: Outcome, status: int | None, is_failure: bool
    ) -> None:
        lane = Lane("a x", widest=64)
        lane.note(outcome, status, 0.0)
        assert (lane.failures == 1) is is_failure


class TestQueue:
    """A fast lane holds more in memory, but no more than it sends in a moment."""

    def answered(self, rate: int, seconds: float = 1.0) -> Lane:
        lane = Lane("a x", widest=64)
        for number in range(int(rate * seconds) + 1):
            lane.note(Outcome.SUCCESS, 200, 1000.0 + number / rate)
        return lane

    def test_it_does_not_grow_into_the_memory_of_others(self) -> None:
        lane = self.answered(100_000)
        lane.largest = AHEAD_BYTES // 200
        assert lane.capacity == 200
        lane.largest = AHEAD_BYTES
        assert lane.capacity == 2 * lane.width

    def test_a_large_body_is_known_from_its_reservation(self) -> None:
        lanes = lanes_with()
        lanes.reserve("a x", 5_000, 0.0)
        lanes.put(leased("a y", 7_000), 0.0)
        assert [lanes.get(key).largest for key in ("a x", "a y")] == [5_000, 7_000]

    @pytest.mark.parametrize(
        ("rate", "capacity"),
        [(10, 128), (256, 128), (400, int(400 * AHEAD)), (100_000, LARGEST_QUEUE)],
    )
    def test_it_grows_with_what_is_sent_and_has_an_end(self, rate: int, capacity: int) -> None:
        assert self.answered(rate).capacity == pytest.approx(capacity, abs=2)

    def test_a_failure_brings_it_back_to_twice_the_width(self) -> None:
        lane = self.answered(1000)
        lane.note(Outcome.TIMEOUT, None, 1001.0)
        assert lane.capacity == 2 * lane.width

    def test_a_pace_keeps_it_small(self) -> None:
        lane = self.answered(1000)
        lane.pace = 0.5
        assert lane.capacity == int(PACED_AHEAD / 0.5)

    @pytest.mark.parametrize(("rate", "room"), [(10, 32), (100_000, (LARGEST_QUEUE - 64) // 2)])
    def test_it_is_filled_again_when_half_of_what_waits_is_gone(self, rate: int, room: int) -> None:
        assert self.answered(rate).worth_leasing == room


class TestCircuit:
    """A row of failures makes a lane quiet, longer each time; one success ends that."""

    def fail(self, lane: Lane, times: int, now: float) -> None:
        for _ in range(times):
            lane.note(Outcome.TIMEOUT, None, now)

    def test_it_opens_at_the_limit_and_not_before(self) -> None:
        lane = Lane("a x", widest=64)
        self.fail(lane, CIRCUIT_FAILURES - 1, 100.0)
        assert lane.quiet_until == 0.0
        self.fail(lane, 1, 100.0)
        assert lane.quiet_until == 100.0 + FIRST_QUIET
        assert lane.room(100.0 + FIRST_QUIET - 0.01) == 0
        assert lane.room(100.0 + FIRST_QUIET) == 2 * PROBE_WIDTH

    def test_quiet_grows_to_its_limit(self) -> None:
        lane = Lane("a x", widest=64)
        self.fail(lane, CIRCUIT_FAILURES, 0.0)
        spans = []
        for _ in range(6):
            now = lane.quiet_until
            self.fail(lane, 1, now)
            spans.append(lane.quiet_until - now)
        assert spans == [2.0, 4.0, 8.0, LAST_QUIET, LAST_QUIET, LAST_QUIET]

    def test_failures_that_were_under_way_do_not_prolong_it(self) -> None:
        lane = Lane("a x", widest=64)
        self.fail(lane, CIRCUIT_FAILURES, 0.0)
        until = lane.quiet_until
        self.fail(lane, 5, 0.5)
        assert lane.quiet_until == until

    def test_a_success_closes_it(self) -> None:
        lane = Lane("a x", widest=64)
        self.fail(lane, CIRCUIT_FAILURES, 0.0)
        lane.note(Outcome.SUCCESS, 200, 5.0)
        assert (lane.failures, lane.quiet) == (0, FIRST_QUIET)


class TestTurns:
    """Slots go round by account, then by lane."""

    def take_all(self, lanes: Lanes, count: int) -> list[str]:
        taken = []
        for _ in range(count):
            turn = lanes.take(0.0)
            assert turn is not None
            taken.append(turn.lane.key)
        return taken

    def test_a_long_lane_takes_its_turn_like_a_short_one(self) -> None:
        lanes = lanes_with()
        for _ in range(100):
            lanes.put(leased("a https://flood"), 0.0)
        lanes.put(leased("a https://quiet"), 0.0)
        assert "a https://quiet" in self.take_all(lanes, 2)

    def test_an_account_with_many_lanes_takes_its_turn_like_one_with_one(self) -> None:
        lanes = lanes_with()
        for number in range(50):
            lanes.put(leased(f"big https://{number}"), 0.0)
        for number in range(2):
            lanes.put(leased(f"small https://{number}"), 0.0)
        accounts = Counter(key.split()[0] for key in self.take_all(lanes, 4))
        assert accounts == {"big": 2, "small": 2}

    def test_a_lane_never_exceeds_its_width(self) -> None:
        lanes = lanes_with()
        for _ in range(10):
            lanes.put(leased("a https://x"), 0.0)
        assert len(self.take_all(lanes, FIRST_WIDTH)) == FIRST_WIDTH
        assert lanes.take(0.0) is None

    def test_a_finished_request_makes_room(self) -> None:
        lanes = lanes_with(widest=1)
        first, second = leased("a https://x"), leased("a https://x")
        lanes.put(first, 0.0)
        lanes.put(second, 0.0)
        turn = lanes.take(0.0)
        assert turn is not None
        assert lanes.take(0.0) is None
        lanes.finish(turn, 0.0)
        turn = lanes.take(0.0)
        assert turn is not None
        assert turn.delivery is second

    def test_a_quiet_lane_waits(self) -> None:
        lanes = lanes_with()
        lanes.get("a https://x").quiet_until = 5.0
        lanes.put(leased("a https://x"), 0.0)
        assert lanes.take(4.9) is None
        lanes.refresh(lanes.get("a https://x"), 5.0)
        assert lanes.take(5.0) is not None

    def test_one_account_cannot_hold_everything_while_another_waits(self) -> None:
        lanes = lanes_with(max_in_flight=4)
        self.proven(lanes, "small https://x", *(f"big https://{number}" for number in range(10)))
        for number in range(10):
            lanes.put(leased(f"big https://{number}"), 0.0)
        assert self.take_all(lanes, 2) == ["big https://0", "big https://1"]
        lanes.put(leased("small https://x"), 0.0)
        assert self.take_all(lanes, 1) == ["small https://x"]

    def proven(self, lanes: Lanes, *keys: str) -> None:
        for key in keys:
            lanes.get(key).note(Outcome.SUCCESS, 200, 0.0)

    def test_some_slots_are_kept_for_other_accounts(self) -> None:
        lanes = lanes_with(slots=8)
        keys = [f"big https://{number}" for number in range(20)]
        self.proven(lanes, *keys, "small https://x")
        for key in keys:
            lanes.put(leased(key), 0.0)
        assert len(self.take_all(lanes, 4)) == 4
        assert lanes.take(0.0) is None
        lanes.put(leased("small https://x"), 0.0)
        assert self.take_all(lanes, 1) == ["small https://x"]

    def test_many_accounts_together_leave_something_free(self) -> None:
        lanes = lanes_with(max_in_flight=64)
        for account in range(5):
            keys = [f"big{account} https://{number}" for number in range(100)]
            self.proven(lanes, *keys)
            for key in keys:
                lanes.put(leased(key), 0.0)
        while lanes.take(0.0) is not None:
            pass
        self.proven(lanes, "small https://x")
        lanes.put(leased("small https://x"), 0.0)
        assert self.take_all(lanes, 1) == ["small https://x"]

    def test_a_dead_lane_is_not_proven_by_its_probes(self) -> None:
        lane = Lane("a x", widest=64)
        for _ in range(CIRCUIT_FAILURES):
            lane.note(Outcome.TIMEOUT, None, 0.0)
        assert lane.width == PROBE_WIDTH
        assert not lane.is_proven

    def test_lanes_that_have_nothing_to_do_are_forgotten_dead_ones_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("dispatcher.delivery.lanes.IDLE_LANES", 3)
        lanes = lanes_with()
        for number in range(10):
            lanes.get(f"a https://{number}").note(Outcome.TIMEOUT, None, 0.0)
        lanes.put(leased("a https://0"), 0.0)
        lanes.forget_idle(0.0)
        assert len(lanes) == 3
        assert "a https://0" in {lane.key for lane in lanes}

    def test_pauses_of_lanes_that_there_are_not_take_no_more_than_so_much(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("dispatcher.delivery.lanes.IDLE_LANES", 2)
        lanes = lanes_with()
        for number in range(2):
            assert lanes.has_place(f"a https://{number}")
            lanes.get(f"a https://{number}").quiet_until = 86_400.0
        assert lanes.has_place("a https://1")
        assert not lanes.has_place("a https://2")

    def test_some_slots_are_kept_for_lanes_that_have_proven_themselves(self) -> None:
        lanes = lanes_with(slots=8)
        self.proven(lanes, "a https://good")
        for number in range(20):
            lanes.put(leased(f"b{number} https://new"), 0.0)
        assert len(self.take_all(lanes, 4)) == 4
        assert lanes.take(0.0) is None
        lanes.put(leased("a https://good"), 0.0)
        assert self.take_all(lanes, 1) == ["a https://good"]

    def test_a_request_that_takes_long_gives_its_slot_up_but_not_its_place_in_the_lane(self) -> None:
        lanes = lanes_with(slots=1, widest=1)
        for _ in range(2):
            lanes.put(leased("a https://slow"), 0.0)
        lanes.put(leased("b https://other"), 0.0)
        slow = lanes.take(0.0)
        assert slow is not None
        assert lanes.take(0.0) is None
        lanes.free_slot(slow)
        assert self.take_all(lanes, 1) == ["b https://other"]
        lanes.finish(slow, 0.0)
        assert lanes.in_flight == 1

    def test_proven_and_new_lanes_take_turns(self) -> None:
        lanes = lanes_with()
        self.proven(lanes, "a https://good")
        for _ in range(4):
            lanes.put(leased("a https://good"), 0.0)
        for number in range(2):
            lanes.put(leased(f"b{number} https://new"), 0.0)
        taken = Counter(key.split()[0][0] for key in self.take_all(lanes, 4))
        assert taken == {"a": 2, "b": 2}

    def test_everything_is_taken_in_the_end(self) -> None:
        lanes = lanes_with(slots=8, max_in_flight=6)
        expected = [leased(f"a{number % 5} https://{number % 13}") for number in range(300)]
        for delivery in expected:
            lanes.put(delivery, 0.0)
        taken: list[LeasedDelivery] = []
        under_way: list[Turn] = []
        while len(taken) < len(expected):
            turn = lanes.take(0.0)
            if turn is None:
                done = under_way.pop(0)
                done.lane.note(Outcome.SUCCESS if len(taken) % 3 else Outcome.TIMEOUT, None, 0.0)
                done.lane.quiet_until = 0.0
                lanes.finish(done, 0.0)
            else:
                taken.append(turn.delivery)
                under_way.append(turn)
        assert {delivery.id for delivery in taken} == {delivery.id for delivery in expected}
        for turn in under_way:
            lanes.finish(turn, 0.0)
        assert (lanes.bytes, lanes.waiting, lanes.in_flight) == (0, 0, 0)


class TestPace:
    """A rate limit is kept smoothly, and what cannot be sent soon is left in the database."""

    @staticmethod
    def sends(rate: float, count: int, *, step: float = 0.001, seconds: float = 10.0) -> list[float]:
        """When deliveries of one lane are sent, looking at every step of the clock."""
        lanes = lanes_with()
        for _ in range(count):
            lanes.put(leased("a x", rate=rate), 0.0)
        lanes.get("a x").width = 64
        sent = []
        for tick in range(round(seconds / step)):
            now = tick * step
            lanes.refresh(lanes.get("a x"), now)
            while (turn := lanes.take(now)) is not None:
                sent.append(now)
                lanes.finish(turn, now)
        return sent

    @pytest.mark.parametrize("rate", [3.0, 20.0, 100.0])
    def test_sends_are_spread_evenly(self, rate: float) -> None:
        sent = self.sends(rate, 30)
        assert len(sent) == min(30, int(10 * rate) + 1)
        gaps = [later - earlier for earlier, later in itertools.pairwise(sent)]
        assert min(gaps) >= 1 / rate - EARLY - 0.001
        assert max(gaps) <= 1 / rate + 0.002

    def test_a_late_look_makes_no_burst(self) -> None:
        sent = self.sends(10.0, 30, step=0.25)
        assert max(Counter(sent).values()) == 1

    def test_a_slow_pace_takes_one_and_then_none_until_it_is_nearly_time(self) -> None:
        lanes = lanes_with()
        lane = lanes.put(leased("a x", rate=0.1), 0.0)
        assert lane.room(0.0) == 0
        turn = lanes.take(0.0)
        assert turn is not None
        lanes.finish(turn, 0.0)
        assert lane.opens_at == 10.0 - PACED_AHEAD
        assert lane.room(10.0 - PACED_AHEAD - 0.01) == 0
        assert lane.room(10.0 - PACED_AHEAD) == 1

    def test_what_has_a_place_waits_for_it(self) -> None:
        lanes = lanes_with()
        for place in (1.0, 1.5):
            lane = lanes.put(replace(leased("a x", rate=10.0), not_before=place), 0.0)
        assert lanes.take(1.0 - EARLY - 0.001) is None
        lanes.refresh(lane, 1.0)
        assert lanes.take(1.0) is not None
        # the pace alone would let it go at 1.1
        assert lane.next_send == 1.5
        # late as it is, the next one keeps the distance
        lanes.refresh(lane, 3.0)
        assert lanes.take(3.0) is not None
        assert lane.next_send == 3.1

    def test_without_places_for_more_it_keeps_what_it_has(self) -> None:
        lanes = lanes_with()
        lane = lanes.put(replace(leased("a x", rate=10.0), not_before=0.5), 0.0)
        lane.closed_until = 2.0
        assert lane.room(1.9) == 0
        assert lanes.trim(lane, 0.0) == []
        assert lane.room(2.0) > 0

    def test_a_ping_has_no_pace(self) -> None:
        lanes = lanes_with()
        for _ in range(2):
            lanes.put(leased("a x ping", rate=0.1, kind=DeliveryKind.PING), 0.0)
        assert lanes.take(0.0) is not None
        assert lanes.take(0.0) is not None

    def test_a_limit_that_is_lifted_is_forgotten(self) -> None:
        lanes = lanes_with()
        lanes.put(leased("a x", rate=0.1), 0.0)
        turn = lanes.take(0.0)
        assert turn is not None
        lane = lanes.put(leased("a x"), 0.0)
        lanes.finish(turn, 0.0)
        assert lane.pace == 0.0
        assert lanes.take(0.0) is not None


class TestReservations:
    """A place promised to a commit counts until it is filled or given back."""

    def test_room_is_twice_the_width(self) -> None:
        lanes = lanes_with()
        assert [lanes.reserve("a https://x", 1, 0.0) for _ in range(2 * FIRST_WIDTH + 1)] == [
            *[True] * (2 * FIRST_WIDTH),
            False,
        ]
        lanes.cancel_reservation("a https://x", 1)
        assert lanes.reserve("a https://x", 1, 0.0)

    def test_memory_is_bounded_to_the_byte(self) -> None:
        lanes = lanes_with(max_bytes=100)
        assert lanes.reserve("a https://x", 60, 0.0)
        assert not lanes.reserve("a https://y", 41, 0.0)
        assert lanes.reserve("a https://y", 40, 0.0)

    def test_nothing_is_handed_off_past_a_backlog(self) -> None:
        lanes = lanes_with()
        lanes.get("a https://x").backlog = True
        assert not lanes.reserve("a https://x", 1, 0.0)

    def test_the_books_balance(self) -> None:
        lanes = lanes_with()
        for _ in range(3):
            lanes.put(leased("a https://x", 7), 0.0)
        turn = lanes.take(0.0)
        assert turn is not None
        assert (lanes.bytes, lanes.waiting) == (21, 2)
        assert len(lanes.empty(turn.lane)) == 2
        assert (lanes.bytes, lanes.waiting) == (7, 0)
        lanes.finish(turn, 0.0)
        assert (lanes.bytes, lanes.waiting) == (0, 0)
