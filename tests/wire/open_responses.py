"""What the Open Responses specification (2026-04-24) demands of answers, as types: what has no default must be there.

A field that may be absent is ``UnsetType``: absent it may be, null it may not. Where the specification and OpenAI's
SDK disagree the SDK wins; it does in the names of the events that tell reasoning text.
"""

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType


class _Typed(msgspec.Struct, tag_field="type", kw_only=True):
    """Something that says what it is."""


class _TopLogProb(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class _LogProb(_TopLogProb):
    top_logprobs: list[_TopLogProb]


class _UrlCitation(_Typed, tag="url_citation"):
    url: str
    start_index: int
    end_index: int
    title: str


class _OutputText(_Typed, tag="output_text"):
    text: str
    annotations: list[_UrlCitation]
    logprobs: list[_LogProb] | UnsetType = UNSET


class _Refusal(_Typed, tag="refusal"):
    refusal: str


class _ReasoningText(_Typed, tag="reasoning_text"):
    text: str


_Content = _OutputText | _Refusal | _ReasoningText
_Status = Literal["in_progress", "completed", "incomplete"]


class _Message(_Typed, tag="message"):
    id: str
    status: _Status
    role: Literal["user", "assistant", "system", "developer"]
    content: list[_Content]
    phase: Literal["commentary", "final_answer"] | UnsetType = UNSET


class _FunctionCall(_Typed, tag="function_call"):
    id: str
    call_id: str
    name: str
    arguments: str
    status: _Status


class _Reasoning(_Typed, tag="reasoning"):
    id: str
    summary: list[Any]
    content: list[_Content] | UnsetType = UNSET
    encrypted_content: str | UnsetType = UNSET


_Item = _Message | _FunctionCall | _Reasoning


class _FunctionTool(_Typed, tag="function"):
    name: str
    description: str | None
    parameters: dict[str, Any] | None
    strict: bool | None


class _PlainText(_Typed, tag="text"):
    pass


class _JsonObject(_Typed, tag="json_object"):
    pass


class _JsonSchema(_Typed, tag="json_schema"):
    name: str
    description: str | None
    schema: dict[str, Any]
    """The specification says null, as nobody does."""
    strict: bool


class _Text(msgspec.Struct):
    format: _PlainText | _JsonObject | _JsonSchema
    verbosity: Literal["low", "medium", "high"] | UnsetType = UNSET


class _ReasoningOptions(msgspec.Struct):
    effort: str | None
    summary: str | None


class _InputDetails(msgspec.Struct):
    cached_tokens: int


class _OutputDetails(msgspec.Struct):
    reasoning_tokens: int


class _Usage(msgspec.Struct):
    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: _InputDetails
    output_tokens_details: _OutputDetails


class _Error(msgspec.Struct):
    code: str
    message: str


class _IncompleteDetails(msgspec.Struct):
    reason: str


class Response(msgspec.Struct):
    """``ResponseResource``."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: str
    incomplete_details: _IncompleteDetails | None
    model: str
    previous_response_id: str | None
    instructions: str | None
    output: list[_Item]
    error: _Error | None
    tools: list[_FunctionTool]
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any]
    truncation: Literal["auto", "disabled"]
    parallel_tool_calls: bool
    text: _Text
    top_p: float
    presence_penalty: float
    frequency_penalty: float
    top_logprobs: int
    temperature: float
    reasoning: _ReasoningOptions | None
    user: str | None
    usage: _Usage | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    store: bool
    background: bool
    service_tier: str
    metadata: dict[str, str]
    safety_identifier: str | None
    prompt_cache_key: str | None


class _Event(_Typed):
    sequence_number: int


class _Snapshot(_Event):
    response: Response


class _OfOutput(_Event):
    output_index: int


class _OfItem(_OfOutput):
    item: _Item


class _OfContent(_OfOutput):
    item_id: str
    content_index: int


class _Created(_Snapshot, tag="response.created"):
    pass


class _Queued(_Snapshot, tag="response.queued"):
    pass


class _InProgress(_Snapshot, tag="response.in_progress"):
    pass


class _Completed(_Snapshot, tag="response.completed"):
    pass


class _Failed(_Snapshot, tag="response.failed"):
    pass


class _Incomplete(_Snapshot, tag="response.incomplete"):
    pass


class _ItemAdded(_OfItem, tag="response.output_item.added"):
    pass


class _ItemDone(_OfItem, tag="response.output_item.done"):
    pass


class _PartAdded(_OfContent, tag="response.content_part.added"):
    part: _Content


class _PartDone(_OfContent, tag="response.content_part.done"):
    part: _Content


class _TextDelta(_OfContent, tag="response.output_text.delta"):
    delta: str
    logprobs: list[_LogProb] | UnsetType = UNSET


class _TextDone(_OfContent, tag="response.output_text.done"):
    text: str
    logprobs: list[_LogProb] | UnsetType = UNSET


class _AnnotationAdded(_OfContent, tag="response.output_text.annotation.added"):
    annotation_index: int
    annotation: _UrlCitation


class _RefusalDelta(_OfContent, tag="response.refusal.delta"):
    delta: str


class _RefusalDone(_OfContent, tag="response.refusal.done"):
    refusal: str


class _ReasoningDelta(_OfContent, tag="response.reasoning_text.delta"):
    delta: str


class _ReasoningDone(_OfContent, tag="response.reasoning_text.done"):
    text: str


class _ArgumentsDelta(_OfOutput, tag="response.function_call_arguments.delta"):
    item_id: str
    delta: str


class _ArgumentsDone(_OfOutput, tag="response.function_call_arguments.done"):
    item_id: str
    arguments: str


_AnyEvent = (
    _Created | _Queued | _InProgress | _Completed | _Failed | _Incomplete | _ItemAdded | _ItemDone | _PartAdded
    | _PartDone | _TextDelta | _TextDone | _AnnotationAdded | _RefusalDelta | _RefusalDone | _ReasoningDelta
    | _ReasoningDone | _ArgumentsDelta | _ArgumentsDone
)  # fmt: skip


def check_response(body: object) -> Response:
    """*body* as the specification knows it.

    Raises:
        msgspec.ValidationError: A field is missing, null, or of another type.
    """
    return msgspec.convert(body, Response)


def check_event(data: object) -> None:
    """Raise ``msgspec.ValidationError`` if *data* is no event of the specification."""
    msgspec.convert(data, _AnyEvent)
