"""The states that tasks, deliveries and attempts can be in. docs/states.md draws how they follow each other."""

from __future__ import annotations

from enum import StrEnum


class TaskState(StrEnum):
    """Where the work of a task stands. Its delivery has a state of its own."""

    #: waits for a processor
    QUEUED = "queued"
    #: a processor holds its lease
    PROCESSING = "processing"
    #: done; the result is on its way or delivered
    SUCCEEDED = "succeeded"
    #: given up; a result that says so is on its way or delivered
    FAILED = "failed"
    #: the callback's window ended before there was a result
    EXPIRED = "expired"
    #: withdrawn by the caller before there was a result
    CANCELLED = "cancelled"


class DeliveryState(StrEnum):
    """Where one message for one endpoint stands."""

    #: waits: for its due time, for a free worker, or (body still unknown) for its task's result
    PENDING = "pending"
    #: a worker holds its lease and may be sending it
    LEASED = "leased"
    #: the endpoint answered 2xx
    DELIVERED = "delivered"
    #: every try was used up
    EXHAUSTED = "exhausted"
    #: the endpoint, or our egress guard, refused it for good
    REJECTED = "rejected"
    #: its window or its holding time ended first
    EXPIRED = "expired"
    #: withdrawn by the caller
    CANCELLED = "cancelled"
    #: kept while its subscription is disabled
    HELD = "held"


#: states that a row can still leave; the ledger counts these by row, and the others as they are reached
LIVE_STATES = (DeliveryState.PENDING, DeliveryState.LEASED, DeliveryState.HELD)

#: states that are final
TERMINAL_STATES = tuple(state for state in DeliveryState if state not in LIVE_STATES)


class Outcome(StrEnum):
    """How one attempt ended."""

    #: a 2xx answer
    SUCCESS = "success"
    #: any other complete answer
    HTTP_ERROR = "http_error"
    #: the total deadline passed before the status and headers were complete
    TIMEOUT = "timeout"
    #: the name did not resolve
    DNS_ERROR = "dns_error"
    #: no connection was made, or it broke
    CONNECTION_ERROR = "connection_error"
    #: the TLS handshake or the certificate was no good
    TLS_ERROR = "tls_error"
    #: what came back was not HTTP
    PROTOCOL_ERROR = "protocol_error"
    #: the egress guard refused the address
    EGRESS_REFUSED = "egress_refused"
    #: the lease ended without a report: the worker died or was cut off; the request may have been sent
    INTERRUPTED = "interrupted"
    #: our own fault; the log says more
    INTERNAL_ERROR = "internal_error"


class EventState(StrEnum):
    """How far an event has got towards its subscribers."""

    #: on disk; its deliveries are being made
    ACCEPTED = "accepted"
    #: every delivery of it is on disk, too
    FANNED_OUT = "fanned_out"


class DeliveryKind(StrEnum):
    """What a delivery is for."""

    #: to tell of an event, or of a task's result
    MESSAGE = "message"
    #: to ask an endpoint whether it is there; it goes out whatever state its subscription is in
    PING = "ping"
    #: the same, by the handshake of the CloudEvents webhook specification
    HANDSHAKE = "handshake"


class Mark(StrEnum):
    """What was asked of a delivery while a worker held its lease; applied unless the attempt succeeds."""

    #: end it as cancelled
    CANCEL = "cancel"
    #: send it again at once, to the callback URL that was put in the meantime
    RETARGET = "retarget"


class BodyMode(StrEnum):
    """What the body of a delivery looks like."""

    #: the payload's own bytes
    RAW = "raw"
    #: our envelope around the payload or result
    ENVELOPE = "envelope"
    #: CloudEvents 1.0, attributes in `ce-` headers
    CLOUDEVENTS_BINARY = "cloudevents-binary"
    #: CloudEvents 1.0, attributes and data in one JSON object
    CLOUDEVENTS_STRUCTURED = "cloudevents-structured"
    #: `payload=<json>`, form-encoded
    FORM = "form"


#: the type of the events that pings and handshakes carry
PING_EVENT = "webhook.ping"


def lane_of(account: str, destination: str) -> str:
    """The lane of a destination: a subscription's id, or the origin (scheme, host, port) of a callback."""
    return f"{account} {destination}"


def ping_lane_of(account: str, subscription_id: str) -> str:
    """The lane of what asks a subscription's endpoint whether it is there: no backlog and no pace stand before it."""
    return f"{account} {subscription_id} ping"


def account_of(lane: str) -> str:
    """The account that a lane belongs to."""
    return lane.split(" ", 1)[0]
