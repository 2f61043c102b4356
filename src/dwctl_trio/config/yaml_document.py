"""YAML as configurations need it: a key that stands twice is an error, and errors quote nothing around them."""

from collections.abc import Hashable
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """The safe loader, which takes the last of equal keys; here there are none."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """The mapping at *node*."""
        seen = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                if key_node.value in seen:
                    problem = f"the key {key_node.value!r} stands twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
                seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)


def decode_yaml(text: str) -> object:
    """The value of a YAML document.

    Raises:
        ValueError: It is not YAML; the message says what and where, and leaves out the text around it.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - the safe loader's own class
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        raise ValueError(f"{place}{error.problem}") from error
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
