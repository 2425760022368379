from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from subscriptions.filters import Filter, compile_filter
from subscriptions.matching import (
    MAX_LENGTH,
    Audience,
    Listener,
    Matched,
    PatternError,
    Skip,
    check_event_type,
    check_pattern,
    evaluate,
)


def listener(name: str, *patterns: str, condition: str | None = None) -> Listener:
    return Listener(id=name, patterns=patterns, filter=None if condition is None else compile_filter(condition))


def matches(pattern: str, event_type: str) -> bool:
    return bool(Audience([listener("one", check_pattern(pattern))]).candidates(check_event_type(event_type)))


@pytest.mark.parametrize(
    ("pattern", "hits", "misses"),
    [
        (
            "order.paid",
            ["order.paid"],
            ["order", "order.pai", "order.paid2", "order.paid.eu", "orderXpaid", "Order.paid"],
        ),
        ("order", ["order"], ["order.paid", "orders", "orde"]),
        ("order.*", ["order.paid", "order.x"], ["order", "order.paid.eu", "orders.paid", "eu.order.paid"]),
        ("order.**", ["order.paid", "order.paid.eu", "order.a.b.c.d"], ["order", "orders.paid", "eu.order.paid"]),
        ("**", ["order", "order.paid", "a.b.c.d.e"], []),
        ("*", ["order", "x-1_y"], ["order.paid"]),
        ("*.paid", ["order.paid", "invoice.paid"], ["paid", "order.paid.eu", "order.unpaid", "a.order.paid"]),
        ("a.*.c", ["a.b.c", "a.a.c"], ["a.c", "a.b.b.c", "a.b.c.d", "a.b"]),
        ("*.*", ["a.b"], ["a", "a.b.c"]),
        ("*.**", ["a.b", "a.b.c"], ["a"]),
        ("a.*.**", ["a.b.c", "a.b.c.d"], ["a.b", "b.b.c"]),
        ("*.b.*.d", ["a.b.c.d"], ["a.b.c.e", "a.c.c.d", "a.b.d"]),
        # a pattern's characters are never read as anything else
        ("a-b_c.1", ["a-b_c.1"], ["a-b_cx1", "a.b_c.1"]),
        # empty segments are segments, because an event type may have them
        ("a..b", ["a..b"], ["a.b", "a.x.b"]),
        ("a.*", ["a.", "a.b"], ["a", "a.."]),
        ("a.**", ["a.", "a.."], ["a"]),
    ],
)
def test_a_pattern_matches_what_it_says_and_not_the_next_thing(
    pattern: str, hits: list[str], misses: list[str]
) -> None:
    assert [event_type for event_type in hits + misses if matches(pattern, event_type)] == hits


@pytest.mark.parametrize("text", ["a" * MAX_LENGTH, "**", "*", "a." + "*." * 40 + "**", "*._x", "9.A_-z"])
def test_a_good_pattern_is_given_back(text: str) -> None:
    assert check_pattern(text) == text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "1 to 100 characters"),
        ("a" * (MAX_LENGTH + 1), "1 to 100 characters"),
        ("order.**.paid", "`**` is the last segment"),
        ("**.paid", "`**` is the last segment"),
        ("**.**", "`**` is the last segment"),
        ("order.pa*", "a whole segment"),
        ("order*", "a whole segment"),
        ("order.***", "a whole segment"),
        ("or**der.x", "a whole segment"),
        ("order paid", "such as `order.paid`"),
        ("order.paid\n", "such as `order.paid`"),
        ("ordér", "such as `order.paid`"),
        ("order/paid", "such as `order.paid`"),
        ("order.?", "such as `order.paid`"),
        (".order", "begins with"),
        ("-order", "begins with"),
        ("_.*", "begins with"),
    ],
)
def test_a_bad_pattern_is_refused_with_what_would_be_right(text: str, says: str) -> None:
    with pytest.raises(PatternError, match=re.escape(says)) as refused:
        check_pattern(text)
    assert "ordér" not in str(refused.value)
    assert "pa*" not in str(refused.value)


@pytest.mark.parametrize("text", ["a", "0", "order.paid", "a" * MAX_LENGTH, "a..", "A-_."])
def test_a_good_event_type_is_given_back_and_is_a_pattern(text: str) -> None:
    assert check_event_type(text) == text
    assert check_pattern(text) == text


@pytest.mark.parametrize(
    "text", ["", "a" * (MAX_LENGTH + 1), ".a", "-a", "_a", "a b", "a\n", "order.*", "**", "é", "٣"]
)
def test_a_bad_event_type_is_refused(text: str) -> None:
    with pytest.raises(PatternError, match="An event type"):
        check_event_type(text)


def test_candidates_come_once_each_and_in_the_order_given() -> None:
    audience = Audience(
        [
            listener("d", "order.**"),
            listener("c", "order.paid", "order.*", "order.paid", "**"),
            listener("x", "order.shipped"),
            listener("b", "order.paid"),
            listener("a", "*.paid"),
            listener("none"),
        ]
    )
    assert [each.id for each in audience.candidates("order.paid")] == ["d", "c", "b", "a"]
    assert [each.id for each in audience.candidates("order.shipped")] == ["d", "c", "x"]
    assert [each.id for each in audience.candidates("other")] == ["c"]
    assert len(audience) == 6


def test_each_answer_is_a_list_of_its_own() -> None:
    audience = Audience([listener("a", "x"), listener("b", "x")])
    audience.candidates("x").clear()
    assert len(audience.candidates("x")) == 2


def test_no_subscriptions_no_candidates() -> None:
    assert Audience([]).candidates("order.paid") == []


@pytest.mark.parametrize("event_type", ["order.*", "*", "**", "order.**", "*.paid"])
def test_a_pattern_is_not_an_event_type(event_type: str) -> None:
    audience = Audience([listener("a", "order.*", "*", "**", "order.**", "*.paid")])
    assert audience.candidates(event_type) == []


def test_two_subscriptions_may_have_one_id() -> None:
    # the index knows places, not ids; that ids are unique is the store's business
    audience = Audience([listener("a", "x"), listener("a", "x")])
    assert len(audience.candidates("x")) == 2


class Counted(tuple[str, ...]):
    """Patterns that count how often they are read."""

    read = 0

    def __iter__(self) -> Iterator[str]:
        Counted.read += 1
        return super().__iter__()


def test_every_subscription_is_read_once_when_building_and_never_when_matching(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counted, "read", 0)
    many = [Listener(id=str(n), patterns=Counted([f"order.t{n}"]), filter=None) for n in range(20_000)]
    audience = Audience([*many, listener("wild", "order.*")])
    assert Counted.read == len(many)
    assert [each.id for each in audience.candidates("order.t777")] == ["777", "wild"]
    assert Counted.read == len(many)


# few names, so that patterns and types meet; empty ones, and one that is the beginning of another
SEGMENTS = st.sampled_from(["a", "b", "aa", "", "a-", "_b"])
EVENT_TYPES = st.lists(SEGMENTS, min_size=1, max_size=5).map(".".join).filter(lambda text: text[:1].isalnum())
PATTERNS = (
    st.tuples(st.lists(SEGMENTS | st.just("*"), max_size=5), st.sampled_from([[], ["**"]]))
    .map(lambda parts: ".".join(parts[0] + parts[1]))
    .filter(lambda text: text[:1].isalnum() or text.startswith("*"))
)


def as_regular_expression(pattern: str) -> re.Pattern[str]:
    """The oracle: the pattern read anew, character by character, by somebody who never saw the index."""
    return re.compile(re.escape(pattern).replace(r"\*\*", ".+" if pattern == "**" else ".*").replace(r"\*", "[^.]*"))


@given(st.lists(st.lists(PATTERNS, max_size=4), max_size=12), EVENT_TYPES)
def test_the_index_finds_what_regular_expressions_find(everybody: list[list[str]], event_type: str) -> None:
    listeners = [listener(str(n), *map(check_pattern, patterns)) for n, patterns in enumerate(everybody)]
    expected = [
        each.id
        for each in listeners
        if any(as_regular_expression(pattern).fullmatch(event_type) for pattern in each.patterns)
    ]
    assert [each.id for each in Audience(listeners).candidates(check_event_type(event_type))] == expected


@given(st.text(alphabet="ab.*-_ é\n", max_size=8) | st.text(max_size=8))
def test_whatever_is_let_through_as_a_pattern_can_be_matched(text: str) -> None:
    try:
        pattern = check_pattern(text)
    except PatternError:
        return
    # the nearest type that it must match
    event_type = pattern.replace("**", "x.y").replace("*", "x")
    assert matches(pattern, event_type)


def test_filters_decide_among_candidates() -> None:
    candidates = [
        listener("all", "**"),
        listener("big", "**", condition="amount > `100`"),
        listener("small", "**", condition="amount <= `100`"),
        listener("eu", "**", condition="region == 'eu'"),
    ]
    assert evaluate(candidates, {"amount": 500, "region": "eu"}) == Matched(ids=["all", "big", "eu"], skipped=[])
    assert evaluate(candidates, {"amount": 5}) == Matched(ids=["all", "small"], skipped=[])
    assert evaluate([], {"amount": 5}) == Matched(ids=[], skipped=[])


def test_a_filter_that_fails_skips_its_own_subscription_only() -> None:
    candidates = [
        listener("before", "**"),
        listener("wrong type", "**", condition="sum(items) > `1`"),
        listener("between", "**", condition="name == 'hunter2'"),
        listener("too dear", "**", condition="[name]" + "|[@,@][]" * 14),
        listener("no", "**", condition="missing"),
        listener("after", "**"),
    ]
    matched = evaluate(candidates, {"items": "hunter2", "name": "hunter2"})
    assert matched.ids == ["before", "between", "after"]
    assert matched.skipped == [
        Skip(
            subscription_id="wrong type",
            reason="filter",
            detail="The function sum() got a value of a type it does not take.",
        ),
        Skip(
            subscription_id="too dear",
            reason="filter",
            detail="The filter needs too much work for this payload.",
        ),
    ]
    assert "hunter2" not in repr(matched)


def test_without_filters_the_payload_is_not_looked_at() -> None:
    untouched: Any = object()
    assert evaluate([listener("a", "**"), listener("b", "**")], untouched).ids == ["a", "b"]


def test_slices_of_candidates_give_what_all_of_them_give() -> None:
    audience = Audience([listener(str(n), "*", condition=f"n == `{n % 3}`" if n % 2 else None) for n in range(30)])
    candidates = audience.candidates("x")
    whole = evaluate(candidates, {"n": 1})
    parts = [evaluate(candidates[at : at + 7], {"n": 1}) for at in range(0, len(candidates), 7)]
    assert [name for part in parts for name in part.ids] == whole.ids


def test_a_listener_tells_whether_the_payload_is_needed() -> None:
    assert listener("a", "**").filter is None
    assert isinstance(listener("a", "**", condition="a").filter, Filter)
