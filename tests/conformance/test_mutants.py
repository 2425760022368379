"""The kit is examined itself: it has to find each fault of a bad sender."""

from __future__ import annotations

import asyncio
import tomllib
from pathlib import Path

import pytest

from dispatcher.conformance.certificates import Authority
from dispatcher.conformance.results import Outcome, Report
from dispatcher.conformance.sender_examination.checks import CHECKS
from dispatcher.conformance.sender_examination.command_sender import CommandSender
from dispatcher.conformance.sender_examination.examination import examine
from tests.conformance.examining import examined
from tests.conformance.mutants import MUTANTS, Mutant
from tests.conformance.nursery import Nursery

#: mutants that run at once: most of the time they wait
AT_ONCE = 24
#: how often a mutant is looked at by itself: what a crowd, or the machine, adds to distances in time may hide it
LOOKS = 3
#: mutants that a crowd may hide. A check that overlooks more of them is no good, though it sees them at another look.
HIDDEN = 5
ROOT = Path(__file__).parents[2]


def _escapes(mutant: Mutant, report: Report) -> list[str]:
    """What the kit did not find about a mutant, or found for another reason than its fault."""
    wrong = []
    for result in report.results:
        is_caught = result.outcome is Outcome.FAILED and (
            mutant.says in result.detail if mutant.says else "no request came" not in result.detail
        )
        if not is_caught:
            wrong.append(f"{mutant.name} ({mutant.fault}) at {result.requirement.id}: {result.outcome} {result.detail}")
    return wrong


@pytest.mark.timeout(400)  # most of it is waiting, and a busy machine makes it longer
async def test_every_mutant_is_caught(
    senders: Nursery, authority: Authority, certificate: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each mutant fails each check that is meant for it, for what it does wrong."""
    at_once = asyncio.Semaphore(AT_ONCE)

    async def escapes(mutant: Mutant) -> list[str]:
        async with at_once:
            return await look(mutant)

    async def look(mutant: Mutant) -> list[str]:
        command = senders.command(f"mutant:{mutant.name}")
        return _escapes(mutant, await examined(command, authority, certificate, *mutant.checks))

    async def look_again(mutant: Mutant) -> list[str]:
        wrong: list[str] = []
        for _ in range(LOOKS):
            if not (wrong := await look(mutant)):
                break
        return wrong

    ordered = sorted(MUTANTS.values(), key=lambda mutant: mutant.turn)
    together = [mutant for mutant in ordered if not mutant.is_known_by_distances]
    found = dict(zip(together, await asyncio.gather(*map(escapes, together)), strict=True))
    hidden = [text for wrong in found.values() for text in wrong]
    apart = [mutant for mutant in ordered if found.get(mutant) != []]
    found |= dict(zip(apart, await asyncio.gather(*map(look_again, apart)), strict=True))
    with capsys.disabled():
        caught = list(found.values()).count([])
        print(f"\n{caught} of {len(found)} broken senders caught by the checks meant for them")
        print("".join(f"at the second look: {text}\n" for text in hidden), end="")
    escaped = [text for wrong in found.values() for text in wrong]
    assert not escaped, "\n".join(escaped)
    assert len(hidden) <= HIDDEN, "\n".join(hidden)


async def test_what_shows_nothing_is_not_passed(senders: Nursery, authority: Authority, certificate: Path) -> None:
    """That nothing came to where nothing may come says little of a sender from whom nothing comes at all."""
    report = await examined(senders.command("mutant:admits-nobody"), authority, certificate, "EGRESS-0[3-7]")
    assert [(one.requirement.id, one.outcome) for one in report.results] == [
        ("EGRESS-03", Outcome.FAILED),
        *((f"EGRESS-0{number}", Outcome.SKIPPED) for number in (4, 5, 6, 7)),
    ]
    assert {one.detail.partition(":")[0] for one in report.results[1:]} == {"it shows nothing while EGRESS-03 fails"}


async def test_without_a_neighbourhood_it_says_so(senders: Nursery, authority: Authority, certificate: Path) -> None:
    """A system may have one address on loopback only."""
    async with CommandSender(senders.command("good:complete"), authority=certificate) as sender:
        report = await examine(sender, authority, only=["EGRESS-*"])
    assert {(one.outcome, one.detail) for one in report.results} == {
        (Outcome.SKIPPED, "the kit has no addresses beside 127.0.0.1 here")
    }


async def test_a_sender_is_a_command_like_any_other(authority: Authority, certificate: Path) -> None:
    """The example runs by itself, as its profile says."""
    profile = ROOT / "examples" / "other_sender" / "profile.toml"
    command = tomllib.loads(profile.read_text())["command"]
    async with CommandSender(command, authority=certificate, cwd=profile.parent) as sender:
        report = await examine(sender, authority, only=["HTTP-0[1-6]", "BODY-02", "ID-01", "SIGN-2[12]"])
    assert [one.requirement.id for one in report.results if one.outcome is not Outcome.PASSED] == []


def test_every_check_has_a_mutant() -> None:
    """No check is believed that was never seen to fail."""
    meant = {check for mutant in MUTANTS.values() for check in mutant.checks}
    assert CHECKS.keys() == meant


def test_names_are_known() -> None:
    """A check that is renamed is missed here, not in the middle of an examination."""
    assert {check for mutant in MUTANTS.values() for check in mutant.checks} <= CHECKS.keys()
