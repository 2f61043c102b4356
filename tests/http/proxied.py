"""What the tests of calls that are handed over share: bodies of each kind, and looks at rows that keep nothing."""

import json
from collections.abc import Mapping
from typing import Any

import attrs
import httpx
import trio
from tests.http.conftest import WAIT_S

from dwctl_trio.testing.service import Service

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
COUNT = "/v1/responses/input_tokens"
SURFACES = {CHAT: "chat", TEXT: "completions", EMBEDDINGS: "embeddings", COUNT: "responses"}
STREAMING = (CHAT, TEXT)

ROW = (
    "select r.*, r.request::text as asked, r.response::text as answered, s.state as step_state, s.result::text as said,"
    " u.error_code, u.input_tokens, u.output_tokens, u.http_status, u.service_tier as metered_tier, u.model as used"
    " from requests r join response_steps s on s.response_id = r.id left join usage_records u on u.step_id = s.id"
    " order by r.created_at desc limit 1"
)


def body_for(path: str, model: str, text: str = "hello there", **fields: Any) -> dict[str, Any]:
    """A body that *path* takes, with three words at the most."""
    said: Mapping[str, Any] = {
        CHAT: {"messages": [{"role": "user", "content": text}]},
        TEXT: {"prompt": text},
        EMBEDDINGS: {"input": text},
        COUNT: {"input": text},
    }
    return {"model": model, **said[path], **fields}


@attrs.frozen
class Frames:
    """The frames of a stream, in order."""

    datas: list[Any]
    """The JSON of each but the last, which is ``[DONE]``."""

    @property
    def said(self) -> str:
        """The text that its chunks hold together."""
        choices = [choice for data in self.datas for choice in data.get("choices", ())]
        return "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices)


def read_frames(content: bytes) -> Frames:
    """The frames of a whole stream."""
    *frames, done, rest = content.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    return Frames([json.loads(frame.removeprefix(b"data: ")) for frame in frames])


async def send(service: Service, path: str, body: Any, **headers: str) -> httpx.Response:
    """The answer to *body*, within the tests' bound."""
    with trio.fail_after(WAIT_S):
        return await service.client.post(path, json=body, headers=headers)


async def last_row(service: Service) -> Any:
    """The newest row with its step and its usage record, once it has ended."""
    with trio.fail_after(WAIT_S):
        while True:
            row = await service.pool.fetchrow(ROW)
            if row is not None and row["state"] not in {"pending", "claimed", "processing"}:
                return row


def assert_nothing_kept(row: Any) -> None:
    """Of what was said, nothing is in *row* and its step."""
    assert (row["store"], row["asked"], row["answered"], row["said"], row["last_sequence"]) == (False, *[None] * 4)
