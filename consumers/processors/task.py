"""A task: partition p of everything that a processor reads, its state, and what becomes of a record.

A record is a unit: guard, body, sends and writes are kept together or, when the body raises, not at all; then
its dead letter is sent and its key parked. Units add up to a transaction: outputs, changelog and consumed
offsets. What cannot be a change's fault leaves here as an error, and the process ends (crash-only).
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Collection, Container, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from consumers.apply.dead_letters import PARKED, REFUSED
from consumers.processors import changelog
from consumers.processors.agents import AgentHop
from consumers.processors.context import Change
from consumers.processors.forgetting import Forgetting
from consumers.processors.incoming import Incoming, Record
from consumers.processors.key_forms import NotedForms
from consumers.processors.letters import Letters
from consumers.processors.longs import NOT_IN_LOG, long_values, whole, with_long, without_long
from consumers.processors.outbox import Outbox
from consumers.processors.outbox import Record as OutRecord
from consumers.processors.parked import Lot, Refusals
from consumers.processors.plan import Counts, Plan, Progress, Work
from consumers.processors.rows import BOTTOM
from consumers.processors.settle import settle
from consumers.processors.shapes import UnknownType
from consumers.processors.state import Mark, Overlay
from consumers.processors.through import ResetEnd
from consumers.processors.transaction import Transactions, Wrote
from consumers.processors.unit import Unit
from streamer.errors import BadRecordError, ConfigError, FatalError, said_by
from streamer.publisher.transactions import Queue

log = logging.getLogger(__name__)

COMMIT_AFTER_S = 0.1  # what a reader of `out` waits for at most
COMMIT_UNITS = 5_000
COMMIT_BYTES = 8 * 2**20  # of outputs, before compression; the state written is of the same order
IDLE_COMMIT_S = 1.0  # offsets that moved past transaction markers only


class Actor(Protocol):
    """A user's body, run by Faust (see app)."""

    async def work(self, units: Task) -> None: ...
    async def end(self) -> None: ...


class Task:
    """Opened with recovered state; `work` and `commit` in turn, by one caller."""

    def __init__(
        self,
        plan: Plan,
        number: int,
        overlay: Overlay,
        outbox: Outbox,
        transactions: Transactions,
        *,
        refusals: Refusals,
        make_topics: Callable[[dict[str, int]], Awaitable[None]],
        known: Container[str],
        learn: Callable[[str, str, Collection[str]], Awaitable[None]],
        clock_s: Callable[[], float] = time.monotonic,
        clock_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        """`known`: ids of schema records; `learn`: reads on until an id is among them, or for columns without
        a type."""
        self.plan = plan
        self.number = number
        self.overlay = overlay
        self.counts = Counts()
        self.stopping = False
        self.works = False  # a batch is in hand
        self.actor: Actor | None = None
        self._outbox = outbox
        self._transactions = transactions
        self._refusals = refusals
        self._make_topics = make_topics
        self._known = known
        self._learn = learn
        self._clock_s = clock_s
        self._clock_us = clock_us
        where = f"{plan.names.state}[{number}]"
        commit = changelog.commit_of(overlay.store, where)
        self.epoch = changelog.epoch_of(overlay.store, where)
        outbox.epoch = self.epoch.epoch
        if commit is not None and commit.partitions != plan.partitions:
            raise ConfigError(
                f"the inputs have {plan.partitions} partitions, the state was made of {commit.partitions}",
                where=where,
                fix=f"make the topics again with {commit.partitions}; or `tailrace reset"
                f" {plan.names.processor}`, which derives everything again",
            )
        if commit is not None and (more := plan.hop_topics.keys() - commit.offsets.keys()):
            raise ConfigError(
                f"its state was made without {', '.join(sorted(more))}: `key`, `in` or the agent has changed,"
                " and rows that it has derived would not be settled there",
                where=where,
                fix=f"`tailrace reset {plan.names.processor}`, which derives everything again; or change it"
                " back",
            )
        progress = Progress(
            dict(self.epoch.offsets if commit is None else commit.offsets),
            {} if commit is None else dict(commit.seen),
        )
        self._progress = progress
        self.committed = dict(progress.offsets)
        self.forms = NotedForms(plan.key_forms, number, overlay)
        self.lot = Lot(overlay)
        refusals.parked[number] = self.lot.stuck
        self._letters = Letters(plan.names, number, outbox, plan.message_bytes, clock_us)
        self._reset_end = ResetEnd(plan, number, self.epoch, overlay, outbox, progress)
        self._incoming = Incoming(
            plan, number, overlay, outbox, forms=self.forms, lot=self.lot, letters=self._letters,
            refusals=refusals, reset_end=self._reset_end, progress=progress, counts=self.counts,
            clock_us=clock_us,
        )  # fmt: skip
        self._forgetting = Forgetting(overlay, self._incoming.rows, plan.retention_s, clock_s)
        self.unit = Unit(overlay, outbox, plan.message_bytes)
        self._source: Iterator[Work] = iter(())
        self._work: Work | None = None
        self._long: dict[str, Any] = {}  # values of the row in hand
        self._held: Work | None = None  # until the schemas topic is read on, for these columns
        self._untyped: Collection[str] = ()
        self._exhausted = True
        self._units = 0
        self._due_s = 0.0
        self._last_commit_s = clock_s()

    @property
    def offsets(self) -> dict[str, int]:
        """The next of each topic; not committed yet."""
        return self._progress.offsets

    @property
    def seen(self) -> Mapping[str, tuple[int, int]]:
        """As Commit's."""
        return self._progress.seen

    # Working

    async def work(self, batches: Sequence[tuple[str, Sequence[Record], int]]) -> None:
        """(topic, records, the position after them); commits on the way when it takes long."""
        self._source = self._incoming.works(batches)
        self.works = True
        while not await self._some():
            if self.stopping:
                self._source, self._held = iter(()), None
                break
            if self._held is not None:
                await self._learn_for(self._held)
            else:
                await self.commit()
        self.works = False

    async def _some(self) -> bool:
        """Until a commit is due; True: the batch is over."""
        self._exhausted = False
        self._units = 0
        self._due_s = self._clock_s() + COMMIT_AFTER_S
        if self.actor is not None:
            await self.actor.work(self)
            return self._exhausted
        hops = self.plan.hops
        while (work := self._next()) is not None:
            try:
                hops[work.hop].handle(work.record, self.unit)
                self._done(work)
            except (ConfigError, FatalError):
                raise
            except UnknownType as error:
                self._hold(work, error)
                break
            except BaseException as error:  # noqa: BLE001  a supervisor of operators: no stop comes inside
                self.failed(error)
        return self._exhausted

    def _next(self) -> Work | None:
        self._units += 1
        if self.stopping or self._units > COMMIT_UNITS or self._outbox.waiting_bytes > COMMIT_BYTES:
            return None
        if self._clock_s() > self._due_s:
            return None
        work = self._taken()
        while work is not None and not self._fits(work):
            self.counts.dropped += 1
            self._passed(work)
            work = self._taken()
        if work is None:
            return None
        self.overlay.begin()
        self.unit.begin(work.record.commit_us, work.hop, len(self.plan.hops), work.note)
        self._work = work
        return work

    def _taken(self) -> Work | None:
        """The next of the batch; None: it is over, or a schema record has to be read first."""
        work, self._held = self._held, None
        if work is not None:
            return work
        work = next(self._source, None)
        if work is None:
            self._exhausted = True
            return None
        record = work.record
        if type(record) is Change and record.schema_id not in self._known and record.schema_id:
            self._held = work
            return None
        return work

    def _fits(self, work: Work) -> bool:
        """Whether the state is of the forms that its keys have. Raises FatalError (see key_forms)."""
        record = work.record
        if type(record) is not Change or record.schema_id in self.forms.fitting:
            return True
        return self.forms.fits(record)

    def _next_for_agent(self) -> Work | None:
        """An agent's body sees whole rows: what an update leaves out (TOAST) is that of the row before."""
        while (work := self._next()) is not None:
            if work.hop:
                self._by_hop(work)
                continue
            self.unit.note, long = without_long(work.note)
            record, self._long = work.record, {}
            if not isinstance(record, Change) or record.after is None:
                return work
            try:
                record.after = row = whole(record, long)
            except BadRecordError as error:
                self.failed(error)
                continue
            self._long = long_values(row) if row is not None else {}
            return work
        return None

    def _by_hop(self, work: Work) -> None:
        """What an agent's rows with a key of their own are settled by."""
        try:
            self.plan.hops[work.hop].handle(work.record, self.unit)
        except BadRecordError as error:
            self.failed(error)
        else:
            self._done(work)

    def _hold(self, work: Work, unknown: UnknownType) -> None:
        """Nothing of the unit stays; it comes again when the schemas topic has been read on."""
        self.overlay.roll_back()
        self._outbox.drop()
        self._work, self._held, self._untyped = None, work, unknown.columns

    async def _learn_for(self, work: Work) -> None:
        """Raises FatalError: the change names a schema record that is not there."""
        record, untyped, self._untyped = work.record, self._untyped, ()
        schema_id = record.schema_id if isinstance(record, Change) else ""
        await self._learn(schema_id, f"{work.topic}[{self.number}]@{work.offset}", untyped)

    def _done(self, work: Work) -> None:
        """Keep the unit."""
        record = work.record
        if isinstance(record, Change) and work.key:
            rows = self._incoming.rows[work.topic]
            if record.after is None:
                rows.put_deleted(work.key, record.version, record.commit_us)
            else:
                note = with_long(self.unit.note, self._long) if self._long else self.unit.note
                rows.put(work.key, record.version, note, record.commit_us)
        if work.parked is not None:
            self.lot.remove(work.parked)
        elif work.supersedes:
            self.lot.supersede(work.topic, work.key)
        self._outbox.keep()
        self._work = None
        self.counts.done += 1
        self._passed(work)

    def _passed(self, work: Work) -> None:
        progress = self._progress
        progress.handled += 1
        if work.next_offset is not None:
            progress.offsets[work.topic] = work.next_offset
        progress.newest_us = max(progress.newest_us, work.record.commit_us)

    # What an actor calls (app.Units)

    @property
    def in_hand(self) -> bool:
        return self._work is not None

    def next_change(self) -> Change | None:
        work = self._work
        if work is not None:
            hop = self.plan.hops[0]
            if isinstance(hop, AgentHop) and not hop.agent.is_stream:
                settle(self.unit, work.record, hop.keys)
            self._done(work)
        following = self._next_for_agent()
        return None if following is None else following.record  # type: ignore[return-value]

    def yielded(self, value: Any) -> None:
        work = self._work
        hop = self.plan.hops[0]
        if work is not None and isinstance(work.record, Change) and isinstance(hop, AgentHop):
            in_order = hop.agent.is_stream and self.plan.partitions == 1
            self.unit.derive(value, work.record, hop.keys, in_order=in_order)

    def failed(self, error: BaseException) -> None:
        """The body raised on the unit in hand: nothing of it stays, and its key is parked."""
        self.overlay.check()  # a state that cannot be read is no change's fault
        work, self._work = self._work, None
        if work is None:
            raise error
        self.overlay.roll_back()
        self._outbox.drop()
        self.overlay.begin()
        code, message = type(error).__name__, said_by(error)
        log.debug("refused: %s@%d", work.topic, work.offset, exc_info=error)
        if work.parked is not None:
            self._incoming.retry_refused = True
            attempts = work.parked.attempts + 1
            again = replace(work.parked, code=code, message=message, attempts=attempts)
            self.lot.refused_again(again)
        else:
            if work.supersedes:
                self.lot.supersede(work.topic, work.key)
            self._park(work, code, message)
        self._outbox.keep()
        self._passed(work)
        self.counts.refused += 1
        if code == NOT_IN_LOG:  # the body is not at fault, and the row is on its way
            return
        self._refusals.note(0, 1)
        self._refusals.parked[self.number] = self.lot.stuck
        self._refusals.check(self.plan.names.processor, f"{work.topic}: {message}")

    def _park(self, work: Work, code: str, message: str) -> None:
        record = work.record
        version = record.version if isinstance(record, Change) else BOTTOM
        if work.key:
            self.lot.add(
                work.topic, work.key, offset=work.offset, value=work.value, version=version,
                commit_us=record.commit_us, at_us=self._clock_us(), code=code, message=message,
            )  # fmt: skip
        decodes = isinstance(record, Change) and work.value is not None
        action = PARKED if work.key else REFUSED
        self._letters.write(work, code, message, version, work.value or b"", action, decodes)

    # Committing

    @property
    def is_dirty(self) -> bool:
        """Whether a commit is worth it now."""
        if self._progress.handled or self.overlay.written or not self._outbox.is_empty:
            return True
        if self._reset_end.passed:
            return True
        return self.offsets != self.committed and self._clock_s() - self._last_commit_s > IDLE_COMMIT_S

    async def commit(self) -> None:
        """Everything up to here, or an error that ends the process. Raises KafkaUnavailable, FencedError."""
        names = self.plan.names
        self.overlay.check()
        self._reset_end.pass_goals()
        if self._outbox.unmade:
            await self._make_topics(self._outbox.unmade)
            self._outbox.unmade.clear()
        progress, counts = self._progress, self.counts
        offsets, seen, derived = dict(progress.offsets), dict(progress.seen), self._outbox.kept
        identity = uuid.uuid4().hex

        def closing(wrote: Wrote) -> Queue:
            """The changelog's part, its commit record last."""
            overlay = self.overlay
            overlay.begin()
            for place, last in wrote.items():
                overlay.put(changelog.wrote_key(place), b"%d" % last)
            commit = changelog.Commit(identity, offsets, self.plan.partitions, seen).dump()
            written: list[OutRecord] = [(key, value, []) for key, value in overlay.written.items()]
            written.append((changelog.COMMIT_KEY, commit, []))
            overlay.put(changelog.COMMIT_KEY, commit)
            return self._outbox.queue(names.state, self.number, written)

        next_offset = await self._transactions.commit(self._outbox.take(), closing)
        self.overlay.committed(Mark(next_offset, identity))
        self.committed = offsets
        self._refusals.note(progress.handled, 0)
        counts.commits += 1
        counts.derived += derived
        counts.commit_us = max(counts.commit_us, progress.newest_us)
        counts.committed_at_us = self._clock_us()
        self._refusals.parked[self.number] = self.lot.stuck
        progress.handled = 0
        self._last_commit_s = self._clock_s()

    async def keep(self) -> None:
        """Once a second, between units: what is committed can be read, what is long deleted is forgotten.

        Raises KafkaUnavailable.
        """
        await self._transactions.finish()
        self._forgetting.step(self._clock_us())

    async def close(self, *, abort: bool) -> None:
        """What is not committed is gone here, and done again by whoever has the task next."""
        self._refusals.parked.pop(self.number, None)
        if self.actor is not None:
            await self.actor.end()
        await self._transactions.end(abort=abort)
        self.overlay.store.close()
