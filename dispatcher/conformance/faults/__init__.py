"""What endpoints do wrong, one fault each, and scripts that say which comes when."""

from dispatcher.conformance.faults import answers, bodies, changing, knowing, no_answers
from dispatcher.conformance.faults.fault import FAULTS, Fault
from dispatcher.conformance.faults.script import Script

__all__ = ["FAULTS", "Fault", "Script", "answers", "bodies", "changing", "knowing", "no_answers"]
