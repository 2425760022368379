"""This dispatcher, examined by the kit: it passes all that a sender must and should do, and nothing was left out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dispatcher.conformance.certificates import Authority
from dispatcher.conformance.results import Level, Outcome, Report
from dispatcher.conformance.sender_examination.checks import CHECKS
from dispatcher.conformance.sender_examination.examination import chosen, examine
from dispatcher.conformance.sender_examination.neighbourhood import Neighbourhood
from dispatcher.conformance.sender_examination.our_sender import OurSender
from dispatcher.conformance.sender_examination.scenarios import SCENARIOS
from dispatcher.errors import ConfigError


@pytest.fixture
async def report(tmp_path: Path) -> AsyncIterator[Report]:
    authority = Authority()
    certificate = tmp_path / "authority.pem"
    certificate.write_text(authority.pem)
    async with (
        Neighbourhood(authority) as next_door,
        OurSender(authority=certificate, neighbourhood=next_door) as sender,
    ):
        yield await examine(sender, authority, neighbourhood=next_door)


async def test_this_dispatcher_does_what_a_sender_must_and_should(report: Report) -> None:
    wrong = [f"{one.requirement.id} {one.requirement.title}: {one.detail}" for one in report.results]
    failed = [text for text, one in zip(wrong, report.results, strict=True) if one.outcome is not Outcome.PASSED]
    assert not failed
    assert report.exit_code(Level.MAY) == 0
    assert len(report.results) == len(CHECKS) >= 60
    assert {one.scenario for one in report.timelines} == set(SCENARIOS)


def test_each_requirement_says_where_it_comes_from_and_is_looked_for_somewhere() -> None:
    for id_, check in CHECKS.items():
        requirement = check.requirement
        assert requirement.id == id_
        assert requirement.source.name
        assert requirement.title.endswith(".")
        assert requirement.scenario in SCENARIOS
    assert {check.requirement.scenario for check in CHECKS.values()} == set(SCENARIOS)


def test_some_can_be_chosen() -> None:
    assert [check.requirement.id for check in chosen(["TLS-*", "ID-01"])] == [
        "ID-01",
        "TLS-01",
        "TLS-02",
        "TLS-03",
        "TLS-04",
        "TLS-05",
    ]
    with pytest.raises(ConfigError, match="no requirement is called NONE-"):
        chosen(["ID-01", "NONE-*"])
