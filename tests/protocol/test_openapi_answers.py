"""What the document says of answers: all that is rendered fits it, and all that it tells is rendered."""

import msgspec
import pytest
from hypothesis import given
from tests.protocol.openapi_document import document, validator, values_of

from dwctl_trio.domain.errors import InvalidRequest
from dwctl_trio.domain.events import StreamEvent
from dwctl_trio.protocol import json
from dwctl_trio.protocol.error_body import error_event, http_error
from dwctl_trio.protocol.event_samples import sample_events
from dwctl_trio.protocol.event_stream import render_event
from dwctl_trio.protocol.sse import SseDecoder
from dwctl_trio.testing.domain_strategies import streams


def test_every_reference_leads_somewhere() -> None:
    for reference in values_of(document(), "$ref"):
        found = document()
        for step in reference.removeprefix("#/").split("/"):
            found = found[step]


def test_every_component_is_referred_to() -> None:
    referred = {*values_of(document(), "$ref")}

    for kind in ("schemas", "responses", "headers"):
        assert set(document()["components"][kind]) == {
            name.rpartition("/")[2] for name in referred if f"/{kind}/" in name
        }


def test_every_operation_has_a_name_of_its_own() -> None:
    names = [*values_of(document()["paths"], "operationId")]
    operations = [one for one in names if isinstance(one, str)]

    assert operations
    linked = [link["operationId"] for links in values_of(document()["paths"], "links") for link in links.values()]
    assert len(operations) - len(linked) == len(set(operations))


@pytest.mark.slow
@given(streams(max_fragments=4))
def test_every_event_fits_its_schema_and_has_no_field_that_is_not_told(stream: tuple[StreamEvent, ...]) -> None:
    fits = validator("ResponseStreamEvent", is_closed=True)

    for numbered in stream:
        kind, fields = render_event(numbered.event)
        told = {"type": kind, "sequence_number": numbered.sequence_number, **fields}
        fits.validate(msgspec.json.decode(json.encode(told)))


def test_every_type_of_event_that_the_encoder_knows_is_told() -> None:
    mapping = document()["components"]["schemas"]["ResponseStreamEvent"]["discriminator"]["mapping"]

    assert [*mapping] == [*(render_event(event)[0] for event in sample_events()), "error"]


def test_an_error_fits_its_schema_also_as_an_event() -> None:
    error = http_error(InvalidRequest("…", param="input"))
    (event,) = SseDecoder(event_bytes_max=10_000).feed(error_event(error))

    validator("Error", is_closed=True).validate(msgspec.json.decode(error.body))
    validator("ResponseStreamEvent", is_closed=True).validate(msgspec.json.decode(event.data))


@pytest.mark.parametrize("missing", ["id", "usage", "output", "error"])
def test_a_response_without_one_of_its_fields_does_not_fit(missing: str) -> None:
    (created, *_) = sample_events()
    _, fields = render_event(created)
    response = msgspec.json.decode(json.encode(fields["response"]))
    del response[missing]

    assert not validator("Response").is_valid(response)
