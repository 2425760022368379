"""The receiver that comes with the kit: keeps what comes, judges it as a careful handler would, and misbehaves."""

from dispatcher.conformance.receiver.callbacks import CallbackIssuer
from dispatcher.conformance.receiver.policy import Policy
from dispatcher.conformance.receiver.receiver import Receiver
from dispatcher.conformance.signatures.schemes import Key

__all__ = ["CallbackIssuer", "Key", "Policy", "Receiver"]
