"""Settings: read once, validated once, frozen. This is where every key is documented.

Order of precedence: command-line option, environment (`DISPATCHER_X` for key `x`; only `DATABASE_URL` has no
prefix), TOML file (named by `DISPATCHER_CONFIG`), default.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import fields
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from dispatcher.errors import ConfigError
from dispatcher.limits import MAX_RETRIES, MAX_RETRY_DELAY, Limits

#: longest time that one try at a task may be given, seconds
MAX_TASK_TIMEOUT = 24 * 3600
#: where a worker listens, if nothing else is said
WORKER_PORT = 8081
#: how much of a lease must be left beyond a send's deadline for it to start, seconds
LEASE_MARGIN = 5.0

Words = Annotated[tuple[str, ...], NoDecode]


class Settings(BaseSettings):
    """Everything that can be set. Lists are written with commas, or as JSON."""

    model_config = SettingsConfigDict(
        env_prefix="DISPATCHER_", frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False
    )

    # Where it runs
    #: what this process is for: `all`, `api` (it takes requests, workers do the rest) or `worker` (the rest)
    role: Literal["all", "api", "worker"] = "all"
    #: processes that share the listening socket
    workers: int = Field(default=1, ge=1, le=256)
    #: address to listen on
    host: str = "127.0.0.1"
    #: port to listen on; 0 picks a free one. A worker's default is 8081
    port: int = Field(default=8080, ge=0, le=65535)
    #: directory of the embedded database, the keyring and the lock
    data_dir: Path = Path("dispatcher-data")
    #: PostgreSQL to use instead of the embedded SQLite file in `data_dir`, as libpq writes it: `postgresql://…`
    database_url: str | None = Field(default=None, validation_alias=AliasChoices("DATABASE_URL", "database_url"))
    #: connections to PostgreSQL that this process holds at most
    database_connections: int = Field(default=8, ge=2)
    #: the same database, by a URL that leads to the server itself, to hear what other processes leave to be done;
    #: for where `database_url` leads through PgBouncer
    listen_url: str | None = None
    #: how long PostgreSQL may take for one statement before its connection is given up, seconds
    database_timeout: float = Field(default=30.0, ge=1, le=3600)
    #: `database_url` leads to PgBouncer in transaction mode, or the like: no statement stays prepared
    pgbouncer: bool = False
    #: admit plain http, loopback addresses and any port for what is sent, and print a token at start
    dev: bool = False
    #: how long a stop waits for requests and sends in flight, seconds
    grace: float = Field(default=20.0, ge=0)
    #: least severe log line to write: debug, info, warning or error
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    #: how log lines look: `json`, `console`, or `auto` (console on a terminal)
    log_format: Literal["auto", "json", "console"] = "auto"

    # Processing
    #: modules to import that register processors
    processors: Words = ()
    #: task types that processors outside this process work on, each with the seconds it is given: `{"transcode": 600}`
    external_processors: dict[str, float] = Field(default_factory=dict)
    #: tasks that run at the same time in this process
    task_slots: int = Field(default=32, ge=1)

    # Delivering
    #: delays between tries, seconds, each used with a jitter of 20 %; an account can have its own
    retry_schedule: Annotated[tuple[float, ...], NoDecode] = (5, 30, 300, 1800, 7200, 18000, 36000, 36000)
    #: total deadline of one attempt: DNS, connect, TLS, sending and reading, seconds
    send_timeout: float = Field(default=15.0, gt=0, le=60)
    #: deliveries per second that are released to a subscription when it is enabled again
    release_rate: float = Field(default=100.0, ge=1)
    #: URL under which this service is reached from outside; handshakes name it for a later grant
    public_url: str | None = Field(default=None, pattern=r"^https?://[\x21-\x7e]{1,500}$")
    #: DNS name that stands for this service in handshakes; without it, the host of `public_url`
    webhook_origin: str | None = Field(default=None, pattern=r"^[A-Za-z0-9.-]{1,253}$")
    #: requests in their first half second at the same time; slower ones stop counting
    send_slots: int = Field(default=512, ge=1)
    #: requests in flight at the same time, slow ones too
    max_in_flight: int = Field(default=4096, ge=1)
    #: requests in flight at the same time for one lane
    lane_concurrency: int = Field(default=64, ge=1)
    #: memory for bodies that wait in lanes, bytes; beyond it deliveries wait in the database
    queue_bytes: int = Field(default=64 * 1024 * 1024, ge=1)
    #: how long a worker session lives without a heartbeat, seconds
    session_ttl: float = Field(default=60.0, ge=5)
    #: the `User-Agent` header of deliveries
    user_agent: str = Field(default="webhook-dispatcher/0.1", pattern=r"^[\x20-\x7e]{1,200}$")
    #: the `source` attribute of CloudEvents
    event_source: str = Field(default="/dispatcher", pattern=r"^[\x21-\x7e]{1,200}$")

    # Where deliveries may go (docs/security.md)
    #: ports that callback URLs may name
    allow_ports: Annotated[tuple[int, ...], NoDecode] = (443, 8443)
    #: host names that may resolve to any address that is not denied
    allow_hosts: Words = ()
    #: networks that are admitted although they are not public
    allow_networks: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = ()
    #: host names, or `*.` patterns, that are refused
    deny_hosts: Words = ()
    #: networks that are refused although they are public
    deny_networks: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = ()
    #: http:// or https:// URL of an egress proxy; then the proxy is the guard of addresses
    egress_proxy: str | None = None
    #: what sends: http1, our own client, or httpx. With an egress proxy it is httpx
    transport: Literal["http1", "httpx"] = "http1"
    #: PEM file with a certificate and its key, shown to endpoints that ask for one
    client_certificate: Path | None = None
    #: name servers to ask instead of the system's, as `address` or `address:port`
    nameservers: Words = ()
    #: addresses that deliveries come from, shown to subscribers at GET /egress-addresses
    egress_addresses: Words = ()

    # Limits of what comes in
    #: payload of one task, bytes
    max_body: int = Field(default=Limits.max_body, ge=1)
    #: body of one batch request, bytes
    max_batch: int = Field(default=8 * 1024 * 1024, ge=1)
    #: tasks in one batch
    max_batch_items: int = Field(default=1000, ge=1, le=1000)
    #: nesting of a payload
    max_nesting: int = Field(default=Limits.max_nesting, ge=1)
    #: callback URL, characters
    max_url: int = Field(default=Limits.max_url, ge=16)
    #: custom headers of a delivery
    max_headers: int = Field(default=Limits.max_headers, ge=0)
    #: one custom header, name and value, bytes
    max_header: int = Field(default=Limits.max_header, ge=1)

    # Keeping
    #: finished tasks, their bodies and attempts are deleted after this many days
    retention_days: float = Field(default=30.0, gt=0, le=36_500)

    @model_validator(mode="before")
    @classmethod
    def _port_of_a_worker(cls, given: dict[str, Any]) -> dict[str, Any]:
        # Beside an API, on the same machine, that has its default.
        return {"port": WORKER_PORT, **given} if given.get("role") == "worker" else given

    @field_validator(
        "processors",
        "allow_hosts",
        "deny_hosts",
        "nameservers",
        "egress_addresses",
        "retry_schedule",
        "allow_ports",
        "allow_networks",
        "deny_networks",
        mode="before",
    )
    @classmethod
    def _list_from_text(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("["):
            return json.loads(value)
        return tuple(part.strip() for part in value.split(",") if part.strip())

    @field_validator("retry_schedule")
    @classmethod
    def _schedule(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len(value) > MAX_RETRIES or not all(0 < delay <= MAX_RETRY_DELAY for delay in value):
            raise ValueError(f"give at most {MAX_RETRIES} delays, each more than 0 and at most 7 days, in seconds")
        return value

    @field_validator("external_processors")
    @classmethod
    def _external(cls, value: Mapping[str, float]) -> Mapping[str, float]:
        if not all(0 < seconds <= MAX_TASK_TIMEOUT for seconds in value.values()):
            raise ValueError(f"give each type more than 0 and at most {MAX_TASK_TIMEOUT} seconds")
        return value

    @property
    def takes_requests(self) -> bool:
        """Whether this process has the API."""
        return self.role != "worker"

    @property
    def does_work(self) -> bool:
        """Whether this process has the engines and what goes with them."""
        return self.role != "api"

    @property
    def limits(self) -> Limits:
        """How large what comes in may be."""
        return Limits(**{field.name: getattr(self, field.name) for field in fields(Limits)})

    @property
    def longest_send(self) -> float:
        """The longest that one attempt may take, seconds: a subscription may ask for as much as leases allow."""
        return self.session_ttl / 2 - LEASE_MARGIN

    @model_validator(mode="after")
    def _lease_covers_a_send(self) -> Settings:
        if self.session_ttl < 2 * (self.send_timeout + LEASE_MARGIN):
            raise ValueError(f"session_ttl must be at least twice send_timeout + {LEASE_MARGIN:g} s")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the signature is pydantic's
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the signature is pydantic's
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Options, then environment, then the TOML file."""
        file = os.environ.get("DISPATCHER_CONFIG")
        toml = (TomlConfigSettingsSource(settings_cls, toml_file=Path(file)),) if file else ()
        return (init_settings, env_settings, *toml)


def load(**options: Any) -> Settings:
    """The settings, with `options` from the command line on top; None means not given.

    Raises ConfigError that names every key that is wrong, and never repeats a value.
    """
    file = os.environ.get("DISPATCHER_CONFIG")
    if file and not Path(file).is_file():
        raise ConfigError("DISPATCHER_CONFIG names a file that does not exist")
    try:
        return Settings(**{key: value for key, value in options.items() if value is not None})
    except ValidationError as exc:
        problems = "; ".join(f"{_key(error['loc'])}: {error['msg']}" for error in exc.errors())
        raise ConfigError(f"settings are not valid: {problems}") from None
    except OSError as exc:
        raise ConfigError(f"DISPATCHER_CONFIG names a file that cannot be read: {exc.strerror}") from None
    except (SettingsError, ValueError) as exc:
        raise ConfigError(f"settings cannot be read: {exc}") from None


def unknown_variables() -> list[str]:
    """Variables of the environment that look like settings but are none: misspelt, most likely."""
    known = {f"DISPATCHER_{name.upper()}" for name in Settings.model_fields}
    # The last two are the command line's way to a server.
    known |= {"DISPATCHER_CONFIG", "DISPATCHER_URL", "DISPATCHER_TOKEN"}
    return sorted(name for name in os.environ if name.startswith("DISPATCHER_") and name.upper() not in known)


def _key(loc: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in loc) or "settings"
