"""The allocator of sequence numbers and the log of what it told."""

import math
from typing import NamedTuple
from uuid import uuid4

import trio
from hypothesis import given
from hypothesis import strategies as st

from dwctl_trio.domain.events import ContentDelta, ContentKind
from dwctl_trio.engine.emitter import Emitter
from dwctl_trio.ports import EventSegment

batches = st.lists(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1), max_size=5)


class _Collector:
    """A consumer that keeps what it gets."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def send_nowait(self, frames: bytes) -> None:
        self.frames.append(frames)

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
    (segment,) = emitter.unstored(emitter.prepare(_deltas(last)))
    log = segment.frames

    assert log.startswith(b"".join(collector.frames))
    assert len(collector.frames) == len(sent)
    count = sum(map(len, [*sent, *noted, last]))
    assert (segment.first_sequence, segment.last_sequence) == (0, count - 1)
    numbers = [int(line[4:]) for line in log.split(b"\n") if line.startswith(b"id: ")]
    assert numbers == list(range(count))


class _SlowCollector(_Collector):
    """A consumer that takes its time."""

    def __init__(self, pauses: list[int]) -> None:
        super().__init__()
        self._pauses = iter(pauses)
        self._is_behind = False

    def send_nowait(self, frames: bytes) -> None:
        self._is_behind = not self._is_behind
        if self._is_behind:
            raise trio.WouldBlock
        super().send_nowait(frames)

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
    (segment,) = emitter.unstored(last)
    await emitter.send(last)

    assert segment.frames == b"".join(collector.frames)
    numbers = [int(line[4:]) for line in segment.frames.split(b"\n") if line.startswith(b"id: ")]
    assert numbers == list(range(segment.last_sequence + 1))


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
    assert emitter.unstored(emitter.prepare(_deltas(["the end"]))) == ()
    assert len(collector.frames) == 10


async def test_a_last_event_that_does_not_fit_leaves_no_log() -> None:
    emitter = Emitter(_Collector(), log_bytes_max=400)

    await emitter.emit(_deltas(["fits"]))
    kept = emitter.unstored(emitter.prepare(_deltas(["x"])))
    too_long = emitter.unstored(emitter.prepare(_deltas(["x" * 400])))

    assert all(len(segment.frames) <= 400 for segment in kept)
    assert too_long == ()


async def test_without_a_log_nothing_is_kept() -> None:
    emitter = Emitter(_Collector(), log_bytes_max=0)

    await emitter.emit(_deltas(["told"]))

    assert emitter.unstored(emitter.prepare(_deltas(["the end"]))) == ()


class _Note(NamedTuple):
    """Events that come up, and what becomes of what was taken before."""

    texts: list[str]
    confirms: bool


@given(st.integers(0, 5), st.lists(st.builds(_Note, st.lists(st.text("ab", min_size=1)), st.booleans())))
async def test_segments_follow_one_another_and_one_that_is_not_confirmed_is_taken_again(first, notes) -> None:
    emitter = Emitter(_Collector(), log_bytes_max=math.inf, first_number=first)
    stored: list[EventSegment] = []

    for note in notes:
        emitter.note(_deltas(note.texts))
        taken = emitter.take_segment()
        assert taken == emitter.take_segment()
        assert emitter.unstored_bytes == sum(len(segment.frames) for segment in emitter.unstored())
        if note.confirms and taken is not None:
            emitter.confirm_segment()
            stored.append(taken)
    stored += emitter.unstored(emitter.prepare(_deltas(["the end"])))

    assert [segment.first_sequence for segment in stored] == [
        first,
        *(segment.last_sequence + 1 for segment in stored[:-1]),
    ]
    numbers = [int(line[4:]) for one in stored for line in one.frames.split(b"\n") if line.startswith(b"id: ")]
    assert numbers == list(range(first, first + sum(len(note.texts) for note in notes) + 1))
