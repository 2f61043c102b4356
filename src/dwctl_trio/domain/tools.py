"""Tools: what a model may call, and who runs it.

Rule 1: a tool that the request defines is the client's to run; a tool of the configuration is the server's.
Rule 2: what was offered is part of the response: every turn of it, and every resume, offers the same.
Rule 3: JSON that we only pass on (a schema, a grammar) stays encoded.

Source: the outside contract of the design; OpenAI Responses API reference, ``tools``.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TypeAlias

import attrs

from dwctl_trio.domain.items import CallKind
from dwctl_trio.domain.models import ModelRoute


@attrs.frozen(kw_only=True)
class OfferedTool:
    """One tool as the model sees it."""

    kind: CallKind
    name: str
    description: str | None = None
    parameters: bytes | None = None
    """The JSON Schema of the arguments, encoded; None when anything goes."""
    strict: bool | None = None
    format: bytes | None = None
    """Of a custom tool: what its input must look like, encoded; None for any text."""


def kind_of_call(offered: Sequence[OfferedTool], allowed: Sequence[OfferedTool], name: str) -> CallKind:
    """Who runs a call of *name*.

    A call that is not allowed is the server's, which refuses to make it, so that the model is told and can mend it. So
    is one of a name that nobody offered, if the server offers any tool at all; without server tools the client gets it.

    Args:
        offered: The tools of the loop.
        allowed: Those of them that may be called this time.
        name: What the model called.
    """
    for tool in allowed:
        if tool.name == name:
            return tool.kind
    is_ours = any(tool.kind is CallKind.SERVER or tool.name == name for tool in offered)
    return CallKind.SERVER if is_ours else CallKind.FUNCTION


class ChoiceMode(StrEnum):
    """How free the model is to call tools."""

    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"


@attrs.frozen(kw_only=True)
class ToolChoice:
    """What the client wants called."""

    mode: ChoiceMode = ChoiceMode.AUTO
    name: str | None = None
    """The one tool that must be called; ``mode`` is then ``required``."""
    allowed: tuple[str, ...] | None = None
    """The only tools that may be called; None: all that are offered."""


def allowed_tools(tools: tuple[OfferedTool, ...], choice: ToolChoice) -> tuple[OfferedTool, ...]:
    """Those of *tools* that *choice* leaves to the model."""
    if choice.mode is ChoiceMode.NONE:
        return ()
    if choice.allowed is None:
        return tools
    return tuple(tool for tool in tools if tool.name in choice.allowed)


FREE_CHOICE = ToolChoice()
"""Whatever the model likes."""


@attrs.frozen(kw_only=True)
class HttpTool:
    """A tool behind an HTTP endpoint: the arguments are posted, the answer's body is the output."""

    name: str
    description: str
    parameters: bytes
    """The JSON Schema of the arguments, encoded; they are validated before anything is sent."""
    url: str
    headers: tuple[tuple[str, str], ...] = attrs.field(default=(), repr=False)
    """Sent with every call, never to another origin; may be secret."""
    timeout_s: float
    idempotent: bool = False
    """Whether a call that a crash interrupted may be made again."""
    allow_private: bool = False
    """Whether its address may be one of a private network."""


@attrs.frozen(kw_only=True)
class AgentTool:
    """A tool that is an agent of its own: a model with instructions and tools, given one task."""

    name: str
    description: str
    route: ModelRoute
    """Its model's."""
    instructions: str | None = None
    tools: tuple[str, ...] = ()
    """Names of the server tools that it may call."""
    timeout_s: float


ALL_SERVER_TOOLS = "*"
"""Stands for every server tool that the model lists, where a request names server tools."""

ServerTool: TypeAlias = HttpTool | AgentTool
ToolCatalog: TypeAlias = Mapping[str, ServerTool]
"""The server's tools by name."""

AGENT_PARAMETERS = (
    b'{"type":"object","properties":{"input":{"type":"string","description":"The task, with all that is needed to'
    b' do it."}},"required":["input"],"additionalProperties":false}'
)
"""What every agent takes: one task."""


def offer(tool: ServerTool) -> OfferedTool:
    """The server's *tool* as the model sees it."""
    parameters = AGENT_PARAMETERS if isinstance(tool, AgentTool) else tool.parameters
    return OfferedTool(
        kind=CallKind.SERVER, name=tool.name, description=tool.description or None, parameters=parameters
    )


def may_fire_again(tool: ServerTool | None) -> bool:
    """Whether a call of *tool* that a crash interrupted is made again when the response is resumed.

    An agent is: its own steps are durable, so it goes on where it was.
    """
    return isinstance(tool, AgentTool) or (isinstance(tool, HttpTool) and tool.idempotent)
