"""Rows of responses in PostgreSQL.

Rule 1: one statement, one commit, one crossing for each thing that happens to a row.
Rule 2: every change of a row that somebody works on names its owner and epoch; 0 rows means that it is lost.
Rule 3: every read and delete by a client names the client's owner.

Source: the design's page on states and leases.
"""

from uuid import UUID

from dwctl_trio.domain.errors import Conflict, IdempotencyKeyHeld, LeaseLost
from dwctl_trio.domain.idempotency import KeyHolder
from dwctl_trio.domain.lifecycle import RowState
from dwctl_trio.domain.steps import Chain
from dwctl_trio.ports import FinishedResponse, NewChat, NewResponse, Progress, StoredResponse
from dwctl_trio.postgres.row_columns import segment_columns, stored_from_row, write_columns
from dwctl_trio.postgres.statements import Statements
from dwctl_trio.postgres.step_columns import error_text, opened_columns, step_from_row, text
from dwctl_trio.protocol.request_body import render_request
from dwctl_trio.protocol.request_tools import render_tools


class PostgresResponses(Statements):
    """Keeps ``ports.ResponseStore``."""

    async def open_response(self, new: NewResponse | NewChat) -> int:
        """See ``ports.ResponseStore``."""
        request, key = new.request, new.idempotency
        kept = new if isinstance(new, NewResponse) and request.store else None
        values: dict[str, object] = {
            "response_id": new.response_id,
            "owner": new.owner,
            "key_prefix": new.key_prefix,
            "surface": new.surface.value,
            "model": request.model,
            "upstream": new.route.upstream,
            "upstream_model": new.route.upstream_model,
            "service_tier": request.service_tier.value,
            "stream": request.stream,
            "store": new.row.store,
            "previous_response_id": kept.previous_id if kept else None,
            "request": text(render_request(kept.request)) if kept else None,
            "tools": text(render_tools(kept.tools)) if kept and kept.tools else None,
            "idempotency_key": key.text if key else None,
            "idempotency_digest": key.body_digest if key else None,
            "daemon_id": self._daemon_id,
            "lease_s": self._limits.lease_s,
            "step_id": new.first_step_id,
        }
        created_at = await self._write("open_response", values)
        if created_at is None:
            raise IdempotencyKeyHeld("another row holds the idempotency key")
        return int(created_at)

    async def find_key_holder(self, owner: str, key: str) -> KeyHolder | None:
        """See ``ports.ResponseStore``."""
        row = await self._fetchrow("find_key_holder", {"owner": owner, "key": key})
        if row is None:
            return None
        return KeyHolder(
            response_id=row["id"],
            state=RowState(row["state"]),
            is_stored=row["store"],
            body_digest=row["idempotency_digest"],
            told=row["frames"] if row["response"] is None else row["response"].encode(),
        )

    async def advance_response(self, progress: Progress) -> None:
        """See ``ports.ResponseStore``."""
        values: dict[str, object] = {
            **write_columns(progress.row, progress.ended),
            "daemon_id": self._daemon_id,
            "epoch": progress.epoch,
            "lease_s": self._limits.lease_s,
            **opened_columns(progress.opened, store=progress.row.keeps_steps),
        }
        if await self._write("advance_response", values) is None:
            raise LeaseLost("the row is no longer this process's")

    async def finish_response(self, finished: FinishedResponse) -> None:
        """See ``ports.ResponseStore``."""
        ended = await self._write("finish_response", self._finish_values(finished))
        if ended is None and not await self._ended_like(finished):
            raise LeaseLost("the row is no longer this process's")

    async def _ended_like(self, finished: FinishedResponse) -> bool:
        """Whether the row already carries this ending: the commit of an earlier try whose answer was lost."""
        row = await self._fetchrow("read_row_ending", {"response_id": finished.row.response_id})
        error = finished.error
        return row is not None and (row["state"], row["epoch"], row["error_type"]) == (
            finished.state.value,
            finished.epoch + 1,
            error.type.value if error else None,
        )

    def _finish_values(self, finished: FinishedResponse) -> dict[str, object]:
        row = finished.row
        return {
            **write_columns(row, finished.ended, is_terminal=True),
            "daemon_id": self._daemon_id,
            "epoch": finished.epoch,
            "state": finished.state.value,
            "response_status": finished.response_status,
            "response": finished.body.decode() if row.store else None,
            "error": error_text(finished.error),
            **segment_columns(finished.segments if row.keeps_steps else ()),
        }

    async def read_response(self, response_id: UUID, owner: str) -> StoredResponse | None:
        """See ``ports.ResponseStore``."""
        row = await self._fetchrow("read_response", {"response_id": response_id, "owner": owner})
        if row is None:
            return None
        return stored_from_row(row)

    async def read_chain(self, response_id: UUID, owner: str) -> Chain:
        """See ``ports.ResponseStore``."""
        rows = await self._fetch("read_steps", {"response_id": response_id, "owner": owner})
        return [step_from_row(row) for row in rows]

    async def delete_response(self, response_id: UUID, owner: str) -> bool:
        """See ``ports.ResponseStore``."""
        if await self._write("delete_response", {"response_id": response_id, "owner": owner}) is not None:
            return True
        if await self.read_response(response_id, owner) is not None:
            raise Conflict("The response is still being worked on. Delete it once it has ended.")
        return False
