"""What processors outside this process say and hear."""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, Raw, Struct, UnsetType, field

from dispatcher.api.shapes.fields import Request, Time, TypeName


class LeaseRequest(Request):
    """A wish for tasks to work on."""

    types: Annotated[list[TypeName], Meta(min_length=1, max_length=100)]
    limit: Annotated[int, Meta(ge=1, le=100)] = 1


class LeasedTask(Struct, kw_only=True):
    """A task to work on. `attempt` must be sent back with the result."""

    id: str
    type: str
    attempt: int
    payload: Raw
    metadata: Raw | None
    lease_until: Time
    created_at: Time


class LeasedTasks(Struct, kw_only=True):
    """Tasks to work on; none when nothing is due."""

    items: list[LeasedTask]


class RenewRequest(Request):
    """A wish to keep a lease for another span of the type's timeout."""

    attempt: Annotated[int, Meta(ge=1)]


class Renewed(Struct, kw_only=True):
    """A lease's new end."""

    lease_until: Time


class TaskFailure(Request):
    """Why a task failed, in words that the callback's receiver may read."""

    message: Annotated[str, Meta(min_length=1, max_length=1000)]


class ResultRequest(Request):
    """The result of a task, or why there is none. `retry: true` asks for another try, if any is left."""

    attempt: Annotated[int, Meta(ge=1)]
    result: Annotated[Raw, Meta(description="Any JSON; it is delivered as it came.")] = field(default_factory=Raw)
    error: TaskFailure | UnsetType = UNSET
    retry: bool = False
