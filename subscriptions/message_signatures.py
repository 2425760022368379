"""HTTP Message Signatures (RFC 9421) and Content-Digest (RFC 9530): the texts that are signed, built and read.

Nothing here knows a key. A component is a name and its value: derived (`@method`) or a header's, in lower case.
Component parameters (`;sf`, `;req` …) are not used by our schemes and not supported.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Component = tuple[str, str]

#: algorithms, as the registry of RFC 9421, section 6.2.2, names them
HMAC_SHA256 = "hmac-sha256"
ED25519 = "ed25519"


class MessageSignatureError(ValueError):
    """Components that cannot be signed, or fields that cannot be read. The text names the part, never its value."""


def content_digest(body: bytes) -> str:
    """The value of Content-Digest (RFC 9530, section 2), with SHA-256."""
    return f"sha-256={_byte_sequence(hashlib.sha256(body).digest())}"


def signature_params(names: Sequence[str], *, created: int, key_id: str, alg: str | None = None) -> str:
    """The value of `@signature-params` (RFC 9421, section 2.3): what is covered, then when and with which key.

    `created` is in Unix seconds. Raises MessageSignatureError for a `key_id` that is not printable ASCII.
    """
    covered = " ".join(map(_string, names))
    algorithm = "" if alg is None else f";alg={_string(alg)}"
    return f"({covered});created={created};keyid={_string(key_id)}{algorithm}"


def signature_base(components: Sequence[Component], params: str) -> bytes:
    """The bytes that are signed (RFC 9421, section 2.5); `params` is the value of `@signature-params`.

    Raises MessageSignatureError for a value that has a control character, such as a line end, or is not ASCII.
    """
    lines: list[str] = []
    for name, value in components:
        stripped = value.strip(" \t")
        if not _VALUE.fullmatch(stripped):
            raise MessageSignatureError(f"{name} is not printable ASCII, so it cannot be signed.")
        lines.append(f"{_string(name)}: {stripped}")
    lines.append(f'"@signature-params": {params}')
    return "\n".join(lines).encode("ascii")


def signature_fields(label: str, params: str, signature: bytes) -> list[tuple[str, str]]:
    """The two headers of one signature (RFC 9421, sections 4.1 and 4.2)."""
    return [("Signature-Input", f"{label}={params}"), ("Signature", f"{label}={_byte_sequence(signature)}")]


@dataclass(frozen=True, kw_only=True, slots=True)
class SignatureInput:
    """One member of Signature-Input, read."""

    #: names of the covered components, in the order of the signature base
    names: tuple[str, ...]
    #: the member as it came, which is the value of `@signature-params`
    params: str
    #: Unix seconds; None if the signer did not say
    created: int | None
    #: Unix seconds; None if the signature does not expire
    expires: int | None
    key_id: str | None
    alg: str | None


def read_signature_input(field: str, label: str) -> SignatureInput | None:
    """The member `label` of Signature-Input; None if there is none.

    Raises MessageSignatureError for a member that cannot be read, or whose components have parameters.
    """
    member = _member(field, label)
    if member is None:
        return None
    match = _INNER_LIST.fullmatch(member) if _PRINTABLE.fullmatch(member) else None
    if match is None:
        raise MessageSignatureError(f"The member `{label}` of Signature-Input cannot be read.")
    names = tuple(_unquoted(name) for name in _STRING.findall(match["names"]))
    values: dict[str, str] = {}
    for param in _PARAM.finditer(match["params"]):
        values[param["key"]] = param["value"] or "?1"  # a bare key is true (RFC 9651, section 3.1.2)
    return SignatureInput(
        names=names,
        params=member,
        created=_integer(values, "created"),
        expires=_integer(values, "expires"),
        key_id=_text(values, "keyid"),
        alg=_text(values, "alg"),
    )


def read_byte_sequence(field: str, key: str) -> bytes | None:
    """The member `key` of a dictionary of byte sequences, such as Signature or Content-Digest; None if there is none.

    Raises MessageSignatureError for a member that is not one.
    """
    member = _member(field, key)
    if member is None:
        return None
    try:
        if len(member) < 2 or not member[0] == member[-1] == ":":
            raise ValueError
        return base64.b64decode(member[1:-1], validate=True)
    except ValueError:
        raise MessageSignatureError(f"The member `{key}` is not base64 between colons.") from None


#: visible ASCII, and inside it space and tab (RFC 9110, section 5.5, without obs-text)
_VALUE = re.compile(r"[\x20-\x7e\t]*")
_PRINTABLE = re.compile(r"[\x20-\x7e]*")
# the parts of RFC 9651 that these fields use
_STRING = re.compile(r'"(?:[^"\\]|\\["\\])*"')
_KEY = r"[a-z*][a-z0-9_.*-]*"
_PARAM = re.compile(rf';[ ]*(?P<key>{_KEY})(?:=(?P<value>{_STRING.pattern}|[^\s;,"()]+))?')
_INNER_LIST = re.compile(
    rf"\((?P<names>[ ]*(?:{_STRING.pattern}(?:[ ]+{_STRING.pattern})*)?[ ]*)\)"
    rf'(?P<params>(?:;[ ]*{_KEY}(?:=(?:{_STRING.pattern}|[^\s;,"()]+))?)*)'
)
_MEMBER = re.compile(rf'[ \t]*(?P<key>{_KEY})(?:=(?P<value>(?:{_STRING.pattern}|[^",])*))?[ \t]*(?:,|\Z)')


def _member(field: str, wanted: str) -> str | None:
    """The text of one member of a dictionary; the last one counts (RFC 9651, section 4.2.2)."""
    found = None
    for key, value in _members(field):
        if key == wanted:
            found = value
    return found


def _members(field: str) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(field):
        match = _MEMBER.match(field, at)
        if match is None:
            raise MessageSignatureError("The field is not a dictionary (RFC 9651).")
        yield match["key"], (match["value"] or "").rstrip(" \t")
        at = match.end()


def _integer(values: dict[str, str], key: str) -> int | None:
    value = values.get(key)
    if value is None:
        return None
    if not re.fullmatch(r"-?[0-9]{1,15}", value):
        raise MessageSignatureError(f"The parameter `{key}` is not an integer.")
    return int(value)


def _text(values: dict[str, str], key: str) -> str | None:
    value = values.get(key)
    if value is None:
        return None
    if not value.startswith('"'):
        raise MessageSignatureError(f"The parameter `{key}` is not a string.")
    return _unquoted(value)


def _string(text: str) -> str:
    if not _PRINTABLE.fullmatch(text):
        raise MessageSignatureError("A name or key id is not printable ASCII, so it cannot be signed.")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text[1:-1])


def _byte_sequence(data: bytes) -> str:
    return f":{base64.b64encode(data).decode('ascii')}:"
