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

from dwctl_trio.domain.items import CallKind, full_name
from dwctl_trio.domain.models import ModelRoute


@attrs.frozen(kw_only=True)
class Namespace:
    """A group of the client's tools."""

    name: str
    description: str


@attrs.frozen(kw_only=True)
class OfferedTool:
    """One tool as the model sees it."""

    kind: CallKind
    name: str
    """In a namespace: its full name."""
    description: str | None = None
    parameters: bytes | None = None
    """The JSON Schema of the arguments, encoded; None when anything goes."""
    strict: bool | None = None
    format: bytes | None = None
    """Of a custom tool: what its input must look like, encoded; None for any text."""
    namespace: Namespace | None = None
    """Of a tool of the client's, if it is in one."""

    @property
    def short_name(self) -> str:
        """Its name within its namespace."""
        return self.name if self.namespace is None else self.name.removeprefix(full_name(self.namespace.name, ""))


def put_into(namespace: Namespace, tool: OfferedTool) -> OfferedTool:
    """*tool*, which is in no namespace, as one of *namespace*."""
    return attrs.evolve(tool, name=full_name(namespace.name, tool.name), namespace=namespace)


ALL_SERVER_TOOLS = "*"
"""Stands for every server tool that the model lists, where a request names server tools."""


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
    """The one tool that must be called; ``mode`` is then ``required``. ``ALL_SERVER_TOOLS``: any of the server's."""
    allowed: tuple[str, ...] | None = None
    """The only tools that may be called, ``ALL_SERVER_TOOLS`` for all the server's; None: all that are offered."""

    @property
    def is_restricted(self) -> bool:
        """Whether the client says that some calls must not be made."""
        return self.mode is ChoiceMode.NONE or self.name is not None or self.allowed is not None


def allowed_tools(tools: tuple[OfferedTool, ...], choice: ToolChoice) -> tuple[OfferedTool, ...]:
    """Those of *tools* that *choice* leaves to the model."""
    if choice.mode is ChoiceMode.NONE:
        return ()
    if choice.allowed is None:
        return tools
    takes_ours = ALL_SERVER_TOOLS in choice.allowed
    return tuple(tool for tool in tools if tool.name in choice.allowed or (takes_ours and tool.kind is CallKind.SERVER))


FREE_CHOICE = ToolChoice()
"""Whatever the model likes."""


def kind_of_call(
    offered: Sequence[OfferedTool], allowed: Sequence[OfferedTool], name: str, *, choice: ToolChoice = FREE_CHOICE
) -> CallKind:
    """Who runs a call of *name*.

    A call that is not allowed is the server's, which refuses to make it, so that the model is told and can mend it. So
    is one of a name that nobody offered, if the server offers any tool at all, or the client has said what may be
    called; otherwise the client gets it.

    Args:
        offered: The tools of the loop.
        allowed: Those of them that may be called this time.
        name: What the model called.
        choice: What the client wants called.
    """
    for tool in allowed:
        if tool.name == name:
            return tool.kind
    is_ours = choice.is_restricted or any(tool.kind is CallKind.SERVER or tool.name == name for tool in offered)
    return CallKind.SERVER if is_ours else CallKind.FUNCTION


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
