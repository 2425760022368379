"""When a subscription is disabled: every row of the table, each beside its nearest miss."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from subscriptions.health import (
    DISABLE_AFTER,
    FAILING_FROM,
    MIN_FAILURES,
    PAYLOAD_4XX,
    DisabledReason,
    DisableOn,
    Health,
    Kind,
    Policy,
    Verdict,
    judge,
)

NOW = 1_780_000_000.0
POLICY = Policy()
PATIENT = Policy(disable_after_4xx=0)
WELL = Health()
MILLISECOND = 0.001


def failed(times: int, *, refusals: int = 0, since: float = NOW) -> Health:
    """An endpoint that has failed so many times since then."""
    return Health(refusals=refusals, failures=times, failing_since=since if times else None)


def test_the_defaults_are_those_of_the_contract() -> None:
    assert (POLICY.disable_after_4xx, POLICY.disable_on, POLICY.disable_after) == (1, "any", 5 * 86_400)
    assert (DISABLE_AFTER, MIN_FAILURES) == (432_000, 5)
    assert {400, 409, 413, 414, 415, 422, 431} == PAYLOAD_4XX


class TestSuccess:
    """A 2xx ends every streak."""

    @pytest.mark.parametrize("health", [WELL, failed(4), failed(99, refusals=7, since=0.0)])
    def test_it_resets(self, health: Health) -> None:
        assert judge(Kind.SUCCESS, health, POLICY, now=NOW, status=200) == Verdict(health=WELL)

    def test_one_success_between_refusals_begins_the_count_anew(self) -> None:
        policy = Policy(disable_after_4xx=3)
        health = WELL
        for kind in (Kind.REFUSAL, Kind.REFUSAL, Kind.SUCCESS, Kind.REFUSAL, Kind.REFUSAL):
            verdict = judge(kind, health, policy, now=NOW, status=401)
            assert verdict.disable is None
            health = verdict.health
        assert judge(Kind.REFUSAL, health, policy, now=NOW, status=401).disable is DisabledReason.REJECTED

    def test_one_success_between_failures_begins_the_time_anew(self) -> None:
        health = judge(Kind.SUCCESS, failed(50, since=0.0), POLICY, now=NOW).health
        verdict = judge(Kind.FAILURE, health, POLICY, now=NOW + 1)
        assert (verdict.disable, verdict.health.failing_since) == (None, NOW + 1)


class TestFailures:
    """Given up after long enough, and often enough; one of both is not enough."""

    @pytest.mark.parametrize(
        ("before", "age", "disabled"),
        [
            (MIN_FAILURES - 2, DISABLE_AFTER, False),  # the fourth failure
            (MIN_FAILURES - 1, DISABLE_AFTER, True),  # the fifth
            (MIN_FAILURES - 1, DISABLE_AFTER - MILLISECOND, False),
            (MIN_FAILURES - 1, DISABLE_AFTER + MILLISECOND, True),
            (1_000, DISABLE_AFTER - MILLISECOND, False),
            (MIN_FAILURES - 2, 100 * DISABLE_AFTER, False),
        ],
    )
    @pytest.mark.parametrize("kind", [Kind.FAILURE, Kind.REFUSAL])
    def test_time_and_number(self, kind: Kind, before: int, age: float, disabled: bool) -> None:
        verdict = judge(kind, failed(before, since=NOW - age), PATIENT, now=NOW, status=404)
        assert verdict.disable is (DisabledReason.FAILING if disabled else None)
        assert verdict.health.failures == before + 1
        assert verdict.health.failing_since == NOW - age

    @pytest.mark.parametrize(
        ("disable_after", "age", "disabled"),
        [(60.0, 60.0, True), (60.0, 59.999, False), (0.0, 0.0, True), (1.0, 0.0, False)],
    )
    def test_the_owner_sets_the_time(self, disable_after: float, age: float, disabled: bool) -> None:
        policy = Policy(disable_after=disable_after)
        verdict = judge(Kind.FAILURE, failed(MIN_FAILURES - 1, since=NOW - age), policy, now=NOW, status=500)
        assert (verdict.disable is DisabledReason.FAILING) is disabled

    def test_a_burst_of_failures_disables_nothing(self) -> None:
        health = WELL
        for _ in range(1_000):
            verdict = judge(Kind.FAILURE, health, POLICY, now=NOW, status=503)
            assert verdict.disable is None
            health = verdict.health
        assert health == Health(refusals=0, failures=1_000, failing_since=NOW)

    @pytest.mark.parametrize("status", [None, 301, 408, 423, 425, 429, 500, 503])
    def test_they_are_no_refusals(self, status: int | None) -> None:
        verdict = judge(Kind.FAILURE, WELL, POLICY, now=NOW, status=status)
        assert verdict == Verdict(health=Health(refusals=0, failures=1, failing_since=NOW))


class TestRefusals:
    """n of them in a row, as the owner says."""

    @pytest.mark.parametrize(
        ("limit", "before", "disabled"),
        [(1, 0, True), (2, 0, False), (2, 1, True), (3, 1, False), (3, 2, True), (3, 9, True), (0, 999, False)],
    )
    @pytest.mark.parametrize("status", [400, 401, 403, 404, 407, 409, 411, 422, 451, 499])
    def test_the_last_one_of_n(self, limit: int, before: int, disabled: bool, status: int) -> None:
        policy = Policy(disable_after_4xx=limit)
        verdict = judge(Kind.REFUSAL, failed(before, refusals=before), policy, now=NOW, status=status)
        assert verdict.disable is (DisabledReason.REJECTED if disabled else None)
        assert verdict.health.refusals == verdict.health.failures == before + 1

    def test_failures_between_them_neither_count_nor_reset(self) -> None:
        policy = Policy(disable_after_4xx=2)
        health = judge(Kind.REFUSAL, WELL, policy, now=NOW, status=401).health
        between = judge(Kind.FAILURE, health, policy, now=NOW, status=500)
        assert (between.disable, between.health.refusals) == (None, 1)
        assert judge(Kind.REFUSAL, between.health, policy, now=NOW, status=401).disable is DisabledReason.REJECTED

    @pytest.mark.parametrize(
        ("status", "spared"),
        [(status, status in {400, 409, 413, 414, 415, 422, 431}) for status in range(400, 500)],
    )
    def test_disable_on_endpoint_spares_what_speaks_of_the_payload(self, status: int, spared: bool) -> None:
        policy = Policy(disable_on=DisableOn.ENDPOINT)
        verdict = judge(Kind.REFUSAL, WELL, policy, now=NOW, status=status)
        assert verdict.disable is (None if spared else DisabledReason.REJECTED)
        assert verdict.health == (WELL if spared else failed(1, refusals=1))
        # with `any` all of them count
        assert judge(Kind.REFUSAL, WELL, POLICY, now=NOW, status=status).disable is DisabledReason.REJECTED

    def test_what_is_spared_does_not_make_it_failing_either(self) -> None:
        policy = Policy(disable_on=DisableOn.ENDPOINT)
        old = failed(100, since=0.0)
        assert judge(Kind.REFUSAL, old, policy, now=NOW, status=422) == Verdict(health=old)

    def test_one_that_disabled_it_before_does_not_do_so_again(self) -> None:
        verdict = judge(Kind.REFUSAL, WELL, POLICY, now=NOW, status=401, may_disable=False)
        assert verdict == Verdict(health=failed(1, refusals=1))


class TestAlways:
    """What disables whatever the policy and the past."""

    LENIENT = Policy(disable_after_4xx=0, disable_on=DisableOn.ENDPOINT, disable_after=1e12)

    @pytest.mark.parametrize("may_disable", [True, False])
    @pytest.mark.parametrize("asks_to_stop", [True, False])
    @pytest.mark.parametrize(
        ("kind", "status", "reason"),
        [(Kind.GONE, 410, DisabledReason.GONE), (Kind.EGRESS, None, DisabledReason.EGRESS)],
    )
    def test_gone_and_egress(
        self, kind: Kind, status: int | None, reason: DisabledReason, asks_to_stop: bool, may_disable: bool
    ) -> None:
        verdict = judge(
            kind, WELL, self.LENIENT, now=NOW, status=status, asks_to_stop=asks_to_stop, may_disable=may_disable
        )
        assert verdict.disable is reason

    @pytest.mark.parametrize("may_disable", [True, False])
    @pytest.mark.parametrize("kind", [Kind.SUCCESS, Kind.FAILURE, Kind.REFUSAL, None])
    def test_the_endpoint_asks(self, kind: Kind | None, may_disable: bool) -> None:
        for status in (200, 422, 500):
            verdict = judge(
                kind, WELL, self.LENIENT, now=NOW, status=status, asks_to_stop=True, may_disable=may_disable
            )
            assert verdict.disable is DisabledReason.ASKED

    def test_what_says_nothing_changes_nothing(self) -> None:
        old = failed(100, refusals=3, since=0.0)
        assert judge(None, old, POLICY, now=NOW, status=401) == Verdict(health=old)


class TestFailing:
    """The owner hears of it once, when it has just become so."""

    @pytest.mark.parametrize(
        ("before", "told"), [(FAILING_FROM - 2, False), (FAILING_FROM - 1, True), (FAILING_FROM, False), (99, False)]
    )
    def test_at_the_fifth_failure_only(self, before: int, told: bool) -> None:
        assert judge(Kind.FAILURE, failed(before), PATIENT, now=NOW, status=500).failing is told

    def test_not_by_a_success(self) -> None:
        assert not judge(Kind.SUCCESS, failed(FAILING_FROM - 1), PATIENT, now=NOW).failing


HEALTHS = st.builds(
    Health,
    refusals=st.integers(0, 20),
    failures=st.integers(0, 20),
    failing_since=st.one_of(st.none(), st.floats(0, NOW)),
)
POLICIES = st.builds(
    Policy,
    disable_after_4xx=st.integers(0, 5),
    disable_on=st.sampled_from(DisableOn),
    disable_after=st.floats(0, 1e7),
)


@given(
    st.one_of(st.none(), st.sampled_from(Kind)),
    HEALTHS,
    POLICIES,
    st.one_of(st.none(), st.integers(100, 599)),
    st.booleans(),
    st.booleans(),
)
def test_whatever_comes_the_verdict_is_sound(
    kind: Kind | None, health: Health, policy: Policy, status: int | None, asks: bool, may_disable: bool
) -> None:
    verdict = judge(kind, health, policy, now=NOW, status=status, asks_to_stop=asks, may_disable=may_disable)
    after = verdict.health
    assert after == WELL or after.failures - health.failures in {0, 1}
    assert after.refusals - health.refusals <= (kind is Kind.REFUSAL)
    if health.failing_since is not None and after != WELL:
        assert after.failing_since == health.failing_since
    if verdict.disable is DisabledReason.REJECTED:
        assert kind is Kind.REFUSAL
        assert may_disable
        assert policy.disable_after_4xx > 0
    if asks:
        assert verdict.disable in {DisabledReason.ASKED, DisabledReason.GONE, DisabledReason.EGRESS}
    # the same with a clock that stood still never disables for failing over time
    if policy.disable_after > 0:
        young = replace(health, failing_since=NOW)
        assert judge(kind, young, policy, now=NOW, status=status).disable is not DisabledReason.FAILING
