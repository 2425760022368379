"""The installation as a whole."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class ProcessorView(Struct, kw_only=True):
    """A task type, and the time that one try at it is given: choose a token's `exp` beyond it."""

    type: str
    kind: str
    timeout: float
    tries: int


class ProcessorList(Struct, kw_only=True):
    """Every task type that is taken."""

    items: list[ProcessorView]


class EgressAddresses(Struct, kw_only=True):
    """The addresses that deliveries come from, as the operator stated them."""

    items: list[str]


class Worker(Struct, kw_only=True):
    """A process of this installation, by its session, with counts of what it has leased and keeps."""

    id: str
    host: str
    pid: int
    role: str
    version: str
    state: Literal["live", "overdue"]
    started_at: str
    heartbeat_age: float | None
    deliveries: int
    tasks: int
    paces: int


class WorkerList(Struct, kw_only=True):
    """Every process, the oldest first."""

    items: list[Worker]


class Health(Struct, kw_only=True):
    """A probe's answer."""

    status: str
