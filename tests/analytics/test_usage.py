"""How far back, and the table that people read."""

from decimal import Decimal

import attrs
from hypothesis import example, given
from hypothesis import strategies as st

from dwctl_trio.analytics.usage import BY, parse_since, render_usage_report
from dwctl_trio.ports import UsageLine

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

LINE = UsageLine(
    subject="gpt-4o",
    calls=1234,
    failures=5,
    input_tokens=1_000_000,
    cached_tokens=None,
    output_tokens=20,
    reasoning_tokens=0,
    cost=Decimal("0.1500120"),
    currency="USD",
)

counts = st.integers(0, 10**12)
unknown_or_counts = st.none() | counts
lines = st.builds(
    UsageLine,
    subject=st.text(min_size=1, max_size=20),
    calls=counts,
    failures=counts,
    input_tokens=unknown_or_counts,
    cached_tokens=unknown_or_counts,
    output_tokens=unknown_or_counts,
    reasoning_tokens=unknown_or_counts,
    cost=st.none() | st.decimals(0, 10**6, places=8),
    currency=st.none() | st.sampled_from(["USD", "EUR"]),
)


@given(count=st.integers(0, 999_999), unit=st.sampled_from("smhd"), around=st.sampled_from(["", " ", "\t"]))
def test_a_number_and_a_unit_is_that_many_seconds(count: int, unit: str, around: str) -> None:
    assert parse_since(f"{around}{count}{unit}{around}") == count * UNITS[unit]


@given(text=st.text("0123456789smhd.-+ e٣", max_size=9) | st.text(max_size=5))
@example(text="٣h")
@example(text="24")
@example(text="24h\nx")
@example(text="1000000s")
@example(text="-1h")
@example(text="1.5h")
def test_any_text_is_a_time_or_an_error_that_quotes_it(text: str) -> None:
    try:
        seconds = parse_since(text)
    except ValueError as error:
        assert repr(text) in str(error)
        assert "as in 24h" in str(error)
    else:
        assert text.strip()[:-1].isascii()
        assert seconds == int(text.strip()[:-1]) * UNITS[text.strip()[-1]]


def test_no_calls_are_said_in_words() -> None:
    assert render_usage_report([], by="model") == "No model calls in this time."
    assert render_usage_report([], by="tool") == "No tool calls in this time."


def test_the_table_shows_what_is_known_and_marks_what_is_not() -> None:
    other = attrs.evolve(LINE, subject="*", calls=1, input_tokens=None, cost=None, currency=None)

    assert render_usage_report([LINE, other], by="model").splitlines() == [
        "model   calls  failed      input  cached  output  reasoning          cost",
        "gpt-4o  1,234       5  1,000,000       ?      20          0  0.150012 USD",
        "*           1       5          ?       ?      20          0             ?",
    ]


def test_the_first_column_is_what_the_lines_are_about() -> None:
    assert render_usage_report([LINE], by="owner").split()[0] == "owner"


def test_calls_of_tools_are_counted_and_have_neither_tokens_nor_a_cost() -> None:
    weather = attrs.evolve(LINE, subject="get_weather", input_tokens=None, output_tokens=None, cost=None, currency=None)

    assert render_usage_report([weather, attrs.evolve(weather, subject="x", calls=7)], by="tool").splitlines() == [
        "tool         calls  failed",
        "get_weather  1,234       5",
        "x                7       5",
    ]


def test_a_cost_without_a_currency_stands_alone() -> None:
    assert render_usage_report([attrs.evolve(LINE, currency=None)], by="model").endswith("  0.150012")


@given(report=st.lists(lines, min_size=1, max_size=4), by=st.sampled_from(BY))
def test_the_table_has_a_head_and_a_row_for_each_line_whatever_it_is_about(report: list[UsageLine], by: str) -> None:
    rows = render_usage_report(report, by=by).split("\n")

    assert len(rows) == len(report) + 1
    for row, line in zip(rows[1:], report, strict=True):
        assert row.isprintable()
        assert f"{line.calls:,}" in row


def test_a_name_that_a_client_chose_cannot_command_the_terminal() -> None:
    shown = render_usage_report([attrs.evolve(LINE, subject="\x1b[2Jgpt\n\u2028x")], by="model")

    assert "\\x1b[2Jgpt\\n\\u2028x" in shown
    assert "\x1b" not in shown
