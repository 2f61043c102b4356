"""Lines of blanks are read, or refused, in no time, and every other line as h11 means it."""

import re
import time

import h11
import pytest
from h11 import _abnf
from hypothesis import given
from hypothesis import strategies as st

from dwctl_trio.protocol import linear_h11

HEAD_BYTES_MAX = 64 * 1024
CPU_S_MAX = 2.0
"""For what takes minutes with h11's own expression, and milliseconds with ours."""
OWN = re.compile(_abnf.header_field.encode("ascii"))
"""As h11 has it."""
LINES = st.one_of(
    st.binary(max_size=12),
    st.text("aZ-:@ \t\0\x0b\x7f\xff", max_size=14).map(lambda text: text.encode("latin1")),
    st.text("a \t\0", max_size=14).map(lambda text: b"x:" + text.encode()),
)
BLANKS = b" " * 60_000


@given(LINES)
def test_a_line_is_read_as_h11_reads_it(line: bytes) -> None:
    expected, found = OWN.fullmatch(line), linear_h11._HEADER_LINE.fullmatch(line)
    assert (found and found.groupdict()) == (expected and expected.groupdict())


@pytest.mark.parametrize("line", [b"x:" + BLANKS + b"\0", b"x: a" + BLANKS + b"\0", b"x: " + b"a " * 30_000 + b"\0"])
@pytest.mark.parametrize("is_trailer", [False, True], ids=["header", "trailer"])
def test_a_line_of_blanks_is_refused_at_once(line: bytes, is_trailer: bool) -> None:
    linear_h11.mend_h11()
    head = b"POST / HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n"
    connection = h11.Connection(h11.SERVER, HEAD_BYTES_MAX)
    connection.receive_data(head + (b"\r\n0\r\n" if is_trailer else b"") + line + b"\r\n\r\n")
    began_at = time.process_time()
    with pytest.raises(h11.RemoteProtocolError):
        while connection.next_event() is not h11.NEED_DATA:
            pass
    assert time.process_time() - began_at < CPU_S_MAX
