"""The parts that messages and tool outputs are made of: JSON to values, and back for the store.

Rule 1: what an upstream could read is kept as it was sent; we fetch nothing and decode nothing.
Rule 2: what stands in a file store of OpenAI's is refused, for there is none here.

Source: OpenAI Python SDK, ``response_input_content_param`` and ``response_output_text_param``.
"""

import re
from collections.abc import Sequence
from typing import Final, assert_never

from dwctl_trio.domain.errors import InvalidRequest
from dwctl_trio.domain.request import InputAudio, InputContent, InputFile, InputImage, InputPart, PartKind
from dwctl_trio.protocol.fields import Fields, joined
from dwctl_trio.protocol.offered_tools import as_bytes, as_json
from dwctl_trio.protocol.parameters import CONTENT_PARTS, accepted

MESSAGE_PARTS: Final = accepted(CONTENT_PARTS)
OUTPUT_PARTS: Final = ("input_text", "input_image", "input_file")
"""What the output of a tool may be made of."""
IMAGE_DETAILS: Final = ("low", "high", "auto", "original")
FILE_DETAILS: Final = ("low", "high", "auto")
BREAKPOINT_MODES: Final = ("explicit",)
BREAKPOINT_LIFETIMES: Final = ("30m", "12h")
AUDIO_FORMATS: Final = ("mp3", "wav")

IMAGE_ADDRESS: Final = (
    r"[hH][tT][tT][pP][sS]?://[^\x00-\x20\x7f-\xa0]+|"
    r"[dD][aA][tT][aA]:[iI][mM][aA][gG][eE]/[^,\x00-\x20\x7f-\xa0]{1,255};[bB][aA][sS][eE]64,[A-Za-z0-9+/]+={0,2}"
)
"""A whole address. Without a flag for the case, which would make megabytes slow and which no JSON Schema can say."""
_IMAGE_ADDRESS = re.compile(IMAGE_ADDRESS.replace("]+", "]++"))
"""Possessive, so that megabytes which do not fit are looked at once."""
CACHE_BREAKPOINT: Final = "prompt_cache_breakpoint"


def parse_parts(values: Sequence[object], path: str, supported: Sequence[str]) -> tuple[InputContent, ...]:
    """The parts of a list that stands at *path*, each of one of the *supported* types.

    Raises:
        InvalidRequest: With the path of what is wrong in them.
    """
    return tuple(_parse_part(Fields(value, f"{path}[{index}]"), supported) for index, value in enumerate(values))


def _parse_part(fields: Fields, supported: Sequence[str]) -> InputContent:
    kind = fields.require("type", fields.text)
    if kind not in supported:
        path = fields.path("type")
        raise InvalidRequest(
            f"Unsupported '{path}': supported values are {joined(supported)}.", param=path, code="unsupported_value"
        )
    _check_breakpoint(fields)
    match kind:
        case "input_image":
            return _parse_image(fields)
        case "input_file":
            return _parse_file(fields)
        case "input_audio":
            return _parse_audio(fields)
        case _:
            return _parse_text(fields, PartKind(kind))


def _check_breakpoint(fields: Fields) -> None:
    """Raise for what is wrong in a hint about the prompt cache, which is then dropped."""
    hint = fields.object(CACHE_BREAKPOINT)
    if hint is not None:
        hint.refuse_unknown(("mode", "ttl"))
        hint.require("mode", lambda name: hint.choice(name, BREAKPOINT_MODES))
        hint.choice("ttl", BREAKPOINT_LIFETIMES)


def _parse_text(fields: Fields, kind: PartKind) -> InputPart:
    if kind is PartKind.REFUSAL:
        fields.refuse_unknown(("type", "refusal", CACHE_BREAKPOINT))
        return InputPart(kind=kind, text=fields.require("refusal", fields.text))
    fields.refuse_unknown(("type", "text", "annotations", "logprobs", CACHE_BREAKPOINT))
    for listed in ("annotations", "logprobs"):
        for index, entry in enumerate(fields.items(listed) or ()):
            Fields(entry, f"{fields.path(listed)}[{index}]")
    text = fields.require("text", fields.text)
    if kind is PartKind.INPUT_TEXT:
        return InputPart(kind=kind, text=text)
    return InputPart(kind=kind, text=text, annotations=as_bytes(fields.raw("annotations") or None))


def _parse_image(fields: Fields) -> InputImage:
    fields.refuse_unknown(("type", "image_url", "file_id", "detail", CACHE_BREAKPOINT))
    _refuse_stored_file(fields, "send 'image_url', which may be a data URL")
    url, path = fields.require("image_url", fields.text), fields.path("image_url")
    if not _IMAGE_ADDRESS.fullmatch(url):
        raise InvalidRequest(
            f"Invalid '{path}': expected an address of http or https without blanks, or "
            "data:image/…;base64,… with nothing but base64 behind the comma.",
            param=path,
            code="invalid_value",
        )
    return InputImage(url=url, detail=fields.choice("detail", IMAGE_DETAILS) or "auto")


def _parse_file(fields: Fields) -> InputFile:
    fields.refuse_unknown(("type", "file_data", "file_id", "file_url", "filename", "detail", CACHE_BREAKPOINT))
    _refuse_stored_file(fields, "send 'file_data' and 'filename'")
    if fields.raw("file_url") is not None:
        path = fields.path("file_url")
        raise InvalidRequest(
            f"Unsupported '{path}': this server fetches no files; send 'file_data' and 'filename'.",
            param=path,
            code="unsupported_parameter",
        )
    return InputFile(
        content=fields.filled("file_data"),
        filename=fields.text("filename"),
        detail=fields.choice("detail", FILE_DETAILS),
    )


def _parse_audio(fields: Fields) -> InputAudio:
    fields.refuse_unknown(("type", "input_audio", CACHE_BREAKPOINT))
    audio = fields.require("input_audio", fields.object)
    audio.refuse_unknown(("data", "format"))
    form = audio.require("format", lambda name: audio.choice(name, AUDIO_FORMATS))
    return InputAudio(content=audio.filled("data"), format=form)


def _refuse_stored_file(fields: Fields, advice: str) -> None:
    if fields.raw("file_id") is not None:
        path = fields.path("file_id")
        raise InvalidRequest(
            f"Unsupported '{path}': this server has no files API; {advice}.", param=path, code="unsupported_parameter"
        )


def render_parts(parts: Sequence[InputContent]) -> list[dict[str, object]]:
    """*parts* in the client's vocabulary; ``parse_parts`` gives them back."""
    return [_render_part(part) for part in parts]


def _render_part(part: InputContent) -> dict[str, object]:
    match part:
        case InputPart(kind=PartKind.REFUSAL):
            return {"type": "refusal", "refusal": part.text}
        case InputPart(kind=PartKind.OUTPUT_TEXT):
            return {"type": "output_text", "text": part.text, "annotations": as_json(part.annotations) or []}
        case InputPart():
            return {"type": "input_text", "text": part.text}
        case InputImage():
            return {"type": "input_image", "image_url": part.url, "detail": part.detail}
        case InputFile():
            named = {"filename": part.filename, "detail": part.detail}
            rendered: dict[str, object] = {"type": "input_file", "file_data": part.content}
            return rendered | {name: value for name, value in named.items() if value is not None}
        case InputAudio():
            return {"type": "input_audio", "input_audio": {"data": part.content, "format": part.format}}
        case _ as never:
            assert_never(never)
