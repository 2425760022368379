"""TLS towards endpoints: who is trusted, with what certificate of ours, and sessions that spare later handshakes."""

from __future__ import annotations

import math
import ssl
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

from dispatcher.errors import ConfigError

#: sessions that are kept, the ones used last
MAX_SESSIONS = 4_096
#: whether Python loses the memory of a copy, 5 KiB and more, each time that a session is asked for: 3.11 always will
#: (github.com/python/cpython/issues/116810)
LOSES = sys.version_info < (3, 12, 8) or (3, 13) <= sys.version_info < (3, 13, 1)
#: sessions that are asked for in the life of a process where it does
MOST_LOST = 500


class ClientContext(ssl.SSLContext):
    """TLS 1.2 and newer, certificates checked by the host's name. It resumes the last session with a host.

    A resumed session vouches for the name by the certificate that was checked when it began, so sessions are kept by
    name and never leave this context.
    """

    _sessions: OrderedDict[str, ssl.SSLSession]
    #: how many more may be asked for
    _left: float

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """What the event loop calls for each connection: it has no argument for a session."""
        if isinstance(server_hostname, str):
            session = self._sessions.get(server_hostname)
        return super().wrap_bio(incoming, outgoing, server_side, server_hostname, session)

    def keep(self, host: str, connection: Any) -> None:
        """Remember a connection's session, for the next one to that host. TLS 1.3 sends it after the handshake.

        Once is enough: what a server has just resumed, it resumes again, or begins anew.
        """
        if connection.session_reused and host in self._sessions:
            self._sessions.move_to_end(host)
            return
        if self._left <= 0:
            return
        self._left -= 1
        session = connection.session
        if session is None or not session.has_ticket:
            return
        self._sessions[host] = session
        self._sessions.move_to_end(host)
        if len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)

    def forget(self, host: str) -> None:
        """The next handshake with a host begins anew."""
        self._sessions.pop(host, None)


def client_context(*, certificate: Path | None = None) -> ClientContext:
    """A context that trusts whom this machine trusts.

    `certificate` is a PEM file with a certificate of ours and its key, shown to endpoints that ask for one.
    Raises ConfigError when it cannot be used.
    """
    context = ClientContext(ssl.PROTOCOL_TLS_CLIENT)
    context._sessions = OrderedDict()
    context._left = MOST_LOST if LOSES else math.inf
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_default_certs()
    if certificate is not None:
        try:
            # An empty password: nobody can be asked for one.
            context.load_cert_chain(certificate, password="")
        except (OSError, ValueError) as exc:
            raise ConfigError("the client certificate is not a PEM file with a certificate and its key") from exc
    return context
