"""What a client asks for, after validation.

Rule 1: every value here is in range; ``protocol/responses_api.py`` has seen to it.
Rule 2: JSON that we only pass on (a schema) stays encoded.

Source: OpenAI Responses API reference, "Create a response".
"""

from enum import StrEnum
from typing import TypeAlias

import attrs

from dwctl_trio.domain.items import ItemStatus, ToolCallItem
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
    """What a piece of text is; the kind decides how it is rendered back."""

    INPUT_TEXT = "input_text"
    OUTPUT_TEXT = "output_text"
    REFUSAL = "refusal"


@attrs.frozen(kw_only=True)
class InputPart:
    """A piece of text in an input message."""

    kind: PartKind
    text: str
    annotations: bytes | None = None
    """Of what a model said before: what its text cites, encoded; None for none. No model reads them."""


@attrs.frozen(kw_only=True)
class InputImage:
    """An image in the input."""

    url: str
    """Of http, https or data; whoever serves the model reads it."""
    detail: str = "auto"
    """``low``, ``high``, ``auto`` or ``original``."""


@attrs.frozen(kw_only=True)
class InputFile:
    """A file in the input."""

    content: str = attrs.field(repr=False)
    """As the client encoded it, usually a data URL."""
    filename: str | None = None
    detail: str | None = None
    """``low``, ``high`` or ``auto``; chat completions has no place for it."""


@attrs.frozen(kw_only=True)
class InputAudio:
    """Sound in the input."""

    content: str = attrs.field(repr=False)
    """In base64."""
    format: str
    """``mp3`` or ``wav``."""


InputContent: TypeAlias = InputPart | InputImage | InputFile | InputAudio
CallOutput: TypeAlias = str | tuple[InputContent, ...]
"""What a client's tool gave back: a text, or parts out of text, images and files."""


@attrs.frozen(kw_only=True)
class InputMessage:
    """One message of the conversation so far."""

    role: Role
    content: tuple[InputContent, ...]
    id: str | None = None
    """As the client sent it; None: it sent none."""


@attrs.frozen(kw_only=True)
class FunctionCallOutput:
    """What the client's function gave back."""

    call_id: str
    """Of the call it answers."""
    output: CallOutput
    id: str | None = None
    """As in ``InputMessage``."""


@attrs.frozen(kw_only=True)
class CustomToolCallOutput:
    """What the client's custom tool gave back."""

    call_id: str
    """Of the call it answers."""
    output: CallOutput
    id: str | None = None
    """As in ``InputMessage``."""


@attrs.frozen(kw_only=True)
class InputReasoning:
    """What a model thought in an earlier response, as a client brings it back."""

    id: str | None = None
    """As in ``InputMessage``."""
    summary: tuple[str, ...] = ()
    content: tuple[str, ...] | None = None
    """The reasoning itself; None: the client sent only the summary."""
    encrypted_content: str | None = None
    """Of another server's making; kept, and never read."""
    status: ItemStatus | None = None
    """As the client sent it."""


@attrs.frozen(kw_only=True)
class ItemReference:
    """An item of an earlier response by its id; whoever has the stored responses puts the item in its place."""

    id: str


InputItem: TypeAlias = (
    InputMessage | FunctionCallOutput | CustomToolCallOutput | ToolCallItem | InputReasoning | ItemReference
)
"""A call among the input is one of an earlier response; one that the server ran brings its outcome with it.

The id of a call is empty where the client sent none.
"""


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
    strict: bool = False
    """Whether the output is to follow the schema to the letter."""


TextFormat: TypeAlias = PlainText | JsonObject | JsonSchema


@attrs.frozen(kw_only=True)
class ReasoningOptions:
    """How much the model should think, and what of it to show."""

    effort: str | None = None
    """``none`` to ``max``, in OpenAI's words; passed on."""
    summary: str | None = None
    """A hint; chat-completions upstreams have no summaries, so it is echoed only."""
    context: str | None = None
    """Whose reasoning the model is shown again: ``current_turn``, ``all_turns`` or ``auto``, which is all."""


@attrs.frozen(kw_only=True)
class PromptCacheOptions:
    """Hints about the prompt cache of whoever has one; echoed."""

    mode: str
    ttl: str
    comparison_response_id: str | None = None


@attrs.frozen(kw_only=True)
class ResponseRequest:
    """A validated ``POST /v1/responses``."""

    model: str
    """The alias as the client wrote it; echoed."""
    input: tuple[InputItem, ...]
    """Oldest first; at least one item, unless the request goes on with an earlier response."""
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
    previous_response_id: str | None = None
    """As the client wrote it: of the response whose conversation this one goes on with."""
    top_logprobs: int | None = None
    """0 to 20; None: not asked for."""
    wants_logprobs: bool = False
    """Whether the output is to come with the log probabilities of its tokens."""
    truncation: str = "disabled"
    """``auto`` lets a server drop input, which ours never does; or ``disabled``."""
    user: str | None = None
    """A hint; echoed."""
    safety_identifier: str | None = None
    """A hint; echoed."""
    prompt_cache_key: str | None = None
    """A hint; echoed."""
    prompt_cache_retention: str | None = None
    """A hint; echoed."""
    prompt_cache_options: PromptCacheOptions | None = None
    """A hint; echoed."""

    @property
    def asks_logprobs(self) -> bool:
        """Whether the model's server is to tell log probabilities: asking for alternatives asks for them, too."""
        return self.wants_logprobs or bool(self.top_logprobs)

    @property
    def is_queued(self) -> bool:
        """Whether a daemon works on it, not the process that was asked."""
        return self.background or self.service_tier is ServiceTier.FLEX
