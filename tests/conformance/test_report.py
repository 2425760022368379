"""Reports are read back by parsers, with texts in them that a stranger may have sent."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree as Xml

import pytest
from rich.console import Console

from dispatcher.conformance.report import to_html, to_json, to_junit, to_terminal, visible
from dispatcher.conformance.results import Attempt, Level, Outcome, Report, Requirement, Result, Source, Timeline

HOSTILE = (
    "<script>alert(1)</script> ]]> <!-- & \" ' </title></style></svg> [bold]markup[/bold] $title ${x} "
    "nul \x00 escape \x1b[2J\x1b]0;title\x07 return \r bidi \u202e\u2066 line \u2028 half \ud800 none \ufffe\uffff "
    "https://evil.example/x.png"
)


def result(
    number: int, level: Level, outcome: Outcome, *, detail: str = "", group: str = "SIGN", url: str = ""
) -> Result:
    requirement = Requirement(
        id=f"{group}-{number:02}",
        level=level,
        title=f"Requirement {number} holds.",
        source=Source(name="RFC 9110, section 5.5", url=url or "https://www.rfc-editor.org/rfc/rfc9110"),
        scenario="signatures",
    )
    return Result(requirement=requirement, outcome=outcome, detail=detail)


RESULTS = (
    result(1, Level.MUST, Outcome.PASSED),
    result(2, Level.MAY, Outcome.FAILED, detail="It may, and does not."),
    result(3, Level.MUST, Outcome.FAILED, detail="It was 1.\nIt should be 2."),
    result(1, Level.SHOULD, Outcome.SKIPPED, detail="There is no clock.", group="TIME"),
    result(2, Level.SHOULD, Outcome.PASSED, group="TIME"),
)
ATTEMPTS = (
    Attempt(after=0.0, answer="500"),
    Attempt(after=0.25, answer="timeout"),
    Attempt(after=0.5, answer="200", message=2),
    Attempt(after=1.0, answer="401", message=3),
)
REPORT = Report(
    subject="a sender 1.0",
    kind="sender",
    started_at=1_700_000_000.0,
    seconds=1.5,
    results=RESULTS,
    timelines=(Timeline(scenario="retries", title="It was answered 500.", seconds=1.0, attempts=ATTEMPTS),),
)
BAD = replace(
    REPORT,
    subject=HOSTILE,
    kind=HOSTILE,
    started_at=float("nan"),
    seconds=float("inf"),
    results=(
        *RESULTS,
        Result(
            requirement=Requirement(
                id=HOSTILE,
                level=Level.MUST,
                title=HOSTILE,
                source=Source(name=HOSTILE, url="javascript:alert(1)"),
                scenario=HOSTILE,
            ),
            outcome=Outcome.FAILED,
            detail=HOSTILE,
        ),
        result(9, Level.MUST, Outcome.FAILED, detail=HOSTILE, url='https://example.test/"><script>' + HOSTILE),
        result(9, Level.MAY, Outcome.FAILED, detail=HOSTILE, group="-"),
        result(8, Level.MAY, Outcome.SKIPPED, detail=HOSTILE),
    ),
    timelines=(
        Timeline(
            scenario=HOSTILE,
            title=HOSTILE,
            seconds=float("-inf"),
            attempts=(
                Attempt(after=float("nan"), answer=HOSTILE, message=-3),
                Attempt(after=-1.0, answer="²00", message=9),
            ),
        ),
        Timeline(scenario="none", title="Nothing came.", seconds=0.0),
    ),
)
EMPTY = replace(REPORT, results=(), timelines=())
ALL = pytest.mark.parametrize("report", [REPORT, BAD, EMPTY], ids=["usual", "hostile", "empty"])

#: what must never stand in a report in its raw form
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f\x80-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff\ufffe\uffff]")


def printed(report: Report, *, width: int = 100, color: bool = False) -> str:
    console = Console(
        file=io.StringIO(),
        width=width,
        force_terminal=color,
        no_color=not color,
        color_system="standard" if color else None,
    )
    to_terminal(report, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# --- the terminal -------------------------------------------------------------------------------------------


def test_the_terminal_shows_failures_first_and_the_score_last() -> None:
    text = printed(REPORT)
    lines = text.splitlines()
    order = [
        text.index(one) for one in ("✗ SIGN-03 MUST", "It should be 2.", "✗ SIGN-02 MAY", "SIGN: MUST", "TIME: SHOULD")
    ]
    assert order == sorted(order)
    assert "RFC 9110, section 5.5 https://www.rfc-editor.org/rfc/rfc9110" in text
    assert "SIGN: MUST 1 passed, 1 failed, 0 skipped; MAY 0 passed, 1 failed, 0 skipped" in text
    assert "There is no clock." in text
    assert lines[-1] == "2 of 4 passed (MUST 1/2, SHOULD 1/1, MAY 0/1); 2 failed, 1 skipped. In 1.500 s."


@ALL
def test_the_terminal_is_sent_no_codes_but_its_own(report: Report) -> None:
    assert not UNSEEN.search(printed(report))
    in_colour = printed(report, color=True)
    assert not UNSEEN.search(re.sub(r"\x1b\[[0-9;]*m", "", in_colour))
    assert printed(report, width=20)
    if report is BAD:
        assert "[bold]markup[/bold]" in printed(report, width=2000)


# --- JSON ---------------------------------------------------------------------------------------------------


def test_json_has_the_documented_keys() -> None:
    content = json.loads(to_json(REPORT))
    assert content == {
        "format": 1,
        "subject": "a sender 1.0",
        "kind": "sender",
        "started_at": 1_700_000_000.0,
        "seconds": 1.5,
        "passes": False,
        "score": {"passed": 2, "failed": 2, "skipped": 1},
        "levels": {
            "MUST": {"passed": 1, "failed": 1, "skipped": 0},
            "SHOULD": {"passed": 1, "failed": 0, "skipped": 1},
            "MAY": {"passed": 0, "failed": 1, "skipped": 0},
        },
        "results": content["results"],
        "timelines": [
            {
                "scenario": "retries",
                "title": "It was answered 500.",
                "seconds": 1.0,
                "attempts": [
                    {"after": 0.0, "answer": "500", "message": 1},
                    {"after": 0.25, "answer": "timeout", "message": 1},
                    {"after": 0.5, "answer": "200", "message": 2},
                    {"after": 1.0, "answer": "401", "message": 3},
                ],
            }
        ],
    }
    assert content["results"][2] == {
        "id": "SIGN-03",
        "group": "SIGN",
        "level": "MUST",
        "title": "Requirement 3 holds.",
        "scenario": "signatures",
        "source": {"name": "RFC 9110, section 5.5", "url": "https://www.rfc-editor.org/rfc/rfc9110"},
        "outcome": "failed",
        "detail": "It was 1.\nIt should be 2.",
    }
    documented = set(re.findall(r"`([a-z_]+)`", to_json.__doc__ or ""))
    assert set(content) | set(content["results"][0]) - {"source"} <= documented | {"levels"}


@ALL
def test_json_is_ascii_and_keeps_texts_as_they_are(report: Report) -> None:
    text = to_json(report)
    assert text.isascii()

    def refuse(name: str) -> float:
        raise AssertionError(name)

    content = json.loads(text, parse_constant=refuse)
    assert [one["detail"] for one in content["results"]] == [one.detail for one in report.results]
    assert to_json(report) == text


# --- JUnit --------------------------------------------------------------------------------------------------


def test_junit_has_a_suite_for_each_group() -> None:
    root = Xml.fromstring(to_junit(REPORT))
    assert root.tag == "testsuites"
    assert {name: root.get(name) for name in ("tests", "failures", "errors", "skipped", "time")} == {
        "tests": "5",
        "failures": "1",
        "errors": "0",
        "skipped": "2",
        "time": "1.500",
    }
    assert [(suite.get("name"), suite.get("tests"), suite.get("failures"), suite.get("skipped")) for suite in root] == [
        ("SIGN", "3", "1", "1"),
        ("TIME", "2", "0", "1"),
    ]
    assert root[0].get("timestamp") == "2023-11-14T22:13:20"
    failure = root.find("testsuite/testcase[@name='SIGN-03 Requirement 3 holds.']/failure")
    assert failure is not None
    assert failure.get("message") == "It was 1."
    assert failure.get("type") == "MUST"
    assert (failure.text or "").splitlines() == [
        "It was 1.",
        "It should be 2.",
        "Asked: Requirement 3 holds.",
        "Level: MUST",
        "Scenario: signatures",
        "Source: RFC 9110, section 5.5 https://www.rfc-editor.org/rfc/rfc9110",
    ]
    lighter = root.find("testsuite/testcase[@name='SIGN-02 Requirement 2 holds.']/skipped")
    assert lighter is not None
    assert lighter.get("message") == "failed, but it is a MAY: It may, and does not."
    assert (lighter.text or "").splitlines()[1] == "Asked: Requirement 2 holds."
    assert "https://" in (lighter.text or "")


@pytest.mark.parametrize(("strictness", "failures"), [(Level.MUST, 1), (Level.SHOULD, 1), (Level.MAY, 2)])
def test_junit_fails_what_weighs_enough(strictness: Level, failures: int) -> None:
    root = Xml.fromstring(to_junit(REPORT, strictness=strictness))
    assert root.get("failures") == str(failures) == str(len(root.findall(".//failure")))


@ALL
def test_junit_is_well_formed(report: Report) -> None:
    text = to_junit(report)
    assert not UNSEEN.search(text)
    root = Xml.fromstring(text.encode("utf-8"))
    assert len(root.findall("testsuite/testcase")) == len(report.results)
    assert not root.findall(".//script")


# --- HTML ---------------------------------------------------------------------------------------------------

VOID = {"meta", "br", "link", "img", "input", "hr", "source", "area", "base", "col", "embed", "track", "wbr"}
LOADING = {"src", "srcset", "data", "poster", "background", "action", "formaction", "ping", "xlink:href"}


class Page(HTMLParser):
    """Reads a page strictly: what is opened is closed, in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _value in attrs}) == len(attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append((self.open[-1] if self.open else "", data))

    def handle_comment(self, data: str) -> None:
        raise AssertionError("a comment")

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def texts(self, tag: str) -> list[str]:
        return [text for within, text in self.text if within == tag]


@ALL
def test_html_is_balanced_and_loads_nothing(report: Report) -> None:
    text = to_html(report)
    assert not UNSEEN.search(text)
    page = Page(text)
    names = {name for name, _attributes in page.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "base", "form", "image", "use", "video"}
    for _name, attributes in page.tags:
        assert not LOADING & set(attributes)
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
    assert all((one["href"] or "").startswith("https://") for one in page.all("a"))
    style = "".join(page.texts("style"))
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style
    assert "default-src 'none'" in str(page.all("meta"))
    assert "$" not in text.replace("$title ${x}", "")
    ids = [attributes["id"] for _name, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


@ALL
def test_html_tables_can_be_read_aloud(report: Report) -> None:
    page = Page(to_html(report))
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(one.get("scope") in {"col", "row"} for one in page.all("th"))
    assert len(page.all("svg")) == len(report.timelines) == len(page.all("details"))
    for picture in page.all("svg"):
        assert picture["role"] == "img"
        assert picture["aria-labelledby"] in {one.get("id") for one in page.all("title")}


def test_html_tells_what_was_seen() -> None:
    page = Page(to_html(REPORT))
    assert "a sender 1.0" in page.texts("h1")[0]
    assert [one[:12] for one in page.texts("h3")] == ["SIGN-03 MUST", "SIGN-02 MAY:"]
    assert "2 of 4 passed" in page.texts("span")[0]
    assert "Timeline of retries: 1 of 200, 1 of 401, 1 of 500, 1 of timeout" in page.texts("title")
    assert "message 1 after 0.250 s: timeout" in page.texts("title")
    assert [one["class"] for one in page.all("path")] == ["a5", "a0", "a2", "a4"]


def test_html_shows_hostile_texts_as_texts() -> None:
    page = Page(to_html(BAD))
    seen = next(text for tag, text in page.text if tag == "p" and text.startswith("<script>"))
    assert seen.startswith("<script>alert(1)</script> ]]> <!-- & \" ' </title></style></svg>")
    assert "\\u202e\\u2066" in seen
    assert "\\ud800" in seen
    assert "javascript:" not in str([one["href"] for one in page.all("a")])


def test_a_long_timeline_is_cut_and_says_so() -> None:
    many = tuple(Attempt(after=number / 10, answer="200", message=number) for number in range(1, 1001))
    timeline = replace(REPORT.timelines[0], attempts=many)
    page = Page(to_html(replace(REPORT, timelines=(timeline,))))
    assert len(page.all("path")) == 400
    assert "600 more are not" in str(page.texts("figcaption"))


# --- texts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\nc é € 😀 ~ \u00a0", "a\tb\nc é € 😀 ~ \u00a0"),
        ("\x00\x1b\x7f\x85\r", "\\u0000\\u001b\\u007f\\u0085\\u000d"),
        ("\u202e\u2066\u200b\ufeff\u2028", "\\u202e\\u2066\\u200b\\ufeff\\u2028"),
        ("\ud800\ufffe\U000e0041\U0010ffff", "\\ud800\\ufffe\\U000e0041\\U0010ffff"),
    ],
)
def test_what_cannot_be_seen_is_written_out(text: str, shown: str) -> None:
    assert visible(text) == shown


@pytest.mark.parametrize(
    ("results", "strictness", "code"),
    [
        (RESULTS, Level.SHOULD, 1),
        (RESULTS[:2], Level.SHOULD, 0),
        (RESULTS[:2], Level.MAY, 1),
        (RESULTS[3:], Level.MAY, 0),
        (RESULTS[3:4], Level.MUST, 2),
        ((), Level.MUST, 2),
    ],
)
def test_the_exit_code_says_what_was_found(results: tuple[Result, ...], strictness: Level, code: int) -> None:
    """And 2 says that nothing was: who can be asked nothing has not passed."""
    assert replace(REPORT, results=results).exit_code(strictness) == code
