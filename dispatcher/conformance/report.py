"""A report for people and for machines: the terminal, JSON, JUnit and one HTML file.

Texts in a report may hold what a stranger sent. Wherever they are shown, control characters and those that turn the
direction of text are written out (`\\u202e`), and markup is escaped.
"""

from __future__ import annotations

import html
import itertools
import json
import math
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from string import Template
from xml.etree import ElementTree as Xml

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from dispatcher.conformance.results import Attempt, Level, Outcome, Report, Result, Timeline

#: of the JSON form; grows when a key goes or changes its meaning, not when one comes
JSON_FORMAT = 1

_STYLES = {Outcome.PASSED: "green", Outcome.FAILED: "bold red", Outcome.SKIPPED: "yellow"}
_MARKS = {Outcome.PASSED: "✓", Outcome.FAILED: "✗", Outcome.SKIPPED: "-"}
#: control, format, surrogate and private characters, and those that are none; line and paragraph separators
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})

#: faults that are answers in good HTTP all the same
_NAMED = {"set-cookie": "2", "late": "2", "torn": "2", "second-answer": "2", "redirect": "3"}
_LEGEND = (
    '<p class="quiet">Time goes to the right, and each message has a row. A disc is an answer of 2xx, a square of 3xx'
    " or 4xx, a triangle of 5xx, and a cross is no answer, or none that is HTTP.</p>\n"
)

#: attempts that a picture and its table show
_MAX_SHOWN = 400
# a picture's sizes, in its own units
_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM, _ROW, _TALLEST = 900, 60, 20, 16, 28, 18, 360


@dataclass(frozen=True, kw_only=True, slots=True)
class _Counts:
    """How many fared how."""

    passed: int
    failed: int
    skipped: int

    @property
    def asked(self) -> int:
        """Those that could be looked for."""
        return self.passed + self.failed

    def as_dict(self) -> dict[str, int]:
        return {"passed": self.passed, "failed": self.failed, "skipped": self.skipped}


# --- the terminal -------------------------------------------------------------------------------------------


def to_terminal(report: Report, console: Console) -> None:
    """Failures with what was seen, then each group's table, then the score."""
    console.print(Text(f"{visible(report.subject)}, examined as a {visible(report.kind)}", style="bold"))
    for one in _by_weight(report.failed()):
        _print_failure(one, console)
    for group, results in _groups(report):
        console.print(Text(f"{visible(group)}: {_levels_in_words(results)}", style="bold"))
        console.print(_table_of(results))
    style = "bold red" if report.exit_code() else "bold green"
    console.print(Text(f"{_score(report)} In {_seconds(report.seconds)}.", style=style))


def _print_failure(one: Result, console: Console) -> None:
    asked = one.requirement
    head = Text.assemble(("✗ ", "bold red"), (f"{visible(asked.id)} {asked.level} ", "bold"), visible(asked.title))
    console.print(head)
    source = visible(f"{asked.source.name} {asked.source.url}").strip()
    for text, style in ((visible(one.detail), ""), (f"In: {visible(asked.scenario)}. Source: {source}", "dim")):
        console.print(Padding(Text(text, style=style, overflow="fold"), (0, 0, 0, 2)))


def _table_of(results: Sequence[Result]) -> Table:
    table = Table()
    table.add_column("", width=1)
    table.add_column("id", no_wrap=True)
    table.add_column("level", no_wrap=True)
    table.add_column("what is asked", overflow="fold")
    for one in results:
        asked = one.requirement
        title = Text(visible(asked.title))
        if one.outcome is Outcome.SKIPPED and one.detail:
            title.append(f"\n{visible(one.detail)}", style="dim")
        style = _STYLES[one.outcome]
        table.add_row(Text(_MARKS[one.outcome], style=style), Text(visible(asked.id)), Text(asked.level), title)
    return table


# --- JSON ---------------------------------------------------------------------------------------------------


def to_json(report: Report) -> str:
    """One JSON object in ASCII, with a line feed at its end.

    `format` (1); `subject`; `kind` ("sender" or "receiver"); `started_at` (Unix seconds); `seconds`; `passes` (nothing
    failed that is a MUST or a SHOULD); `score` and `levels.MUST|SHOULD|MAY`, each with `passed`, `failed` and
    `skipped`; `results`, in the report's order, each with `id`, `group`, `level`, `title`, `scenario`,
    `source.name`, `source.url`, `outcome` and `detail`; `timelines`, each with `scenario`, `title`, `seconds` and
    `attempts`, each of which has `after` (seconds), `answer` and `message`.
    """
    content = {
        "format": JSON_FORMAT,
        "subject": report.subject,
        "kind": report.kind,
        "started_at": _number(report.started_at),
        "seconds": _number(report.seconds),
        "passes": not report.exit_code(),
        "score": _count(report.results).as_dict(),
        "levels": {level.value: _count(_of(report.results, level)).as_dict() for level in Level},
        "results": [_result_as_dict(one) for one in report.results],
        "timelines": [
            {
                "scenario": timeline.scenario,
                "title": timeline.title,
                "seconds": _number(timeline.seconds),
                "attempts": [
                    {"after": _number(one.after), "answer": one.answer, "message": one.message}
                    for one in timeline.attempts
                ],
            }
            for timeline in report.timelines
        ],
    }
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _result_as_dict(one: Result) -> dict[str, object]:
    asked = one.requirement
    return {
        "id": asked.id,
        "group": _group(one),
        "level": asked.level.value,
        "title": asked.title,
        "scenario": asked.scenario,
        "source": {"name": asked.source.name, "url": asked.source.url},
        "outcome": one.outcome.value,
        "detail": one.detail,
    }


# --- JUnit --------------------------------------------------------------------------------------------------


def to_junit(report: Report, *, strictness: Level = Level.SHOULD) -> str:
    """JUnit XML: a suite for each group, a case for each requirement.

    What failed and weighs less than `strictness` is shown as skipped, with what was seen: a build that a failure
    stops would otherwise stop for a MAY.
    """
    root = Xml.Element("testsuites", {"name": visible(report.subject), "time": f"{_number(report.seconds):.3f}"})
    started = _moment(report.started_at).strftime("%Y-%m-%dT%H:%M:%S")
    heavy = list(Level)[: list(Level).index(strictness) + 1]
    for group, results in _groups(report):
        suite = Xml.SubElement(root, "testsuite", {"name": visible(group), "timestamp": started})
        for one in results:
            _add_case(suite, one, report.kind, is_heavy=one.requirement.level in heavy)
        _sum_up(suite)
    for name in ("tests", "failures", "errors", "skipped"):
        root.set(name, str(sum(int(suite.get(name, "0")) for suite in root)))
    Xml.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + Xml.tostring(root, encoding="unicode") + "\n"


def _add_case(suite: Xml.Element, one: Result, kind: str, *, is_heavy: bool) -> None:
    asked = one.requirement
    name = f"{asked.id} {asked.title}"
    place = f"{kind}.{_group(one)}"
    case = Xml.SubElement(suite, "testcase", {"classname": visible(place), "name": visible(name), "time": "0"})
    first_line = visible(one.detail.partition("\n")[0])
    if one.outcome is Outcome.FAILED and is_heavy:
        failure = Xml.SubElement(case, "failure", {"message": first_line, "type": asked.level.value})
        failure.text = _in_full(one)
    elif one.outcome is Outcome.FAILED:
        light = Xml.SubElement(case, "skipped", {"message": f"failed, but it is a {asked.level}: {first_line}"})
        light.text = _in_full(one)
    elif one.outcome is Outcome.SKIPPED:
        Xml.SubElement(case, "skipped", {"message": first_line})


def _in_full(one: Result) -> str:
    asked = one.requirement
    return visible(
        f"{one.detail}\nAsked: {asked.title}\nLevel: {asked.level}\nScenario: {asked.scenario}\n"
        f"Source: {asked.source.name} {asked.source.url}".rstrip()
    )


def _sum_up(suite: Xml.Element) -> None:
    suite.set("tests", str(len(suite.findall("testcase"))))
    suite.set("failures", str(len(suite.findall("testcase/failure"))))
    suite.set("errors", "0")
    suite.set("skipped", str(len(suite.findall("testcase/skipped"))))


# --- HTML ---------------------------------------------------------------------------------------------------


def to_html(report: Report) -> str:
    """One HTML file that needs nothing else: no scripts, no fonts, no images from elsewhere."""
    template = Template(resources.files(__package__).joinpath("report.html").read_text("utf-8"))
    passes = not report.exit_code()
    failures = _by_weight(report.failed())
    return template.substitute(
        title=_escaped(f"Conformance of {report.subject}"),
        when=_escaped(
            f"Examined as a {report.kind} at {_moment(report.started_at):%Y-%m-%d %H:%M:%S} UTC,"
            f" in {_seconds(report.seconds)}."
        ),
        verdict=f'<span class="{"passed" if passes else "failed"}">{_escaped(_score(report))}</span>',
        score=_score_table(report),
        failures=_section("What failed", "".join(map(_failure, failures))) if failures else "",
        groups=_section("What was asked", "".join(_group_table(*one) for one in _groups(report))),
        timelines=_section("What was seen", _LEGEND + "".join(_timelines(report.timelines)))
        if report.timelines
        else "",
    )


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{_escaped(title)}</h2>\n{content}</section>\n"


def _score_table(report: Report) -> str:
    rows = [(level.value, _count(_of(report.results, level))) for level in Level]
    rows.append(("all", _count(report.results)))
    body = "".join(
        f'<tr><th scope="row">{name}</th><td>{one.passed}</td><td>{one.failed}</td><td>{one.skipped}</td></tr>\n'
        for name, one in rows
    )
    return _table("Score by level", ("level", "passed", "failed", "skipped"), body)


def _table(caption: str, columns: Sequence[str], body: str, *, kind: str = "plain") -> str:
    head = "".join(f'<th scope="col">{_escaped(one)}</th>' for one in columns)
    return (
        f'<table class="{kind}">\n<caption>{_escaped(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}</tbody>\n</table>\n"
    )


def _failure(one: Result) -> str:
    asked = one.requirement
    return (
        f'<article class="failure">\n<h3>{_escaped(asked.id)} {asked.level}: {_escaped(asked.title)}</h3>\n'
        f'<p class="seen">{_escaped(one.detail)}</p>\n'
        f'<p class="quiet">Scenario: {_escaped(asked.scenario)}. Source: {_source(one)}</p>\n</article>\n'
    )


def _group_table(group: str, results: Sequence[Result]) -> str:
    rows = []
    for one in results:
        asked = one.requirement
        detail = f'<br><span class="quiet seen">{_escaped(one.detail)}</span>' if one.detail else ""
        rows.append(
            f'<tr><th scope="row">{_escaped(asked.id)}</th><td>{asked.level}</td>'
            f'<td class="{one.outcome}"><span aria-hidden="true">{_MARKS[one.outcome]}</span> {one.outcome}</td>'
            f"<td>{_escaped(asked.title)}{detail}</td><td>{_source(one)}</td></tr>\n"
        )
    caption = f"{group}: {_levels_in_words(results)}"
    columns = ("id", "level", "outcome", "what is asked", "source")
    return f'<div class="wide">{_table(caption, columns, "".join(rows), kind="results")}</div>\n'


def _source(one: Result) -> str:
    source = one.requirement.source
    # anything but a web address is shown, and leads nowhere
    if not source.url.startswith(("https://", "http://")):
        return _escaped(f"{source.name} {source.url}".strip())
    return f'<a href="{_escaped(source.url)}" rel="noreferrer">{_escaped(source.name or source.url)}</a>'


def _timelines(timelines: Sequence[Timeline]) -> Iterator[str]:
    for number, timeline in enumerate(timelines, 1):
        shown = timeline.attempts[:_MAX_SHOWN]
        left_out = len(timeline.attempts) - len(shown)
        note = f" The first {len(shown)} are shown; {left_out} more are not." if left_out else ""
        rows = "".join(
            f'<tr><th scope="row">{_seconds(one.after)}</th><td>{one.message}</td>'
            f"<td>{_escaped(one.answer)}</td></tr>\n"
            for one in shown
        )
        table = _table(f"Attempts of {timeline.scenario}", ("after", "message", "answer"), rows)
        yield (
            f"<figure>\n<figcaption><strong>{_escaped(timeline.scenario)}</strong>: {_escaped(timeline.title)}"
            f" {_requests(len(timeline.attempts))} in {_seconds(timeline.seconds)}.{note}</figcaption>\n"
            f'<div class="wide">{_picture(number, timeline, shown)}</div>'
            f'<details>\n<summary>The same as a table</summary>\n<div class="wide">{table}</div></details>\n</figure>\n'
        )


def _requests(count: int) -> str:
    return "1 request" if count == 1 else f"{count} requests"


def _picture(number: int, timeline: Timeline, shown: Sequence[Attempt]) -> str:
    """Time goes to the right; each message has a row."""
    rows = max((one.message for one in shown), default=1)
    height = min(rows * _ROW, _TALLEST)
    length = max([_number(timeline.seconds), *(_number(one.after) for one in shown), 0.001])
    bottom = _TOP + height
    parts = [
        f'<svg role="img" aria-labelledby="timeline-{number}" viewBox="0 0 {_WIDTH} {bottom + _BOTTOM}">\n',
        f'<title id="timeline-{number}">{_escaped(f"Timeline of {timeline.scenario}: {_in_short(shown)}")}</title>\n',
        f'<text x="4" y="{_TOP + 4}">message</text>\n',
    ]
    for quarter in range(5):
        x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * quarter / 4
        anchor = "end" if quarter == 4 else "middle"
        parts.append(f'<line x1="{x:.1f}" y1="{_TOP - 8}" x2="{x:.1f}" y2="{bottom}"/>\n')
        at = _seconds(length * quarter / 4)
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="{anchor}">{at}</text>\n')
    for one in shown:
        share = min(max(_number(one.after) / length, 0.0), 1.0)
        x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * share
        y = _TOP + height * (min(max(one.message, 1), rows) - 0.5) / rows
        told = _escaped(f"message {one.message} after {_seconds(one.after)}: {one.answer}")
        parts.append(f"<g>{_marker(one.answer, x, y)}<title>{told}</title></g>\n")
    return "".join(parts) + "</svg>\n"


def _marker(answer: str, x: float, y: float) -> str:
    """Its shape tells what its colour tells: a disc 2xx, a square 3xx and 4xx, a triangle 5xx, a cross no answer."""
    shapes = {
        "2": f"M{x - 4:.1f} {y:.1f}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
        "3": f"M{x - 4:.1f} {y - 4:.1f}h8v8h-8z",
        "4": f"M{x - 4:.1f} {y - 4:.1f}h8v8h-8z",
        "5": f"M{x:.1f} {y - 5:.1f}l5 9h-10z",
        "0": f"M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8",
    }
    kind = _kind(answer)
    return f'<path class="a{kind}" d="{shapes[kind]}"/>'


def _kind(answer: str) -> str:
    is_status = len(answer) == 3 and answer.isascii() and answer.isdigit()
    return answer[0] if is_status and answer[0] in "2345" else _NAMED.get(answer, "0")


def _in_short(shown: Sequence[Attempt]) -> str:
    """How often each answer came."""
    answers = sorted(one.answer for one in shown)
    counted = [(answer, sum(1 for _ in same)) for answer, same in itertools.groupby(answers)]
    return ", ".join(f"{count} of {answer}" for answer, count in counted[:12]) or "no attempts"


# --- what all of them need ----------------------------------------------------------------------------------


def visible(text: str) -> str:
    """The text with all that cannot be seen, or misleads the eye, written out; line feeds and tabs stay."""
    return "".join(one if one in "\n\t" or unicodedata.category(one) not in _UNSEEN else _written(one) for one in text)


def _written(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _escaped(text: str) -> str:
    return html.escape(visible(text))


def _group(one: Result) -> str:
    return one.requirement.id.rpartition("-")[0] or one.requirement.id


def _groups(report: Report) -> list[tuple[str, list[Result]]]:
    """The results by group, in the order in which groups first come."""
    groups: dict[str, list[Result]] = {}
    for one in report.results:
        groups.setdefault(_group(one), []).append(one)
    return list(groups.items())


def _by_weight(results: Iterable[Result]) -> list[Result]:
    return sorted(results, key=lambda one: list(Level).index(one.requirement.level))


def _of(results: Iterable[Result], level: Level) -> list[Result]:
    return [one for one in results if one.requirement.level is level]


def _count(results: Iterable[Result]) -> _Counts:
    outcomes = [one.outcome for one in results]
    return _Counts(
        passed=outcomes.count(Outcome.PASSED),
        failed=outcomes.count(Outcome.FAILED),
        skipped=outcomes.count(Outcome.SKIPPED),
    )


def _score(report: Report) -> str:
    """A line such as: 51 of 57 passed (MUST 36/38, SHOULD 12/15, MAY 3/4); 6 failed, 3 skipped."""
    counts = _count(report.results)
    levels = ", ".join(
        f"{level} {one.passed}/{one.asked}" for level in Level if (one := _count(_of(report.results, level))).asked
    )
    return (
        f"{counts.passed} of {counts.asked} passed{f' ({levels})' if levels else ''};"
        f" {counts.failed} failed, {counts.skipped} skipped."
    )


def _levels_in_words(results: Sequence[Result]) -> str:
    """The counts of each level that occurs."""
    words = []
    for level in Level:
        found = _of(results, level)
        if found:
            counts = _count(found)
            words.append(f"{level} {counts.passed} passed, {counts.failed} failed, {counts.skipped} skipped")
    return "; ".join(words)


def _number(value: float) -> float:
    """Zero instead of what JSON has no word for."""
    return value if math.isfinite(value) else 0.0


def _seconds(value: float) -> str:
    value = _number(value)
    return f"{value:.3f} s" if value < 10 else f"{value:.1f} s"


def _moment(at: float) -> datetime:
    try:
        return datetime.fromtimestamp(at, UTC)
    except (ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(0, UTC)
