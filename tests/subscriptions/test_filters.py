from __future__ import annotations

import re
import tracemalloc
from typing import Any

import jmespath
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jmespath.parser import Parser

from subscriptions.filters import (
    BUDGET,
    MAX_CHARACTERS,
    MAX_LITERAL_PARTS,
    MAX_NESTING,
    MAX_NODES,
    Filter,
    FilterError,
    FilterFailed,
    compile_filter,
)

ORDER = {
    "type": "paid",
    "amount": 120.5,
    "zero": 0,
    "customer": {"country": "DE", "tags": ["new", "b2b"], "vip": False, "note": ""},
    "items": [{"sku": "a", "n": 1}, {"sku": "b", "n": 3}, {"sku": "c"}],
    "paid_at": "2026-02-03T10:00:00Z",
    "odd key": {"ключ": [None]},
    "none": None,
    "nested": [[1, 2], [3], 4],
}


def accepts(text: str, payload: object = ORDER) -> bool:
    return compile_filter(text).accepts(payload)


def outcome(compiled: Filter, payload: object) -> bool | str:
    """What the filter says, or why it says nothing."""
    try:
        return compiled.accepts(payload)
    except FilterFailed as failed:
        return failed.reason


@pytest.mark.parametrize(
    "text",
    [
        "type == 'paid'",
        'type == `"paid"`',
        "type != 'open' && amount > `100`",
        "(type == 'open' || amount >= `120.5`) && !(customer.vip)",
        "customer.country == 'DE'",
        "contains(customer.tags, 'b2b')",
        "contains(paid_at, '-02-')",
        "contains(['DE', 'FR'], customer.country)",
        "items[?sku == 'b' && n > `2`]",
        "items[1].n == `3`",
        "items[-1].sku == 'c'",
        "items[*].sku | length(@) == `3`",
        "sum(items[].n) == `4`",
        "max_by(items[?n], &n).sku == 'b'",
        "sort_by(items, &sku)[::-1] | [0].sku == 'c'",
        'map(&sku, items) == `["a", "b", "c"]`',
        "nested[] == `[1, 2, 3, 4]`",
        "starts_with(paid_at, '2026')",
        "paid_at >= '2026-01-01' && paid_at < '2027-01-01'",
        '"odd key"."ключ"',
        "customer.*",
        "keys(customer)[0]",
        "join('-', customer.tags) == 'new-b2b'",
        "to_number('12') == `12`",
        "to_string(`[1]`) == '[1]'",
        "not_null(none, missing, type)",
        "{a: type, b: amount}.b",
        "type(amount) == 'number'",
        "zero",  # JMESPath: a number is never false
        "!missing",
        "!none",
        "@",
        "'a\\'b' == `\"a'b\"`",
        "`\"a\\`b\"` == 'a`b'",
    ],
)
def test_true_of_an_order(text: str) -> None:
    assert accepts(text)


@pytest.mark.parametrize(
    "text",
    [
        "type == 'Paid'",
        "type == 'paid '",
        "amount > `120.5`",
        "customer.vip",
        "customer.note",
        "missing",
        "missing.deeper[0]",
        "none",
        "!zero",
        "items[?sku == 'z']",
        "items[3]",
        "type[0]",
        "type > `1`",  # order of unlike things is null
        "`1` < 'a'",
        "customer > `1`",
        "customer.vip == `0`",
        "`[true]` == `[1]`",
        "contains(`[true]`, `1`)",
        '`{"a": 1}` == `{"a": 1, "b": 2}`',
        '`{"a": 1}` == `{"b": 1}`',
        "`[1, 2]` == `[2, 1]`",
        "to_number('1_000')",
        "to_number(' 1')",
        "to_number('nan')",
        "to_number('1e999')",
        "to_number('٣')",
        "to_number(`[1]`)",
        "`{}`",
        "`[]`",
        "''",
        "`false`",
    ],
)
def test_not_true_of_an_order(text: str) -> None:
    assert not accepts(text)


@pytest.mark.parametrize(
    ("result", "accepted"),
    [
        (None, False),
        (False, False),
        ("", False),
        ([], False),
        ({}, False),
        (True, True),
        (0, True),
        (0.0, True),
        (-1, True),
        (" ", True),
        ("false", True),
        ([None], True),
        ({"": None}, True),
    ],
)
def test_truth_is_that_of_jmespath(result: object, accepted: bool) -> None:
    assert accepts("@", result) is accepted


#: expressions of all kinds, in which the library does what the specification says
SAMPLES = [
    "a",
    "a.b",
    "a[0]",
    "a[-1]",
    "[0]",
    "[1:]",
    "[::-1]",
    "[::2][0]",
    "*",
    "*.a",
    "[]",
    "[][]",
    "[*]",
    "[*].a",
    "[*][0]",
    "a[*].b",
    "[?a]",
    "[?a == 'a']",
    "[?@ > `1`].b",
    "[?!a || b]",
    "a || b",
    "a && b",
    "!a",
    "a | b",
    "[a, b]",
    "{x: a, y: b}",
    "[*].[a, @]",
    "a == b",
    "a != b",
    '@ == `{"a": "a"}`',
    "length(@)",
    "type(@)",
    "keys(@)",
    "values(@)",
    "to_array(@)",
    "not_null(a, b)",
    "to_string(@)",
    "reverse(@)",
    "sort(@)",
    "max(@)",
    "min(@)",
    "sum(@)",
    "avg(@)",
    "sort_by(@, &a)",
    "max_by(@, &a)",
    "min_by(@, &a)",
    "map(&a, @)",
    "merge(@, @)",
    "join('', @)",
    "contains(@, 'a')",
    "starts_with(@, 'a')",
    "ends_with(@, 'a')",
    "abs(@)",
    "ceil(@)",
    "floor(@)",
]
# without true and false, in which the library mixes up true and 1
SCALARS = st.none() | st.integers(-5, 5) | st.floats(-4, 4, width=16) | st.sampled_from(["", "a", "b", "ab"])
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2)
        | st.lists(st.integers(-5, 5), max_size=4)
        | st.lists(st.sampled_from(["a", "b", "ab"]), max_size=4)
        | st.lists(st.fixed_dictionaries({"a": st.integers(-5, 5)}), max_size=4)
    ),
    max_leaves=12,
)


@given(st.sampled_from(SAMPLES), VALUES)
@example("sort_by(@, &a)", [{"a": 2}, {"a": 1}])
@example("sum(@)", [1, 2.5])
@example("max(@)", ["a", "b"])
def test_a_filter_answers_as_the_library_does(text: str, payload: object) -> None:
    try:
        found = jmespath.search(text, payload)
    except jmespath.exceptions.JMESPathError:
        with pytest.raises(FilterFailed):
            accepts(text, payload)
        return
    except TypeError:  # what the library lets through: min_by and max_by of numbers and texts together
        if "> `" in text:
            # the order of unlike things is null (JMESPath, "Ordering operators"); there we follow the specification
            return
        with pytest.raises(FilterFailed):
            accepts(text, payload)
        return
    # the value itself is compared, not only its truth
    assert accepts(f"map(&({text}), given) == found", {"given": [payload], "found": [found]})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        (" \n\t", "is empty"),
        ("a" * (MAX_CHARACTERS + 1), "at most 1000 characters"),
        ("a == 'x\x00y'", "control characters; there is one at position 8"),
        ("a == '\ud800'", "control characters; there is one at position 7"),
        ("a ==", "ends where something should follow"),
        ("contains(a", "ends where something should follow"),
        ("[?a", "ends where something should follow"),
        ("{a:", "ends where something should follow"),
        ("= a", "position 1."),
        ("a = b", "position 3."),
        ("a b", "position 3."),
        ("a.1", "position 3."),
        ("a -", "position 3."),
        ("a # b", "position 3."),
        ("a)", "position 2."),
        ("sécurité", "position 2."),
        ('x || "a"(b)', "there is an error."),
        ("a == 'b", "begins at position 6 has no end"),
        ('a == "b', "begins at position 6 has no end"),
        ("a == `1", "begins at position 6 has no end"),
        ("a == 'b\\'", "begins at position 6 has no end"),
        ("a == `paid`", "literal at position 6 is not JSON. A text is written in single quotes"),
        ("a == `NaN`", "literal at position 6 is not JSON"),
        ("a == `-Infinity`", "literal at position 6 is not JSON"),
        ("a == `1e999`", "literal at position 6 is not JSON"),
        ("a == `[1,]`", "literal at position 6 is not JSON"),
        ("a == ``", "literal at position 6 is not JSON"),
        ("`" + "[" * 51 + "]" * 51 + "`", "at most 50 arrays and objects; the one at position 1"),
        ('"\\u12"', "position 1."),
        ("size(a)", "does not exist. There are: abs, avg, ceil, contains,"),
        ("a[?evil(@)]", "does not exist"),
        ("length()", "length() takes 1 argument(s), but gets 0"),
        ("length(a, b)", "length() takes 1 argument(s), but gets 2"),
        ("not_null()", "not_null() takes at least 1 argument(s), but gets 0"),
        ("sort_by(a, b)", "Argument 2 of sort_by() is an expression with `&`"),
        ("sort_by(&a, &b)", "Argument 1 of sort_by() is a value"),
        ("not_null(a, &b)", "Argument 2 of not_null() is a value"),
        ("map(a, &b)", "Argument 1 of map() is an expression"),
        ("&a", "only an argument of a function"),
        ("[&a]", "only an argument of a function"),
        ("a[::0]", "step of a slice"),
        ("!a.b", "write !(a.b), not !a.b"),
        ("x && !a.*", "write !(a.b)"),
        ("!a[?b]", "write !(a.b)"),
        ("!a[]", "write !(a.b)"),
    ],
)
def test_what_is_no_filter_is_refused_with_what_is_wrong(text: str, says: str) -> None:
    with pytest.raises(FilterError, match=re.escape(says)) as refused:
        compile_filter(text)
    for leak in ("sécu", "evil", "paid", "Token", "identifier", "{'", "['", "None"):
        assert leak not in str(refused.value)
    assert refused.value.__cause__ is None


@pytest.mark.parametrize(
    ("good", "bad", "says"),
    [
        ("a" * MAX_CHARACTERS, "a" * (MAX_CHARACTERS + 1), "characters"),
        # one node for the list
        (
            "[" + ",".join(["a"] * (MAX_NODES - 1)) + "]",
            "[" + ",".join(["a"] * MAX_NODES) + "]",
            f"at most {MAX_NODES} parts",
        ),
        ("(" * (MAX_NESTING - 1) + "a" + ")" * (MAX_NESTING - 1), "(" * MAX_NESTING + "a" + ")" * MAX_NESTING, "deep"),
        ("!" * (MAX_NESTING - 1) + "a", "!" * MAX_NESTING + "a", "deep"),
        (
            "`" + "[" * MAX_LITERAL_PARTS + "]" * MAX_LITERAL_PARTS + "`",
            "`" + "[" * (MAX_LITERAL_PARTS + 1) + "]" * (MAX_LITERAL_PARTS + 1) + "`",
            "arrays and objects",
        ),
    ],
)
def test_limits_hold_to_the_last_character(good: str, bad: str, says: str) -> None:
    compile_filter(good)
    with pytest.raises(FilterError, match=says):
        compile_filter(bad)


@pytest.mark.parametrize(
    "text",
    [
        "(" * 1000,
        "[" * 1000,
        "!" * 999 + "a",
        "&" * 999 + "a",
        "& " * 499 + "a",
        "*." * 499 + "*",
        "[*]" * 333,
        "[]" * 500,
        "[?a]" * 250,
        "[?" * 500,
        "{a:" * 333,
        "f(" * 500,
        "map(&" * 200,
        "a||" * 333,
        "a." * 499 + "a",
        "[0]" * 333,
        "`" + "[" * 998 + "`",
        "`" + '{"a":' * 190 + "`",
        "'" * 999,
        '"' * 999,
        "`" * 999,
        "'\\" * 500,
        '"\\' * 500,
        "`\\" * 500,
        "-" * 1000,
        "9" * 1000,
        "\\" * 1000,
        "a[" + "9" * 5000 + "]",
    ],
    ids=lambda text: text[:8],
)
def test_a_hostile_expression_is_refused_at_once(text: str) -> None:
    with pytest.raises(FilterError):
        compile_filter(text)


def test_no_expression_stays_in_the_library() -> None:
    # its cache is one for all tenants, and what it holds was not checked
    before = dict(Parser._CACHE)  # type: ignore[attr-defined]  # that is what must not grow
    compile_filter("a.cached[?expression]")
    assert before == Parser._CACHE  # type: ignore[attr-defined]  # the same
    # nor is what is in it trusted
    deep = "!" * 40 + "a"
    jmespath.compile(deep)
    with pytest.raises(FilterError, match="deep"):
        compile_filter(deep)


MANY = list(range(50_000))
OBJECTS = [{"a": n, "b": [n, n], "c": "x" * 20} for n in range(3_000)]
TWO_TEXTS = {"a": "x" * 130_000, "b": "x" * 129_999 + "y", "c": "x" * 4 + "y"}


@pytest.mark.parametrize(
    ("text", "payload"),
    [
        ("@" + "[].[@,@,@]" * 9, [1, 2, 3]),
        ("@" + "|[@,@][]" * 14, [1]),
        ("@" + "|[@,@]" * 17 + "|to_string(@)", 1),
        ("map(&(@" + "|[@,@,@]" * 9 + "), @) | [0] == [1]", ["x", "x"]),
        ("[*]", MANY),
        ("[]", MANY),
        ("[:]", MANY),
        ("[?@ == `1`]", MANY),
        ("*", {str(n): n for n in MANY}),
        ("sort(@)", MANY),
        ("sum(@)", MANY),
        ("max(@)", MANY),
        ("reverse(@)", MANY),
        ("map(&@, @)", MANY),
        ("sort_by(@, &@)", MANY),
        ("contains(@, `-1`)", MANY),
        ("to_string(@)", MANY),
        ("values(@)", {str(n): n for n in MANY}),
        ("merge(@, @)", {str(n): n for n in MANY}),
        ("@ == @", OBJECTS * 10),
        ("[?@ == `{}`].b[]", OBJECTS * 10),
        ("[a,b]" + "|[@,@][]" * 6 + "|sort(@)", TWO_TEXTS),
        ("[a,b]" + "|[@,@][]" * 6 + "|sort_by(@, &@)", TWO_TEXTS),
        ("[a,b]" + "|[@,@][]" * 6 + "|max(@)", TWO_TEXTS),
        ("[@,@]" + "|[@,@][]" * 6 + "|[?a < b]", TWO_TEXTS),
        ("[@,@]" + "|[@,@][]" * 6 + "|[?a == b]", {"a": "x" * 130_000, "b": "x" * 130_000}),
        ("[" + ",".join(["contains(a, b)"] * 20) + "]", TWO_TEXTS),
        ("join('" + "x" * 900 + "', @)", ["y"] * 9_000),
        ("join('', [a, a, a, a, a, a, a, a, a, a])", TWO_TEXTS),
        ("[@,@,@,@,@,@][].to_string(@)", [{"a": "x" * 250_000}]),
        ("[@,@,@,@,@,@][].reverse(@)", ["x" * 250_000]),
        ("[@,@,@,@,@,@,@,@,@,@][].to_string(@)", [10**4_000 + n for n in range(60)]),
        ("[@,@,@,@][?contains(a, b)]", {"a": "x" * 29_999, "b": "x" * 99 + "y"}),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_what_costs_too_much_is_cut_short_and_stays_small(text: str, payload: object) -> None:
    compiled = compile_filter(text)
    tracemalloc.start()
    try:
        with pytest.raises(FilterFailed) as failed:
            compiled.accepts(payload)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert failed.value.reason == "The filter needs too much work for this payload."
    assert peak < 16_000_000


def test_parts_that_are_shared_cost_nothing_until_they_are_walked() -> None:
    # 2^20 places, 20 lists
    assert accepts("@" + "|[@,@]" * 20, 1)


@pytest.mark.parametrize(("spare", "suffices"), [(0, True), (1, False)])
def test_the_budget_holds_to_the_last_unit(spare: int, suffices: bool) -> None:
    # the projection, its base, and the right side once for each element
    compiled, payload = compile_filter("[*]"), [0] * (BUDGET - 2 + spare)
    if suffices:
        assert compiled.accepts(payload)
    else:
        with pytest.raises(FilterFailed):
            compiled.accepts(payload)


def test_each_evaluation_has_a_budget_of_its_own() -> None:
    compiled, large = compile_filter("[?@ > `0`]"), [1] * (BUDGET // 5)
    for _ in range(3):
        assert compiled.accepts(large)
        with pytest.raises(FilterFailed):
            compiled.accepts(large * 5)


@pytest.mark.parametrize(
    ("text", "payload", "accepted"),
    [
        # what a subscriber may well write fits
        ("items[?sku == 'x-499' && n > `1`]", {"items": [{"sku": f"x-{n}", "n": n} for n in range(500)]}, True),
        ("contains(text, 'needle')", {"text": "hay " * 60_000}, False),
        ("sort_by(items, &at)[-1].at > '2026'", {"items": [{"at": f"2026-{n}"} for n in range(1_000)]}, True),
        ("length(@) > `9`", [0] * 130_000, True),
        ("starts_with(text, 'hay')", {"text": "hay " * 60_000}, True),
        ("type == 'paid'", {"type": "paid", "rest": [0] * 130_000}, True),
    ],
)
def test_sensible_filters_work_on_the_largest_payloads(text: str, payload: object, accepted: bool) -> None:
    assert accepts(text, payload) is accepted


@pytest.mark.parametrize(
    ("text", "payload", "reason"),
    [
        ("sum(a)", {"a": "hunter2"}, "The function sum() got a value of a type it does not take."),
        ("sum(a)", {"a": [1, True]}, "The function sum() got a value of a type it does not take."),
        ("length(a)", {}, "The function length() got a value of a type it does not take."),
        ("sort(a)", {"a": [1, "hunter2"]}, "The function sort() got a value of a type it does not take."),
        (
            "sort_by(a, &b)",
            {"a": [{"b": 1}, {"b": "x"}]},
            "The function sort_by() got a value of a type it does not take.",
        ),
        (
            "max_by(a, &b)",
            {"a": [{"b": 1}, {"b": "x"}]},
            "The function max_by() got a value of a type it does not take.",
        ),
        ("min_by(a, &b)", {"a": [{"b": True}]}, "The function min_by() got a value of a type it does not take."),
        ("contains(a, `1`)", {"a": "1"}, "The function contains() got a value of a type it does not take."),
        ("contains(a, 'x')", {"a": {"x": 1}}, "The function contains() got a value of a type it does not take."),
        ("merge(a, b)", {"a": {}, "b": [["x", 1]]}, "The function merge() got a value of a type it does not take."),
        ("merge(a, b)", {"a": {}, "b": None}, "The function merge() got a value of a type it does not take."),
        ("map(&a, b)", {"b": {}}, "The function map() got a value of a type it does not take."),
        # what Python raises
        ("avg(a)", {"a": [10**4000, 1]}, "The filter cannot be evaluated for this payload."),
        ("sum(a)", {"a": [10**4000, 0.5]}, "The filter cannot be evaluated for this payload."),
        ("floor(a)", {"a": float("inf")}, "The filter cannot be evaluated for this payload."),
        ("ceil(a)", {"a": float("nan")}, "The filter cannot be evaluated for this payload."),
        ("to_string(a)", {"a": 10**5000}, "The filter cannot be evaluated for this payload."),
    ],
)
def test_a_failure_says_why_and_nothing_of_the_payload(text: str, payload: object, reason: str) -> None:
    with pytest.raises(FilterFailed) as failed:
        accepts(text, payload)
    assert failed.value.reason == reason
    assert failed.value.__cause__ is None
    assert failed.value.__suppress_context__


@pytest.mark.parametrize(
    "text",
    [
        "a > `1`",
        "a == `1`",
        "contains([a], `1`)",
        "a < `1.5` || a",
        "[0][" + "9" * 900 + "]" + " || a",
        "[-" + "9" * 450 + ":" + "9" * 450 + "] || a",
        "`" + "9" * 900 + "` > `1.5`",
        "to_number('" + "9" * 900 + "')",
    ],
)
def test_huge_numbers_are_numbers(text: str) -> None:
    accepts(text, {"a": 10**4000})


def nested(depth: int, *, inside: Any = 1) -> Any:
    for level in range(depth):
        inside = [inside] if level % 2 else {"a": inside}
    return inside


@pytest.mark.parametrize(
    "text",
    ["@ == @", "to_string(@)", "contains([@], @)", "[0]" + ".a[0]" * 20, "@" + "|[@]" * 30 + "|to_string(@)"],
)
def test_deep_payloads_are_no_trouble(text: str) -> None:
    assert accepts(text, nested(64))


#: every expression that fits, at its deepest
DEEPEST = [
    "!" * (MAX_NESTING - 1) + "a",
    "[?" * 14 + "a" + "]" * 14,
    "*" + ".*" * (MAX_NESTING // 2 - 2),
    "a" + "||a" * 49,
    "@" + "|@" * 49,
    "@" + "[]" * 30,
    "map(&" * 14 + "@" + ", @)" * 14,
    "to_array(" * (MAX_NESTING - 1) + "@" + ")" * (MAX_NESTING - 1),
    "{a:" * 15 + "@" + "}" * 15,
]


@pytest.mark.parametrize("text", DEEPEST, ids=range(len(DEEPEST)))
def test_no_filter_exhausts_the_stack(text: str) -> None:
    compiled = compile_filter(text)

    def descend(levels: int) -> None:
        # as far down as a server with its middleware may well be
        if levels:
            descend(levels - 1)
            return
        for payload in (1, nested(64), [[[[1]]]], {"a": {"a": {"a": 1}}}):
            assert "cannot be evaluated" not in str(outcome(compiled, payload))

    descend(300)


CALLS = ["sort_by(@, &", "map(&", "contains(", "length(", "to_string(", "merge(", "join(", "max(", "no("]
TOKENS = st.sampled_from(
    [
        *"@*.,:()[]{}|&!<>='\"`\\-1a ",
        "[]",
        "[?",
        "[*]",
        "||",
        "&&",
        "==",
        "'x'",
        "`1`",
        "a",
        "b",
        "::-1",
        "\n",
        "é",
        *CALLS,
    ]
)


@given(st.lists(TOKENS, max_size=40).map("".join) | st.text(max_size=40), VALUES)
@example('a[?b==`"\\ud800"`]', {"a": [{"b": 1}]})
@example("to_string(@)", "\ud800")
@example("@", ())
@example("length(@)", object())
@example("to_string(@)", object())
def test_nothing_but_a_refusal_or_a_failure_ever_comes_out(text: str, payload: object) -> None:
    refusal = None
    try:
        compiled = compile_filter(text)
    except FilterError as refused:
        refusal = str(refused)
    answer = outcome(compiled, payload) if refusal is None else refusal
    assert isinstance(answer, bool) or answer.endswith(".")


def test_a_payload_stays_as_it_was() -> None:
    payload = {"a": [3, 1, 2], "b": {"c": 1}}
    for text in ("sort(a)", "reverse(a)", "merge(b, {d: a})", "a[]", "values(b)", "sort_by(a, &@)"):
        assert accepts(text, payload)
    assert payload == {"a": [3, 1, 2], "b": {"c": 1}}


def test_filters_of_one_text_are_equal() -> None:
    assert compile_filter("a.b") == compile_filter("a.b")
    assert compile_filter("a.b") != compile_filter("a . b")
    assert len({compile_filter("a"), compile_filter("a")}) == 1
    assert repr(compile_filter("a")) == "Filter(text='a')"
    assert isinstance(compile_filter("a"), Filter)
