"""Stored responses with one another, in memory: the verified fake of ``postgres/conversations.py``."""

from collections.abc import Sequence
from uuid import UUID

import attrs
import trio

from dwctl_trio.domain.claiming import Surface
from dwctl_trio.domain.conversation import Conversation, Gap, Turn, item_count
from dwctl_trio.ports import ResponsePage, StoredResponse, WantedPage
from dwctl_trio.protocol.response_object import LOGPROBS_APART
from dwctl_trio.protocol.stored_request import read_input, read_request
from dwctl_trio.testing.memory_process import MemoryStoreOfProcess
from dwctl_trio.testing.memory_rows import MemoryRow, MemoryStep, step_value

_MARK = f',"{LOGPROBS_APART}":['.encode()
"""Where the log probabilities begin; a text cannot hold it, as its quotes are escaped."""


class MemoryConversations(MemoryStoreOfProcess):
    """Keeps ``ports.ConversationStore``."""

    async def read_conversation(self, response_id: UUID, owner: str) -> Conversation | None:
        """See ``ports.ConversationStore``."""
        await trio.lowlevel.checkpoint()
        row = self._shown(response_id, owner)
        if row is None:
            return None
        rows, gap = [row], None
        while gap is None and rows[-1].previous_response_id is not None:
            before = self._shown(rows[-1].previous_response_id, owner)
            if len(rows) >= self.limits.conversation_turns:
                gap = Gap.TOO_MANY_TURNS
            elif before is None:
                gap = Gap.MISSING
            else:
                rows.append(before)
        return self._gather(rows, gap)

    async def find_turns(self, maker_ids: Sequence[UUID], owner: str) -> Conversation | None:
        """See ``ports.ConversationStore``."""
        await trio.lowlevel.checkpoint()
        steps = [self.database.steps[maker] for maker in maker_ids if maker in self.database.steps]
        named = {*maker_ids, *(step.response_id for step in steps if step.parent_step_id is None)}
        found = [row for row in (self._shown(response_id, owner) for response_id in sorted(named)) if row is not None]
        return self._gather(found, None) if found else None

    def _gather(self, rows: Sequence[MemoryRow], beyond: Gap | None) -> Conversation:
        """*rows*, newest first, as far as their items and bytes are bounded, and what lies *beyond* them if all are."""
        turns: list[Turn] = []
        gap, items, held, stored = beyond, 0, 0, 0
        for row in rows:
            turn = self._turn(row)
            items, held = items + item_count(turn), held + self._size(row)
            is_large = held > self.limits.conversation_bytes
            if is_large or items > self.limits.conversation_items:
                gap = Gap.TOO_LARGE if is_large else Gap.TOO_MANY_ITEMS
            if turns and gap is not beyond:
                break
            turns.insert(0, turn)
            stored = held
        return Conversation(turns=tuple(turns), stored_bytes=stored, gap=gap)

    async def list_responses(self, wanted: WantedPage, owner: str) -> ResponsePage | None:
        """See ``ports.ConversationStore``."""
        await trio.lowlevel.checkpoint()
        after = None if wanted.after is None else self._shown(wanted.after, owner)
        if wanted.after is not None and after is None:
            return None
        rows = [row for row in self.database.rows.values() if self._shown(row.id, owner) is not None]
        rows.sort(key=_created, reverse=wanted.newest_first)
        if after is not None:
            rows = rows[rows.index(after) + 1 :]
        page: list[StoredResponse] = []
        held = 0
        for row in rows[: wanted.limit]:
            held += len(row.response or row.request or b"")
            if page and held > self.limits.list_bytes:
                break
            page.append(stored_response(row))
        return ResponsePage(responses=tuple(page), has_more=len(rows) > len(page))

    def _shown(self, response_id: UUID, owner: str) -> MemoryRow | None:
        """The row, as far as it is stored, and *owner*'s."""
        row = self.database.rows.get(response_id)
        if row is None or row.owner != owner or not row.store or row.surface != Surface.RESPONSES.value:
            return None
        return row if row.request is not None else None

    def _own_steps(self, row: MemoryRow) -> list[MemoryStep]:
        return [step for step in self.database.steps_of(row.id) if step.parent_step_id is None]

    def _size(self, row: MemoryRow) -> int:
        size = len(row.request or b"")
        for step in self._own_steps(row):
            said, mark, passed_over = (step.result or b"").partition(_MARK)
            size += len(said) + (len(mark) + len(passed_over)) // 64
        return size

    def _turn(self, row: MemoryRow) -> Turn:
        assert row.request is not None, "what is shown has one"
        return Turn(
            response_id=row.id,
            previous_id=row.previous_response_id,
            state=row.state,
            input=read_input(row.request),
            steps=[step_value(_without_logprobs(step)) for step in self._own_steps(row)],
        )


def _without_logprobs(step: MemoryStep) -> MemoryStep:
    said, mark, _ = (step.result or b"").partition(_MARK)
    return attrs.evolve(step, result=said + b"}") if mark else step


def _created(row: MemoryRow) -> tuple[float, UUID]:
    return row.created_at, row.id


def stored_response(row: MemoryRow) -> StoredResponse:
    """What GET shows of *row*."""
    asked = read_request(row.request, row.tools) if row.response is None and row.request is not None else None
    return StoredResponse(
        response_id=row.id,
        state=row.state,
        created_at=int(row.created_at),
        request=asked.request if asked is not None else None,
        tools=asked.tools if asked is not None else (),
        body=row.response,
        error=row.error,
    )
