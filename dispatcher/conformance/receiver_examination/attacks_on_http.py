"""What is asked of a receiver about HTTP: bodies, methods, sizes, and requests that are not what they seem."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Iterable, Iterator
from functools import partial

from dispatcher.conformance.receiver_examination import caller
from dispatcher.conformance.receiver_examination.attacker import SIGNATURE_HEADERS, Attacker, Message, encoded
from dispatcher.conformance.receiver_examination.caller import Answer, Connection
from dispatcher.conformance.receiver_examination.requirements import (
    CannotTell,
    Check,
    asks,
    is_orderly,
    orderly,
    refused,
)
from dispatcher.conformance.results import Level
from dispatcher.conformance.sources import CLOUDEVENTS, OWASP_DENIAL, OWASP_INPUT, OWASP_REST, STANDARD, rfc

#: checks that concern HTTP, in the order in which they are made
CHECKS: list[Check] = []

_body = partial(asks, scenario="bodies", into=CHECKS)
_method = partial(asks, scenario="methods", into=CHECKS)
_size = partial(asks, scenario="sizes", into=CHECKS)
_framed = partial(asks, scenario="framing", into=CHECKS)

#: bytes of a header, and of a request target, that no receiver needs
_LONG = 262_144
#: headers that no receiver needs
_MANY = 5_000
#: one piece of what a small gzip body unpacks to
_SPACES = b" " * 1_048_576
#: seconds for 100 Continue, and for the end of a connection that has to end
_SOON = 1.0
#: names a header that no receiver sets of itself
_INJECTED = "X-Probe-Injected"


# --- bodies ---------------------------------------------------------------------------------------------


@_body("RECV-32", Level.MUST, "Malformed JSON is no server error.", OWASP_INPUT)
async def _survives_malformed_json(attacker: Attacker) -> str:
    whole = encoded(attacker.payload())
    return await orderly(
        attacker,
        ("A body that ends amid its JSON, well signed,", attacker.message(whole[: len(whole) // 2])),
        ("A body that is no JSON, well signed,", attacker.message(b"<event/>")),
        ("A body that is no UTF-8, well signed,", attacker.message(whole.replace(b"probe", b"\xff\xfe\x00"))),
    )


@_body("RECV-33", Level.MAY, "Malformed JSON is refused at once.", CLOUDEVENTS)
async def _refuses_malformed_json(attacker: Attacker) -> str:
    return await refused(
        attacker, ("A body that ends amid its JSON", attacker.message(encoded(attacker.payload())[:-4]))
    )


@_body("RECV-34", Level.MUST, "JSON of an unexpected shape is no server error.", OWASP_INPUT)
async def _survives_unexpected_json(attacker: Attacker) -> str:
    shapes = {
        "null": b"null",
        "a number": b"1e999",
        "a text": b'"text"',
        "a list": b"[1, 2]",
        "an empty object": b"{}",
        "an object of nulls": b'{"type": null, "data": null, "id": null, "timestamp": null}',
        "lists in lists, 20000 deep": b"[" * 20_000 + b"]" * 20_000,
        "a number of 5000 digits": b'{"type": ' + b"9" * 5_000 + b"}",
        "half a surrogate pair": b'{"type": "\\ud800"}',
        "a key that comes twice": b'{"type": "a", "type": ["b"]}',
    }
    return await orderly(attacker, *((f"JSON that is {what}", attacker.message(body)) for what, body in shapes.items()))


@_body("RECV-35", Level.MUST, "An empty body is no server error.", OWASP_INPUT)
async def _survives_empty_bodies(attacker: Attacker) -> str:
    return await orderly(attacker, ("A well signed empty body", attacker.message(b"")))


@_body("RECV-36", Level.SHOULD, "A content type that was not agreed on is refused, best by 415.", OWASP_REST)
async def _refuses_other_content_types(attacker: Attacker) -> str:
    return await refused(
        attacker,
        ("A body of type text/html", attacker.message(content_type="text/html")),
        ("A body of no type that there is", attacker.message(content_type="nothing")),
    )


@_body("RECV-37", Level.MUST, "An event type that it does not know is no server error.", STANDARD)
async def _survives_unknown_events(attacker: Attacker) -> str:
    event = "unknown.of.this.name"
    body = encoded(attacker.payload(type=event))
    return await orderly(attacker, ("An event of an unknown type", attacker.message(body, event=event)))


@_body(
    "RECV-38",
    Level.MUST,
    "A compressed body is refused, best by 415, or read; it is no server error.",
    rfc(9110, "8.4"),
)
async def _survives_compression(attacker: Attacker) -> str:
    packed = gzip.compress(encoded(attacker.payload()))
    coded = (("Content-Encoding", "gzip"),)
    return await orderly(
        attacker,
        ("A compressed body", attacker.message(packed, headers=coded)),
        ("A body that claims to be compressed", attacker.message(headers=coded)),
        ("A body of an unknown coding", attacker.message(headers=(("Content-Encoding", "unknown"),))),
    )


@_body("RECV-39", Level.SHOULD, "A small body that unpacks to a huge one is refused.", OWASP_DENIAL)
async def _refuses_bombs(attacker: Attacker) -> str:
    pieces = 1 + 2 * attacker.target.too_large // len(_SPACES)
    packer = zlib.compressobj(level=9, wbits=31)
    # one piece over and over, so that it is never held whole
    packed = b"".join(packer.compress(_SPACES) for _ in range(pieces)) + packer.flush()
    answer = await attacker.send(attacker.message(packed, headers=(("Content-Encoding", "gzip"),)))
    return _turned_away(f"A body that unpacks to {pieces} MiB", answer)


# --- methods --------------------------------------------------------------------------------------------


@_method("RECV-40", Level.SHOULD, "Nothing but POST is taken.", CLOUDEVENTS)
async def _takes_post_only(attacker: Attacker) -> str:
    return await refused(
        attacker,
        ("A well signed GET", attacker.message(b"", method="GET")),
        *((f"A well signed {method}", attacker.message(method=method)) for method in ("PUT", "DELETE", "PATCH")),
    )


@_method("RECV-41", Level.MAY, "GET is answered 405, with what is allowed instead.", rfc(9110, "15.5.6"))
async def _tells_what_is_allowed(attacker: Attacker) -> str:
    answer = await attacker.send(attacker.message(b"", method="GET").without(*SIGNATURE_HEADERS))
    if answer.status != 405:
        return f"GET {answer.in_words()}; 405 would be right."
    if "POST" not in (answer.header("Allow") or ""):
        return "405 came without POST in an Allow header."
    return ""


@_method("RECV-42", Level.SHOULD, "A method that it does not know is refused by a 4xx, or by 501.", rfc(9110, "9.1"))
async def _refuses_unknown_methods(attacker: Attacker) -> str:
    for method in ("TRACE", "PROBE"):
        answer = await attacker.send(attacker.message(b"", method=method))
        if not (answer.is_refusal or answer.status == 501 or answer.trouble in {"closed", "reset"}):
            return f"{method} {answer.in_words()}; 405, or 501, would be right."
    return ""


# --- sizes ----------------------------------------------------------------------------------------------


@_size(
    "RECV-43",
    Level.MUST,
    "A body that is too large is refused, best by 413, whether it says so or not.",
    rfc(9110, "15.5.14"),
)
async def _refuses_large_bodies(attacker: Attacker) -> str:
    body = encoded(attacker.payload(padding="a" * attacker.target.too_large))
    message = attacker.message(body)
    size = f"{len(body) / 1_048_576:.1f} MiB"
    chunked = attacker.head(message, ("Transfer-Encoding", "chunked"), ("Connection", "close"))
    for what, data in (
        (f"A body of {size}", attacker.raw(message, ("Connection", "close"))),
        (f"A body of {size} in chunks", _joined(chunked, _chunks(body), b"0\r\n\r\n")),
    ):
        finding = _turned_away(what, await attacker.send_raw(message, data))
        if finding:
            return finding
    return ""


@_size("RECV-44", Level.SHOULD, "A body that does not end is given up.", OWASP_DENIAL)
async def _gives_up_endless_bodies(attacker: Attacker) -> str:
    message = attacker.message()
    head = attacker.head(message, ("Transfer-Encoding", "chunked"))
    piece = bytes(caller.PIECE)
    count = 1 + attacker.target.too_large // len(piece)
    endless = _joined(head, *([_chunk(piece)] * count))
    return _turned_away("A body that went on and on", await attacker.send_raw(message, endless))


@_size("RECV-45", Level.SHOULD, "A header that is too large is refused, best by 431.", rfc(6585, "5"))
async def _refuses_large_headers(attacker: Attacker) -> str:
    message = attacker.message(headers=(("X-Padding", "a" * _LONG),))
    return _turned_away(f"A header of {_LONG // 1024} KiB", await attacker.send(message))


@_size("RECV-46", Level.SHOULD, "Too many headers are refused, best by 431.", rfc(6585, "5"))
async def _refuses_many_headers(attacker: Attacker) -> str:
    many = tuple((f"X-Padding-{number}", "a") for number in range(_MANY))
    message = attacker.message()
    return _turned_away(f"{_MANY} headers", await attacker.send_raw(message, attacker.raw(message, *many)))


@_size("RECV-47", Level.SHOULD, "A URL that is too long is refused, best by 414.", rfc(9110, "15.5.15"))
async def _refuses_long_targets(attacker: Attacker) -> str:
    message = attacker.message()
    target = attacker.target.request_target
    longer = f"{target}{'&' if '?' in target else '?'}padding={'a' * _LONG}"
    data = attacker.raw(message, ("Connection", "close")).replace(f" {target} ".encode(), f" {longer} ".encode(), 1)
    return _turned_away(f"A URL of {_LONG // 1024} KiB", await attacker.send_raw(message, data))


@_size("RECV-48", Level.SHOULD, "A request that stalls is given up.", rfc(9110, "15.5.9"))
async def _gives_up_stalled_requests(attacker: Attacker) -> str:
    patience = attacker.target.patience
    if not patience:
        raise CannotTell(
            "It takes as long as the receiver's patience: say how long that is by `--patience`, or `Target.patience`."
        )
    message = attacker.message()
    half = attacker.raw(message)[: -len(message.body) // 2]

    async def stall(connection: Connection) -> Answer:
        return await connection.exchange(half)

    answer = await attacker.converse(message, stall, within=patience)
    return _turned_away("A request that stalled", answer)


# --- framing --------------------------------------------------------------------------------------------


@_framed("RECV-49", Level.MUST, "A body that is shorter than its Content-Length is not taken.", rfc(9112, "8"))
async def _refuses_cut_bodies(attacker: Attacker) -> str:
    message = attacker.message()
    length = str(len(message.body) + 10)
    data = attacker.head(message, ("Content-Length", length)) + message.body

    async def end_early(connection: Connection) -> Answer:
        await connection.send(data)
        connection.end_sending()
        return await connection.answer()

    return _turned_away("A body shorter than its Content-Length", await attacker.converse(message, end_early))


@_framed("RECV-50", Level.MUST, "A Content-Length that is none, or two that differ, is refused.", rfc(9112, "6.3"))
async def _refuses_wrong_lengths(attacker: Attacker) -> str:
    message = attacker.message()
    length = len(message.body)
    for values in (("soon",), ("-1",), (f"+{length}",), (str(length), str(length + 1)), (f"{length}, {length + 1}",)):
        framing = [("Content-Length", value) for value in values]
        data = attacker.head(message, *framing, ("Connection", "close")) + message.body
        finding = _turned_away("A Content-Length that is wrong", await attacker.send_raw(message, data))
        if finding:
            return finding
    return ""


@_framed("RECV-51", Level.SHOULD, "A body in chunks is taken, or refused by 411.", rfc(9112, "7.1"))
async def _takes_chunks(attacker: Attacker) -> str:
    message = attacker.message()
    head = attacker.head(message, ("Transfer-Encoding", "chunked"), ("Connection", "close"))
    data = head + b"".join(_chunk(message.body[at : at + 40]) for at in range(0, len(message.body), 40)) + b"0\r\n\r\n"
    answer = await attacker.send_raw(message, data)
    if answer.is_success or answer.status == 411:
        return ""
    return f"A good request in chunks {answer.in_words()}; 2xx, or 411, would be right."


@_framed(
    "RECV-52",
    Level.MUST,
    "A request with both Content-Length and Transfer-Encoding ends its connection: another may hide in it.",
    rfc(9112, "6.1"),
)
async def _is_not_smuggled_through(attacker: Attacker) -> str:
    message = attacker.message()
    hidden = b"0\r\n\r\n" + attacker.raw(attacker.message())
    head = attacker.head(message, ("Content-Length", str(len(hidden))), ("Transfer-Encoding", "chunked"))
    answers = await _all_answers(attacker, message, head + hidden)
    if answers[0].status is not None and not is_orderly(answers[0]):
        return f"A request of two lengths {answers[0].in_words()}; 400 would be right."
    if len(answers) > 1 and answers[1].status is not None:
        return "A request that was hidden in the body of another was answered; the connection has to be closed."
    if answers[-1].trouble == "timeout":
        return "After a request of two lengths the connection was left open; it has to be closed."
    return ""


@_framed(
    "RECV-53", Level.MUST, "The body of a request that is refused is not read as the next request.", rfc(9112, "9.3")
)
async def _refused_bodies_are_no_requests(attacker: Attacker) -> str:
    hidden = attacker.raw(attacker.message())
    outer = attacker.message(hidden).without(*SIGNATURE_HEADERS)
    last = attacker.message()
    answers = await _all_answers(attacker, outer, attacker.raw(outer) + attacker.raw(last, ("Connection", "close")))
    finals = [answer for answer in answers if answer.status is not None]
    if len(finals) > 2:
        return "A request that was hidden in the body of a refused one was answered."
    if finals and not finals[0].is_refusal:
        return f"A request without a signature {finals[0].in_words()}; a 4xx such as 401 would be right."
    return ""


@_framed("RECV-54", Level.MUST, "A space between a header's name and its colon is refused by 400.", rfc(9112, "5.1"))
async def _refuses_spaces_before_colons(attacker: Attacker) -> str:
    message = attacker.message()
    data = attacker.raw(message, ("X-Probe ", "1"), ("Connection", "close"))
    return _turned_away("A header with a space before its colon", await attacker.send_raw(message, data))


@_framed(
    "RECV-55",
    Level.MUST,
    "Control characters in headers do no harm: no server error, and nothing of them in the answer's headers.",
    rfc(9110, "5.5"),
)
async def _survives_control_characters(attacker: Attacker) -> str:
    for text in ("a\0b", f"a\r{_INJECTED}: 1", f"a\n{_INJECTED}: 1", f"a%0d%0a{_INJECTED}: 1", "a\x1b[2Jb"):
        message = attacker.message()
        for name in ("X-Webhook-Event", "X-Probe"):
            changed = message.having((name, text))
            answer = await attacker.send_raw(message, attacker.raw(changed, ("Connection", "close")))
            if answer.header(_INJECTED) is not None:
                return "A header that was hidden in another's value came back as a header of the answer."
            if not is_orderly(answer) and answer.trouble not in {"closed", "reset"}:
                return f"A control character in a header {answer.in_words()}; 400 would be right."
    return ""


@_framed(
    "RECV-56",
    Level.SHOULD,
    "After a refusal the connection serves the next request, or is said to end.",
    rfc(9112, "9.3"),
)
async def _goes_on_after_refusals(attacker: Attacker) -> str:
    bad, good = attacker.message().without(*SIGNATURE_HEADERS), attacker.message()
    refusal = Answer(trouble="closed")

    async def one_after_the_other(connection: Connection) -> Answer:
        nonlocal refusal
        refusal = await connection.exchange(attacker.raw(bad))
        return await connection.exchange(attacker.raw(good, ("Connection", "close")))

    answer = await attacker.converse(good, one_after_the_other)
    if answer.is_success:
        return ""
    if refusal.status is None:
        return f"A request without a signature {refusal.in_words()}; a 4xx such as 401 would be right."
    if "close" in (refusal.header("Connection") or "").lower() and answer.trouble in {"closed", "reset"}:
        return ""
    return f"A good request after a refused one, over the same connection, {answer.in_words()}; 2xx would be right."


@_framed("RECV-57", Level.SHOULD, "A request that waits for 100 Continue is answered.", rfc(9110, "10.1.1"))
async def _answers_expectations(attacker: Attacker) -> str:
    message = attacker.message()
    head = attacker.head(
        message, ("Content-Length", str(len(message.body))), ("Expect", "100-continue"), ("Connection", "close")
    )

    async def wait_for_leave(connection: Connection) -> Answer:
        await connection.send(head)
        try:
            async with asyncio.timeout(_SOON):
                if not await connection.is_continued():
                    return await connection.answer()
        except TimeoutError:
            pass  # a client need not wait for ever (RFC 9110, section 10.1.1)
        return await connection.exchange(message.body)

    answer = await attacker.converse(message, wait_for_leave)
    if answer.is_success or answer.status == 417:
        return ""
    return f"A good request with Expect: 100-continue {answer.in_words()}; 2xx would be right."


# --- how -------------------------------------------------------------------------------------------------


def _turned_away(what: str, answer: Answer) -> str:
    """Nothing is to be found where the answer is a 4xx, or the connection was ended."""
    if answer.is_refusal or answer.trouble in {"closed", "reset"}:
        return ""
    return f"{what} {answer.in_words()}; a 4xx, or the end of the connection, would be right."


async def _all_answers(attacker: Attacker, message: Message, data: bytes) -> list[Answer]:
    """All that is answered to these bytes until the connection ends: the last one tells how it did."""
    answers: list[Answer] = []

    async def listen(connection: Connection) -> Answer:
        answers.append(await connection.exchange(data))
        try:
            async with asyncio.timeout(_SOON):
                while answers[-1].status is not None:
                    answers.append(await connection.answer())
        except TimeoutError:
            answers.append(Answer(trouble="timeout"))
        return answers[0]

    answer = await attacker.converse(message, listen)
    return answers or [answer]


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _chunks(data: bytes) -> Iterator[bytes]:
    return (_chunk(data[at : at + caller.PIECE]) for at in range(0, len(data), caller.PIECE))


def _joined(first: bytes, *rest: bytes | Iterable[bytes]) -> Iterator[bytes]:
    yield first
    for one in rest:
        if isinstance(one, bytes):
            yield one
        else:
            yield from one
