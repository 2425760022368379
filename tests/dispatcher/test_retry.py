from __future__ import annotations

import json
import math
from email.utils import formatdate
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from dispatcher.config import Settings
from dispatcher.models import DeliveryState, Mark, Outcome
from dispatcher.retry import (
    EGRESS_REFUSALS,
    MAX_RETRY_AFTER,
    POISON_AFTER,
    WINDOW_MARGIN,
    Answer,
    Decision,
    History,
    decide,
    health_kind,
    parse_retry_after,
    wants_other_secret,
)
from subscriptions.health import Kind

#: what holds where neither the account nor the operator says otherwise
DEFAULT_SCHEDULE: tuple[float, ...] = Settings.model_fields["retry_schedule"].default

VECTORS = Path(__file__).parents[1] / "vectors"
NOW = 1_780_000_000.0
OK = Answer(outcome=Outcome.SUCCESS, status=200)
BUSY = Answer(outcome=Outcome.HTTP_ERROR, status=503)
GONE = Answer(outcome=Outcome.HTTP_ERROR, status=410)
CUT_OFF = Answer(outcome=Outcome.INTERRUPTED)
REFUSED = Answer(outcome=Outcome.EGRESS_REFUSED)
FIRST = History()


def after(
    answer: Answer,
    history: History = FIRST,
    *,
    schedule: tuple[float, ...] = DEFAULT_SCHEDULE,
    now: float = NOW,
    window: float | None = None,
    jitter: float = 0.0,
    disabled: bool = False,
) -> Decision:
    """`window` is the number of seconds from now to its end."""
    end = None if window is None else now + window
    return decide(answer, history, schedule=schedule, now=now, window_end=end, jitter=jitter, disabled=disabled)


# --- the answer table -------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_2xx_is_delivered(status: int) -> None:
    decision = after(Answer(outcome=Outcome.SUCCESS, status=status))
    assert decision == Decision(state=DeliveryState.DELIVERED, failures=0, repeats=1)


@pytest.mark.parametrize("mark", [None, *Mark])
def test_2xx_is_delivered_whatever_was_asked_and_however_late(mark: Mark | None) -> None:
    answer = replace(OK, abort=True, retry_after=99_999.0)
    history = History(failures=30, last_outcome=Outcome.SUCCESS, repeats=30, mark=mark)
    decision = after(answer, history, window=-1)
    assert (decision.state, decision.reason, decision.failures) == (DeliveryState.DELIVERED, None, 30)
    assert decision.pause is None


@pytest.mark.parametrize(
    "status",
    [100, 199, 300, 301, 302, 304, 307, 308, 399, 408, 423, 425, 429, 500, 502, 503, 504, 599, 600, 999],
)
def test_statuses_that_are_tried_again(status: int) -> None:
    decision = after(Answer(outcome=Outcome.HTTP_ERROR, status=status))
    assert decision == Decision(state=DeliveryState.PENDING, delay=5.0, failures=1, repeats=1)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 407, 409, 411, 422, 424, 426, 428, 430, 431, 451, 499])
def test_other_4xx_are_rejected(status: int) -> None:
    decision = after(Answer(outcome=Outcome.HTTP_ERROR, status=status, retry_after=60.0))
    assert decision == Decision(state=DeliveryState.REJECTED, reason="rejected", failures=1, repeats=1)


def test_410_is_gone() -> None:
    assert after(GONE) == Decision(state=DeliveryState.REJECTED, reason="gone", failures=1, repeats=1)


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome.TIMEOUT,
        Outcome.DNS_ERROR,
        Outcome.CONNECTION_ERROR,
        Outcome.TLS_ERROR,
        Outcome.PROTOCOL_ERROR,
        Outcome.INTERNAL_ERROR,
        Outcome.HTTP_ERROR,
    ],
)
def test_attempts_without_a_status_are_tried_again(outcome: Outcome) -> None:
    decision = after(Answer(outcome=outcome))
    assert decision == Decision(state=DeliveryState.PENDING, delay=5.0, failures=1, repeats=1)


@pytest.mark.parametrize("status", [301, 404, 410, 429, 500])
def test_abort_ends_the_delivery(status: int) -> None:
    decision = after(Answer(outcome=Outcome.HTTP_ERROR, status=status, abort=True))
    assert (decision.state, decision.reason) == (DeliveryState.REJECTED, "aborted")


@pytest.mark.parametrize("answer", [Answer(outcome=outcome) for outcome in Outcome])
def test_every_outcome_has_a_decision(answer: Answer) -> None:
    decision = after(answer)
    assert (decision.delay is not None) == (decision.state is DeliveryState.PENDING)


def meaning(status: int) -> tuple[str, str | None, Kind]:
    """DESIGN §5, "What an answer means", written anew: state, reason, what it says about the endpoint."""
    if 200 <= status < 300:
        return "delivered", None, Kind.SUCCESS
    if status == 410:
        return "rejected", "gone", Kind.GONE
    if 400 <= status < 500 and status not in {408, 423, 425, 429}:
        return "rejected", "rejected", Kind.REFUSAL
    return "pending", None, Kind.FAILURE


@pytest.mark.parametrize("status", range(100, 600))
def test_every_status(status: int) -> None:
    outcome = Outcome.SUCCESS if 200 <= status < 300 else Outcome.HTTP_ERROR
    answer = Answer(outcome=outcome, status=status)
    state, reason, kind = meaning(status)
    decision = after(answer)
    assert (decision.state, decision.reason) == (state, reason)
    assert health_kind(answer, FIRST) is kind
    # and for a disabled subscription: held where it would go on or be refused, the same where it ends otherwise
    disabled = after(answer, disabled=True)
    held = kind in {Kind.REFUSAL, Kind.FAILURE}
    assert (disabled.state, disabled.reason) == (("held", None) if held else (state, reason))
    assert (disabled.delay, disabled.failures) == (None, decision.failures)


@pytest.mark.parametrize(
    ("answer", "history", "kind"),
    [
        (CUT_OFF, FIRST, None),
        (Answer(outcome=Outcome.INTERNAL_ERROR), FIRST, None),
        (Answer(outcome=Outcome.TIMEOUT), FIRST, Kind.FAILURE),
        (Answer(outcome=Outcome.DNS_ERROR), FIRST, Kind.FAILURE),
        (Answer(outcome=Outcome.TLS_ERROR), FIRST, Kind.FAILURE),
        (replace(BUSY, abort=True), FIRST, None),
        (REFUSED, FIRST, Kind.FAILURE),
        (REFUSED, History(last_outcome=Outcome.EGRESS_REFUSED, repeats=1), Kind.FAILURE),
        (REFUSED, History(last_outcome=Outcome.EGRESS_REFUSED, repeats=2), Kind.EGRESS),
        (REFUSED, History(last_outcome=Outcome.TIMEOUT, repeats=2), Kind.FAILURE),
    ],
)
def test_what_it_says_about_the_endpoint(answer: Answer, history: History, kind: Kind | None) -> None:
    assert health_kind(answer, history) is kind


# --- for a disabled subscription --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "history", "state", "reason"),
    [
        (BUSY, FIRST, DeliveryState.HELD, None),
        (replace(BUSY, retry_after=60.0), FIRST, DeliveryState.HELD, None),
        (CUT_OFF, FIRST, DeliveryState.HELD, None),
        (
            CUT_OFF,
            History(last_outcome=Outcome.INTERRUPTED, repeats=POISON_AFTER - 1),
            DeliveryState.EXHAUSTED,
            "poison",
        ),
        (BUSY, History(failures=8), DeliveryState.EXHAUSTED, "schedule"),
        (replace(BUSY, retry_after=MAX_RETRY_AFTER + 1), FIRST, DeliveryState.EXHAUSTED, "retry-after"),
        (Answer(outcome=Outcome.HTTP_ERROR, status=401), FIRST, DeliveryState.HELD, None),
        (Answer(outcome=Outcome.HTTP_ERROR, status=401, abort=True), FIRST, DeliveryState.REJECTED, "aborted"),
        (GONE, FIRST, DeliveryState.REJECTED, "gone"),
        (REFUSED, FIRST, DeliveryState.HELD, None),
        (
            REFUSED,
            History(last_outcome=Outcome.EGRESS_REFUSED, repeats=EGRESS_REFUSALS - 1),
            DeliveryState.REJECTED,
            "egress",
        ),
        (OK, FIRST, DeliveryState.DELIVERED, None),
        (BUSY, History(mark=Mark.CANCEL), DeliveryState.CANCELLED, "cancelled"),
        (
            Answer(outcome=Outcome.HTTP_ERROR, status=401),
            History(mark=Mark.CANCEL),
            DeliveryState.CANCELLED,
            "cancelled",
        ),
        (OK, History(mark=Mark.CANCEL), DeliveryState.DELIVERED, None),
    ],
)
def test_what_finds_it_disabled(answer: Answer, history: History, state: DeliveryState, reason: str | None) -> None:
    decision = after(answer, history, disabled=True)
    assert (decision.state, decision.reason, decision.delay) == (state, reason, None)


def test_held_keeps_the_pause() -> None:
    assert after(replace(BUSY, retry_after=60.0), disabled=True).pause == 60.0


# --- two secrets ------------------------------------------------------------------------------------------

STALE = Answer(outcome=Outcome.HTTP_ERROR, status=401, other_secret=True)
SECOND = History(other_secret=True, last_outcome=Outcome.HTTP_ERROR, repeats=1)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 407, 409, 411, 422, 451])
def test_a_refusal_with_the_newer_secret_tries_the_older_one_at_once(status: int) -> None:
    decision = after(replace(STALE, status=status), History(failures=3))
    assert decision == Decision(state=DeliveryState.PENDING, delay=0.0, failures=3, repeats=1, other_secret=True)


def test_refused_with_both_counts_once() -> None:
    # the sender no longer offers another secret; one that did would not be believed
    for answer in (replace(STALE, other_secret=False), STALE):
        decision = after(answer, replace(SECOND, failures=3))
        assert (decision.state, decision.reason, decision.failures) == (DeliveryState.REJECTED, "rejected", 4)
        assert not decision.other_secret
        assert health_kind(answer, SECOND) is Kind.REFUSAL


@pytest.mark.parametrize("status", [408, 410, 423, 425, 429, 302, 500, 503])
def test_what_is_no_refusal_does_not_try_the_older_one(status: int) -> None:
    answer = replace(STALE, status=status)
    assert not wants_other_secret(answer, FIRST)
    decision = after(answer)
    assert not decision.other_secret
    assert decision.state is (DeliveryState.REJECTED if status == 410 else DeliveryState.PENDING)


@pytest.mark.parametrize(
    ("answer", "history", "disabled", "state"),
    [
        (replace(STALE, abort=True), FIRST, False, DeliveryState.REJECTED),
        (STALE, History(mark=Mark.CANCEL), False, DeliveryState.CANCELLED),
        (STALE, History(mark=Mark.RETARGET), False, DeliveryState.PENDING),
        (STALE, FIRST, True, DeliveryState.HELD),
        (Answer(outcome=Outcome.SUCCESS, status=200, other_secret=True), FIRST, False, DeliveryState.DELIVERED),
        (Answer(outcome=Outcome.TIMEOUT, other_secret=True), FIRST, False, DeliveryState.PENDING),
        (Answer(outcome=Outcome.INTERRUPTED, other_secret=True), FIRST, False, DeliveryState.PENDING),
        (STALE, SECOND, True, DeliveryState.HELD),
    ],
)
def test_what_comes_before_the_second_try(
    answer: Answer, history: History, disabled: bool, state: DeliveryState
) -> None:
    decision = after(answer, history, disabled=disabled)
    assert (decision.state, decision.other_secret) == (state, False)


@pytest.mark.parametrize("answer", [BUSY, Answer(outcome=Outcome.TIMEOUT), CUT_OFF])
def test_after_a_second_try_that_failed_the_newer_secret_comes_first_again(answer: Answer) -> None:
    decision = after(answer, SECOND)
    assert (decision.state, decision.other_secret) == (DeliveryState.PENDING, False)


def test_the_second_try_does_not_use_up_the_schedule() -> None:
    decision = after(STALE, schedule=())
    assert (decision.state, decision.delay) == (DeliveryState.PENDING, 0.0)


# --- the schedule -----------------------------------------------------------------------------------------


def test_the_schedule_is_followed_to_its_end() -> None:
    history, delays = FIRST, []
    while (decision := after(BUSY, history)).state is DeliveryState.PENDING:
        delays.append(decision.delay)
        history = History(failures=decision.failures, last_outcome=Outcome.HTTP_ERROR, repeats=decision.repeats)
    assert tuple(delays) == DEFAULT_SCHEDULE
    assert (decision.state, decision.reason) == (DeliveryState.EXHAUSTED, "schedule")
    assert decision.failures == decision.repeats == 9


@pytest.mark.parametrize(("failures", "ends"), [(7, False), (8, True), (9, True), (1000, True)])
def test_the_ninth_failure_is_the_last(failures: int, ends: bool) -> None:
    decision = after(BUSY, History(failures=failures))
    assert (decision.reason == "schedule") is ends


def test_an_empty_schedule_is_one_try() -> None:
    assert after(BUSY, schedule=()).reason == "schedule"


@pytest.mark.parametrize(("jitter", "delay"), [(-1.0, 240.0), (0.0, 300.0), (0.5, 330.0), (1.0, 360.0)])
def test_jitter_is_a_fifth_at_most(jitter: float, delay: float) -> None:
    assert after(BUSY, History(failures=2), jitter=jitter).delay == pytest.approx(delay)


def test_a_schedule_below_a_second_is_taken_as_it_stands() -> None:
    assert after(BUSY, schedule=(0.05,)).delay == 0.05
    assert after(BUSY, schedule=(0.0, 0.0), window=31).delay == 0.0


# --- marks ------------------------------------------------------------------------------------------------

FAILED = [BUSY, GONE, CUT_OFF, REFUSED, replace(BUSY, abort=True), Answer(outcome=Outcome.TIMEOUT)]


@pytest.mark.parametrize("answer", FAILED)
def test_cancel_is_applied_to_whatever_failed(answer: Answer) -> None:
    decision = after(answer, History(failures=3, mark=Mark.CANCEL), window=-5)
    assert (decision.state, decision.reason) == (DeliveryState.CANCELLED, "cancelled")
    assert (decision.delay, decision.failures) == (None, 3)


@pytest.mark.parametrize("answer", FAILED)
@pytest.mark.parametrize(
    ("window", "state"),
    [
        (None, DeliveryState.PENDING),
        (20.0, DeliveryState.PENDING),
        (0.001, DeliveryState.PENDING),
        (0.0, DeliveryState.EXPIRED),
        (-1.0, DeliveryState.EXPIRED),
    ],
)
def test_retarget_tries_the_new_url_at_once(answer: Answer, window: float | None, state: DeliveryState) -> None:
    history = History(failures=8, last_outcome=answer.outcome, repeats=9, mark=Mark.RETARGET)
    decision = after(answer, history, window=window)
    assert decision.state is state
    assert (decision.failures, decision.delay) == (8, 0.0 if state is DeliveryState.PENDING else None)
    assert decision.reason == (None if state is DeliveryState.PENDING else "window")


def test_a_new_url_starts_the_count_of_repeats_anew() -> None:
    history = History(last_outcome=Outcome.EGRESS_REFUSED, repeats=2, mark=Mark.RETARGET)
    decision = after(REFUSED, history)
    assert decision.repeats == 0
    again = after(REFUSED, History(last_outcome=Outcome.EGRESS_REFUSED, repeats=decision.repeats))
    assert (again.state, again.repeats) == (DeliveryState.PENDING, 1)


def test_a_mark_does_not_cancel_the_pause() -> None:
    assert after(replace(BUSY, retry_after=60.0), History(mark=Mark.CANCEL)).pause == 60.0


# --- what comes in a row ----------------------------------------------------------------------------------


def test_interrupted_is_tried_at_once_and_is_no_failure() -> None:
    decision = after(CUT_OFF, History(failures=4, last_outcome=Outcome.TIMEOUT, repeats=4))
    assert decision == Decision(state=DeliveryState.PENDING, delay=0.0, failures=4, repeats=1)


@pytest.mark.parametrize(
    ("repeats", "state", "reason"),
    [
        (POISON_AFTER - 2, DeliveryState.PENDING, None),
        (POISON_AFTER - 1, DeliveryState.EXHAUSTED, "poison"),
        (POISON_AFTER, DeliveryState.EXHAUSTED, "poison"),
    ],
)
def test_the_tenth_interruption_in_a_row_is_poison(repeats: int, state: DeliveryState, reason: str | None) -> None:
    decision = after(CUT_OFF, History(last_outcome=Outcome.INTERRUPTED, repeats=repeats))
    assert (decision.state, decision.reason, decision.failures) == (state, reason, 0)


def test_another_outcome_ends_the_row() -> None:
    decision = after(CUT_OFF, History(last_outcome=Outcome.TIMEOUT, repeats=POISON_AFTER - 1))
    assert (decision.state, decision.repeats) == (DeliveryState.PENDING, 1)


@pytest.mark.parametrize(("window", "state"), [(0.001, DeliveryState.PENDING), (0.0, DeliveryState.EXPIRED)])
def test_interrupted_past_the_window_is_expired(window: float, state: DeliveryState) -> None:
    assert after(CUT_OFF, window=window).state is state


@pytest.mark.parametrize(
    ("repeats", "state", "reason"),
    [
        (0, DeliveryState.PENDING, None),
        (EGRESS_REFUSALS - 2, DeliveryState.PENDING, None),
        (EGRESS_REFUSALS - 1, DeliveryState.REJECTED, "egress"),
    ],
)
def test_the_third_egress_refusal_in_a_row_is_for_good(repeats: int, state: DeliveryState, reason: str | None) -> None:
    history = History(failures=repeats, last_outcome=Outcome.EGRESS_REFUSED, repeats=repeats)
    decision = after(REFUSED, history)
    assert (decision.state, decision.reason) == (state, reason)
    assert decision.failures == decision.repeats == repeats + 1


# --- Retry-After ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("retry_after", "delay", "pause"),
    [
        (None, 300.0, None),
        (-5.0, 300.0, None),
        (0.0, 300.0, None),
        (10.0, 300.0, 10.0),
        (301.0, 301.0, 301.0),
        (MAX_RETRY_AFTER, MAX_RETRY_AFTER, MAX_RETRY_AFTER),
    ],
)
@pytest.mark.parametrize("status", [301, 429, 500, 503])
def test_retry_after_only_lengthens_and_pauses_the_lane(
    status: int, retry_after: float | None, delay: float, pause: float | None
) -> None:
    answer = Answer(outcome=Outcome.HTTP_ERROR, status=status, retry_after=retry_after)
    decision = after(answer, History(failures=2))
    assert (decision.state, decision.delay, decision.pause) == (DeliveryState.PENDING, delay, pause)


def test_retry_after_beyond_a_day_ends_the_delivery() -> None:
    decision = after(replace(BUSY, retry_after=MAX_RETRY_AFTER + 1))
    assert (decision.state, decision.reason) == (DeliveryState.EXHAUSTED, "retry-after")
    assert (decision.delay, decision.pause) == (None, MAX_RETRY_AFTER)


@pytest.mark.parametrize(
    ("retry_after", "state", "reason"),
    [(570.0, DeliveryState.PENDING, None), (570.5, DeliveryState.EXPIRED, "window")],
)
def test_retry_after_beyond_the_window_ends_the_delivery(
    retry_after: float, state: DeliveryState, reason: str | None
) -> None:
    decision = after(replace(BUSY, retry_after=retry_after), window=600.0)
    assert (decision.state, decision.reason) == (state, reason)
    assert decision.pause == retry_after
    assert decision.delay == (retry_after if reason is None else None)


def test_no_jitter_shortens_retry_after() -> None:
    assert after(replace(BUSY, retry_after=100.0), jitter=-1.0).delay == 100.0


# --- windows ----------------------------------------------------------------------------------------------


def test_a_wide_window_changes_nothing() -> None:
    total = sum(DEFAULT_SCHEDULE)
    assert after(BUSY, window=total + WINDOW_MARGIN).delay == 5.0


def test_a_window_shrinks_the_delays_in_proportion() -> None:
    assert after(BUSY, schedule=(100, 300), window=230).delay == pytest.approx(50)
    assert after(BUSY, History(failures=1), schedule=(100, 300), window=180).delay == pytest.approx(150)


@pytest.mark.parametrize(
    ("window", "delay"),
    [(33.0, 1.0), (31.0, 1.0), (30.999, None), (30.0, None), (0.0, None), (-100.0, None)],
)
def test_the_last_second_that_fits(window: float, delay: float | None) -> None:
    decision = after(BUSY, window=window)
    assert decision.delay == delay
    assert decision.reason == (None if delay else "window")
    assert decision.state is (DeliveryState.PENDING if delay else DeliveryState.EXPIRED)


@pytest.mark.parametrize("jitter", [-1.0, 1.0])
def test_jitter_stays_between_the_floor_and_the_margin(jitter: float) -> None:
    decision = after(BUSY, schedule=(60,), window=90, jitter=jitter)
    assert decision.delay == (48.0 if jitter < 0 else 60.0)
    assert after(BUSY, window=35, jitter=-1.0).delay == 1.0


def test_the_tries_of_a_ten_minute_token_all_fall_inside_it() -> None:
    now, end, tries, history = NOW, NOW + 600, 0, FIRST
    while True:
        decision = decide(
            BUSY, history, schedule=DEFAULT_SCHEDULE, now=now, window_end=end, jitter=(-1.0, 1.0)[tries % 2]
        )
        if decision.delay is None:
            break
        now += decision.delay
        tries += 1
        history = replace(history, failures=decision.failures)
    assert now <= end - WINDOW_MARGIN
    assert tries >= 7
    assert now > end - 200


WINDOWS = st.one_of(st.none(), st.floats(-1e6, 1e6))
ANSWERS = st.builds(
    Answer,
    outcome=st.sampled_from(Outcome),
    status=st.one_of(st.none(), st.integers(100, 999)),
    retry_after=st.one_of(st.none(), st.floats(0, 1e6)),
    abort=st.booleans(),
    disable=st.booleans(),
    other_secret=st.booleans(),
)
HISTORIES = st.builds(
    History,
    failures=st.integers(0, 20),
    last_outcome=st.one_of(st.none(), st.sampled_from(Outcome)),
    repeats=st.integers(0, 20),
    mark=st.one_of(st.none(), st.sampled_from(Mark)),
    other_secret=st.booleans(),
)


@given(
    ANSWERS,
    HISTORIES,
    st.lists(st.floats(0, 1e5), max_size=10),
    WINDOWS,
    st.floats(-1, 1),
    st.booleans(),
)
def test_whatever_comes_the_decision_is_sound(
    answer: Answer, history: History, schedule: list[float], window: float | None, jitter: float, disabled: bool
) -> None:
    decision = after(answer, history, schedule=tuple(schedule), window=window, jitter=jitter, disabled=disabled)
    if decision.state is DeliveryState.HELD:
        assert disabled
        assert (decision.delay, decision.reason, history.mark) == (None, None, None)
        return
    if disabled and decision.state is DeliveryState.PENDING:
        assert history.mark is Mark.RETARGET
    assert decision.failures - history.failures in {0, 1}
    assert 0 <= decision.repeats <= history.repeats + 1
    assert decision.pause is None or 0 < decision.pause <= MAX_RETRY_AFTER
    if decision.state is not DeliveryState.PENDING:
        assert decision.delay is None
        assert (decision.reason is None) == (decision.state is DeliveryState.DELIVERED)
        return
    assert decision.reason is None
    assert decision.delay is not None
    assert 0 <= decision.delay <= max(MAX_RETRY_AFTER, 1.2e5)
    if window is not None and decision.delay > 0:
        assert NOW + decision.delay <= NOW + window - WINDOW_MARGIN + 1e-6
    if decision.failures > history.failures:
        assert decision.delay >= min(1.0, schedule[history.failures], answer.retry_after or math.inf)


# --- parse_retry_after ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("1", 1.0),
        ("120", 120.0),
        (" 120\t", 120.0),
        ("0000120", 120.0),
        ("86400", 86_400.0),
        ("999999999", 999_999_999.0),
    ],
)
def test_seconds(value: str, seconds: float) -> None:
    assert parse_retry_after(value, now=NOW) == seconds


@pytest.mark.parametrize("digits", [13, 400, 5000, 100_000])
def test_absurdly_many_digits_are_a_long_time(digits: int) -> None:
    seconds = parse_retry_after("9" * digits, now=NOW)
    assert seconds is not None
    assert MAX_RETRY_AFTER < seconds < math.inf
    assert parse_retry_after("0" * digits + "7", now=NOW) == 7.0


@pytest.mark.parametrize(
    "value",
    [
        None, "", " ", "0", "000", "-1", "+1", "1.5", "1e3", "0x10", "1_000", "12 0", "١٢", "²", "soon",
        "120s", "120, 60", "\u00a0120", "\n120", "2026-05-28T20:26:40Z", "Sun, 06 Nov 1994 08:49:37 GMT",
        "sun, 06 nov 2094 08:49:37 gmt", "Sun, 06 Nov 2094 08:49:37 UTC", "Sun, 06 Nov 2094 08:49:37 +0000",
        "Sun, 06 Nov 2094 08:49:37", "Sun, 6 Nov 2094 08:49:37 GMT", "Sun, 06 Now 2094 08:49:37 GMT",
        "Xxx, 06 Nov 2094 08:49:37 GMT", "Sun, 31 Feb 2094 08:49:37 GMT", "Sun, 06 Nov 2094 24:00:00 GMT",
        "Sun, 06 Nov 2094 08:60:00 GMT", "Sun, 06 Nov 2094 08:49:61 GMT", "Sun, 00 Nov 2094 08:49:37 GMT",
        "Sun, 06 Nov 0000 08:49:37 GMT", "Sun, 06 Nov ٢٠٩٤ 08:49:37 GMT", "Sun Nov 6 08:49:37 2094",
    ],
)  # fmt: skip
def test_garbage_zero_and_the_past_ask_for_nothing(value: str | None) -> None:
    assert parse_retry_after(value, now=NOW) is None


DATES = json.loads((VECTORS / "http_dates.json").read_text())


@pytest.mark.parametrize("form", DATES["forms"])
def test_the_three_forms_of_a_date(form: str) -> None:
    moment = DATES["unix_seconds"]
    assert parse_retry_after(form, now=moment - 90.5) == 90.5
    assert parse_retry_after(form, now=moment - 0.25) == 0.25
    assert parse_retry_after(form, now=moment) is None
    assert parse_retry_after(form, now=moment + 1) is None


def test_two_digits_of_a_year_are_at_most_50_years_ahead() -> None:
    # now is in 2026: 76 is 2076, and 77 was 1977
    assert parse_retry_after("Thursday, 01-Oct-76 00:00:00 GMT", now=NOW) is not None
    assert parse_retry_after("Saturday, 01-Oct-77 00:00:00 GMT", now=NOW) is None


def test_a_leap_second_is_a_time() -> None:
    assert parse_retry_after("Sat, 31 Dec 2016 23:59:60 GMT", now=1_483_228_790) == 9.0


@given(st.integers(1, 10**9))
def test_dates_as_the_standard_library_writes_them(ahead: int) -> None:
    assert parse_retry_after(formatdate(NOW + ahead, usegmt=True), now=NOW) == ahead


@given(st.text(max_size=60))
def test_any_text_gives_none_or_a_finite_time(value: str) -> None:
    seconds = parse_retry_after(value, now=NOW)
    assert seconds is None or 0 < seconds < math.inf
