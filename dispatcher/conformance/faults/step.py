"""One answer of a script, and the behaviours that are another one each time."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from dispatcher.conformance.faults.fault import FAULTS, Fault, show
from dispatcher.conformance.wire.exchange import Behaviour, Exchange
from dispatcher.conformance.wire.requests import Reply
from dispatcher.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One answer of a script; itself a behaviour."""

    #: the name of the fault, or the status: "drip", "429"
    name: str
    #: None: the endpoint does nothing wrong
    fault: Fault | None
    behaviour: Behaviour | None = field(repr=False)

    async def __call__(self, exchange: Exchange) -> None:
        """Answer."""
        if self.behaviour is None:
            await exchange.reply(Reply())
        else:
            await self.behaviour(exchange)


#: nothing is wrong
WELL = Step(name="ok", fault=None, behaviour=None)


class Changing:
    """A behaviour that is another one each time."""

    def __init__(self, draw: Callable[[], Step]) -> None:
        #: what comes next
        self.draw = draw

    async def __call__(self, exchange: Exchange) -> None:
        await self.draw()(exchange)


def make_step(name: str, settings: Mapping[str, str]) -> Step:
    if name in {"ok", "200"} and not settings:
        return WELL
    if re.fullmatch(r"[1-9][0-9]{2}", name):
        if "code" in settings:
            raise ConfigError(f"{name}: the status is said twice")
        fault, settings = FAULTS["status"], {**settings, "code": name}
    elif name in FAULTS:
        fault = FAULTS[name]
    else:
        near = difflib.get_close_matches(name[:40], FAULTS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(FAULTS)}, any status, and ok"
        raise ConfigError(f"there is no fault {show(name)}; {hint}")
    try:
        behaviour = fault.make(settings)
    except ConfigError as exc:
        raise ConfigError(f"{name}: {exc}") from exc
    return Step(name=name, fault=fault, behaviour=behaviour)
