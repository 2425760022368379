"""What is said of the kit is so: its numbers, its tables, and the report that stands in the repository."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dispatcher.conformance.faults import FAULTS
from dispatcher.conformance.receiver_examination.probe import REQUIREMENTS
from dispatcher.conformance.sender_examination.checks import CHECKS
from dispatcher.conformance.sender_examination.senders import ABILITIES

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "docs/conformance.md"])
def test_numbers_are_those_of_the_kit(name: str) -> None:
    text = " ".join((ROOT / name).read_text("utf-8").split())
    of_senders = re.findall(r"([0-9]+)(?: numbered)? requirements(?!, `RECV)", text)
    of_receivers = re.findall(
        r"([0-9]+) requirements, `RECV-01`|any receiver against ([0-9]+)|a receiver, against ([0-9]+)", text
    )
    faults = re.findall(r"([0-9]+) faults", text)

    assert set(of_senders) == {str(len(CHECKS))}
    assert {"".join(found) for found in of_receivers} == {str(len(REQUIREMENTS))}
    assert set(faults) <= {str(len(FAULTS))}


def test_every_group_and_ability_is_named() -> None:
    text = (ROOT / "docs" / "conformance.md").read_text("utf-8")
    groups = re.findall("`([A-Z]+)`", "".join(re.findall(r"^\| (`[A-Z`, ]+) \|", text, re.MULTILINE)))
    abilities = text.partition("| ability |")[2].partition("\n\n")[0]

    assert set(groups) == {id_.partition("-")[0] for id_ in CHECKS}
    assert [ability for ability in ABILITIES if f"`{ability}`" not in abilities and "scheme:" not in ability] == []


def test_the_report_in_the_repository_has_all_that_is_asked() -> None:
    text = (ROOT / "docs" / "conformance-report.html").read_text("utf-8")

    assert f"{len(CHECKS)} of {len(CHECKS)} passed" in text
    assert [id_ for id_ in CHECKS if f">{id_}<" not in text] == []
