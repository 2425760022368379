"""What a fault is, the register of all of them, and how their settings are read.

A fault writes exact bytes, so that a test can name what the sender saw. None goes on for ever: each ends with the
connection, and after `for` seconds at the latest.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from dispatcher.conformance.wire.exchange import Behaviour
from dispatcher.errors import ConfigError

MEBIBYTE = 1024 * 1024

# how settings that several faults have are described
FOR = "seconds after which it ends at the latest (60)"
EVERY = "seconds between one byte and the next"
PAUSE = "seconds between one piece, of some KiB, and the next (0)"
STATUS = "the status (200)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One way to answer badly, or oddly."""

    name: str
    #: a sentence: what the endpoint does
    title: str
    #: what a good sender records: one of our outcome words; empty where the draw decides. Where the head arrives whole
    #: the status says what became of the message, whatever the body does: another `status` than the usual one may turn
    #: `success` into `http_error` or back
    expects: str
    #: makes the behaviour from its settings as they are written. Raises ConfigError, which names the setting that is
    #: wrong and never its value
    make: Callable[[Mapping[str, str]], Behaviour] = field(repr=False)
    #: what can be set: name and meaning
    settings: Mapping[str, str] = field(default_factory=dict, repr=False)


class Settings:
    """The settings of a fault as they are written, read one by one."""

    def __init__(self, written: Mapping[str, str]) -> None:
        self._written = written

    def text(self, name: str, default: str) -> str:
        """A text that can stand in a header."""
        value = self._written.get(name, default)
        if not value.isprintable() or not value.isascii():
            raise ConfigError(f"'{name}' has to be printable ASCII")
        return value

    def number(self, name: str, default: float, *, low: float, high: float) -> float:
        """A number in these bounds."""
        try:
            value = float(self._written.get(name, default))
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise ConfigError(f"'{name}' has to be a number from {low:g} to {high:g}")
        return value

    def whole(self, name: str, default: int, *, low: int, high: int) -> int:
        """A whole number in these bounds."""
        value = self._written.get(name, str(default))
        if not re.fullmatch(r"-?[0-9]{1,12}", value) or not low <= int(value) <= high:
            raise ConfigError(f"'{name}' has to be a whole number from {low} to {high}")
        return int(value)

    def has(self, name: str) -> bool:
        """Whether it is written."""
        return name in self._written


def seconds_of(settings: Settings, name: str, default: float) -> float:
    return settings.number(name, default, low=0, high=3_600)


def status_of(settings: Settings, default: int) -> int:
    return settings.whole("status", default, low=200, high=999)


_Make = Callable[[Settings], Behaviour]

#: all faults by name
FAULTS: dict[str, Fault] = {}


def fault(title: str, *, expects: str, **settings: str) -> Callable[[_Make], _Make]:
    """Make a fault of a function, named after it. `for_` names the setting `for`, `retry_after` `retry-after`."""

    def register(build: _Make) -> _Make:
        name = build.__name__.strip("_").replace("_", "-")
        known = {key.rstrip("_").replace("_", "-"): meaning for key, meaning in settings.items()}

        def make(written: Mapping[str, str]) -> Behaviour:
            for key in written:
                if key not in known and "secret" in written:
                    # it may be the rest of it
                    raise ConfigError("one of the settings is none; a secret with a semicolon stands in double quotes")
                if key not in known:
                    having = f"it has {', '.join(known)}" if known else "it has none"
                    raise ConfigError(f"there is no setting {show(key)}; {having}")
            return build(Settings(written))

        FAULTS[name] = Fault(name=name, title=title, expects=expects, make=make, settings=known)
        return build

    return register


def show(text: str) -> str:
    """A name as it may stand in an error text."""
    return ascii(text if len(text) <= 40 else text[:40] + "…")
