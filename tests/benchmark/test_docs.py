"""docs/performance.md says what the benchmark does."""

from __future__ import annotations

import re

from scripts.benchmark import rivals
from scripts.benchmark.cases import ALL
from scripts.benchmark.load import payload
from scripts.benchmark.noise import LOUD_LOAD, LOUD_SPREAD, LOUD_STEAL
from scripts.benchmark.processes import ROOT
from scripts.benchmark.scene import FULL, QUICK, Contender

PAGE = (ROOT / "docs" / "performance.md").read_text("utf-8")


def _rows(heading: str) -> dict[str, list[str]]:
    section = re.split(r"^## ", PAGE.partition(f"## {heading}\n")[2], flags=re.MULTILINE)[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    return {first.strip("`"): rest for first, *rest in cells[2:]}


def test_every_case_is_described_with_its_sizes() -> None:
    rows = _rows("Cases")
    assert list(rows) == list(ALL)
    for name, field in (
        ("single", "seconds"),
        ("batch", "seconds"),
        ("endpoints", "endpoints"),
        ("latency", "latency_seconds"),
        ("neighbour", "neighbours"),
        ("drain", "backlog"),
        ("overdue", "backlog"),
        ("backlog", "waiting"),
        ("crowd", "crowd"),
        ("soak", "soak_seconds"),
    ):
        for sizes, said in zip((FULL, QUICK), rows[name][1:], strict=True):
            assert re.findall(r"[\d.,]+", said) == [f"{getattr(sizes, field):,}".removesuffix(".0")], name


def test_every_rival_is_described() -> None:
    names = {value.name for value in vars(rivals).values() if isinstance(value, Contender)}
    assert names == set(_rows("Rivals"))


def test_its_numbers_are_those_of_the_code() -> None:
    text = " ".join(PAGE.split())
    for said in (
        f"load average was over {LOUD_LOAD}",
        f"more than {LOUD_SPREAD:.0%}".replace("%", " %"),
        f"more than {LOUD_STEAL:.0%}".replace("%", " %"),
        f"connections ({FULL.connections};",
        f"{FULL.quiet} quiet endpoints, {FULL.quiet_per_s:g} a second",
    ):
        assert said in text, said
    assert 200 < len(payload(12_345)) < 300
