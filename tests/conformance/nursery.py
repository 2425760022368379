"""Starts senders by the dozen: one process has all that they need, and forks for each.

`command` is what the kit runs: a small client that hands its stdin and stdout over to the process that is forked for
it, and ends with it. Run as a module, this is such a sender.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Iterator

from tests.support.forking import ForkServer

#: the senders, and what httpx imports only once it is used
SENDERS = (
    *("tests.conformance.good_senders", "tests.conformance.mutants", "tests.support.forking"),
    *("anyio._backends._asyncio", "httpcore"),
)


class Nursery:
    """Where senders are forked."""

    def __init__(self, server: ForkServer) -> None:
        self._server = server

    def command(self, name: str) -> list[str]:
        """What runs a sender: `good:wire`, or `mutant:gets`."""
        return self._server.command("tests.conformance.nursery", name)


@contextlib.contextmanager
def nursery() -> Iterator[Nursery]:
    """One nursery, which is gone afterwards, and all its senders with it."""
    server = ForkServer(*SENDERS)
    with contextlib.closing(server):
        yield Nursery(server)


async def _be(name: str) -> None:
    # Those who only start senders need none of this.
    from examples.other_sender.sender import serve  # noqa: PLC0415 - as said
    from tests.conformance.good_senders import GOOD  # noqa: PLC0415 - as said
    from tests.conformance.mutants import MUTANTS  # noqa: PLC0415 - as said

    kind, _, name = name.partition(":")
    await serve(GOOD[name].make() if kind == "good" else MUTANTS[name].make())


if __name__ == "__main__":
    asyncio.run(_be(sys.argv[1]))
