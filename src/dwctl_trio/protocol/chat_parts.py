"""The parts of messages and of tool outputs as chat completions has them.

Rule 1: nothing that a model could read is lost: text, images, files and sound keep their order.
Rule 2: one text alone is a string, which every engine's template understands.

Source: OpenAI Chat Completions API reference, "Create chat completion", ``messages``.
"""

from collections.abc import Iterable, Sequence
from typing import TypeAlias, assert_never

from dwctl_trio.domain.request import CallOutput, InputAudio, InputContent, InputFile, InputImage, InputPart

ChatPart: TypeAlias = dict[str, object]
ChatContent: TypeAlias = str | list[ChatPart]

_SEE_BELOW = "What this tool gave back follows as a message of the user."
"""In place of a text, for a tool message cannot do without."""


def render_content(parts: Sequence[InputContent]) -> ChatContent:
    """The ``content`` of a message; an earlier refusal is text, too."""
    if not parts:
        return ""
    if len(parts) == 1 and isinstance(parts[0], InputPart):
        return parts[0].text
    return [_render_part(part) for part in parts]


def _render_part(part: InputContent) -> ChatPart:
    match part:
        case InputPart():
            return {"type": "text", "text": part.text}
        case InputImage():
            address = {"url": part.url}
            # ``auto`` is what upstreams do by themselves, and some know no other.
            return {
                "type": "image_url",
                "image_url": address if part.detail == "auto" else address | {"detail": part.detail},
            }
        case InputFile():
            file = {"file_data": part.content}
            return {"type": "file", "file": file if part.filename is None else file | {"filename": part.filename}}
        case InputAudio():
            return {"type": "input_audio", "input_audio": {"data": part.content, "format": part.format}}
        case _ as never:
            assert_never(never)


def output_text(output: CallOutput) -> str:
    """What a tool message says of *output*: its texts, for it can hold nothing else."""
    if isinstance(output, str):
        return output
    texts = [part.text for part in output if isinstance(part, InputPart)]
    return "\n".join(texts) if texts or not output else _SEE_BELOW


def render_attachments(outputs: Iterable[tuple[str, CallOutput]]) -> list[ChatPart]:
    """What the tool messages of *outputs* cannot hold, as the parts of a message of the user.

    Args:
        outputs: What the calls of one turn gave back, each with its call id, in their order.

    Returns:
        For each output with images or files a text that says whose they are, and then they; usually nothing.
    """
    parts: list[ChatPart] = []
    for call_id, output in outputs:
        attached = [] if isinstance(output, str) else [part for part in output if not isinstance(part, InputPart)]
        if attached:
            parts.append({"type": "text", "text": f"The tool call {call_id} gave back:"})
            parts += [_render_part(part) for part in attached]
    return parts
