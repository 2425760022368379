"""Bytes of HTTP answers, good and bad, and what fuzzers make of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hypothesis import strategies as st

#: answers that the fuzzers begin with: good ones, and those of the conformance kit's faults
SEEDS = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nTrailer: t\r\n\r\n",
    b"HTTP/1.0 200 OK\r\n\r\nuntil the end",
    b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 500 No\r\nRetry-After: 3\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 40\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\nZZZ\r\nnot a chunk\r\n0\r\n\r\n",
    b"HTTP/2 200 OK\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/7.3 200 OK\r\nContent-Length: 2\r\n\r\nok",
    b"<html>ok</html>\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.7\r\n\x00\x01\x02\xfe\xff\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"." * 500,
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n",
)


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    """The bytes in pieces."""
    at = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[begin:end] for begin, end in itertools.pairwise(at)]


def mutated(data: bytes, changes: Sequence[tuple[int, int, bytes]]) -> bytes:
    """The bytes with some replaced, put in or taken out."""
    for place, length, instead in changes:
        at = place % (len(data) + 1)
        data = data[:at] + instead + data[at + length :]
    return data


CHANGES = st.lists(
    st.tuples(
        st.integers(0, 300),
        st.integers(0, 8),
        st.one_of(
            st.binary(max_size=6),
            st.sampled_from(
                [b"\r\n", b"\n", b"\r", b"\0", b" ", b":", b"0\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"\xff"]
            ),
        ),
    ),
    max_size=4,
)
