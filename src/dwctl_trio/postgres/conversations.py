"""Stored responses with one another, in PostgreSQL: conversations, what is referred to, and lists.

Rule: one statement for each, whatever the number of responses; every response in it is the same owner's.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any
from uuid import UUID

import attrs
import trio

from dwctl_trio.domain.conversation import Conversation, Gap, Turn, item_count
from dwctl_trio.domain.lifecycle import RowState
from dwctl_trio.ports import ResponsePage, WantedPage
from dwctl_trio.postgres.row_columns import stored_from_row
from dwctl_trio.postgres.statements import Statements
from dwctl_trio.postgres.step_columns import step_from_row
from dwctl_trio.protocol.stored_request import read_input


class PostgresConversations(Statements):
    """Keeps ``ports.ConversationStore``."""

    async def read_conversation(self, response_id: UUID, owner: str) -> Conversation | None:
        """See ``ports.ConversationStore``."""
        values: dict[str, object] = {
            "response_id": response_id,
            "owner": owner,
            "turns_max": self._limits.conversation_turns,
            "bytes_max": self._limits.conversation_bytes,
        }
        found = await self._read("read_conversation", values)
        if found is None or found.gap is not None or found.turns[0].previous_id is None:
            return found
        is_bound = len(found.turns) >= self._limits.conversation_turns
        return attrs.evolve(found, gap=Gap.TOO_MANY_TURNS if is_bound else Gap.MISSING)

    async def find_turns(self, maker_ids: Sequence[UUID], owner: str) -> Conversation | None:
        """See ``ports.ConversationStore``."""
        values: dict[str, object] = {
            "maker_ids": list(maker_ids),
            "owner": owner,
            "bytes_max": self._limits.conversation_bytes,
        }
        return await self._read("find_turns", values)

    async def _read(self, name: str, values: Mapping[str, object]) -> Conversation | None:
        """What the statement *name* finds, as far as its items and its bytes are bounded.

        Others have their turn after each that was decoded, for one may hold thousands of items.
        """
        rows, limits = await self._fetch(name, values), self._limits
        if not rows:
            return None
        turns: list[Turn] = []
        items, stored_bytes, gap = 0, 0, None
        for own in reversed([list(group) for _, group in groupby(rows, key=_turn_number)]):
            size = own[0]["stored_bytes"]
            gap = Gap.TOO_LARGE if size > limits.conversation_bytes else None
            if turns and gap is not None:
                break
            turn = _turn(own)
            items += item_count(turn)
            gap = Gap.TOO_MANY_ITEMS if gap is None and items > limits.conversation_items else gap
            if turns and gap is not None:
                break
            turns.insert(0, turn)
            stored_bytes = size
            await trio.lowlevel.checkpoint()
        return Conversation(turns=tuple(turns), stored_bytes=stored_bytes, gap=gap)

    async def list_responses(self, wanted: WantedPage, owner: str) -> ResponsePage | None:
        """See ``ports.ConversationStore``."""
        values: dict[str, object] = {
            "owner": owner,
            "after": wanted.after,
            "rows": wanted.limit + 1,
            "bytes_max": self._limits.list_bytes,
        }
        rows = await self._fetch("list_newest" if wanted.newest_first else "list_oldest", values)
        if not rows and wanted.after is not None:
            known = await self._fetchrow("read_response", {"response_id": wanted.after, "owner": owner})
            if known is None:
                return None
        listed = [row for row in rows[: wanted.limit] if row["is_within"]]
        return ResponsePage(responses=tuple(stored_from_row(row) for row in listed), has_more=len(rows) > len(listed))


def _turn_number(row: Any) -> int:
    """Its place before the newest, which is 1."""
    number: int = row["turn"]
    return number


def _turn(rows: Sequence[Any]) -> Turn:
    """The response in *rows*, one for each of its steps; what was asked comes with the first."""
    first = rows[0]
    return Turn(
        response_id=first["response_id"],
        previous_id=first["previous_response_id"],
        state=RowState(first["response_state"]),
        input=read_input(first["asked"]),
        steps=[step_from_row(row) for row in rows if row["id"] is not None],
    )
