"""The kit is examined itself: it finds no fault where there is none."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from dispatcher.conformance.certificates import Authority
from dispatcher.conformance.results import Level, Outcome
from tests.conformance.examining import examined
from tests.conformance.good_senders import GOOD, Good
from tests.conformance.nursery import Nursery

#: senders that are put through everything at once
AT_ONCE = 4


@pytest.mark.timeout(400)
async def test_the_good_are_not_blamed(
    senders: Nursery, authority: Authority, certificate: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """However a good sender does it: nothing of weight fails."""
    at_once = asyncio.Semaphore(AT_ONCE)

    async def blamed(name: str, good: Good) -> list[str]:
        async with at_once:
            report = await examined(senders.command(f"good:{name}"), authority, certificate)
        failed = report.failed(Level.MUST, Level.SHOULD)
        wrong = [f"{name}: {one.requirement.id} {one.detail}" for one in failed]
        skipped = [one.requirement.id for one in report.results if one.outcome is Outcome.SKIPPED]
        return [*wrong, f"{name}: skipped {skipped}"] if good.is_complete and skipped else wrong

    found = await asyncio.gather(*(blamed(name, good) for name, good in GOOD.items()))
    with capsys.disabled():
        print(f"\n{found.count([])} of {len(found)} good senders blamed for nothing")
    wrong = [text for one in found for text in one]
    assert not wrong, "\n".join(wrong)
