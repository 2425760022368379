"""Senders that sign wrongly."""

from __future__ import annotations

import base64
import hmac
import json
import re
from typing import Any
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from examples.other_sender.sender import Message, Sender, Subscription, hexadecimal, standard
from tests.conformance.good_senders import Complete, Headers, OtherLabel
from tests.conformance.mutants.bases import rewritten
from tests.conformance.mutants.registry import mutant


def _key(secret: str) -> bytes:
    """What Standard Webhooks signs with, and nobody else."""
    return base64.b64decode(secret.removeprefix("whsec_"))


def _hex(key: bytes, content: bytes, method: str = "sha256") -> str:
    return hmac.new(key, content, method).hexdigest()


@mutant("TIME-03", "SIGN-03")
class TimeNotSigned(Sender):
    """The timestamp is not part of what is signed."""

    def signature(self, scheme: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> Headers:
        return [("webhook-signature", standard(secrets[0], f"{message.id}.".encode() + body))]


class _Signing(Sender):
    """Each scheme's signature is another."""

    def signature(self, scheme: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> Headers:
        return [
            (name, self.signed(name, value, secrets, message, timestamp, body))
            for name, value in super().signature(scheme, secrets, message, timestamp, body)
        ]

    def signed(self, name: str, value: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> str:
        """The value of a header instead of the good one."""
        return value


@mutant("SIGN-01", "SIGN-02", "SIGN-05", "SIGN-06")
class DecodedKey(_Signing):
    """The schemes whose key is the secret's text are signed with the decoded secret."""

    def signed(self, name: str, value: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> str:
        return value.replace(hexadecimal(secrets[0], body), _hex(_key(secrets[0]), body))


@mutant("SIGN-01", "SIGN-02", "SIGN-05", "SIGN-06")
class KeyWithoutPrefix(Sender):
    """The secret's prefix is no part of the key."""

    def secrets(self, subscription: Subscription) -> list[str]:
        return [secret.removeprefix("whsec_") for secret in super().secrets(subscription)]


@mutant("SIGN-01", "SIGN-02", "SIGN-03", "SIGN-05", "SIGN-06")
class SignsRewritten(Sender):
    """What is signed is the payload parsed and written anew; what is sent is not."""

    def signature(self, scheme: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> Headers:
        return super().signature(scheme, secrets, message, timestamp, rewritten(body))


@mutant("SIGN-01", "SIGN-02", "SIGN-03", "SIGN-05", "SIGN-06")
class SignsFirstAttempt(Sender):
    """Only the first attempt is signed."""

    def signature(self, scheme: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> Headers:
        return [] if message.attempt > 1 else super().signature(scheme, secrets, message, timestamp, body)


@mutant("SIGN-01", "SIGN-02", "SIGN-03", "SIGN-05", "SIGN-06")
class ConstantSecret(Sender):
    """All is signed with one secret of the sender's own."""

    def secrets(self, subscription: Subscription) -> list[str]:
        return ["whsec_" + base64.b64encode(b"of the sender, for everybody").decode()]


@mutant("SIGN-01")
class Sha1ForWebsub(_Signing):
    """A scheme by SHA-256 is signed by SHA-1, under the name of SHA-256."""

    def signed(self, name: str, value: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> str:
        return "sha256=" + hexadecimal(secrets[0], body, "sha1")


@mutant("SIGN-02")
class GithubSha1IsSha256(_Signing):
    """GitHub's older header says sha1, and is an HMAC-SHA256."""

    def signed(self, name: str, value: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> str:
        return "sha1=" + hexadecimal(secrets[0], body) if name == "X-Hub-Signature" else value


@mutant("SIGN-02")
class GithubOldOnly(Sender):
    """GitHub's newer header is not there."""

    def signature(self, scheme: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> Headers:
        return super().signature(scheme, secrets, message, timestamp, body)[1:]


@mutant("SIGN-02")
class GithubWithoutLabel(_Signing):
    """GitHub's headers lack `sha256=` and `sha1=`."""

    def signed(self, name: str, value: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> str:
        return value.partition("=")[2]


@mutant("SIGN-03", "TIME-03")
class StandardTextKey(_Signing):
    """Standard Webhooks is signed by the secret's text."""

    def signed(self, name: str, value: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> str:
        return standard(base64.b64encode(secrets[0].encode()).decode(), f"{message.id}.{timestamp}.".encode() + body)


@mutant("SIGN-03")
class StandardInHex(_Signing):
    """Standard Webhooks' signature is in hexadecimal instead of base64."""

    def signed(self, name: str, value: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> str:
        return "v1," + base64.b64decode(value.removeprefix("v1,")).hex()


@mutant("SIGN-03")
class StandardWithoutVersion(_Signing):
    """Standard Webhooks' signature lacks `v1,`."""

    def signed(self, name: str, value: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> str:
        return value.removeprefix("v1,")


@mutant("SIGN-03")
class StandardWithCommas(_Signing):
    """Standard Webhooks' signatures have a comma between them instead of a space, and there are always two."""

    def signed(self, name: str, value: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> str:
        return f"{value},{value}"


@mutant("SIGN-03")
class IdNotSigned(_Signing):
    """The id is not part of what is signed."""

    def signed(self, name: str, value: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> str:
        return standard(secrets[0], f"{timestamp}.".encode() + body)


@mutant("SIGN-03")
class BodyNotSigned(_Signing):
    """The body is not part of what is signed."""

    def signed(self, name: str, value: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> str:
        return standard(secrets[0], f"{message.id}.{timestamp}".encode())


@mutant("SIGN-05")
class TimestampedWithTime(_Signing):
    """`timestamped` signs the time, too."""

    def signed(self, name: str, value: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> str:
        return value if value == timestamp else hexadecimal(secrets[0], f"{timestamp}.".encode() + body)


@mutant("SIGN-05")
class TimestampedWithoutTime(Sender):
    """`timestamped` has no time."""

    def signature(self, scheme: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> Headers:
        return super().signature(scheme, secrets, message, timestamp, body)[1:]


@mutant("SIGN-06")
class ServiceStackSha1(_Signing):
    """`servicestack` is an HMAC-SHA1, as its label says."""

    def signed(self, name: str, value: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> str:
        return "sha1=" + hexadecimal(secrets[0], body, "sha1")


@mutant("SIGN-06")
class ServiceStackHonest(_Signing):
    """`servicestack` says sha256, as it is."""

    def signed(self, name: str, value: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> str:
        return value.replace("sha1=", "sha256=")


@mutant("SIGN-01", "SIGN-02", "SIGN-05", "SIGN-06", "SIGN-23")
class UpperCase(_Signing):
    """Hexadecimal digits are in upper case."""

    def signed(self, name: str, value: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> str:
        label, equals, digits = value.rpartition("=")
        return label + equals + digits.upper()


@mutant(*(f"SIGN-{number}" for number in range(11, 19)))
class FirstSecret(Complete):
    """Whoever comes first with a scheme, his secret signs for all others with it."""

    def __init__(self) -> None:
        super().__init__()
        self.first: dict[tuple[str, ...], str] = {}

    async def subscribe(self, **wish: Any) -> dict[str, Any]:
        secret = self.first.setdefault(tuple(wish["schemes"]), wish["secret"])
        return await super().subscribe(**(wish | {"secret": secret}))


@mutant("SIGN-04", "SIGN-08")
class ForeignKey(Complete):
    """It tells of one key pair, and signs with another."""

    async def subscribe(self, **wish: Any) -> dict[str, Any]:
        made = await super().subscribe(**wish)
        self.keys[wish["secret"]] = Ed25519PrivateKey.generate()
        return made


@mutant("SIGN-04")
class Ed25519AsV1(Complete):
    """The Ed25519 signature is labelled v1, as if it were an HMAC."""

    def signature(self, scheme: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> Headers:
        found = super().signature(scheme, secrets, message, timestamp, body)
        return [(name, value.replace("v1a,", "v1,")) for name, value in found]


@mutant("SIGN-07")
class Rfc9421DecodedKey(Complete):
    """RFC 9421 is signed with the decoded secret."""

    def mac(self, secret: str, base: bytes) -> bytes:
        return hmac.digest(_key(secret), base, "sha256")


@mutant("SIGN-07", "SIGN-24", "SIGN-08")
class DigestOfSomethingElse(Complete):
    """Content-Digest is that of the payload parsed and written anew, and genuinely signed."""

    def digest(self, body: bytes) -> str:
        return super().digest(rewritten(body))


@mutant("SIGN-07", "SIGN-08")
class DigestNotSigned(Complete):
    """The digest is not covered: whoever changes the body changes the digest, too."""

    def message_signature(self, scheme: str, subscription: Subscription, message: Message, body: bytes) -> Headers:
        secret = subscription.secret
        params = '("@method" "content-type")' + self.params(scheme)
        lines = ['"@method": POST', '"content-type": application/json', f'"@signature-params": {params}']
        base = "\n".join(lines).encode()
        signed = self.key(secret).sign(base) if scheme.endswith("ed25519") else self.mac(secret, base)
        return [
            ("Content-Digest", self.digest(body)),
            ("Signature-Input", f"webhook={params}"),
            ("Signature", f"webhook=:{base64.b64encode(signed).decode()}:"),
        ]


@mutant("SIGN-07", "SIGN-08", says="does not cover content-digest")
class DigestLeftOut(OtherLabel):
    """By a label of its own it signs where the message goes, and nothing of what is in it."""

    abilities = Complete.abilities

    def message_signature(self, scheme: str, subscription: Subscription, message: Message, body: bytes) -> Headers:
        url = urlsplit(subscription.url)
        params = '("@method" "@authority" "@path")' + self.params(scheme)
        lines = ['"@method": POST', f'"@authority": {url.netloc}', f'"@path": {url.path}']
        base = "\n".join([*lines, f'"@signature-params": {params}']).encode()
        secret = subscription.secret
        signed = self.key(secret).sign(base) if scheme.endswith("ed25519") else self.mac(secret, base)
        return [
            ("Signature-Input", f"sig1={params}"),
            ("Signature", f"sig1=:{base64.b64encode(signed).decode()}:"),
        ]


@mutant("SIGN-27", "SIGN-28", says="does not cover @method")
class SignsForAnyPlace(Complete):
    """The digest is signed, and not where it goes: the signature is good at every other endpoint of that secret."""

    def message_signature(self, scheme: str, subscription: Subscription, message: Message, body: bytes) -> Headers:
        digest = self.digest(body)
        params = '("content-digest")' + self.params(scheme)
        base = f'"content-digest": {digest}\n"@signature-params": {params}'.encode()
        secret = subscription.secret
        signed = self.key(secret).sign(base) if scheme.endswith("ed25519") else self.mac(secret, base)
        return [
            ("Content-Digest", digest),
            ("Signature-Input", f"body={params}"),
            ("Signature", f"body=:{base64.b64encode(signed).decode()}:"),
        ]


@mutant("SIGN-25")
class NotCreated(Complete):
    """A signature by RFC 9421 does not tell when it was made."""

    def params(self, scheme: str) -> str:
        return re.sub(";created=[0-9]+", "", super().params(scheme))


@mutant("SIGN-21")
class SecretInHeader(Sender):
    """The secret stands in a header."""

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        return [*super().headers(subscription, message, body), ("X-Webhook-Secret", subscription.secret)]


@mutant("SIGN-21")
class SecretInBody(Sender):
    """The secret stands in the body."""

    def start(self, subscription: Subscription, message: Message) -> None:
        message.body = b'{"key":%s,"data":%s}' % (json.dumps(subscription.secret).encode(), message.body)
        super().start(subscription, message)


@mutant("SIGN-21")
class SecretInBase64(Sender):
    """The secret stands in a header, in base64 once more."""

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        coded = base64.b64encode(subscription.secret.encode()).decode()
        return [*super().headers(subscription, message, body), ("X-Webhook-Key", coded)]


@mutant("SIGN-22")
class UnsignedByDefault(Sender):
    """Who asks for no scheme gets no signature."""

    def signature(self, scheme: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> Headers:
        return []


@mutant("SIGN-22")
class Sha1ByDefault(Sender):
    """Who asks for no scheme gets SHA-1."""

    def signature(self, scheme: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> Headers:
        return [("X-Hub-Signature", f"sha1={hexadecimal(secrets[0], body, 'sha1')}")]


@mutant("SIGN-26")
class OwnSecretForCallbacks(Sender):
    """Callbacks are signed with the sender's secret instead of the task's."""

    async def call_back(self, url: str, payload: str, secret: str) -> dict[str, Any]:
        return await super().call_back(url, payload, "whsec_" + base64.b64encode(b"the sender's own").decode())


@mutant("SIGN-01", "SIGN-02", "SIGN-06", says="does not begin with")
class LabelInCapitals(_Signing):
    """The label of a signature is in capitals: SHA256=."""

    def signed(self, name: str, value: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> str:
        label, equals, digits = value.rpartition("=")
        return label.upper() + equals + digits


@mutant("SIGN-03")
class UrlSafeBase64(_Signing):
    """The signature is in the base64 of URLs."""

    def signed(self, name: str, value: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> str:
        return value.replace("+", "-").replace("/", "_")


@mutant("SIGN-03")
class Unpadded(_Signing):
    """The signature lacks the padding of base64."""

    def signed(self, name: str, value: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> str:
        return value.rstrip("=")


@mutant("SIGN-01", "SIGN-02", "SIGN-03", "SIGN-05", "SIGN-06")
class SignsIndented(Sender):
    """What is signed is the payload as it is printed for people."""

    def signature(self, scheme: str, secrets: list[str], message: Message, timestamp: str, body: bytes) -> Headers:
        printed = json.dumps(json.loads(body), indent=2).encode()
        return super().signature(scheme, secrets, message, timestamp, printed)


@mutant("SIGN-01", "SIGN-02", "SIGN-03", "SIGN-05", "SIGN-06", says="no signature matches")
class LatestSecretOnRetry(Sender):
    """A retry is signed with the secret of whoever subscribed last."""

    def headers(self, subscription: Subscription, message: Message, body: bytes) -> Headers:
        if message.attempt == 1:
            return super().headers(subscription, message, body)
        latest = list(self.subscriptions.values())[-1]
        borrowed = Subscription(url=subscription.url, secret=latest.secret, schemes=subscription.schemes)
        return super().headers(borrowed, message, body)


@mutant("SIGN-29", says="at the same time")
class CreatedOnce(Complete):
    """By RFC 9421 a message is signed once, for all attempts to come."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[str, Headers] = {}

    def message_signature(self, scheme: str, subscription: Subscription, message: Message, body: bytes) -> Headers:
        return self.made.setdefault(message.id, super().message_signature(scheme, subscription, message, body))
