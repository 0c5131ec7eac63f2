"""`kafka:`, `control:` and `defaults:`."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr, model_validator

from streamer.config.base import Model, OptionalPath, OptionalSecret, fail, is_port
from streamer.config.units import Duration, Size

EMBEDDED = "embedded"
PARTITIONS_LIMIT = 1000  # a topic; more is a slip of the keyboard
MESSAGE_BYTES_MIN = 64 * 1024  # below it ordinary rows do not fit
MESSAGE_BYTES_MAX = 2**30  # Kafka's own sizes are 32-bit

_BROKER = re.compile(r"(\[[0-9A-Fa-f:]+\]|[^\s:,\[\]]+):([0-9]{1,5})")


def _brokers(value: str) -> str:
    if value == EMBEDDED:
        return value
    parts = [part.strip() for part in value.split(",")]
    found = [_BROKER.fullmatch(part) for part in parts]
    for part, broker in zip(parts, found, strict=True):
        if broker is None or not is_port(broker[2]):
            where = f": {part!r} is no host:port" if len(parts) > 1 else ""
            fix = "write host:port with a port up to 65535, separated by commas, or `embedded`"
            raise fail(f"is not a list of brokers{where}", fix=fix)
    return ",".join(parts)


def _address(value: str) -> str:
    host, _, port = value.rpartition(":")
    if not host or not (port == "0" or is_port(port)):
        raise fail("is no address", fix="write host:port with a port up to 65535, as 127.0.0.1:8088")
    return value


class Security(Model):
    protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    username: str | None = None
    password: OptionalSecret = None
    ca_file: OptionalPath = None
    cert_file: OptionalPath = None
    key_file: OptionalPath = None

    @model_validator(mode="after")
    def _complete(self) -> Security:
        if self.protocol.startswith("SASL"):
            for key in ("mechanism", "username", "password"):
                if getattr(self, key) is None:
                    raise fail(f"{self.protocol} needs `{key}`", key="protocol", fix=f"add `{key}` beside it")
        elif self.username or self.password:
            what = f"username and password are not used with {self.protocol}"
            raise fail(what, key="protocol", fix="use SASL_SSL or SASL_PLAINTEXT")
        if (self.cert_file is None) != (self.key_file is None):
            raise fail("cert_file and key_file belong together", fix="give both, or neither")
        return self


class Topics(Model):
    partitions: int = Field(4, ge=1, le=PARTITIONS_LIMIT)
    replication_factor: int = Field(1, ge=1, le=100)
    retention_s: Duration = Field(7 * 86400.0, alias="retention", ge=1)
    compression: Literal["lz4", "none", "gzip", "snappy", "zstd"] = "lz4"
    max_message_bytes: Size = Field(
        8 * 2**20, alias="max_message", ge=MESSAGE_BYTES_MIN, le=MESSAGE_BYTES_MAX
    )


class Kafka(Model):
    brokers: Annotated[str, AfterValidator(_brokers)] = "localhost:9092"
    security: Security = Security()
    topics: Topics = Topics()

    @model_validator(mode="after")
    def _embedded(self) -> Kafka:
        if self.brokers == EMBEDDED and self.topics.replication_factor != 1:
            what = "the embedded Kafka is one node, so replication_factor is 1"
            raise fail(
                what, key=("topics", "replication_factor"), fix="remove it, or name a cluster's brokers"
            )
        if self.brokers == EMBEDDED and self.security.protocol != "PLAINTEXT":
            what = "the embedded Kafka listens on 127.0.0.1 only, without TLS or passwords"
            raise fail(what, key="security", fix="remove `security`")
        return self


class ControlKeys(Model):
    admin: OptionalSecret = None
    read: OptionalSecret = None


class Control(Model):
    url: SecretStr = SecretStr("sqlite:///.tailrace/control.db")
    http: Annotated[str, AfterValidator(_address)] = "127.0.0.1:8088"
    keys: ControlKeys = ControlKeys()
    key_header: str = "X-Admin-Key"
    enabled: bool = True


class Defaults(Model):
    encoding: Literal["plain", "debezium"] = "plain"
    on_ddl: Literal["add_columns"] = "add_columns"
    on_oversize: Literal["fail", "dead_letter", "truncate", "reference"] = "fail"
    first_proof: bool = True
