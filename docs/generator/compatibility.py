"""The page that compares this server with OpenAI's Responses API: what is there, how, and what is not, and why not."""

from collections.abc import Iterable, Iterator, Mapping

from docs.generator import absent
from docs.generator.markdown import code, table
from docs.generator.sources import first_sentence

from dwctl_trio.protocol import parameters
from dwctl_trio.protocol.absent_endpoints import ABSENT_ENDPOINTS
from dwctl_trio.protocol.event_samples import sample_events
from dwctl_trio.protocol.event_stream import render_event
from dwctl_trio.protocol.extras import EXTRA_EVENTS, EXTRA_FIELDS
from dwctl_trio.protocol.openapi.answers import answer_schemas
from dwctl_trio.protocol.openapi.operations import OPERATIONS
from dwctl_trio.protocol.parameters import Support, Table

OURS = {Support.HONOURED: "yes", Support.HINT: "hint", Support.REFUSED: "refused"}

METHODS: Mapping[str, str] = {
    "client.responses.create": "Also with `stream=True`, and with `background=True`.",
    "client.responses.stream": "Also with `response_id` and `starting_after`, which follow a response.",
    "client.responses.parse": "With `text_format`, which becomes `text.format`; and with tools of Pydantic models.",
    "client.responses.retrieve": "Also with `stream=True` and `starting_after`.",
    "client.responses.cancel": "OpenAI cancels background responses only; here it is any response.",
    "client.responses.delete": "A response that waits or runs is cancelled first.",
    "client.responses.input_items": "`list`, which pages by itself.",
    "client.responses.input_tokens": "`count`.",
}
"""Of OpenAI's Python SDK, those that work."""


def compatibility_page() -> Iterable[str]:
    """Everything that OpenAI's surface has, and what becomes of it here."""
    yield "# Compatibility"
    yield ""
    yield (
        "What OpenAI's Responses API has, and what becomes of it here; the names are those of OpenAI's Python SDK "
        "3.54 and of its OpenAPI document."
    )
    yield "The tables are the code's own, and tests compare them with the SDK and with the running server."
    yield ""
    yield "- **yes**: it does what OpenAI documents."
    yield "- **hint**: it is accepted and changes no answer; the note says what comes of it."
    yield "- **refused**: it is a 400 that says so, for an answer without it would not be what was asked for."
    yield "- **ours**: an extension; of Open Responses where the note says so."
    yield "- **no**: it is not there, and nothing depends on it."
    yield ""
    yield "A name that stands in none of the tables of a request is a 400 with code `unknown_parameter`."
    yield "A parameter that is `null` is a parameter that was not sent."
    for title, lines in _sections():
        yield ""
        yield f"## {title}"
        yield ""
        yield from lines


def _sections() -> Iterator[tuple[str, Iterable[str]]]:
    yield "Endpoints", table(("endpoint", "here", "note"), _endpoints())
    yield "Methods of the Python SDK", table(("method", "here", "note"), _pair(METHODS, absent.METHODS))
    yield "Parameters of a request", _supported("parameter", parameters.CREATE_PARAMETERS)
    yield "Items of the input", _supported("`type`", parameters.INPUT_ITEMS)
    yield "Parts of a message", _supported("`type`", parameters.CONTENT_PARTS)
    yield "Tools", _supported("`type`", parameters.TOOL_TYPES)
    yield "Choice of tools", _supported("`tool_choice`", parameters.TOOL_CHOICES)
    yield "What a response may include", _supported("`include`", parameters.INCLUDES)
    yield "Fields of a response", table(("field", "here", "note"), _pair(response_fields(), absent.RESPONSE_FIELDS))
    yield "Items of the output", table(("`type`", "here", "note"), _pair(output_items(), absent.OUTPUT_ITEMS))
    yield "Events of a stream", table(("`type`", "here", "note"), _pair(events(), absent.EVENTS))


def _endpoints() -> Iterator[tuple[str, str, str]]:
    for operation in OPERATIONS:
        note = f"{operation.summary}." if not operation.note else f"{operation.summary}. {operation.note}"
        yield code(f"{operation.method.upper()} {operation.path}"), "ours" if operation.is_ours else "yes", note
    for name, reason in ABSENT_ENDPOINTS.items():
        yield code(name), "no", reason


def _supported(head: str, entries: Table) -> Iterator[str]:
    rows = [(code(entry.name), OURS[entry.support], entry.note) for entry in entries.values()]
    return table((head, "here", "note"), rows)


def _pair(there: Mapping[str, str], missing: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """What is there and then what is not, each in its own order."""
    for name, note in there.items():
        yield code(name), "ours" if is_ours(name) else "yes", note
    for name, reason in missing.items():
        yield code(name), "no", reason


def is_ours(name: str) -> bool:
    """Whether a field, an item or an event is an extension of this server's, or of Open Responses."""
    return name in EXTRA_EVENTS or name in EXTRA_FIELDS["response"]


def response_fields() -> Mapping[str, str]:
    """The fields of the response object, with what the document says of them."""
    properties = answer_schemas()["Response"]["properties"]
    return {name: schema.get("description", "") for name, schema in properties.items()}


def output_items() -> Mapping[str, str]:
    """The types of items that an output may have."""
    schemas = answer_schemas()
    names = schemas["OutputItem"]["discriminator"]["mapping"]
    return {kind: schemas[name.rpartition("/")[2]].get("description", "") for kind, name in names.items()}


def events() -> Mapping[str, str]:
    """The types of events that a stream may have."""
    told = {render_event(event)[0]: first_sentence(type(event)) for event in sample_events()}
    return told | {"error": "Only where nothing of a response could be told: a repeated `Idempotency-Key` that fails."}
