"""The one MetaData that every table of ours belongs to, and the column types that all tables share."""

from __future__ import annotations

import sqlalchemy as sa

#: Names for constraints and indexes, so that migrations can address them on every database.
metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

#: a UUIDv7 (RFC 9562) as 32 hex digits: sorts by creation time
Id = sa.String(32)

#: a moment: milliseconds since the Unix epoch, by the database's clock
Instant = sa.BigInteger()

#: encrypted bytes, see `subscriptions.keyring`
Sealed = sa.LargeBinary()
