"""Scripts: which fault comes when."""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Sequence

from dispatcher.conformance.faults.fault import show
from dispatcher.conformance.faults.step import Changing, Step, make_step
from dispatcher.conformance.wire.requests import Received
from dispatcher.errors import ConfigError

#: how many deliveries a script counts; then it forgets the one that was not heard of for longest
_MAX_COUNTED = 10_000


class Script:
    """What an endpoint answers: one step after the other, the last for ever.

    Steps stand between commas: a status, the name of a fault, or `ok`; each may have settings behind semicolons, whose
    values stand in double quotes where they hold one of those. `ok` and a bare `200` mean that nothing is wrong:
    `next` is then None, and the endpoint does what it does without a script.

    Requests are counted for each delivery by its id (X-Webhook-Delivery, else webhook-id; without any by path), with
    "path:" before the steps for each path. Of many deliveries, those not heard of for longest are forgotten, and
    begin anew. `flap` and `random` go on from request to request, whosever it is.
    """

    def __init__(self, steps: Sequence[Step], *, by_path: bool = False) -> None:
        self.steps = tuple(steps)
        self._by_path = by_path
        self._counts: OrderedDict[bytes, int] = OrderedDict()

    def __repr__(self) -> str:
        return f"Script({', '.join(step.name for step in self.steps)})"

    @classmethod
    def parse(cls, text: str) -> Script:
        """Read a script: "500,500,200", "429;retry-after=2,ok", "drip;every=0.2", "path:hang,ok".

        Raises:
            ConfigError: it names the part that is wrong, and what would be right; no value of a setting.
        """
        rest = text.strip()
        by_path = rest.startswith("path:")
        rest = rest.removeprefix("path:")
        if not rest.strip():
            raise ConfigError("the script is empty; it names statuses and faults, such as 500,500,200")
        if rest.count('"') % 2:
            raise ConfigError("the script has a double quote that is not closed")
        steps = []
        parts = _split(rest, ",")
        for number, part in enumerate(parts, start=1):
            try:
                steps.append(_parse_step(part))
            except ConfigError as exc:
                if any("secret" in before for before in parts[: number - 1]):
                    # it may be the rest of it
                    raise ConfigError(
                        f"step {number} of the script is none; a secret with a comma stands in double quotes"
                    ) from None
                raise ConfigError(f"step {number} of the script: {exc}") from exc
        return cls(steps, by_path=by_path)

    def next(self, request: Received) -> Step | None:
        """What this request is answered; None: nothing is wrong. Each call counts."""
        key = self._key(request)
        at = self._counts.pop(key, 0)
        self._counts[key] = at + 1
        if len(self._counts) > _MAX_COUNTED:
            self._counts.popitem(last=False)
        step = self.steps[min(at, len(self.steps) - 1)]
        if isinstance(step.behaviour, Changing):
            step = step.behaviour.draw()
        return None if step.behaviour is None else step

    def _key(self, request: Received) -> bytes:
        delivery = request.header("X-Webhook-Delivery") or request.header("webhook-id")
        kind, value = (b"delivery", delivery) if delivery and not self._by_path else (b"path", request.path)
        # a digest: however long the peer's id is, it takes the same room here
        return hashlib.blake2b(value.encode("utf-8", "surrogatepass"), digest_size=16, person=kind).digest()


def _split(text: str, at: str) -> list[str]:
    """Its parts between these characters, but for those that stand in double quotes."""
    return [part.strip() for part in re.findall(rf'(?:^|{at})((?:[^{at}"]|"[^"]*")*)', text)]


def _parse_step(text: str) -> Step:
    name, *written = _split(text, ";")
    settings: dict[str, str] = {}
    for part in written:
        key, equals, value = part.partition("=")
        key, value = key.strip(), value.strip()
        if not key or not equals:
            raise ConfigError("a setting is written as name=value")
        if key in settings:
            raise ConfigError(f"the setting {show(key)} stands there twice")
        match = re.fullmatch(r'"([^"]*)"|([^"]*)', value)
        if match is None:
            raise ConfigError(f"the value of {show(key)} has a double quote within")
        settings[key] = match[1] or match[2] or ""
    return make_step(name, settings)
