"""Examines a sender that is a command."""

from __future__ import annotations

import contextlib
from pathlib import Path

from dispatcher.conformance.certificates import Authority
from dispatcher.conformance.results import Report
from dispatcher.conformance.sender_examination.command_sender import CommandSender
from dispatcher.conformance.sender_examination.examination import examine
from dispatcher.conformance.sender_examination.neighbourhood import Neighbourhood


async def examined(command: list[str], authority: Authority, certificate: Path, *only: str) -> Report:
    """What the kit says of a sender."""
    # Who is asked nothing of it needs no neighbourhood, and dozens of them are work.
    needs_one = not only or any(id_.startswith("EGRESS") for id_ in only)
    place = Neighbourhood(authority) if needs_one else contextlib.nullcontext()
    async with (
        place as next_door,
        CommandSender(command, authority=certificate, neighbourhood=next_door) as sender,
    ):
        return await examine(sender, authority, neighbourhood=next_door, only=only)
