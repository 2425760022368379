"""An endpoint that knows one secret, whatever the sender has beside it."""

from __future__ import annotations

from dispatcher.conformance.faults.fault import Settings, fault
from dispatcher.conformance.signatures.schemes import SCHEMES, Key, parse_public_key, verify
from dispatcher.conformance.wire.exchange import Behaviour, Exchange
from dispatcher.conformance.wire.requests import Reply
from dispatcher.errors import ConfigError


@fault(
    "It refuses what is not signed with the one secret that it knows. A good sender that is rotating reaches it with "
    "a signature by each secret, or by another attempt.",
    expects="http_error",
    secret="the secret; of schemes with a key pair, the public key, whpk_…",  # noqa: S106 - a description
    scheme="how the sender signs (standard)",
    status="the status until it does (401)",
)
def _until_rotated(settings: Settings) -> Behaviour:
    scheme = settings.text("scheme", "standard")
    if scheme not in SCHEMES:
        raise ConfigError(f"'scheme' has to be one of {', '.join(SCHEMES)}")
    secret = settings.text("secret", "")
    if not secret:
        raise ConfigError("'secret' has to be there: the one that the endpoint knows")
    key = _key(scheme, secret)
    refusal = Reply(status=settings.whole("status", 401, low=400, high=599))

    async def behave(exchange: Exchange) -> None:
        # Any age will do: what is looked at is whose signature it is.
        verdict = verify(scheme, [key], exchange.request, now=exchange.request.at, tolerance=None)
        await exchange.reply(Reply() if verdict.is_good else refusal)

    return behave


def _key(scheme: str, secret: str) -> Key:
    if not scheme.endswith("-ed25519"):
        return Key(secret=secret)
    try:
        return Key(public_key=parse_public_key(secret))
    except ConfigError as exc:
        raise ConfigError(f"'secret': {exc}") from None
