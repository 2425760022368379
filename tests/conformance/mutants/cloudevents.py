"""Senders that get CloudEvents wrong: the handshake, and events in either mode."""

from __future__ import annotations

import base64
import json
from typing import Any

from examples.other_sender.sender import Answer, Message, Subscription
from tests.conformance.good_senders import Background, Headers, Shaking
from tests.conformance.mutants.bases import with_header
from tests.conformance.mutants.registry import mutant


@mutant("CE-01", says="no OPTIONS")
class AsksByGet(Shaking):
    """A handshake is a GET."""

    def method(self) -> str:
        return "GET"


@mutant("CE-01", says="the target is not")
class AsksWithoutQuery(Shaking):
    """A handshake goes to the URL without its query."""

    async def ask(self, subscription: Subscription) -> Answer:
        asked = Subscription(url=subscription.url.partition("?")[0], secret="")
        return await super().ask(asked)


@mutant("CE-02", says="it is no DNS name")
class OriginIsUrl(Shaking):
    """The origin is a URL, as an Origin header has it."""

    origin = "https://sender.test"


@mutant("CE-02", says="it is no DNS name")
class OriginWithPort(Shaking):
    """The origin has a port."""

    origin = "sender.test:443"


@mutant("CE-02", says="is there 2 times")
class TwoOrigins(Shaking):
    """Two origins are named."""

    def asking(self) -> Headers:
        return [*super().asking(), ("WebHook-Request-Origin", "other.test")]


@mutant("CE-03", says="it is not")
class AsksForNothing(Shaking):
    """The rate that is asked for is zero."""

    def asking(self) -> Headers:
        return [("WebHook-Request-Origin", self.origin), ("WebHook-Request-Rate", "0")]


@mutant("CE-03", says="it is not")
class AsksForFraction(Shaking):
    """The rate that is asked for has a fraction."""

    def asking(self) -> Headers:
        return [("WebHook-Request-Origin", self.origin), ("WebHook-Request-Rate", "0.5")]


@mutant("CE-04", says="200 without a name: 2 requests")
class StatusIsConsent(Shaking):
    """Any 2xx is consent."""

    def is_granted(self, answer: Answer) -> bool:
        return answer.status is not None and answer.status < 300


@mutant("CE-04", says="200 with another name: 2 requests")
class HeaderIsConsent(Shaking):
    """Any name is consent."""

    def is_granted(self, answer: Answer) -> bool:
        return "WebHook-Allowed-Origin" in answer.headers


@mutant("CE-04", says="200 with a longer name: 2 requests")
class PrefixIsConsent(Shaking):
    """A name that begins like ours is consent."""

    def is_granted(self, answer: Answer) -> bool:
        return str(answer.headers.get("WebHook-Allowed-Origin", "")).startswith((self.origin, "*"))


@mutant("CE-04", says="200 with a subdomain: 2 requests")
class SuffixIsConsent(Shaking):
    """A name that ends like ours is consent."""

    def is_granted(self, answer: Answer) -> bool:
        return str(answer.headers.get("WebHook-Allowed-Origin", "")).endswith((self.origin, "*"))


@mutant("CE-04", says="405: 2 requests")
class NoHandshakeIsConsent(Shaking):
    """Who does not know OPTIONS is taken to agree."""

    def is_granted(self, answer: Answer) -> bool:
        return answer.status == 405 or super().is_granted(answer)


@mutant("CE-05", says="requests came before")
class SendsMeanwhile(Background):
    """Events are sent while the endpoint has not answered yet."""

    async def shake(self, subscription: Subscription) -> None:
        subscription.active = True
        await super().shake(subscription)


@mutant("CE-06", says="own name: 0 of 2")
class WantsAsterisk(Shaking):
    """Only an asterisk is consent."""

    def is_granted(self, answer: Answer) -> bool:
        return "*" in answer.headers.get_list("WebHook-Allowed-Origin")


@mutant("CE-06", says="any name: 0 of 2")
class WantsOwnName(Shaking):
    """An asterisk is not understood."""

    def is_granted(self, answer: Answer) -> bool:
        return self.origin in answer.headers.get_list("WebHook-Allowed-Origin")


@mutant("CE-07", says="is not that of the handshake")
class NamesNobody(Shaking):
    """Deliveries do not name the origin."""

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        return with_header(super().headers(subscription, message, body), "WebHook-Request-Origin", None)


@mutant("CE-07", says="is not that of the handshake")
class NamesItsHost(Shaking):
    """Deliveries name the host that they come from instead of the origin."""

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        return with_header(super().headers(subscription, message, body), "WebHook-Request-Origin", "node-7.sender.test")


@mutant("CE-08", says="came within")
class IgnoresGrantedRate(Shaking):
    """A granted rate means nothing."""

    def rate(self, answer: Answer) -> float:
        return float("inf")


@mutant("CE-08", says="came within")
class RateBySecond(Shaking):
    """A granted rate is taken for one of requests a second."""

    def rate(self, answer: Answer) -> float:
        return super().rate(answer) * 60


class _OtherAttributes(Shaking):
    """What is said of an event is something else."""

    changes: tuple[tuple[str, Any], ...] = ()

    def attributes(self, message: Message) -> dict[str, Any]:
        said = super().attributes(message) | dict(self.changes)
        return {name: value for name, value in said.items() if value is not None}


@mutant("CE-11", "CE-22", says="source is missing")
class NoSource(_OtherAttributes):
    """An event has no source."""

    changes = (("source", None),)


@mutant("CE-11", "CE-22", says="type is missing, empty")
class EmptyType(_OtherAttributes):
    """The type of an event is empty."""

    changes = (("type", ""),)


@mutant("CE-12", "CE-23", says="the version is another")
class OldVersion(_OtherAttributes):
    """The version is that of a draft."""

    changes = (("specversion", "0.3"),)


@mutant("CE-12", "CE-23", says="the source is none")
class SourceInWords(_OtherAttributes):
    """The source is no reference to a URI."""

    changes = (("source", "the shop <1>"),)


@mutant("CE-15", says="is not percent-encoded")
class SpacesInHeaders(_OtherAttributes):
    """A subject with spaces goes into its header as it is."""

    changes = (("subject", "order 7"),)


@mutant("CE-15", says="other characters")
class Underscores(_OtherAttributes):
    """An extension has an underscore in its name."""

    changes = (("tenant_id", "7"),)


@mutant("CE-26", says="other characters")
class CamelCase(_OtherAttributes):
    """An extension has upper case in its name."""

    changes = (("tenantId", "7"),)


@mutant("CE-22", says="specversion is missing, empty, or no text")
class NumberForVersion(_OtherAttributes):
    """The version is a number."""

    changes = (("specversion", 1.0),)


@mutant("CE-28", says="two events have the same")
class OneIdForAll(_OtherAttributes):
    """All events have one id."""

    changes = (("id", "1"),)


@mutant("CE-13", says="Content-Type is application/cloudevents+json")
class StructuredTypeInBinary(Shaking):
    """In binary mode the Content-Type says that the event is in structured mode."""

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        return with_header(super().headers(subscription, message, body), *self.structured_type())


@mutant("CE-13", says="the data is not what was published")
class EnvelopeInBinary(Shaking):
    """In binary mode the body is an envelope around the data."""

    def body(self, message: Message) -> bytes:
        return b'{"data": ' + message.body + b"}"


@mutant("CE-14", says="it changed")
class EventIdPerAttempt(Shaking):
    """In binary mode each attempt is an event of its own."""

    def attributes(self, message: Message) -> dict[str, Any]:
        return super().attributes(message) | {"id": f"{message.id}-{message.attempt}"}


@mutant("CE-25", says="it changed")
class EventMadeAnew(Shaking):
    """In structured mode each attempt is an event of its own."""

    def body(self, message: Message) -> bytes:
        return message.body.replace(message.id.encode(), f"{message.id}-{message.attempt}".encode())


@mutant("CE-21", says="it is application/json")
class StructuredAsJson(Shaking):
    """In structured mode the body is called JSON."""

    def structured_type(self) -> tuple[str, str]:
        return "Content-Type", "application/json"


@mutant("CE-24", says="the data is not what was published")
class DataAsText(Shaking):
    """In structured mode the data is a text of its JSON."""

    def structured(self, message: Message) -> bytes:
        return json.dumps(self.attributes(message) | {"data": message.body.decode()}).encode()


@mutant("CE-24", "CE-29", says="there is no data")
class OnlyTells(Shaking):
    """In structured mode the data is left out."""

    def structured(self, message: Message) -> bytes:
        return json.dumps(self.attributes(message)).encode()


@mutant("CE-24", says="the data is not what was published")
class OtherDataInBase64(Shaking):
    """In structured mode the data is in base64, and not whole."""

    def structured(self, message: Message) -> bytes:
        data = base64.b64encode(b'{"n":null}').decode()
        return json.dumps(self.attributes(message) | {"data_base64": data}).encode()


@mutant("CE-29", says="it is in base64")
class DataInBase64(Shaking):
    """In structured mode the data is in base64."""

    def structured(self, message: Message) -> bytes:
        return json.dumps(self.attributes(message) | {"data_base64": base64.b64encode(message.body).decode()}).encode()


@mutant("CE-27", says="it is another")
class TextForJson(Shaking):
    """In structured mode the data is called a plain text."""

    def structured(self, message: Message) -> bytes:
        return super().structured(message).replace(b'"application/json"', b'"text/plain"')
