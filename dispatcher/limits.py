"""How much is taken, where nobody says otherwise. It loads nothing: whoever publishes by a database needs it, too."""

from __future__ import annotations

from dataclasses import dataclass

#: longest time that a retry schedule may wait between two tries, seconds
MAX_RETRY_DELAY = 7 * 24 * 3600
#: delays in a retry schedule
MAX_RETRIES = 50
#: what may stand beside a payload: URL, headers, metadata and the JSON around them, bytes
MAX_AROUND_PAYLOAD = 192 * 1024
#: a task's or a subscription's metadata, bytes
MAX_METADATA = 16 * 1024


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits that an operator may set; the settings of the same names say them."""

    #: payload of one task or event, bytes
    max_body: int = 256 * 1024
    #: nesting of a payload
    max_nesting: int = 64
    #: URL, characters
    max_url: int = 8192
    #: custom headers of a delivery
    max_headers: int = 20
    #: one custom header, name and value, bytes
    max_header: int = 4096
