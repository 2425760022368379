"""A small receiver that does all well, and many that each get one thing wrong, to find out whether the probe sees it.

None of them shares code with the kit: HTTP is read here, signatures are computed by plain hmac.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import ssl
import time
import traceback
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import ClassVar, Self

SECRET = "whsec_" + base64.b64encode(b"the secret of the receiver").decode()


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request as it was read."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes = b""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What is answered."""

    status: int
    text: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    #: the connection ends after it
    is_last: bool = False


class Refused(Exception):
    """The request is answered, and the connection ends."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Good:
    """A receiver of Standard Webhooks that does all that is asked of one."""

    #: which scheme it verifies
    scheme: ClassVar[str] = "standard"
    #: the requirement that is meant for what it gets wrong
    caught_by: ClassVar[str] = ""
    #: how the probe is to be set for that
    settings: ClassVar[dict[str, float]] = {}

    max_head = 32_768
    max_headers = 100
    max_body = 262_144
    #: seconds
    patience = 5.0
    tolerance = 300.0

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.tls = tls
        self.processed: Counter[str] = Counter()
        self.remembered: set[str] = set()
        self.known: set[str] = set()
        self.port = 0
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Where it takes webhooks."""
        return self.url_at(self.port, secure=self.tls is not None)

    @staticmethod
    def url_at(port: int, *, secure: bool = False) -> str:
        """The same for a port."""
        return f"{'https' if secure else 'http'}://127.0.0.1:{port}/hooks/a?of=b"

    async def count(self, message_id: str) -> int:
        """How often a message was processed."""
        return self.processed[message_id]

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, limit=self.max_head, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    # --- what a message is asked --------------------------------------------------------------------------

    async def answer(self, request: Request) -> Reply:
        """The whole of it, in order."""
        if request.method != "POST":
            return Reply(status=405, headers=(("Allow", "POST"),))
        if not self.is_type_known(self.header(request, "Content-Type")):
            return Reply(status=415)
        try:
            request = self.unpacked(request)
        except zlib.error:
            return Reply(status=400)
        except ValueError:
            return Reply(status=415)
        if not self.is_signed(request):
            return self.unsigned(request)
        if not self.is_fresh(request):
            return Reply(status=401, text="too old, or too new")
        return await self.accept(request)

    async def accept(self, request: Request) -> Reply:
        """What becomes of a message that is genuine."""
        try:
            payload = self.read(request.body)
        except (ValueError, RecursionError):
            return Reply(status=400, text="not the JSON that was agreed on")
        if await self.is_repeat(request):
            return self.repeated()
        self.process(request, payload)
        return Reply(status=202)

    def unsigned(self, request: Request) -> Reply:
        return Reply(status=401, text="no good signature")

    def repeated(self) -> Reply:
        return Reply(status=200)

    def is_type_known(self, content_type: str) -> bool:
        return content_type.partition(";")[0].strip().lower() == "application/json"

    def unpacked(self, request: Request) -> Request:
        if self.header(request, "Content-Encoding"):
            raise ValueError
        return request

    def is_signed(self, request: Request) -> bool:
        given = self.header(request, "webhook-signature").split(" ")
        expected = self.expected(request)
        return any(self.matches(expected, one) for one in given)

    def expected(self, request: Request) -> str:
        stamped = f"{self.header(request, 'webhook-id')}.{self.header(request, 'webhook-timestamp')}."
        key = base64.b64decode(SECRET.removeprefix("whsec_"))
        digest = hmac.digest(key, stamped.encode("latin-1") + self.signed_part(request), "sha256")
        return "v1," + base64.b64encode(digest).decode()

    def signed_part(self, request: Request) -> bytes:
        return request.body

    def matches(self, expected: str, given: str) -> bool:
        return hmac.compare_digest(expected.encode(), given.encode("latin-1"))

    def is_fresh(self, request: Request) -> bool:
        text = self.header(request, "webhook-timestamp")
        if not (text.isascii() and text.isdigit() and len(text) < 12):
            return False
        return self.is_near(time.time() - int(text))

    def is_near(self, age: float) -> bool:
        return -self.tolerance <= age <= self.tolerance

    async def is_repeat(self, request: Request) -> bool:
        message_id = self.id_of(request)
        if message_id in self.remembered:
            return True
        self.remembered.add(message_id)
        return False

    def id_of(self, request: Request) -> str:
        """The id that is signed: others can be changed by whoever sends a message again."""
        return self.header(request, "webhook-id")

    def read(self, body: bytes) -> dict[str, object]:
        payload = json.loads(body)
        if not isinstance(payload, dict) or not isinstance(payload.get("type"), str):
            raise ValueError
        return payload

    def process(self, request: Request, payload: dict[str, object]) -> None:
        self.processed[self.id_of(request)] += 1

    def header(self, request: Request, name: str) -> str:
        return next((value for key, value in request.headers if key.lower() == name.lower()), "")

    def failed(self, error: Exception, request: Request) -> Reply:
        """The page for an error that nobody thought of."""
        return Reply(status=500, text="something broke")

    # --- HTTP -----------------------------------------------------------------------------------------------

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            # cancelled when the receiver ends: asyncio's own callback would print a cancelled task
            with contextlib.suppress(OSError, EOFError, TimeoutError, asyncio.CancelledError):
                await self._converse(reader, writer)
        finally:
            self._connections.discard(task)
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                async with asyncio.timeout(self.patience):
                    request, is_last = await self._request(reader, writer)
            except Refused as refused:
                self._write(writer, Reply(status=refused.status, is_last=True))
                await writer.drain()
                return
            try:
                reply = await self.answer(request)
            except Exception as error:  # noqa: BLE001  # as frameworks do
                reply = self.failed(error, request)
            if is_last:
                reply = replace(reply, is_last=True)
            self._write(writer, reply)
            await writer.drain()
            if reply.is_last:
                return

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[Request, bool]:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            raise Refused(431) from None
        lines = head[:-4].decode("latin-1").split("\r\n")
        words = lines[0].split(" ")
        if len(words) != 3 or words[2] != "HTTP/1.1":
            raise Refused(400)
        if len(lines) - 1 > self.max_headers:
            raise Refused(431)
        request = Request(
            method=words[0], target=words[1], headers=tuple(self.parse_header(line) for line in lines[1:])
        )
        if self.header(request, "Expect"):
            self.expected_to_continue(writer)
        body = await self.body(request, reader)
        return replace(request, body=body), self.is_last(request)

    def expected_to_continue(self, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def is_last(self, request: Request) -> bool:
        return self.header(request, "Connection").lower() == "close"

    def parse_header(self, line: str) -> tuple[str, str]:
        name, found, value = line.partition(":")
        if not found or not name or name != name.strip() or " " in name or any(ord(one) < 32 for one in value):
            raise Refused(400)
        return name, value.strip(" \t")

    async def body(self, request: Request, reader: asyncio.StreamReader) -> bytes:
        lengths = [value for name, value in request.headers if name.lower() == "content-length"]
        coding = self.header(request, "Transfer-Encoding").lower()
        if coding:
            if lengths or coding != "chunked":
                raise Refused(400)
            return await self.chunks(reader)
        if not lengths:
            return b""
        if len(set(lengths)) > 1 or not (lengths[0].isascii() and lengths[0].isdigit()):
            raise Refused(400)
        if int(lengths[0]) > self.max_body:
            raise Refused(413)
        return await reader.readexactly(int(lengths[0]))

    async def chunks(self, reader: asyncio.StreamReader) -> bytes:
        body = b""
        while True:
            line = await reader.readuntil(b"\r\n")
            try:
                size = int(line.strip(), 16)
            except ValueError:
                raise Refused(400) from None
            if len(body) + size > self.max_body:
                raise Refused(413)
            body += (await reader.readexactly(size + 2))[:-2]
            if size == 0:
                return body

    def _write(self, writer: asyncio.StreamWriter, reply: Reply) -> None:
        text = reply.text.encode("utf-8", "replace")
        headers = [f"HTTP/1.1 {reply.status} Some Reason", f"Content-Length: {len(text)}"]
        headers += [f"{name}: {value}" for name, value in reply.headers]
        headers += ["Connection: close"] * reply.is_last
        writer.write(("\r\n".join(headers) + "\r\n\r\n").encode("latin-1") + text)


class GoodHub(Good):
    """The same for WebSub."""

    scheme = "websub"

    def is_signed(self, request: Request) -> bool:
        return self.matches(self.expected(request), self.header(request, "X-Hub-Signature"))

    def expected(self, request: Request) -> str:
        return "sha256=" + hmac.new(SECRET.encode(), request.body, hashlib.sha256).hexdigest()

    def is_fresh(self, request: Request) -> bool:
        return True

    def id_of(self, request: Request) -> str:
        return self.header(request, "X-Webhook-Delivery")


class Different(Good):
    """Does it all in its own way: other statuses, each of them right, and a connection for each refusal."""

    def unsigned(self, request: Request) -> Reply:
        return Reply(status=403, is_last=True)

    def repeated(self) -> Reply:
        return Reply(status=409)

    async def accept(self, request: Request) -> Reply:
        reply = await super().accept(request)
        return replace(reply, status=204) if reply.status == 202 else reply

    def is_type_known(self, content_type: str) -> bool:
        kind = content_type.partition(";")[0].strip().lower()
        return kind == "application/json" or kind.endswith("+json")


# --- broken ones --------------------------------------------------------------------------------------------

BROKEN: list[type[Good]] = []


def caught_by(requirement: str, **settings: float) -> Callable[[type[Good]], type[Good]]:
    """Name the requirement that is meant for it, and how the probe is to be set."""

    def enter(receiver: type[Good]) -> type[Good]:
        receiver.caught_by = requirement
        receiver.settings = settings
        BROKEN.append(receiver)
        return receiver

    return enter


@caught_by("RECV-01")
class Down(Good):
    async def answer(self, request: Request) -> Reply:
        return Reply(status=503)


@caught_by("RECV-01")
class RedirectsAll(Good):
    async def answer(self, request: Request) -> Reply:
        return Reply(status=308, headers=(("Location", "/hooks/a/"),))


@caught_by("RECV-01", deadline=0.3)
class NeverAnswers(Good):
    async def answer(self, request: Request) -> Reply:
        await asyncio.Event().wait()
        return Reply(status=200)


@caught_by("RECV-02", prompt=0.15)
class WorksBeforeItAnswers(Good):
    async def accept(self, request: Request) -> Reply:
        await asyncio.sleep(0.2)
        return await super().accept(request)


@caught_by("RECV-03")
class RedirectsToLogin(Good):
    def unsigned(self, request: Request) -> Reply:
        return Reply(status=302, headers=(("Location", "/login"),))


@caught_by("RECV-05")
class ChecksNothing(Good):
    def is_signed(self, request: Request) -> bool:
        return True


@caught_by("RECV-05")
class ChecksOnlyWhatIsSigned(Good):
    def is_signed(self, request: Request) -> bool:
        return not self.header(request, "webhook-signature") or super().is_signed(request)


@caught_by("RECV-06")
class ChecksThatThereIsASignature(Good):
    def matches(self, expected: str, given: str) -> bool:
        return given.startswith("v1,") and len(expected) == len(given)


@caught_by("RECV-07")
class StripsBodies(Good):
    """Verifies the body without the white space around it, or with it: whichever is right."""

    def is_signed(self, request: Request) -> bool:
        return super().is_signed(request) or super().is_signed(replace(request, body=request.body.strip()))


@caught_by("RECV-08")
class VerifiesWhatItSerialises(Good):
    def is_signed(self, request: Request) -> bool:
        if super().is_signed(request):
            return True
        with contextlib.suppress(ValueError):
            return super().is_signed(replace(request, body=json.dumps(json.loads(request.body)).encode()))
        return False


@caught_by("RECV-08")
class VerifiesCompactJsonOnly(Good):
    def signed_part(self, request: Request) -> bytes:
        try:
            return json.dumps(json.loads(request.body), separators=(",", ":")).encode()
        except (ValueError, RecursionError):
            return request.body


@caught_by("RECV-01")
class VerifiesSpacedJsonOnly(Good):
    def signed_part(self, request: Request) -> bytes:
        try:
            return json.dumps(json.loads(request.body)).encode()
        except (ValueError, RecursionError):
            return request.body


@caught_by("RECV-09")
class KnowsNoSecret(GoodHub):
    """Its secret was not configured, and reads as empty; a fallback for an old one hides it."""

    def is_signed(self, request: Request) -> bool:
        empty = "sha256=" + hmac.new(b"", request.body, hashlib.sha256).hexdigest()
        given = self.header(request, "X-Hub-Signature")
        return super().is_signed(request) or self.matches(empty, given)


@caught_by("RECV-10")
class ComparesAsFarAsItGoes(Good):
    def matches(self, expected: str, given: str) -> bool:
        return len(given) > 3 and expected.startswith(given)


@caught_by("RECV-11")
class ComparesTheStart(Good):
    def matches(self, expected: str, given: str) -> bool:
        return len(given) == len(expected) and expected[:12] == given[:12]


@caught_by("RECV-12")
class TakesNoSignatureForAll(Good):
    def is_signed(self, request: Request) -> bool:
        if not any(name.lower() == "webhook-signature" for name, _value in request.headers):
            return False
        given = self.header(request, "webhook-signature").split()
        return all(self.matches(self.expected(request), one) for one in given)


@caught_by("RECV-13")
class ReadsNoLabels(Good):
    def matches(self, expected: str, given: str) -> bool:
        return super().matches(expected.partition(",")[2], given.rpartition(",")[2])


@caught_by("RECV-14")
class TakesSha1(GoodHub):
    def is_signed(self, request: Request) -> bool:
        method, _, digest = self.header(request, "X-Hub-Signature").partition("=")
        if method not in {"sha1", "sha256"}:
            return False
        return self.matches(hmac.new(SECRET.encode(), request.body, method).hexdigest(), digest)


@caught_by("RECV-16")
class TrustsTheFirstSignatureOnly(Good):
    def is_signed(self, request: Request) -> bool:
        return self.matches(self.expected(request), self.header(request, "webhook-signature").split(" ")[0])


@caught_by("RECV-17")
class ReadsNamesAsTheyAre(Good):
    def header(self, request: Request, name: str) -> str:
        named = [value for key, value in request.headers if key == name]
        return named[0] if named else ""


@caught_by("RECV-18")
class ReadsSmallDigitsOnly(GoodHub):
    """Many do, and may."""


@caught_by("RECV-19")
class BreaksOnGarbage(Good):
    def matches(self, expected: str, given: str) -> bool:
        _version, digest = given.split(",")
        return super().matches(expected, given) and bool(digest)


@caught_by("RECV-20")
class ChecksTheFutureOnly(Good):
    def is_near(self, age: float) -> bool:
        return age >= -self.tolerance


@caught_by("RECV-21")
class ChecksThePastOnly(Good):
    def is_near(self, age: float) -> bool:
        return age <= self.tolerance


@caught_by("RECV-20")
class IgnoresTheTime(Good):
    def is_fresh(self, request: Request) -> bool:
        return True


@caught_by("RECV-22")
class HasNoPatienceWithClocks(Good):
    tolerance = 5.0


@caught_by("RECV-23")
class SignsNoTime(Good):
    """Takes a signature that was good for another time of the same minute."""

    def is_signed(self, request: Request) -> bool:
        text = self.header(request, "webhook-timestamp")
        if not text.isdigit():
            return False
        around = range(int(text) - 60, int(text) + 60)
        return any(super(SignsNoTime, self).is_signed(_stamped(request, str(one))) for one in around)


def _stamped(request: Request, text: str) -> Request:
    kept = [one for one in request.headers if one[0].lower() != "webhook-timestamp"]
    return replace(request, headers=(*kept, ("webhook-timestamp", text)))


@caught_by("RECV-24")
class BreaksOnTimes(Good):
    def is_signed(self, request: Request) -> bool:
        return self.is_near(time.time() - int(self.header(request, "webhook-timestamp"))) and super().is_signed(request)


@caught_by("RECV-25")
class TrustsSignaturesThatItKnows(Good):
    """Keeps which signatures were good, but not what for."""

    def is_signed(self, request: Request) -> bool:
        signature = self.header(request, "webhook-signature")
        if signature not in self.known and super().is_signed(request):
            self.known.add(signature)
        return signature in self.known


@caught_by("RECV-26")
class RemembersNothing(Good):
    async def is_repeat(self, request: Request) -> bool:
        return False


@caught_by("RECV-27")
class RemembersRequestsNotMessages(Good):
    def id_of(self, request: Request) -> str:
        return self.header(request, "webhook-signature")

    def process(self, request: Request, payload: dict[str, object]) -> None:
        self.processed[self.header(request, "webhook-id")] += 1


@caught_by("RECV-27")
class RefusesRetries(Good):
    def repeated(self) -> Reply:
        return Reply(status=400)


@caught_by("RECV-28")
class LooksThenRemembers(Good):
    async def is_repeat(self, request: Request) -> bool:
        is_known = self.id_of(request) in self.remembered
        await asyncio.sleep(0.01)
        self.remembered.add(self.id_of(request))
        return is_known


@caught_by("RECV-29")
class RemembersForgeries(Good):
    async def answer(self, request: Request) -> Reply:
        if await self.is_repeat(request):
            return Reply(status=409)
        return await super().answer(request)

    async def accept(self, request: Request) -> Reply:
        self.process(request, {})
        return Reply(status=202)


@caught_by("RECV-30")
class ProcessesBeforeItVerifies(Good):
    def is_signed(self, request: Request) -> bool:
        self.process(request, {})
        return super().is_signed(request)


@caught_by("RECV-31")
class HasShortColumns(Good):
    def process(self, request: Request, payload: dict[str, object]) -> None:
        if len(self.id_of(request)) > 255:
            raise OverflowError
        super().process(request, payload)


@caught_by("RECV-32")
class BreaksOnMalformedJson(Good):
    async def accept(self, request: Request) -> Reply:
        json.loads(request.body)
        return await super().accept(request)


@caught_by("RECV-33")
class ReadsLater(Good):
    async def accept(self, request: Request) -> Reply:
        return Reply(status=202)


@caught_by("RECV-34")
class ExpectsObjects(Good):
    def read(self, body: bytes) -> dict[str, object]:
        payload = json.loads(body)
        return {"type": payload.get("type")}


@caught_by("RECV-34")
class BreaksOnDepth(Good):
    async def accept(self, request: Request) -> Reply:
        try:
            self.read(request.body)
        except ValueError:
            return Reply(status=400)
        return await super().accept(request)


@caught_by("RECV-35")
class BreaksOnNothing(Good):
    async def accept(self, request: Request) -> Reply:
        request.body[0]
        return await super().accept(request)


@caught_by("RECV-36")
class TakesAnyType(Good):
    def is_type_known(self, content_type: str) -> bool:
        return True


@caught_by("RECV-37")
class BreaksOnUnknownEvents(Good):
    def process(self, request: Request, payload: dict[str, object]) -> None:
        {"probe.sent": super().process}[str(payload["type"])](request, payload)


@caught_by("RECV-38")
class BreaksOnCompression(Good):
    def unpacked(self, request: Request) -> Request:
        if self.header(request, "Content-Encoding"):
            raise LookupError
        return request


@caught_by("RECV-39")
class UnpacksAll(Good):
    def unpacked(self, request: Request) -> Request:
        if self.header(request, "Content-Encoding") == "gzip":
            self.unpacked_size = len(zlib.decompress(request.body, 31))
        return request

    def read(self, body: bytes) -> dict[str, object]:
        return {"type": "probe.sent"}


@caught_by("RECV-40")
class TakesAnyMethod(Good):
    async def answer(self, request: Request) -> Reply:
        return await super().answer(replace(request, method="POST"))


@caught_by("RECV-40")
class AnswersGetAsHealthy(Good):
    async def answer(self, request: Request) -> Reply:
        return Reply(status=200, text="up") if request.method == "GET" else await super().answer(request)


@caught_by("RECV-41")
class AllowsNothing(Good):
    async def answer(self, request: Request) -> Reply:
        return Reply(status=404) if request.method == "GET" else await super().answer(request)


@caught_by("RECV-42")
class BreaksOnMethods(Good):
    async def answer(self, request: Request) -> Reply:
        if request.method == "PROBE":
            return Reply(status=500)
        return await super().answer(request)


@caught_by("RECV-43")
class LimitsNothing(Good):
    max_body = 1 << 30


@caught_by("RECV-43")
class LimitsWhatIsAnnounced(Good):
    async def chunks(self, reader: asyncio.StreamReader) -> bytes:
        self.max_body = 1 << 30
        try:
            return await super().chunks(reader)
        finally:
            self.max_body = Good.max_body


@caught_by("RECV-44", deadline=1.0)
class ReadsForEver(Good):
    max_body = 1 << 30


@caught_by("RECV-45")
class TakesLongHeaders(Good):
    max_head = 1 << 20


@caught_by("RECV-46")
class TakesManyHeaders(Good):
    max_head = 1 << 20
    max_headers = 1 << 20


@caught_by("RECV-47")
class TakesLongTargets(Good):
    max_head = 1 << 20


@caught_by("RECV-48", patience=0.2)
class WaitsForEver(Good):
    patience = 60.0


@caught_by("RECV-49")
class TakesWhatCame(Good):
    async def body(self, request: Request, reader: asyncio.StreamReader) -> bytes:
        try:
            return await super().body(request, reader)
        except asyncio.IncompleteReadError as error:
            return error.partial


@caught_by("RECV-50")
class TakesTheFirstLength(Good):
    async def body(self, request: Request, reader: asyncio.StreamReader) -> bytes:
        length = self.header(request, "Content-Length").lstrip("+").partition(",")[0]
        return await reader.readexactly(int(length)) if length.isdigit() else await super().body(request, reader)


@caught_by("RECV-50")
class BreaksOnLengths(Good):
    def parse_header(self, line: str) -> tuple[str, str]:
        name, value = super().parse_header(line)
        if name.lower() == "content-length" and not value.isdigit():
            raise Refused(500)
        return name, value


@caught_by("RECV-51")
class ReadsNoChunks(Good):
    async def chunks(self, reader: asyncio.StreamReader) -> bytes:
        raise Refused(500)


@caught_by("RECV-52")
class GoesByTheChunks(Good):
    async def body(self, request: Request, reader: asyncio.StreamReader) -> bytes:
        if self.header(request, "Transfer-Encoding"):
            return await self.chunks(reader)
        return await super().body(request, reader)


@caught_by("RECV-52")
class GoesByTheLength(Good):
    async def body(self, request: Request, reader: asyncio.StreamReader) -> bytes:
        length = self.header(request, "Content-Length")
        return await reader.readexactly(int(length)) if length.isdigit() else await super().body(request, reader)


@caught_by("RECV-53")
class LeavesBodiesUnread(Good):
    async def body(self, request: Request, reader: asyncio.StreamReader) -> bytes:
        if not self.header(request, "webhook-signature"):
            return b""
        return await super().body(request, reader)


@caught_by("RECV-54")
class IsLenientWithNames(Good):
    def parse_header(self, line: str) -> tuple[str, str]:
        name, _, value = line.partition(":")
        return super().parse_header(f"{name.strip()}:{value}")


@caught_by("RECV-55")
class EchoesTheEvent(Good):
    def parse_header(self, line: str) -> tuple[str, str]:
        name, _, value = line.partition(":")
        return name, value.strip()

    async def accept(self, request: Request) -> Reply:
        event = self.header(request, "X-Webhook-Event").replace("%0d%0a", "\r\n").replace("\n", "\r\n")
        return replace(await super().accept(request), headers=(("X-Seen", event.replace("\r\r", "\r")),))


@caught_by("RECV-55")
class BreaksOnControls(Good):
    def parse_header(self, line: str) -> tuple[str, str]:
        if "\0" in line:
            raise Refused(500)
        return super().parse_header(line)


@caught_by("RECV-56")
class HangsUpWithoutAWord(Good):
    def is_last(self, request: Request) -> bool:
        return super().is_last(request)

    async def answer(self, request: Request) -> Reply:
        self.is_refused = not self.is_signed(request)
        return await super().answer(request)

    async def body(self, request: Request, reader: asyncio.StreamReader) -> bytes:
        if getattr(self, "is_refused", False):
            raise ConnectionResetError
        return await super().body(request, reader)


@caught_by("RECV-57")
class KnowsNoExpectations(Good):
    def expected_to_continue(self, writer: asyncio.StreamWriter) -> None:
        raise Refused(500)


@caught_by("RECV-58")
class TellsTheRightSignature(Good):
    def unsigned(self, request: Request) -> Reply:
        return Reply(status=401, text=f"expected {self.expected(request)}")


@caught_by("RECV-58")
class TellsTheSecret(Good):
    async def answer(self, request: Request) -> Reply:
        reply = await super().answer(request)
        return replace(reply, headers=(("X-Debug", SECRET),)) if reply.status == 400 else reply


@caught_by("RECV-59")
class TellsStackTraces(Good):
    async def accept(self, request: Request) -> Reply:
        json.loads(request.body)
        return await super().accept(request)

    def failed(self, error: Exception, request: Request) -> Reply:
        return Reply(status=500, text="".join(traceback.format_exception(error)))


@caught_by("RECV-60")
class RepeatsWhatCame(Good):
    def unsigned(self, request: Request) -> Reply:
        return Reply(status=401, text=f"not signed: {request.body.decode(errors='replace')}")


@caught_by("RECV-61")
class KnowsRepeatsByUnsignedId(Good):
    def id_of(self, request: Request) -> str:
        return self.header(request, "X-Webhook-Delivery")


@caught_by("RECV-61")
class KnowsRepeatsByTheLastId(Good):
    """Its framework joins headers for one purpose, and takes the last of them for another."""

    def id_of(self, request: Request) -> str:
        return [value for name, value in request.headers if name.lower() == "webhook-id"][-1]


@caught_by("RECV-62")
class ReplacesWhatIsNoText(Good):
    def signed_part(self, request: Request) -> bytes:
        return request.body.decode("utf-8", "replace").encode()

    def read(self, body: bytes) -> dict[str, object]:
        return super().read(body.decode("utf-8", "replace").encode())


@caught_by("RECV-62")
class PassesOverWhatIsNoText(Good):
    def signed_part(self, request: Request) -> bytes:
        return request.body.decode("utf-8", "ignore").encode()

    def read(self, body: bytes) -> dict[str, object]:
        return super().read(body.decode("utf-8", "ignore").encode())


@caught_by("RECV-62")
class ReadsLinesOfText(Good):
    def signed_part(self, request: Request) -> bytes:
        return request.body.replace(b"\r\n", b"\n")


@caught_by("RECV-62")
class NormalisesText(Good):
    def signed_part(self, request: Request) -> bytes:
        try:
            return unicodedata.normalize("NFC", request.body.decode()).encode()
        except UnicodeDecodeError:
            return request.body


@caught_by("RECV-63")
class RemembersTheLastFew(Good):
    async def is_repeat(self, request: Request) -> bool:
        if len(self.remembered) >= 16:
            self.remembered.clear()
        return await super().is_repeat(request)


@caught_by("RECV-64")
class BelievesTheOtherClock(Good):
    """The time that it looks at is not the one that is signed."""

    def is_fresh(self, request: Request) -> bool:
        text = self.header(request, "X-Webhook-Timestamp")
        return text.isdigit() and self.is_near(time.time() - int(text))


@caught_by("RECV-64")
class BelievesTheLatestTime(Good):
    """Of two times any that is near will do."""

    def is_fresh(self, request: Request) -> bool:
        times = [value for name, value in request.headers if name.lower() == "webhook-timestamp"]
        return any(text.isdigit() and self.is_near(time.time() - int(text)) for text in times)
