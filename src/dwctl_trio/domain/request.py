"""What a client asks for, after validation.

Rule 1: every value here is in range; ``protocol/responses_api.py`` has seen to it.
Rule 2: JSON that we only pass on (a schema) stays encoded.

Source: OpenAI Responses API reference, "Create a response".
"""

from enum import StrEnum
from typing import TypeAlias

import attrs

from dwctl_trio.domain.items import ToolCallItem
from dwctl_trio.domain.tools import FREE_CHOICE, OfferedTool, ToolChoice


class Role(StrEnum):
    """Who speaks in an input message."""

    USER = "user"
    ASSISTANT = "assistant"
    SYSTEM = "system"
    DEVELOPER = "developer"


class ServiceTier(StrEnum):
    """The tiers a client may name; ``flex`` is the queued one."""

    AUTO = "auto"
    DEFAULT = "default"
    FLEX = "flex"
    PRIORITY = "priority"


class PartKind(StrEnum):
    """What an input part is; the kind decides how it is rendered back."""

    INPUT_TEXT = "input_text"
    OUTPUT_TEXT = "output_text"
    REFUSAL = "refusal"


@attrs.frozen(kw_only=True)
class InputPart:
    """A piece of text in an input message."""

    kind: PartKind
    text: str


@attrs.frozen(kw_only=True)
class InputMessage:
    """One message of the conversation so far."""

    role: Role
    content: tuple[InputPart, ...]


@attrs.frozen(kw_only=True)
class FunctionCallOutput:
    """What the client's function gave back."""

    call_id: str
    """Of the call it answers."""
    output: str


@attrs.frozen(kw_only=True)
class CustomToolCallOutput:
    """What the client's custom tool gave back."""

    call_id: str
    """Of the call it answers."""
    output: str


InputItem: TypeAlias = InputMessage | FunctionCallOutput | CustomToolCallOutput | ToolCallItem
"""A call among the input is one of an earlier response; one that the server ran brings its outcome with it."""


@attrs.frozen(kw_only=True)
class ServerToolReference:
    """A tool of the configuration, asked for by name."""

    name: str


RequestTool: TypeAlias = OfferedTool | ServerToolReference


@attrs.frozen(kw_only=True)
class PlainText:
    """No structure asked of the output."""


@attrs.frozen(kw_only=True)
class JsonObject:
    """The output is to be some JSON object."""


@attrs.frozen(kw_only=True)
class JsonSchema:
    """The output is to follow a schema."""

    name: str
    schema: bytes
    """The JSON Schema, encoded; passed on as it is."""
    description: str | None = None
    strict: bool | None = None


TextFormat: TypeAlias = PlainText | JsonObject | JsonSchema


@attrs.frozen(kw_only=True)
class ReasoningOptions:
    """How much the model should think, and what of it to show."""

    effort: str | None = None
    """``none`` to ``max``, in OpenAI's words; passed on."""
    summary: str | None = None
    """A hint; chat-completions upstreams have no summaries, so it is echoed only."""


@attrs.frozen(kw_only=True)
class ResponseRequest:
    """A validated ``POST /v1/responses``."""

    model: str
    """The alias as the client wrote it; echoed."""
    input: tuple[InputItem, ...]
    """Oldest first; at least one item."""
    instructions: str | None = None
    stream: bool = False
    background: bool = False
    store: bool = True
    service_tier: ServiceTier = ServiceTier.AUTO
    temperature: float | None = None
    """0 to 2; None leaves it to the upstream."""
    top_p: float | None = None
    """0 to 1; None leaves it to the upstream."""
    presence_penalty: float | None = None
    """-2 to 2; of Open Responses, not of OpenAI."""
    frequency_penalty: float | None = None
    """-2 to 2; of Open Responses, not of OpenAI."""
    max_output_tokens: int | None = None
    """At least 16."""
    text_format: TextFormat = PlainText()
    verbosity: str | None = None
    """``low``, ``medium`` or ``high``; passed on."""
    reasoning: ReasoningOptions | None = None
    metadata: tuple[tuple[str, str], ...] = ()
    """At most 16 pairs, in the client's order; echoed."""
    tools: tuple[RequestTool, ...] | None = None
    """Each name once; None: there was no such key, and the model's own server tools are offered."""
    tool_choice: ToolChoice = FREE_CHOICE
    parallel_tool_calls: bool = True
    max_tool_calls: int | None = None
    """Calls of server tools in the whole response; those beyond are not made. At least 1."""
    shows_sub_agents: bool = False
    """Whether the stream is to tell what sub-agents do."""
    truncation: str = "disabled"
    """Only ``disabled``: we never drop input."""
    user: str | None = None
    """A hint; echoed."""
    safety_identifier: str | None = None
    """A hint; echoed."""
    prompt_cache_key: str | None = None
    """A hint; echoed."""

    @property
    def is_queued(self) -> bool:
        """Whether a daemon works on it, not the process that was asked."""
        return self.background or self.service_tier is ServiceTier.FLEX
