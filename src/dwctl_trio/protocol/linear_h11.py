"""h11 (0.16), with a fault mended that a stranger could reach; who reads with h11 calls ``mend_h11`` before.

Its expression for a line of a header tries each way to share out blanks in a row between a value and what may stand
around it. A line of 60,000 of them that ends in a byte which is not allowed takes minutes, in which nobody else is
served. Ours matches the same lines and gives nothing back that it has taken, so that it takes as long as the line.
Mended upstream when ``tests/protocol/test_linear_h11.py`` passes without ``mend_h11``.
"""

import re

from h11 import _readers

_HEADER_LINE = re.compile(
    rb"(?P<field_name>[-!#$%&'*+.^_`|~0-9a-zA-Z]++):[ \t]*+"
    rb"(?P<field_value>(?:[^\x00\s]++(?:[ \t]++[^\x00\s]++)*)?)[ \t]*+"
)


def mend_h11() -> None:
    """Have h11 read lines of headers and trailers with our expression, in the whole process."""
    setattr(_readers, "header_field_re", _HEADER_LINE)  # noqa: B010 - h11 offers no other way in
