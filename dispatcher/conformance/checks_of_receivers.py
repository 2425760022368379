"""How the checks of a receiver are written: a requirement, whom it concerns, and a function that looks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from dispatcher.conformance.attacker import Attacker, Message
from dispatcher.conformance.caller import Answer
from dispatcher.conformance.results import Level, Requirement, Source

_STANDARD = "https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md"
_CHEAT_SHEETS = "https://cheatsheetseries.owasp.org/cheatsheets"

STANDARD = Source(name="Standard Webhooks, specification", url=_STANDARD)
GITHUB_PRACTICES = Source(
    name="GitHub Docs, Best practices for using webhooks",
    url="https://docs.github.com/en/webhooks/using-webhooks/best-practices-for-using-webhooks",
)
GITHUB_VALIDATING = Source(
    name="GitHub Docs, Validating webhook deliveries",
    url="https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries",
)
WEBSUB = Source(name="W3C WebSub, Authenticated Content Distribution", url="https://www.w3.org/TR/websub/")
CLOUDEVENTS = Source(
    name="CloudEvents, HTTP 1.1 Web Hooks for Event Delivery",
    url="https://github.com/cloudevents/spec/blob/main/cloudevents/http-webhook.md",
)
SIGNATURES = Source(
    name="RFC 9421, section 3.2", url="https://www.rfc-editor.org/rfc/rfc9421.html#name-verifying-a-signature"
)
OWASP_REST = Source(name="OWASP, REST Security Cheat Sheet", url=f"{_CHEAT_SHEETS}/REST_Security_Cheat_Sheet.html")
OWASP_ERRORS = Source(name="OWASP, Error Handling Cheat Sheet", url=f"{_CHEAT_SHEETS}/Error_Handling_Cheat_Sheet.html")
OWASP_INPUT = Source(
    name="OWASP, Input Validation Cheat Sheet", url=f"{_CHEAT_SHEETS}/Input_Validation_Cheat_Sheet.html"
)
OWASP_DENIAL = Source(
    name="OWASP, Denial of Service Cheat Sheet", url=f"{_CHEAT_SHEETS}/Denial_of_Service_Cheat_Sheet.html"
)


def rfc(number: int, section: str) -> Source:
    """A section of an RFC."""
    return Source(
        name=f"RFC {number}, section {section}",
        url=f"https://www.rfc-editor.org/rfc/rfc{number}.html#section-{section}",
    )


class CannotTell(Exception):
    """What it takes to look is missing: the text says what, or what was seen that proves nothing."""


#: what was seen and what would be right; empty if all is well. Raises CannotTell, TooManyRequests
Look = Callable[[Attacker], Awaitable[str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """A requirement and how it is looked for."""

    requirement: Requirement
    look: Look
    #: the schemes that it concerns; None: all
    only_for: frozenset[str] | None
    #: why it cannot be asked of the others
    because: str
    #: it is looked for even if no good request is taken
    is_basic: bool


def asks(
    requirement_id: str,
    level: Level,
    title: str,
    source: Source,
    *,
    scenario: str,
    into: list[Check],
    only_for: frozenset[str] | None = None,
    because: str = "",
    is_basic: bool = False,
) -> Callable[[Look], Look]:
    """Enter the function below as the check of this requirement."""
    requirement = Requirement(id=requirement_id, level=level, title=title, source=source, scenario=scenario)

    def enter(look: Look) -> Look:
        into.append(Check(requirement=requirement, look=look, only_for=only_for, because=because, is_basic=is_basic))
        return look

    return enter


async def refused(attacker: Attacker, *cases: tuple[str, Message]) -> str:
    """Send each; what was seen of the first that was not answered 4xx."""
    for what, message in cases:
        answer = await attacker.send(message)
        if not answer.is_refusal:
            return f"{what} {answer.in_words()}; a 4xx would be right."
    return ""


async def taken(attacker: Attacker, *cases: tuple[str, Message]) -> str:
    """Send each; what was seen of the first that was not answered 2xx."""
    for what, message in cases:
        answer = await attacker.send(message)
        if not answer.is_success:
            return f"{what} {answer.in_words()}; 2xx would be right."
    return ""


async def orderly(attacker: Attacker, *cases: tuple[str, Message]) -> str:
    """Send each; what was seen of the first that was answered by a server error, or not at all."""
    for what, message in cases:
        answer = await attacker.send(message)
        if not is_orderly(answer):
            return f"{what} {answer.in_words()}; a 4xx, or a 2xx, would be right."
    return ""


def is_orderly(answer: Answer) -> bool:
    """An answer that is neither a redirect nor a server error."""
    return answer.is_success or answer.is_refusal


def first(findings: Sequence[str]) -> str:
    """The first finding that is one."""
    return next((one for one in findings if one), "")
