"""How this program talks to Kafka: client settings, reading a topic to its end, and errors translated.

Owns the border to aiokafka for all that is not the publisher's transaction. aiokafka's exceptions
leave this module as those of `streamer.errors`; secrets never enter a message.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka import errors as kafka
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.conn import create_conn
from aiokafka.protocol.metadata import MetadataRequest

from streamer.errors import ConfigError, FencedError, KafkaUnavailable, TailraceError

CONNECT_DEADLINE_S = 10.0  # a broker that is up answers in milliseconds; beyond it the caller backs off
READ_DEADLINE_S = 20.0  # state topics are compacted to a few MB; longer means that someone holds them up
CLOSE_DEADLINE_S = 2.0  # a dead Kafka must not keep a process from stopping
POLL_MS = 50  # how long one fetch waits for records while reading a topic to its end
READER_BACKOFF_MS = 10  # aiokafka sleeps it at least once a reader, while it learns who leads
ADMIN_TIMEOUT_MS = 15_000
UVLOOP_CLOSED = "the handler is closed"

# aiokafka logs each attempt of its own retries. All that it gives up on is raised here, with a reason.
logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


class Secret(Protocol):
    def get_secret_value(self) -> str: ...


class Security(Protocol):
    """The `kafka.security` part of the config."""

    @property
    def protocol(self) -> str: ...
    @property
    def mechanism(self) -> str | None: ...
    @property
    def username(self) -> str | None: ...
    @property
    def password(self) -> Secret | None: ...
    @property
    def ca_file(self) -> Path | None: ...
    @property
    def cert_file(self) -> Path | None: ...
    @property
    def key_file(self) -> Path | None: ...


def client_options(brokers: str, security: Security | None) -> dict[str, Any]:
    """Keyword arguments for every aiokafka client. None means PLAINTEXT. Raises ConfigError."""
    options: dict[str, Any] = {"bootstrap_servers": brokers}
    if security is None or security.protocol == "PLAINTEXT":
        return options
    options["security_protocol"] = security.protocol
    if security.protocol.endswith("SSL"):
        options["ssl_context"] = _ssl_context(security)
    if security.protocol.startswith("SASL"):
        options["sasl_mechanism"] = security.mechanism or "PLAIN"
        options["sasl_plain_username"] = security.username
        options["sasl_plain_password"] = security.password.get_secret_value() if security.password else None
    return options


def _ssl_context(security: Security) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=security.ca_file)
        if security.cert_file is not None:
            context.load_cert_chain(security.cert_file, security.key_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"the TLS files for Kafka cannot be used: {error}",
            where="kafka.security",
            fix="check that ca_file, cert_file and key_file exist, are readable, and are PEM",
        ) from error
    return context


_FENCED = (kafka.ProducerFenced, kafka.InvalidProducerEpoch)
_DENIED: Mapping[type[Exception], str] = {
    kafka.TopicAuthorizationFailedError: "Read, Write, Describe, DescribeConfigs and Create on Topic",
    kafka.TransactionalIdAuthorizationFailed: "Write and Describe on TransactionalId",
    kafka.ClusterAuthorizationFailedError: "Create and IdempotentWrite on Cluster",
    kafka.GroupAuthorizationFailedError: "Read and Describe on Group",
}
_LOGIN = (
    kafka.SaslAuthenticationFailed,
    kafka.AuthenticationFailedError,
    kafka.UnsupportedSaslMechanismError,
    kafka.IllegalSaslStateError,
)
_TOO_LARGE = (kafka.MessageSizeTooLargeError, kafka.RecordListTooLargeError)


def translate(error: BaseException, doing: str, *, brokers: str) -> TailraceError:
    """An aiokafka, socket or timeout error as one of ours; `doing` completes "Kafka failed while ..."."""
    if isinstance(error, TailraceError):
        return error
    cause = error.__cause__
    if type(error) is kafka.KafkaError and isinstance(cause, Exception):
        error = cause  # aiokafka's sender wraps what it did not expect
    where = f"kafka {brokers}".strip()
    if isinstance(error, _FENCED):
        return FencedError(
            f"fenced while {doing}: a newer process took over, or this one stood still for too long",
            where=where,
            fix="nothing, if another capture process of this source is running; else start it again",
        )
    for denied, rights in _DENIED.items():
        if isinstance(error, denied):
            return ConfigError(
                f"Kafka refused by its access rules while {doing}: {error}",
                where=where,
                fix=f"allow this user: {rights} (kafka-acls --add)",
            )
    if isinstance(error, _LOGIN):
        return ConfigError(
            f"Kafka refused the login while {doing}: {_reason(error)}",
            where=where,
            fix="check kafka.security: protocol, mechanism, username and password",
        )
    if isinstance(error, _TOO_LARGE):
        return ConfigError(
            f"Kafka refused a batch for its size while {doing}",
            where=where,
            fix="raise the topic's max.message.bytes to kafka.topics.max_message at least "
            "(kafka-configs --alter --add-config max.message.bytes=...)",
        )
    if isinstance(error, ssl.SSLError):
        return ConfigError(
            f"no TLS connection while {doing}: {_reason(error)}",
            where=where,
            fix="check kafka.security: protocol (does this port speak TLS?) and ca_file",
        )
    if isinstance(error, kafka.InvalidTransactionTimeout):
        return ConfigError(
            f"Kafka refused the transaction timeout while {doing}",
            where=where,
            fix="raise transaction.max.timeout.ms on the brokers to 60000 at least",
        )
    return KafkaUnavailable(
        f"Kafka failed while {doing}: {_reason(error)}",
        where=where,
        fix="check that the brokers run and can be reached from here",
    )


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer within the time allowed"
    return str(error) or type(error).__name__


@contextmanager
def kafka_errors(doing: str, *, brokers: str) -> Iterator[None]:
    """Translate what the body raises; cancellation and our own errors pass."""
    try:
        yield
    except TailraceError:
        raise
    except (kafka.KafkaError, OSError, TimeoutError) as error:
        raise translate(error, doing, brokers=brokers) from error
    except RuntimeError as error:  # uvloop's word for a connection that was lost just before a request
        if UVLOOP_CLOSED not in str(error):
            raise
        raise translate(error, doing, brokers=brokers) from error


async def connect(client: Any, brokers: str, security: Security | None) -> None:
    """`client.start()` with a deadline. A refusal says why: aiokafka itself keeps the reason back."""
    with kafka_errors("connecting", brokers=brokers):
        try:
            async with asyncio.timeout(CONNECT_DEADLINE_S):
                await client.start()
        except kafka.KafkaConnectionError:
            await _probe(brokers, security)
            raise


async def _probe(brokers: str, security: Security | None) -> None:
    """Connect once by hand, so that a wrong password or a TLS failure comes out as itself."""
    options = client_options(brokers, security)
    host, _, port = options.pop("bootstrap_servers").split(",")[0].strip().rpartition(":")
    async with asyncio.timeout(CONNECT_DEADLINE_S):
        connection = await create_conn(host, int(port), **options)
    connection.close()


async def shut(close: Callable[[], Any]) -> None:
    """Await `close()` for a bounded time; a connection to a dead broker is dropped as it is.

    aiokafka's clients raise a CancelledError of their own when they are stopped before their tasks have run
    once, and swallow one of the caller's while they wait for these tasks: only the caller's leaves here.
    """
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()
    try:
        async with asyncio.timeout(CLOSE_DEADLINE_S):
            await close()
    except (TimeoutError, kafka.KafkaError, OSError, asyncio.CancelledError):
        pass
    if task.cancelling() > before:
        raise asyncio.CancelledError


@asynccontextmanager
async def admin(brokers: str, security: Security | None) -> AsyncIterator[AIOKafkaAdminClient]:
    client = AIOKafkaAdminClient(**client_options(brokers, security), request_timeout_ms=ADMIN_TIMEOUT_MS)
    try:
        await connect(client, brokers, security)
        yield client
    finally:
        await shut(client.close)


async def describe_cluster(client: AIOKafkaAdminClient) -> dict[str, Any]:
    """`brokers` (a list) and `cluster_id`. aiokafka's own reads the metadata of every topic beside it."""
    described: dict[str, Any] = (await client._send_request(MetadataRequest([]))).to_object()
    return described


@asynccontextmanager
async def reader(
    brokers: str, security: Security | None, *, committed: bool, wait_ms: int = POLL_MS
) -> AsyncIterator[AIOKafkaConsumer]:
    """A consumer without a group, to read state. `committed`: skip aborted and open transactions.

    `wait_ms`: how long a broker may keep a fetch that finds nothing.
    """
    client = AIOKafkaConsumer(
        **client_options(brokers, security),
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="none",
        isolation_level="read_committed" if committed else "read_uncommitted",
        fetch_max_wait_ms=wait_ms,
        retry_backoff_ms=READER_BACKOFF_MS,
        max_partition_fetch_bytes=4 * 2**20,
    )
    try:
        await connect(client, brokers, security)
        yield client
    finally:
        await shut(client.stop)


async def offset_ranges(
    brokers: str, security: Security | None, partitions: Collection[TopicPartition]
) -> dict[TopicPartition, tuple[int, int]]:
    """(log start, high watermark) of each partition, open transactions included (H12)."""
    if not partitions:
        return {}
    async with reader(brokers, security, committed=False) as client:
        with kafka_errors("reading offsets", brokers=brokers):
            async with asyncio.timeout(READ_DEADLINE_S):
                starts = await client.beginning_offsets(partitions)
                ends = await client.end_offsets(partitions)
    return {p: (starts[p], ends[p]) for p in partitions}


async def read_to_end(
    brokers: str,
    security: Security | None,
    ranges: Mapping[TopicPartition, tuple[int, int]],
    *,
    committed: bool,
    deadline_s: float = READ_DEADLINE_S,
) -> list[ConsumerRecord[bytes, bytes]]:
    """All records of the ranges [start, end), in offset order within a partition.

    The ends are read_uncommitted high watermarks: right after a commit the read_committed end still
    hides it (H12). So this waits until the reader has passed them, which needs every transaction
    below them to be over, and says so when one is not.
    """
    records: list[ConsumerRecord[bytes, bytes]] = []
    async for batch in read_batches(
        brokers, security, ranges, committed=committed, deadline_s=deadline_s, whole=True
    ):
        records += batch
    return records


async def read_batches(
    brokers: str,
    security: Security | None,
    ranges: Mapping[TopicPartition, tuple[int, int]],
    *,
    committed: bool,
    deadline_s: float = READ_DEADLINE_S,
    whole: bool = False,
) -> AsyncGenerator[list[ConsumerRecord[bytes, bytes]], None]:
    """As `read_to_end`, batch by batch, for topics that do not fit into memory.

    The deadline is for the next step forward; `whole`: for all of it.
    """
    open_ends = {p: end for p, (start, end) in ranges.items() if end > start}
    if not open_ends:
        return
    topics = ", ".join(sorted({p.topic for p in open_ends}))
    now_s = asyncio.get_running_loop().time
    async with reader(brokers, security, committed=committed) as client:
        client.assign(list(open_ends))
        for partition in open_ends:
            client.seek(partition, ranges[partition][0])
        until_s = now_s() + deadline_s
        while open_ends:
            found: list[ConsumerRecord[bytes, bytes]] = []
            with kafka_errors(f"reading {topics}", brokers=brokers):
                try:
                    async with asyncio.timeout_at(until_s):
                        for partition, batch in (await client.getmany(timeout_ms=POLL_MS)).items():
                            found += [r for r in batch if r.offset < ranges[partition][1]]
                        for partition in list(open_ends):
                            if await client.position(partition) >= open_ends[partition]:
                                del open_ends[partition]
                except TimeoutError as error:
                    raise _held_up(client, open_ends, deadline_s, brokers) from error
            if found:
                yield found
                if not whole:
                    until_s = now_s() + deadline_s


def _held_up(
    client: AIOKafkaConsumer, open_ends: Mapping[TopicPartition, int], deadline_s: float, brokers: str
) -> KafkaUnavailable:
    places = []
    for partition, end in open_ends.items():
        stable = client.last_stable_offset(partition)
        if stable is not None and 0 <= stable < end:
            cause = f"an open transaction of another producer from offset {stable} on"
        else:
            cause = "no answer from its leader"
        places.append(f"{partition.topic}[{partition.partition}] up to offset {end}: {cause}")
    return KafkaUnavailable(
        f"not readable within {deadline_s:.0f} s: {'; '.join(places)}",
        where=f"kafka {brokers}",
        fix="wait until the transaction times out; one that outlives it is ended by hand "
        "(kafka-transactions.sh find-hanging shows its producer, abort ends it)",
    )
