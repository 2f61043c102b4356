"""The arguments of an agent: a task, or a failure that the model can mend."""

import pytest

from dwctl_trio.domain.errors import ToolFailed
from dwctl_trio.domain.response import ErrorType
from dwctl_trio.protocol.tool_arguments import read_task


def test_the_task_is_the_input() -> None:
    assert read_task('{"input": "find \\u00e9", "more": 1}') == "find \u00e9"


@pytest.mark.parametrize(
    "arguments",
    ["", "{}", "[]", "null", "not JSON", '{"input": 1}', '{"input": null}', '{"input": "\ud800"}']
    + ['{"input": ' + "[" * depth + "]" * depth + "}" for depth in (100, 3000, 200_000)],
    ids=lambda arguments: arguments[:20],
)
def test_whatever_is_no_task_is_told_as_such(arguments: str) -> None:
    with pytest.raises(ToolFailed) as caught:
        read_task(arguments)

    assert caught.value.kind is ErrorType.TOOL_ARGUMENTS_INVALID
