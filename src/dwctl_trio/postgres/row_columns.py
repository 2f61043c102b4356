"""Rows, their ending and their events as the columns of statements, and back from what is read or claimed."""

from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from dwctl_trio.domain.claiming import Surface
from dwctl_trio.domain.lifecycle import RowState
from dwctl_trio.domain.models import ModelRoute
from dwctl_trio.domain.request import ServiceTier
from dwctl_trio.ports import (
    Claimed,
    ClaimedChat,
    ClaimedResponse,
    ClaimedUnreadable,
    EndedStep,
    EventSegment,
    NewResponse,
    ResponseRow,
    StoredResponse,
)
from dwctl_trio.postgres.step_columns import ended_columns, error_from_text, metering_columns
from dwctl_trio.protocol.stored_request import read_request


def identity_columns(row: ResponseRow) -> dict[str, object]:
    """What usage records say of a row."""
    return {
        "response_id": row.response_id,
        "owner": row.owner,
        "service_tier": row.service_tier.value,
        "stream": row.stream,
    }


def write_columns(row: ResponseRow, ended: Sequence[EndedStep], *, is_terminal: bool = False) -> dict[str, object]:
    """What every write between claim and end has in common: the row, and the steps that have ended.

    Args:
        row: The row.
        ended: With what was said, as far as the row keeps it.
        is_terminal: Whether nothing is kept any more of a response that is not to be stored.
    """
    keeps = row.store if is_terminal else row.keeps_steps
    return {
        **identity_columns(row),
        "forgets": row.keeps_steps and not keeps,
        **ended_columns(ended, store=keeps),
        **metering_columns(ended),
    }


def segment_columns(segments: Sequence[EventSegment]) -> dict[str, object]:
    """Events, a list for each column, and the number of the last one."""
    return {
        "segment_firsts": [segment.first_sequence for segment in segments],
        "segment_lasts": [segment.last_sequence for segment in segments],
        "segment_frames": [segment.frames for segment in segments],
        "last_sequence": segments[-1].last_sequence if segments else None,
    }


def claimed_from_row(row: Any) -> Claimed:
    """What a claim or a take-over returned.

    Args:
        row: The columns of ``sql/parts/claimed_columns.sql``.
    """
    route = ModelRoute(model=row["model"], upstream=row["upstream"], upstream_model=row["upstream_model"])
    known: dict[str, Any] = {
        "epoch": row["epoch"],
        "age_s": row["age_s"],
        "deadline_in_s": row["deadline_in_s"],
        "attempt": row["attempt"],
        "reclaims": row["reclaims"],
        "is_cancel_requested": row["is_cancel_requested"],
        "last_sequence": -1 if row["last_sequence"] is None else row["last_sequence"],
    }
    is_chat = row["surface"] == Surface.CHAT.value
    asked = None if is_chat else read_request(row["request"], row["tools"])
    if asked is not None:
        new = NewResponse(
            response_id=row["id"],
            owner=row["owner"],
            key_prefix=row["key_prefix"],
            request=asked.request,
            route=route,
            first_step_id=uuid4(),
            tools=asked.tools,
        )
        return ClaimedResponse(new=new, created_at=row["created_at"], was_started=row["was_started"], **known)
    identity = ResponseRow(
        response_id=row["id"],
        owner=row["owner"],
        service_tier=ServiceTier(row["service_tier"]),
        stream=row["stream"],
        store=row["store"],
        is_queued=row["deadline_in_s"] is not None,
    )
    if is_chat:
        asked_chat, was_started = row["request"].encode(), row["was_started"]
        return ClaimedChat(row=identity, route=route, request=asked_chat, was_started=was_started, **known)
    return ClaimedUnreadable(row=identity, route=route, created_at=row["created_at"], **known)


def stored_from_row(row: Any) -> StoredResponse:
    """What GET shows of a row."""
    asked = read_request(row["request"], row["tools"]) if row["request"] is not None else None
    return StoredResponse(
        response_id=row["id"],
        state=RowState(row["state"]),
        created_at=row["created_at"],
        request=asked.request if asked is not None else None,
        tools=asked.tools if asked is not None else (),
        body=row["response"].encode() if row["response"] is not None else None,
        error=error_from_text(row["error"]),
    )
