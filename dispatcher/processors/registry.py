"""The processors of this process, by the task type they work on."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import msgspec
import msgspec.inspect

from dispatcher.config import MAX_TASK_TIMEOUT, Settings
from dispatcher.errors import ConfigError

#: the type whose payload is passed through as it is
RELAY = "relay"
#: entry points of installed packages that register processors when they are loaded
ENTRY_POINT_GROUP = "webhook_dispatcher.processors"
#: tries that a task of a processor outside this process gets
EXTERNAL_TRIES = 5

TYPE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")

Function = TypeVar("Function", bound=Callable[..., Any])


class Kind(StrEnum):
    """Where a processor's function runs."""

    #: on the event loop
    ASYNC = "async"
    #: in a thread
    THREAD = "thread"
    #: in a process of its own
    PROCESS = "process"
    #: outside this program: it leases tasks over HTTP
    EXTERNAL = "external"


@dataclass(frozen=True, kw_only=True)
class Processor:
    """A function and the promises it keeps."""

    name: str
    kind: Kind
    #: seconds that one try is given
    timeout: float
    #: tries before the task fails
    tries: int
    #: seconds before the second try; doubles with each further one
    backoff: float
    function: Callable[..., Any] | None = None
    #: what the payload is decoded to; Any is plain Python data
    payload_type: Any = Any

    def delay(self, failures: int) -> float:
        """Seconds to wait after this many failed tries."""
        return min(self.backoff * 2.0 ** (failures - 1), 3600.0)


class Registry:
    """Processors by name."""

    def __init__(self) -> None:
        self._processors: dict[str, Processor] = {}

    def add(self, processor: Processor) -> None:
        """Register a processor. Raises ConfigError when the name is bad or taken."""
        if not TYPE_NAME.match(processor.name):
            raise ConfigError("a processor's name has 1 to 100 letters, digits, dots, dashes and underscores")
        if processor.name == RELAY or processor.name in self._processors:
            raise ConfigError(f"there is already a processor named {processor.name}")
        self._processors[processor.name] = processor

    def get(self, name: str) -> Processor | None:
        """The processor of this name, or None."""
        return self._processors.get(name)

    def all(self) -> list[Processor]:
        """Every processor, by name."""
        return [self._processors[name] for name in sorted(self._processors)]

    def local(self) -> tuple[str, ...]:
        """The types that this process works on."""
        return tuple(entry.name for entry in self.all() if entry.kind is not Kind.EXTERNAL)


#: where `@processor` registers
registry = Registry()


def processor(
    name: str, *, timeout: float = 30.0, tries: int = 3, backoff: float = 1.0, cpu: bool = False
) -> Callable[[Function], Function]:
    """Register a function as the processor of a task type.

    The function takes the payload, decoded from JSON (to the type that its first parameter is annotated with, if
    msgspec knows it), and returns the result, which is encoded to JSON. An async function runs on the event loop,
    a plain one in a thread, and with `cpu=True` in a process of its own, which is killed at the timeout.

    `timeout` is seconds for one try, `tries` how often it is tried before the task fails, `backoff` the seconds
    before the second try, doubling. Raise `ProcessorError` to fail at once with a text for the caller.

    Raises ConfigError when the name is bad or taken, or a number is out of range.
    """
    if not (0 < timeout <= MAX_TASK_TIMEOUT and 1 <= tries <= 100 and 0 <= backoff <= 3600):
        raise ConfigError(
            f"processor {name}: timeout is in (0, {MAX_TASK_TIMEOUT}] s, tries in [1, 100], backoff in [0, 3600] s"
        )

    def register(function: Function) -> Function:
        is_async = inspect.iscoroutinefunction(function)
        if cpu and is_async:
            raise ConfigError(f"processor {name}: cpu=True takes a plain function, not an async one")
        kind = Kind.ASYNC if is_async else Kind.PROCESS if cpu else Kind.THREAD
        registry.add(
            Processor(
                name=name,
                kind=kind,
                timeout=timeout,
                tries=tries,
                backoff=backoff,
                function=function,
                payload_type=_payload_type(function),
            )
        )
        return function

    return register


def load_processors(settings: Settings) -> Registry:
    """Import every module that registers processors, and add the external ones. Raises ConfigError."""
    here = str(Path.cwd())
    if settings.processors and here not in sys.path:
        # As `python -m` would have it: a module of the project one stands in is found.
        sys.path.insert(0, here)
    for name in settings.processors:
        _import(name, partial(importlib.import_module, name))
    for point in entry_points(group=ENTRY_POINT_GROUP):
        _import(point.value, point.load)
    for name, seconds in settings.external_processors.items():
        registry.add(Processor(name=name, kind=Kind.EXTERNAL, timeout=seconds, tries=EXTERNAL_TRIES, backoff=0.0))
    return registry


def _import(name: str, load: Callable[[], object]) -> None:
    try:
        load()
    except ModuleNotFoundError as exc:
        raise ConfigError(f"processors: there is no module {name} ({exc})") from exc
    except ConfigError:
        raise
    except Exception as exc:
        raise ConfigError(f"processors: importing {name} raised {type(exc).__name__}: {exc}") from exc


def _payload_type(function: Callable[..., Any]) -> Any:
    parameters = list(inspect.signature(function).parameters)
    if not parameters:
        raise ConfigError(f"{function.__qualname__} takes no payload; give it one parameter")
    try:
        wanted = get_type_hints(function).get(parameters[0], Any)
    except NameError:
        return Any
    return Any if isinstance(msgspec.inspect.type_info(wanted), msgspec.inspect.CustomType) else wanted
