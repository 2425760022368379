"""Where an API works alone: other processes deliver, and hear from each commit what is to be done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from dispatcher.store.records import LeasedDelivery


class Elsewhere:
    """Stands for the engine. It never has room."""

    def reserve(self, lane: str, size: int) -> bool:  # noqa: ARG002 - the engine's signature
        """No place is promised: whatever is accepted waits in the database."""
        return False

    def cancel_reservation(self, lane: str, size: int) -> NoReturn:
        """There is none."""
        raise RuntimeError(f"no place was promised in {lane} to {size} bytes")

    def hand_off(self, deliveries: Sequence[LeasedDelivery]) -> None:
        """Nothing is leased to this process."""
        if deliveries:
            raise RuntimeError(f"no place was promised to {deliveries[0].id}")

    def expect(self, count: int) -> None:
        """Whoever leases counts for itself."""
