"""The situations that a sender is put into. Each plays at paths of its own, so all of them play at once.

What is a matter of hours in production is a matter of seconds here: the sender is given short schedules and deadlines.
Its clock is left alone.

A busy machine makes everything later and nothing earlier. So what has to come is waited for, not slept for; what is
measured is the shortest of several; and a silence is counted in moments, which a busy machine stretches.
"""

from dispatcher.conformance.sender_examination.scenario import SCENARIOS
from dispatcher.conformance.sender_examination.scenarios import (
    attempts,
    cloudevents,
    destinations,
    endpoints,
    requests,
    rotations,
    signatures,
)

__all__ = ["SCENARIOS", "attempts", "cloudevents", "destinations", "endpoints", "requests", "rotations", "signatures"]
