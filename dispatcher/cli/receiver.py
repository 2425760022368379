"""`dispatcher receiver`: a receiver of webhooks, to test senders with."""

from __future__ import annotations

import asyncio
import json
import signal
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

import typer

from dispatcher import logs
from dispatcher.cli import inputs
from dispatcher.cli.speaking import Json, fail
from dispatcher.conformance.certificates import Authority
from dispatcher.conformance.faults import Script
from dispatcher.conformance.receiver.addresses import parse_networks
from dispatcher.conformance.receiver.callbacks import CallbackIssuer
from dispatcher.conformance.receiver.control import is_loopback
from dispatcher.conformance.receiver.event_schemas import compile_schemas
from dispatcher.conformance.receiver.handshakes import MAX_RATE
from dispatcher.conformance.receiver.policy import Policy
from dispatcher.conformance.receiver.receiver import ANY_PATH, Receiver
from dispatcher.conformance.signatures.schemes import HUB_METHODS, SCHEMES, Key, parse_public_key
from dispatcher.conformance.wire.name_server import MAX_TTL, NameServer
from dispatcher.errors import ConfigError, DispatcherError

app = typer.Typer(pretty_exceptions_enable=False)

T = TypeVar("T")

#: schemes that verify with a public key
_ASYMMETRIC = frozenset(scheme for scheme in SCHEMES if scheme.endswith("-ed25519"))
#: bytes of a body that are read, unless --max-body asks for more
_MAX_BODY = 1_048_576
_LARGEST_BODY = 1024 * _MAX_BODY
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_IN_SIGHT = "Others on this machine can see what stands on a command line; better"


@app.command()
def receiver(
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[str, typer.Option(metavar="PORT", help="Port to listen on; 0 picks a free one.")] = "8081",
    control_host: Annotated[
        str,
        typer.Option(help="Address where the requests can be seen. Anywhere but on loopback it asks for a token."),
    ] = "127.0.0.1",
    control_port: Annotated[
        str, typer.Option(metavar="PORT", help="Port where the requests can be seen; 0 picks a free one.")
    ] = "8082",
    secret: Annotated[
        list[str] | None,
        typer.Option(help=f"Secret that signs; repeat it for several. {_IN_SIGHT}: --secret-file.", show_default=False),
    ] = None,
    secret_file: Annotated[
        list[Path] | None,
        typer.Option(help="File with a secret on one line; - is stdin. Can be repeated.", show_default=False),
    ] = None,
    scheme: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Signature to ask for; repeat it for several, of which one has to hold: {', '.join(SCHEMES)}.",
            show_default="all that the secrets and public keys can verify",
        ),
    ] = None,
    all_schemes: Annotated[bool, typer.Option("--all-schemes", help="Every --scheme has to hold.")] = False,
    hub_method: Annotated[str, typer.Option(help=f"Digest of websub: {', '.join(HUB_METHODS)}.")] = "sha256",
    public_key: Annotated[
        list[str] | None, typer.Option(help="Ed25519 public key, whpk_…. Can be repeated.", show_default=False)
    ] = None,
    tolerance: Annotated[
        str, typer.Option(help="How old, or ahead, a request's time may be: seconds, or 90s, 5m; or off.")
    ] = "off",
    replay: Annotated[
        str, typer.Option(help="A delivery that was accepted before: off, refuse (409), quiet (2xx, not processed).")
    ] = "off",
    handshake_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Origin that the handshake of CloudEvents' webhooks grants to, * for any. Can be repeated.",
            show_default="no handshake is answered",
        ),
    ] = None,
    handshake_rate: Annotated[
        str | None,
        typer.Option(metavar="NUMBER", help="Requests a minute that a handshake grants.", show_default="any"),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Method that is taken, any for all; others get 405. Can be repeated.",
            show_default="POST",
        ),
    ] = None,
    content_type: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TYPE",
            help="Type of body that is taken, such as application/json; others, and compressed ones, get 415. Can be"
            " repeated.",
            show_default="any",
        ),
    ] = None,
    shared_secret_header: Annotated[
        str | None, typer.Option(metavar="NAME", help="Header that has to hold a shared secret.", show_default=False)
    ] = None,
    shared_secret_file: Annotated[
        list[Path] | None,
        typer.Option(help="File with the shared secret on one line. Can be repeated.", show_default=False),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(metavar="NETWORK", help="Network that may send; all others get 403. Can be repeated."),
    ] = None,
    trusted_proxy: Annotated[
        list[str] | None,
        typer.Option(metavar="NETWORK", help="Network of proxies whose --forwarded-header counts. Can be repeated."),
    ] = None,
    forwarded_header: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Header in which a trusted proxy names the client, X-Forwarded-For say."),
    ] = None,
    schema: Annotated[
        list[str] | None,
        typer.Option(metavar="EVENT=FILE", help="JSON Schema for the bodies of an event type. Can be repeated."),
    ] = None,
    rate: Annotated[
        str | None, typer.Option(metavar="NUMBER", help="Requests a second from one address; more get 429.")
    ] = None,
    max_body: Annotated[
        str | None,
        typer.Option(metavar="BYTES", help="Bytes that a body may have; more get 413.", show_default="1048576"),
    ] = None,
    tls: Annotated[
        bool,
        typer.Option("--tls", help="https, with a throw-away certificate; its authority is /authority.pem."),
    ] = False,
    certificate: Annotated[Path | None, typer.Option(help="https, with this certificate (PEM). Needs --key.")] = None,
    key: Annotated[Path | None, typer.Option(help="The certificate's private key (PEM).")] = None,
    callback_secret: Annotated[
        str | None,
        typer.Option(
            help=f"Paths have to carry a token that this signs. {_IN_SIGHT}: --callback-secret-file.",
            show_default=False,
        ),
    ] = None,
    callback_secret_file: Annotated[
        Path | None, typer.Option(help="File with that secret on one line, 32 bytes or more.", show_default=False)
    ] = None,
    script: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH=SCRIPT", help="What a path answers, * for any: /hooks=500,500,ok. Can be repeated."),
    ] = None,
    name_server_port: Annotated[
        str | None,
        typer.Option(metavar="PORT", help="UDP port of a name server on 127.0.0.1; 0 picks a free one."),
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=ADDRESSES",
            help="What the name server answers, query by query: a.test=127.0.0.2,127.0.0.3+::1. Can be repeated.",
        ),
    ] = None,
    name_ttl: Annotated[
        str, typer.Option(metavar="SECONDS", help="How long answers of the name server may be kept.")
    ] = "0",
    answer: Annotated[str, typer.Option(metavar="STATUS", help="What is answered to what is accepted: a 2xx.")] = "202",
    as_json: Json = False,
) -> None:
    """Receive webhooks: keep them, judge them as a careful handler would, and misbehave where it is told to.

    Every defence is off unless an option asks for it, but that only POST is taken. What came can be seen in a browser,
    and asked for as JSON, at a second port. Requests are told on stderr, a line for each, without paths and values of
    headers.
    """
    inputs.check_stdin(*(secret_file or ()), *(shared_secret_file or ()), callback_secret_file)
    keys = _keys(secret or (), secret_file or (), public_key or ())
    largest = None if max_body is None else _whole(max_body, "--max-body", least=0, most=_LARGEST_BODY)
    places = {"--allow": allow, "--trusted-proxy": trusted_proxy}
    policy = _Wishes(
        keys=keys,
        schemes=_schemes(scheme, keys),
        signatures="all" if all_schemes else "any",
        hub_method=_one_of(hub_method, "--hub-method", HUB_METHODS),
        tolerance=None if tolerance == "off" else inputs.read_span(tolerance, "--tolerance"),
        replay=_one_of(replay, "--replay", ("off", "refuse", "quiet")),
        handshake_origins=_alone("--handshake-origin", "handshake_origins", handshake_origin),
        handshake_rate=None
        if handshake_rate is None
        else _whole(handshake_rate, "--handshake-rate", least=1, most=MAX_RATE),
        methods=None if "any" in (method or ()) else _alone("--method", "methods", method) or Policy().methods,
        content_types=_alone("--content-type", "content_types", content_type),
        shared_secret_header=shared_secret_header,
        shared_secrets=[inputs.read_secret(file, "--shared-secret-file") for file in shared_secret_file or ()],
        networks={option: _networks(texts, option) for option, texts in places.items()},
        forwarded_header=forwarded_header,
        schemas=_schemas(schema or ()),
        rate=None if rate is None else _rate(rate),
        max_body=largest,
        callback=_issuer(callback_secret, callback_secret_file),
    ).policy()
    context, authority = _tls(host, is_made_here=tls, certificate=certificate, key=key)
    options: dict[str, Any] = {
        "host": host,
        "port": _whole(port, "--port", least=0, most=65_535),
        "tls": context,
        "authority": authority,
        "control_host": control_host,
        "control_port": _whole(control_port, "--control-port", least=0, most=65_535),
        "answer": _whole(answer, "--answer", least=200, most=299),
        "scripts": _scripts(script or ()),
        "name_server": _name_server(name_server_port, name or (), name_ttl),
        "max_body": max(_MAX_BODY, (largest or 0) + 1),
    }
    logs.configure(level="info", style="json" if as_json else "auto")
    try:
        # Not uvloop: the faults were made byte by byte on asyncio's own transports.
        asyncio.run(_receive(policy, options, as_json=as_json))
    except DispatcherError as exc:
        fail(str(exc))


async def _receive(policy: Policy, options: Mapping[str, Any], *, as_json: bool) -> None:
    """Run until SIGTERM or SIGINT."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    for number in _SIGNALS:
        loop.add_signal_handler(number, ended.set)
    try:
        async with Receiver(policy, **options) as running:
            names = running.name_server.address if running.name_server else None
            if as_json:
                ready = {
                    "url": running.url,
                    "control_url": running.control_url,
                    "token": running.control_token,
                    "name_server": names,
                }
                print(json.dumps(ready), flush=True)  # noqa: T201 - stdout's one line
            else:
                if running.control_token:
                    print("token", running.control_token, flush=True)  # noqa: T201 - for whoever started it
                if names:
                    print("name server on", names, flush=True)  # noqa: T201 - as above
                print(f"receiver ready on {running.url}, requests at {running.control_url}", flush=True)  # noqa: T201 - as above
            await ended.wait()
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


@dataclass(frozen=True, kw_only=True)
class _Wishes:
    """What the options say of the defences, each good by itself."""

    keys: tuple[Key, ...] = field(repr=False)
    schemes: tuple[str, ...] | None
    signatures: str
    hub_method: str
    tolerance: float | None
    replay: str
    handshake_origins: tuple[str, ...] | None
    handshake_rate: int | None
    methods: tuple[str, ...] | None
    content_types: tuple[str, ...] | None
    shared_secret_header: str | None
    shared_secrets: Sequence[str] = field(repr=False)
    networks: Mapping[str, tuple[str, ...]]
    forwarded_header: str | None
    schemas: Mapping[str, Mapping[str, Any]] | None
    rate: float | None
    max_body: int | None
    callback: CallbackIssuer | None

    def policy(self) -> Policy:
        """What they come to. Ends the command when they do not fit together."""
        if self.shared_secret_header is not None and not self.shared_secrets:
            fail("--shared-secret-header needs --shared-secret-file")
        if self.forwarded_header is not None and not self.networks["--trusted-proxy"]:
            fail("--forwarded-header needs --trusted-proxy: from anybody else it says nothing")
        if self.networks["--trusted-proxy"] and self.forwarded_header is None:
            fail("--trusted-proxy needs --forwarded-header: where it names the client")
        if self.signatures == "all" and not self.schemes:
            fail("--all-schemes needs --scheme")
        if self.handshake_rate is not None and not self.handshake_origins:
            fail("--handshake-rate needs --handshake-origin")
        try:
            return Policy(
                allowed_networks=self.networks["--allow"] or None,
                forwarded_for_header=self.forwarded_header or "",
                trusted_proxies=self.networks["--trusted-proxy"],
                handshake_origins=self.handshake_origins,
                handshake_rate=self.handshake_rate,
                methods=self.methods,
                content_types=self.content_types,
                shared_secrets=tuple(self.shared_secrets) or None,
                shared_secret_header=self.shared_secret_header or "X-Secret",
                max_body_bytes=self.max_body,
                rate=self.rate,
                signature_schemes=self.schemes,
                signatures=cast("Literal['any', 'all']", self.signatures),
                keys=self.keys,
                hub_method=self.hub_method,
                tolerance=self.tolerance,
                replay=cast("Literal['off', 'refuse', 'quiet']", self.replay),
                callback=self.callback,
                schemas=self.schemas,
            )
        except ConfigError as exc:
            fail(str(exc))


# --- options, one by one --------------------------------------------------------------------------------------


def _or_fail(option: str, make: Callable[[], T]) -> T:
    """What this makes. Ends the command, and names the option, when it cannot be made."""
    try:
        return make()
    except ConfigError as exc:
        fail(f"{option}: {exc}")


def _whole(text: str, option: str, *, least: int, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 12 and least <= int(text) <= most):
        fail(f"{option} is a whole number from {least} to {most}")
    return int(text)


def _rate(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1e6:
        fail("--rate is a number of requests a second, above 0")
    return number


def _one_of(text: str, option: str, known: Sequence[str]) -> str:
    if text not in known:
        fail(f"{option} is one of: {', '.join(known)}")
    return text


def _keys(secrets: Sequence[str], files: Sequence[Path], public_keys: Sequence[str]) -> tuple[Key, ...]:
    if not all(secrets):
        fail("--secret is a text that is not empty")
    texts = [*secrets, *(inputs.read_secret(file, "--secret-file") for file in files)]
    found = [_or_fail("--public-key", partial(parse_public_key, text)) for text in public_keys]
    return (*(Key(secret=text) for text in texts), *(Key(public_key=one) for one in found))


def _schemes(wanted: Sequence[str] | None, keys: Sequence[Key]) -> tuple[str, ...] | None:
    if not wanted:
        able = {"symmetric": any(key.secret for key in keys), "asymmetric": any(key.public_key for key in keys)}
        fit = [scheme for scheme in SCHEMES if able["asymmetric" if scheme in _ASYMMETRIC else "symmetric"]]
        return tuple(fit) or None
    for scheme in wanted:
        _one_of(scheme, "--scheme", SCHEMES)
        if scheme in _ASYMMETRIC and not any(key.public_key for key in keys):
            fail(f"--scheme {scheme} needs --public-key")
        if scheme not in _ASYMMETRIC and not any(key.secret for key in keys):
            fail(f"--scheme {scheme} needs --secret-file")
    return tuple(dict.fromkeys(wanted))


def _alone(option: str, setting: str, texts: Sequence[str] | None) -> tuple[str, ...] | None:
    """A setting of the policy that is good or bad by itself."""
    if not texts:
        return None
    _or_fail(option, lambda: Policy(**{setting: tuple(texts)}))  # type: ignore[arg-type]  # its name is ours
    return tuple(texts)


def _networks(texts: Sequence[str] | None, option: str) -> tuple[str, ...]:
    for text in texts or ():
        try:
            parse_networks([text], setting=option)
        except ConfigError:
            fail(f"{option} is a network such as 192.0.2.0/24, its host bits zero, or an address")
    return tuple(texts or ())


def _schemas(given: Sequence[str]) -> dict[str, dict[str, Any]] | None:
    found: dict[str, dict[str, Any]] = {}
    for text in given:
        event, equals, file = text.partition("=")
        if not event or not equals or not file:
            fail("--schema is EVENT=FILE, such as order.paid=order.json")
        try:
            content = json.loads(inputs.read_file(Path(file), "--schema"))
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict):
            fail("--schema: the file is no JSON object")
        _or_fail("--schema", partial(compile_schemas, {event: content}))
        found[event] = content
    return found or None


def _name_server(port: str | None, given: Sequence[str], ttl: str) -> NameServer | None:
    kept = _whole(ttl, "--name-ttl", least=0, most=MAX_TTL)
    if port is None:
        if given:
            fail("--name needs --name-server-port")
        return None
    server = NameServer(port=_whole(port, "--name-server-port", least=0, most=65_535), ttl=kept)
    for text in given:
        name, equals, script = text.partition("=")
        if not equals or not script:
            fail("--name is NAME=ADDRESSES, such as a.test=127.0.0.2,127.0.0.3")
        _or_fail("--name", partial(server.script, name, script))
    return server


def _issuer(secret: str | None, file: Path | None) -> CallbackIssuer | None:
    if secret is not None and file is not None:
        fail("--callback-secret and --callback-secret-file are two ways to say one thing: give one of them")
    if secret is None and file is None:
        return None
    text = secret if file is None else inputs.read_secret(file, "--callback-secret-file")
    option = "--callback-secret" if file is None else "--callback-secret-file"
    return _or_fail(option, lambda: CallbackIssuer(text or ""))


def _scripts(given: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in given:
        path, _, steps = text.partition("=")
        if not steps or not (path == ANY_PATH or path.startswith("/")):
            fail("--script is PATH=SCRIPT, such as /hooks=500,500,ok; the path * is any")
        _or_fail("--script", partial(Script.parse, steps))
        found[path] = steps
    return found


def _tls(
    host: str, *, is_made_here: bool, certificate: Path | None, key: Path | None
) -> tuple[ssl.SSLContext | None, str | None]:
    """How to speak TLS, if at all, and the authority that vouches for it, if we made it."""
    if (certificate is None) != (key is None):
        fail("--certificate and --key are given together")
    if certificate is not None and key is not None:
        if is_made_here:
            fail("--tls makes a certificate of its own: leave it out beside --certificate")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            # An empty password: whoever started this in the background cannot be asked for one.
            context.load_cert_chain(certificate, key, password="")
        except (OSError, ValueError):
            fail("--certificate and --key are two PEM files that can be read and belong together, without a passphrase")
        return context, None
    if not is_made_here:
        return None, None
    authority = Authority()
    hosts = ["localhost", "127.0.0.1", "::1"] if is_loopback(host) else [host, "localhost", "127.0.0.1", "::1"]
    return _or_fail("--host", lambda: authority.context(list(dict.fromkeys([*hosts, host])))), authority.pem
