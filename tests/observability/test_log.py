"""Where logs go, and what happens when they cannot go there."""

import io
import json

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from dwctl_trio.observability.log import configure_logging


class _FullDisk(io.StringIO):
    """A stream that takes nothing."""

    def write(self, _text: str) -> int:
        raise OSError(28, "No space left on device")


@pytest.fixture(autouse=True)
def _restored_configuration():
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def test_a_log_that_cannot_be_written_stops_nobody() -> None:
    configure_logging(_FullDisk())

    structlog.get_logger("test").error("something_happened", detail=1)


def test_a_closed_log_stops_nobody() -> None:
    stream = io.StringIO()
    configure_logging(stream)
    stream.close()

    structlog.get_logger("test").info("something_happened")


def test_a_line_of_the_log_is_one_json_object() -> None:
    stream = io.StringIO()
    configure_logging(stream)

    structlog.get_logger("test").warning("something_happened", detail="a\nb")

    assert stream.getvalue().count("\n") == 1
    assert '"detail": "a\\nb"' in stream.getvalue()


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.booleans() | st.none() | st.just(3 + 4j)))
def test_a_line_is_what_json_reads_and_any_terminal_shows(data: dict[str, object]) -> None:
    stream = io.StringIO()
    configure_logging(stream)

    structlog.get_logger("test").warning("something_happened", **{f"key_{key}": value for key, value in data.items()})

    assert stream.getvalue().isascii()
    line = json.loads(stream.getvalue())
    assert {key[4:]: value for key, value in line.items() if key.startswith("key_")} == {
        key: repr(value) if isinstance(value, complex) else value for key, value in data.items()
    }
