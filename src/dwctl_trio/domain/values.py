"""How values are made of which there is one for every token."""

from typing import TypeVar, dataclass_transform

import attrs

_Value = TypeVar("_Value")


@dataclass_transform(frozen_default=True)
def hot_value(cls: type[_Value]) -> type[_Value]:
    """A value like those of ``attrs.frozen``, but for that only the type checker keeps it from being changed.

    Making one costs a third: what is frozen at run time sets each of its fields through a call.
    """
    return attrs.define(cls, unsafe_hash=True)
