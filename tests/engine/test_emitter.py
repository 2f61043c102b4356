"""The allocator of sequence numbers and the log of what it told."""

from uuid import uuid4

import trio
from hypothesis import given
from hypothesis import strategies as st

from dwctl_trio.domain.events import ContentDelta, ContentKind
from dwctl_trio.engine.emitter import Emitter

batches = st.lists(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1), max_size=5)


class _Collector:
    """A consumer that keeps what it gets."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    async def send(self, frames: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.frames.append(frames)


def _deltas(texts: list[str]) -> list[ContentDelta]:
    return [ContentDelta(ContentKind.TEXT, 0, f"msg_{uuid4().hex}", 0, text) for text in texts]


@given(sent=batches, noted=batches, last=st.lists(st.text("ab", min_size=1), min_size=1))
async def test_the_log_is_what_was_sent_and_noted_in_order_and_numbers_have_no_gaps(sent, noted, last) -> None:
    collector = _Collector()
    emitter = Emitter(collector, log_bytes_max=1_000_000)

    for texts in sent:
        await emitter.emit(_deltas(texts))
    for texts in noted:
        emitter.note(_deltas(texts))
    log, last_number = emitter.log_with(emitter.prepare(_deltas(last)))

    assert log is not None
    assert log.startswith(b"".join(collector.frames))
    assert len(collector.frames) == len(sent)
    count = sum(map(len, [*sent, *noted, last]))
    assert last_number == count - 1
    numbers = [int(line[4:]) for line in log.split(b"\n") if line.startswith(b"id: ")]
    assert numbers == list(range(count))


class _SlowCollector(_Collector):
    """A consumer that takes its time."""

    def __init__(self, pauses: list[int]) -> None:
        super().__init__()
        self._pauses = iter(pauses)

    async def send(self, frames: bytes) -> None:
        for _ in range(next(self._pauses, 1)):
            await trio.lowlevel.checkpoint()
        await super().send(frames)


@given(
    tasks=st.lists(st.tuples(batches, st.none() | st.integers(0, 30)), min_size=1, max_size=6),
    pauses=st.lists(st.integers(1, 8), max_size=30),
)
async def test_tasks_that_emit_side_by_side_and_may_be_cancelled_lose_nothing_and_tell_nothing_twice(
    tasks, pauses
) -> None:
    collector = _SlowCollector(pauses)
    emitter = Emitter(collector, log_bytes_max=1_000_000)

    async def emit(texts: list[list[str]], cancelled_after: int | None) -> None:
        with trio.CancelScope() as scope:
            if cancelled_after is not None:
                nursery.start_soon(_cancel_after, scope, cancelled_after)
            for batch in texts:
                await emitter.emit(_deltas(batch))

    async with trio.open_nursery() as nursery:
        for texts, cancelled_after in tasks:
            nursery.start_soon(emit, texts, cancelled_after)
    last = emitter.prepare(_deltas(["the end"]))
    log, last_number = emitter.log_with(last)
    await emitter.send(last)

    assert log == b"".join(collector.frames)
    numbers = [int(line[4:]) for line in log.split(b"\n") if line.startswith(b"id: ")]
    assert numbers == list(range(last_number + 1))


async def _cancel_after(scope: trio.CancelScope, rounds: int) -> None:
    for _ in range(rounds):
        await trio.lowlevel.checkpoint()
    scope.cancel()


async def test_what_is_prepared_and_not_sent_uses_up_no_number() -> None:
    collector = _Collector()
    emitter = Emitter(collector, log_bytes_max=1_000_000)

    emitter.prepare(_deltas(["never told"]))
    await emitter.emit(_deltas(["told"]))

    assert collector.frames[0].startswith(b"id: 0\n")


async def test_a_stream_longer_than_its_log_may_be_keeps_none_and_is_sent_all_the_same() -> None:
    collector = _Collector()
    emitter = Emitter(collector, log_bytes_max=1000)

    for _ in range(10):
        await emitter.emit(_deltas(["some text"]))
    log, last_number = emitter.log_with(emitter.prepare(_deltas(["the end"])))

    assert log is None
    assert last_number == 10
    assert len(collector.frames) == 10


async def test_a_last_event_that_does_not_fit_leaves_no_log() -> None:
    emitter = Emitter(_Collector(), log_bytes_max=400)

    await emitter.emit(_deltas(["fits"]))
    kept, _ = emitter.log_with(emitter.prepare(_deltas(["x"])))
    too_long, _ = emitter.log_with(emitter.prepare(_deltas(["x" * 400])))

    assert kept is None or len(kept) <= 400
    assert too_long is None


async def test_without_a_log_nothing_is_kept() -> None:
    emitter = Emitter(_Collector(), log_bytes_max=0)

    await emitter.emit(_deltas(["told"]))

    assert emitter.log_with(emitter.prepare(_deltas(["the end"]))) == (None, 1)
