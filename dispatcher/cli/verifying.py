"""`dispatcher subscriptions verify`: whether a captured request is signed as it should be, and if not, why not."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from dispatcher.cli import captured, inputs, showing
from dispatcher.cli.captured import Captured, CaptureError
from dispatcher.cli.speaking import Json, fail, warn
from subscriptions.secrets import Secret, SecretError, SigningKey
from subscriptions.signatures import ASYMMETRIC, Scheme, SignatureError
from subscriptions.verification import TOLERANCE, verify

#: exit status: a signature is wrong, or there is none
WRONG = 1
EXITS_OF_VERIFY = (
    "Exit status: 0 every scheme that was checked is right; 1 one is wrong, or there is none; 2 wrong usage, or what"
    " was captured is no request."
)
#: how `verification` begins where the signature is right, and something else is not
_STALE = "The signature is right, but"
#: hex digits of HMAC-SHA256, which `servicestack` has where others have SHA-1
_SHA256_DIGITS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What was found by one scheme."""

    scheme: Scheme
    #: None: it could not be checked with what was given
    ok: bool | None
    detail: str


def verify_request(
    request: Annotated[
        Path,
        typer.Option(
            help="The captured request; - is stdin. Raw HTTP/1.1, or JSON {method, url, headers, body | body_base64}."
        ),
    ],
    *,
    secret_file: Annotated[
        list[Path] | None,
        typer.Option(help="File with the secret, on one line; - is stdin. Can be repeated.", show_default=False),
    ] = None,
    public_key: Annotated[
        list[str] | None, typer.Option(help="Ed25519 public key, whpk_…. Can be repeated.", show_default=False)
    ] = None,
    scheme: Annotated[
        str, typer.Option(help=f"auto, for all whose headers are there, or one of: {', '.join(Scheme)}.")
    ] = "auto",
    url: Annotated[
        str | None,
        typer.Option(
            help="The URL that was called, for rfc9421; else what the request line and Host say.", show_default=False
        ),
    ] = None,
    tolerance: Annotated[
        str, typer.Option(help="Seconds between the request's time and --at that are taken, or off.")
    ] = f"{TOLERANCE:.0f}",
    at: Annotated[str | None, typer.Option(help="When it came (RFC 3339).", show_default="now")] = None,
    as_json: Json = False,
) -> None:
    """Check the signatures of a captured request, and say what is wrong with them. Nothing is sent anywhere.

    `--json` prints {ok, method, body_bytes, remarks, schemes: [{scheme, ok, detail}]}: `ok` of a scheme is null if it
    could not be checked with what was given.
    """
    files = secret_file or []
    inputs.check_stdin(request, *files)
    if scheme != "auto" and scheme not in set(Scheme):
        fail(f"--scheme is auto, or one of: {', '.join(Scheme)}")
    seconds = math.inf if tolerance == "off" else inputs.read_span(tolerance, "--tolerance")
    now = time.time() if at is None else inputs.read_moment(at, "--at").timestamp()
    if url is not None and not re.match(r"https?://[\x21-\x7e]+\Z", url, re.IGNORECASE):
        fail("--url is an absolute http or https URL")
    try:
        found = captured.read(inputs.read_file(request, "the request"))
    except CaptureError as exc:
        fail(str(exc))
    secrets = [inputs.read_secret(file, "the secret") for file in files]
    if not secrets and not public_key:
        secrets = [inputs.ask_secret("the secret")]
    checking = _Checking(
        request=found,
        urls=found.urls if url is None else (url,),
        keys=tuple(SigningKey(secret=Secret(text)) for text in secrets),
        public_keys=tuple(public_key or ()),
        now=now,
        tolerance=seconds,
    )
    schemes = list(_schemes_of(found)) if scheme == "auto" else [Scheme(scheme)]
    try:
        findings = [checking.finding(one) for one in schemes]
    except SecretError as exc:
        fail(str(exc))
    if scheme != "auto" and findings[0].ok is None:
        fail(findings[0].detail)
    _end(found, findings, as_json=as_json)


@dataclass(frozen=True, kw_only=True)
class _Checking:
    """A request, and what to judge it by."""

    request: Captured
    urls: Sequence[str]
    keys: tuple[SigningKey, ...]
    public_keys: tuple[str, ...]
    now: float
    tolerance: float

    def finding(self, scheme: Scheme) -> Finding:
        """What is found by a scheme. Raises SecretError for a malformed public key."""
        if scheme in ASYMMETRIC and not self.public_keys:
            return Finding(scheme=scheme, ok=None, detail="It is verified with --public-key.")
        if scheme not in ASYMMETRIC and not self.keys:
            return Finding(scheme=scheme, ok=None, detail="It is verified with --secret-file.")
        try:
            tried = [
                verify(
                    scheme,
                    keys=self.keys,
                    public_keys=self.public_keys,
                    headers=self.request.headers,
                    body=self.request.body,
                    method=self.request.method,
                    target_uri=target,
                    now=self.now,
                    tolerance=self.tolerance,
                )
                for target in self.urls or (None,)
            ]
        except SignatureError as exc:
            return Finding(scheme=scheme, ok=None, detail=str(exc))
        # A raw request does not tell https from http, so either may be what was signed.
        best = max(tried, key=lambda one: (one.ok, one.detail.startswith(_STALE)))
        return Finding(scheme=scheme, ok=best.ok, detail=best.detail)


def _schemes_of(request: Captured) -> Iterator[Scheme]:
    """The schemes whose headers a request has. Where several write a header, what it holds tells them apart."""
    hub = request.header("X-Hub-Signature")
    if request.has("X-Hub-Signature-256"):
        yield Scheme.GITHUB
    elif hub is not None:
        label, _, digits = hub.partition("=")
        is_mislabelled = label == "sha1" and len(digits.strip()) == _SHA256_DIGITS
        yield Scheme.SERVICESTACK if is_mislabelled else Scheme.WEBSUB
    standard = request.header("webhook-signature")
    if standard is not None:
        versions = {entry.partition(",")[0] for entry in standard.split()}
        if "v1a" in versions:
            yield Scheme.STANDARD_ED25519
        if "v1" in versions or "v1a" not in versions:
            yield Scheme.STANDARD
    if request.has("X-Webhook-Signature"):
        yield Scheme.TIMESTAMPED
    message = request.header("Signature-Input")
    if message is not None or request.has("Signature"):
        yield Scheme.RFC9421_ED25519 if 'alg="ed25519"' in (message or "") else Scheme.RFC9421


def _end(request: Captured, findings: Sequence[Finding], *, as_json: bool) -> None:
    """Print what was found, and end the command with its exit status."""
    checked = [one for one in findings if one.ok is not None]
    ok = bool(checked) and all(one.ok for one in checked)
    if as_json:
        showing.as_json(
            {
                "ok": ok,
                "method": request.method,
                "body_bytes": len(request.body),
                "remarks": request.remarks,
                "schemes": [asdict(one) for one in findings],
            }
        )
    else:
        words = {True: "right", False: "WRONG", None: "not checked"}
        for one in findings:
            typer.echo(f"{one.scheme:<18}{words[one.ok]:<13}{one.detail}")
    for remark in request.remarks:
        warn(remark)
    if not findings:
        warn("the request has none of the signature headers")
    elif not checked:
        warn("nothing could be checked")
    if not ok:
        raise SystemExit(WRONG)
