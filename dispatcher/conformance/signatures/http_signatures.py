"""HTTP Message Signatures (RFC 9421) of requests, with Content-Digest (RFC 9530), as far as webhooks need them.

The fields are read and written as Structured Fields (RFC 8941). Of RFC 9421 there is all but components with
parameters (`;sf`, `;bs`, `;key`, `;tr`), `@query-param` and what only answers have; a signature that covers one of
those is refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from dispatcher.conformance.wire.requests import Headers

#: of Content-Digest; others are passed over, as RFC 9530 wants it
DIGESTS = {"sha-256": "sha256", "sha-512": "sha512"}
#: a field that is sent twice can be read as the one or as the other, so neither is taken
SINGLE = frozenset({"content-type", "x-webhook-delivery"})
#: characters of one structured field, all its lines together; whoever sends more keeps a receiver busy
MAX_FIELD = 8_192
#: components that one signature covers
MAX_COVERED = 64
#: a Structured Fields integer has at most 15 digits
MAX_INTEGER = 999_999_999_999_999

_URL = re.compile(r"(?P<scheme>[a-z]+)://(?P<authority>[^/?#]+)(?P<path>/[^?#]*)?(?P<query>\?[^#]*)?", re.DOTALL)
# what a reason may show of a name that came over the wire
_NAME = re.compile(r"@?[a-z0-9-]{1,40}")
_PRINTABLE = re.compile(r"[ -~]*")

_KEY = re.compile(r"[a-z*][a-z0-9_.*-]*")
_NUMBER = re.compile(r"-?(?:[0-9]{1,12}\.[0-9]{1,3}|[0-9]{1,15})")
_STRING = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"')
_BYTES = re.compile(r":([A-Za-z0-9+/=]*):")
_BOOLEAN = re.compile(r"\?([01])")
_TOKEN = re.compile(r"[A-Za-z*][A-Za-z0-9!#$%&'*+.^_`|~:/-]*")
_SPACES = re.compile(r" *")
_SPACES_OR_TABS = re.compile(r"[ \t]*")


class Mismatch(Exception):
    """What is wrong with a signature, for people: shows neither the signature nor what was signed."""


# --- signatures ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """What of a request a signature can cover."""

    method: str
    #: absolute, as the receiver sees it: without user and fragment
    url: str = field(repr=False)
    headers: Headers = field(repr=False)

    def joined(self, name: str) -> str | None:
        """The lines of a field as one, with ", " between them; None if there is none."""
        lines = [value.strip(" \t") for key, value in self.headers if key.lower() == name]
        return ", ".join(lines) if lines else None

    def component(self, name: str) -> str:
        """The value of a component (RFC 9421, section 2). Raises Mismatch where there is none that can be signed."""
        value = self._derived(name) if name.startswith("@") else self._field(name)
        if not _PRINTABLE.fullmatch(value):
            raise Mismatch(f"{_named(name)} is covered and is not printable ASCII")
        return value

    def _field(self, name: str) -> str:
        value = self.joined(name)
        if value is None:
            raise Mismatch(f"{_named(name)} is covered and is not there")
        if name in SINGLE and sum(key.lower() == name for key, _ in self.headers) > 1:
            raise Mismatch(f"{name} comes more than once")
        return value

    def _derived(self, name: str) -> str:
        if name == "@method":
            return self.method
        url = _URL.fullmatch(self.url)
        if url is None:
            raise Mismatch("the request has no usable URL")
        scheme, authority = url["scheme"], url["authority"]
        path, query = url["path"] or "/", url["query"] or ""
        default_port = {"http": ":80", "https": ":443"}.get(scheme, ":")
        values = {
            "@target-uri": f"{scheme}://{authority}{path}{query}",
            "@authority": authority.lower().removesuffix(default_port),
            "@scheme": scheme,
            "@request-target": path + query,
            "@path": path,
            "@query": query or "?",
        }
        if name not in values:
            raise Mismatch(f"{_named(name)} is covered and is not supported")
        return values[name]


@dataclass(frozen=True, kw_only=True, slots=True)
class Signature:
    """One signature of a message, read but not verified."""

    #: names of the components, in the order in which they are signed
    covered: tuple[str, ...]
    #: what @signature-params says, in its canonical form
    params: str
    #: Unix seconds; None where it does not say
    created: int | None
    #: Unix seconds; None where it does not say
    expires: int | None
    #: as in the registry of RFC 9421, section 6.2: "hmac-sha256"; None where it does not say
    algorithm: str | None
    value: bytes = field(repr=False)

    def base(self, message: Message) -> bytes:
        """The bytes that are signed (RFC 9421, section 2.5). Raises Mismatch."""
        return _base(message, self.covered, self.params)


def read(message: Message, label: str) -> Signature:
    """The signature with a label, from Signature-Input and Signature. Raises Mismatch."""
    described = _member(message, "Signature-Input", label)
    signed = _member(message, "Signature", label)
    if not isinstance(described.value, tuple):
        raise Mismatch("Signature-Input is not a list of components")
    if not isinstance(signed.value, bytes):
        raise Mismatch("Signature is not a byte sequence")
    if len(described.value) > MAX_COVERED:
        raise Mismatch(f"more than {MAX_COVERED} components are covered")
    names = []
    for item in described.value:
        if not isinstance(item.value, str) or isinstance(item.value, Token):
            raise Mismatch("a covered component is not named by a string")
        if item.params:
            raise Mismatch("a covered component has parameters, which are not supported")
        names.append(item.value)
    if len(set(names)) < len(names):
        raise Mismatch("a component is covered twice")
    params = described.params
    _text(params, "keyid")
    return Signature(
        covered=tuple(names),
        params=described.text(),
        created=_seconds(params, "created"),
        expires=_seconds(params, "expires"),
        algorithm=_text(params, "alg"),
        value=signed.value,
    )


def labels(message: Message) -> list[str]:
    """The labels of a request's signatures, in their order. Raises Mismatch."""
    return list(_dictionary(message, "Signature-Input"))


def create(
    message: Message,
    *,
    label: str,
    covered: Sequence[str],
    created: int,
    key_id: str,
    algorithm: str,
    signer: Callable[[bytes], bytes],
) -> list[tuple[str, str]]:
    """Signature-Input and Signature. Raises Mismatch for what cannot be signed; an empty key id is left out."""
    params: dict[str, BareItem] = {"created": created, "keyid": key_id, "alg": algorithm}
    if not key_id:
        del params["keyid"]
    described = Member(value=tuple(Member(value=name) for name in covered), params=params)
    value = Member(value=signer(_base(message, covered, described.text())))
    return [("Signature-Input", f"{label}={described.text()}"), ("Signature", f"{label}={value.text()}")]


def content_digest(body: bytes) -> str:
    """The value of Content-Digest, with SHA-256."""
    return "sha-256=" + Member(value=hashlib.sha256(body).digest()).text()


def check_content_digest(message: Message, body: bytes) -> None:
    """Raises Mismatch unless Content-Digest has a SHA-256 or SHA-512, and all that it has are those of the body."""
    digests = _dictionary(message, "Content-Digest")
    known = {hashed: digests[name].value for name, hashed in DIGESTS.items() if name in digests}
    if not known:
        raise Mismatch("Content-Digest has neither sha-256 nor sha-512")
    for hashed, value in known.items():
        if not isinstance(value, bytes) or not hmac.compare_digest(value, hashlib.new(hashed, body).digest()):
            raise Mismatch("Content-Digest is not that of the body")


def _named(name: str) -> str:
    return name if _NAME.fullmatch(name) else "a component"


def _base(message: Message, covered: Sequence[str], params: str) -> bytes:
    lines = [f'"{name}": {message.component(name)}' for name in covered]
    return "\n".join([*lines, f'"@signature-params": {params}']).encode("ascii")


def _dictionary(message: Message, name: str) -> dict[str, Member]:
    text = message.joined(name.lower())
    if text is None:
        raise Mismatch(f"no {name} header")
    if len(text) > MAX_FIELD:
        raise Mismatch(f"{name} has more than {MAX_FIELD} characters")
    try:
        return _Reader(text).dictionary()
    except _Malformed:
        raise Mismatch(f"{name} is not a dictionary of structured fields") from None


def _member(message: Message, name: str, label: str) -> Member:
    member = _dictionary(message, name).get(label)
    if member is None:
        raise Mismatch(f'{name} has nothing with the label "{label}"')
    return member


def _seconds(params: Mapping[str, BareItem], name: str) -> int | None:
    value = params.get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise Mismatch(f"{name} is not Unix seconds")
    return value


def _text(params: Mapping[str, BareItem], name: str) -> str | None:
    value = params.get(name)
    if value is not None and (not isinstance(value, str) or isinstance(value, Token)):
        raise Mismatch(f"{name} is not a string")
    return value


# --- structured fields --------------------------------------------------------------------------------------


class Token(str):
    """A text without quotes."""

    __slots__ = ()


BareItem = int | Decimal | str | bytes | bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """An item or an inner list, with its parameters."""

    value: BareItem | tuple[Member, ...] = field(repr=False)
    params: Mapping[str, BareItem] = field(default_factory=dict, repr=False)

    def text(self) -> str:
        """Its one canonical form (RFC 8941, section 4.1). Raises Mismatch for a value that has none."""
        if isinstance(self.value, tuple):
            text = "(" + " ".join(item.text() for item in self.value) + ")"
        else:
            text = _serialized(self.value)
        return text + "".join(
            f";{key}" if value is True else f";{key}={_serialized(value)}" for key, value in self.params.items()
        )


def _serialized(value: BareItem) -> str:
    match value:
        case bool():
            return f"?{int(value)}"
        case int() if abs(value) <= MAX_INTEGER:
            return str(value)
        case Decimal():
            whole, _, fraction = f"{value:f}".partition(".")
            return f"{whole}.{fraction.rstrip('0') or '0'}"
        case bytes():
            return f":{base64.b64encode(value).decode()}:"
        case Token():
            return str(value)
        case str() if _PRINTABLE.fullmatch(value):
            return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
        case _:
            raise Mismatch("a parameter is not printable ASCII, or too large a number")


class _Malformed(ValueError):
    """A text is not what it should be by RFC 8941."""


class _Reader:
    """Reads one field, without white space around it, from left to right (RFC 8941, section 4.2)."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def dictionary(self) -> dict[str, Member]:
        members: dict[str, Member] = {}
        while self._at < len(self._text):
            key = self._take(_KEY)[0]
            if self._skip("="):
                # of a key that comes twice, the last counts
                members[key] = self._inner_list() if self._skip("(") else self._item()
            else:
                members[key] = Member(value=True, params=self._params())
            self._take(_SPACES_OR_TABS)
            if self._at < len(self._text):
                self._expect(",")
                self._take(_SPACES_OR_TABS)
                if self._at == len(self._text):
                    raise _Malformed
        return members

    def _inner_list(self) -> Member:
        items: list[Member] = []
        self._take(_SPACES)
        while not self._skip(")"):
            items.append(self._item())
            if not self._take(_SPACES)[0] and not self._text.startswith(")", self._at):
                raise _Malformed
        return Member(value=tuple(items), params=self._params())

    def _item(self) -> Member:
        return Member(value=self._bare_item(), params=self._params())

    def _params(self) -> dict[str, BareItem]:
        params: dict[str, BareItem] = {}
        while self._skip(";"):
            self._take(_SPACES)
            key = self._take(_KEY)[0]
            params[key] = self._bare_item() if self._skip("=") else True
        return params

    def _bare_item(self) -> BareItem:
        match self._text[self._at : self._at + 1]:
            case '"':
                return re.sub(r"\\(.)", r"\1", self._take(_STRING)[1])
            case ":":
                return self._bytes(self._take(_BYTES)[1])
            case "?":
                return self._take(_BOOLEAN)[1] == "1"
            case "-" | "0" | "1" | "2" | "3" | "4" | "5" | "6" | "7" | "8" | "9":
                number = self._take(_NUMBER)[0]
                return Decimal(number) if "." in number else int(number)
            case _:
                return Token(self._take(_TOKEN)[0])

    def _bytes(self, text: str) -> bytes:
        try:
            return base64.b64decode(text, validate=True)
        except binascii.Error:
            raise _Malformed from None

    def _take(self, pattern: re.Pattern[str]) -> re.Match[str]:
        found = pattern.match(self._text, self._at)
        if found is None:
            raise _Malformed
        self._at = found.end()
        return found

    def _skip(self, character: str) -> bool:
        is_there = self._text.startswith(character, self._at)
        self._at += is_there
        return is_there

    def _expect(self, character: str) -> None:
        if not self._skip(character):
            raise _Malformed
