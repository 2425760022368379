"""No secret is kept in clear: how the tests of that look for one, and what they have a receiver do to lure it out."""

from __future__ import annotations

import base64
import html
import json
import re
import secrets
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import httpx
import jwt

from tests.support import postgres
from tests.support.patience import PATIENCE
from tests.support.receiver import Received, Reply
from tests.support.server import Server

#: a text, or bytes that are no text, such as a private key
Wanted = str | bytes

# --- the search -------------------------------------------------------------------------------------------


def forms(secret: Wanted) -> dict[str, set[bytes]]:
    """How a secret may lie around, all but its letters' case, which the search for these ignores."""
    if isinstance(secret, bytes):
        return {"clear": {secret}, "hex": {secret.hex().encode()}, "percent": {quote(secret, safe="").encode()}}
    raw = secret.encode()
    quoted = {quote(secret, safe=""), quote(secret), "".join(f"%{byte:02x}" for byte in raw)}
    escaped = json.dumps(secret)[1:-1]
    return {
        "clear": {raw},
        "hex": {raw.hex().encode()},
        "percent": {form.encode() for form in quoted},
        "json": {escaped.encode(), escaped.replace("/", "\\/").encode(), repr(secret)[1:-1].encode()},
        "html": {html.escape(secret).encode()},
        "utf-16": {secret.encode("utf-16-le")},
    }


def base64_forms(secret: Wanted) -> set[bytes]:
    """The part of a secret's base64 that does not depend on what stands around it, for each way it can lie."""
    raw = secret if isinstance(secret, bytes) else secret.encode()
    found = set()
    for before in range(3):
        text = base64.b64encode(b"\0" * before + raw).rstrip(b"=")
        core = text[4 if before else 0 : -1]
        found |= {core, core.replace(b"+", b"-").replace(b"/", b"_")}
    return found


def search(haystack: bytes, wanted: Mapping[str, Wanted]) -> list[str]:
    """Which secrets lie in there, and in which form: `name (form)`."""
    lowered = haystack.lower()
    found = [
        f"{name} ({form})"
        for name, secret in wanted.items()
        for form, needles in forms(secret).items()
        if any(needle.lower() in lowered for needle in needles)
    ]
    found += [f"{n} (base64)" for n, secret in wanted.items() if any(f in haystack for f in base64_forms(secret))]
    return sorted(found)


def files_of(folder: Path) -> bytes:
    """Everything in a folder, but for the keyring, whose place it is to hold keys."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "keyring.json")
    return b"\n".join(path.name.encode() + b"\n" + path.read_bytes() for path in files)


def kept_by(server: Server) -> bytes:
    """Everything that a server has stored: its files, and what PostgreSQL has if its database is there."""
    files = files_of(server.data_dir)
    return files if server.database_url is None else files + postgres.kept_in(server.database_url)


def fresh(prefix: str) -> str:
    """A text that occurs nowhere else."""
    return prefix + secrets.token_hex(12)


def a_jwt() -> str:
    claims = {"sub": fresh("s"), "res_id": 42, "exp": int(time.time()) + 3600}
    return jwt.encode(claims, secrets.token_hex(32), algorithm="HS256")


@dataclass(kw_only=True, repr=False)
class Evidence:
    """What a run left behind."""

    #: name -> what must not be found
    secrets: dict[str, str] = field(default_factory=dict)
    #: the same of what is no text: private keys, and what HMAC is keyed with
    keys: dict[str, bytes] = field(default_factory=dict)
    #: what may stand in the database, since payloads are kept in clear, but in no answer
    payload_secrets: dict[str, str] = field(default_factory=dict)
    answers: list[bytes] = field(default_factory=list)
    #: place -> all that was found there
    places: dict[str, bytes] = field(default_factory=dict)
    on_the_wire: bytes = b""
    attempts: list[dict[str, Any]] = field(default_factory=list)
    deliveries: dict[str, dict[str, Any]] = field(default_factory=dict)
    wiped: dict[str, tuple[object, ...]] = field(default_factory=dict)

    def secret(self, name: str, text: str) -> str:
        self.secrets[name] = text
        return text

    def keep(self, answer: httpx.Response) -> None:
        answer.read()
        head = [f"{answer.status_code} {answer.reason_phrase}"] + [f"{n}: {v}" for n, v in answer.headers.items()]
        self.answers.append("\n".join(head).encode() + b"\n\n" + answer.content)


class Echo:
    """A receiver that tells all it got, in body and headers, in several escapings. The path says how it ends."""

    def __init__(self) -> None:
        #: secrets that the receiver knows from elsewhere, by delivery path; it tells these, too
        self.known: dict[str, list[str]] = {}

    def __call__(self, request: Received) -> Reply:
        everything = [request.target, unquote(request.target), *self.known.get(request.target, [])]
        everything += [f"{name}: {value}" for name, value in request.headers]
        everything += [part for text in everything for part in re.split(r"[/?&=. ]", text) if len(part) > 8]
        plain = "\n".join(everything)
        bodies = {
            "plain": plain,
            "json": json.dumps({"request": everything}),
            "php": json.dumps({"request": everything}).replace("/", "\\/"),
            "ascii": json.dumps({"nested": json.dumps(everything)}),
            "percent": "&".join(f"r={quote(text, safe='')}" for text in everything),
            "html": f"<pre>{html.escape(plain)}</pre>",
            "upper": plain.upper(),
        }
        status, form = request.target.split("/")[1:3]
        headers = [
            ("X-Echo", request.target),
            ("X-Echo-Quoted", quote(request.target, safe="")),
            ("Location", f"https://elsewhere.test{request.target}"),
            ("Set-Cookie", f"path={request.target}"),
            ("WWW-Authenticate", f'Bearer realm="{request.target}"'),
            ("Link", f"<{request.target}>; rel=next"),
        ]
        headers += [(f"X-Got-{name}", value) for name, value in request.headers if name != "Host"]
        return Reply(status=int(status), headers=tuple(headers), body=bodies[form].encode())


def long_texts(value: Any) -> list[str]:
    """Every long text in a JSON value that is no time: the keys of a keyring."""
    if isinstance(value, dict):
        return [text for name, part in value.items() if name not in {"created", "kid"} for text in long_texts(part)]
    if isinstance(value, list):
        return [text for part in value for text in long_texts(part)]
    return [value] if isinstance(value, str) and len(value) >= 32 else []


def end_of(server: Server) -> bytes:
    """Stop it, and return what it said on stdout after it was ready."""
    assert server.process is not None
    assert server.process.stdout is not None
    server.signal(signal.SIGTERM)
    said: list[bytes] = []
    reader = threading.Thread(target=lambda: said.append(server.process.stdout.read()))  # type: ignore[union-attr]  # as asserted above
    reader.start()
    server.process.wait(PATIENCE)
    reader.join(PATIENCE)
    return b"".join(said)
