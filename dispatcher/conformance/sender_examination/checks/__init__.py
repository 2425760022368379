"""What is asked of a sender: numbered requirements, each with its source, its level, and how it is judged."""

from dispatcher.conformance.sender_examination.checks import (
    attempts,
    cloudevents,
    endpoints,
    requests,
    rotations,
    signatures,
)
from dispatcher.conformance.sender_examination.checks.judging import REGISTERED, Check

__all__ = ["CHECKS", "GROUPS", "Check", "attempts", "cloudevents", "endpoints", "requests", "rotations", "signatures"]

#: the order of a report, by what stands before the number
GROUPS = (
    "HTTP",
    "BODY",
    "ROUTE",
    "ID",
    "TIME",
    "SIGN",
    "RETRY",
    "REDIR",
    "LIMIT",
    "HEALTH",
    "ROT",
    "CE",
    "TLS",
    "EGRESS",
)

#: all checks by id, in the order of a report
CHECKS: dict[str, Check] = {
    id_: REGISTERED[id_] for id_ in sorted(REGISTERED, key=lambda id_: (GROUPS.index(id_.partition("-")[0]), id_))
}
