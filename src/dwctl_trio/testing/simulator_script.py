"""The simulator's model names: from a name to its script and back, and what it will say.

Rule 1: every text is a model name; one that is not understood is played as ``echo-16``.
Rule 2: ``parse_script(script_name(script)) == script`` for every script.
Rule 3: what a script says is known beforehand: ``expected_tokens`` gives it to tests.

It does not know HTTP, JSON or a request; ``docs/reference/simulator.md`` has the table of names.
"""

import re
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, assert_never

import attrs

from dwctl_trio.testing.simulator_scenes import (
    Answer,
    Big,
    Complaint,
    EmptyBody,
    Ending,
    Flag,
    HtmlPage,
    HttpError,
    Inspect,
    Parrot,
    Reasoning,
    Refusal,
    Refused,
    Scene,
    Script,
    Silence,
    Text,
    ToolCalls,
)

TOKENS_DEFAULT = 16
TOOL_ANSWER_TOKENS = 10
_NUMBER = re.compile(r"[0-9]{1,9}")

_ECHO = Scene(answer=Text(tokens=TOKENS_DEFAULT))

_ANSWERS: dict[str, tuple[int, int, Callable[..., Answer]]] = {
    # word: fewest numbers, most numbers, the answer they make
    "echo": (0, 1, lambda n=TOKENS_DEFAULT: Text(tokens=n)),
    "refusal": (0, 1, lambda n=TOKENS_DEFAULT: Refusal(tokens=n)),
    "reasoning": (2, 2, lambda r, n: Reasoning(reasoning_tokens=r, tokens=n)),
    "thinking": (2, 2, lambda r, n: Reasoning(reasoning_tokens=r, tokens=n, field="reasoning")),
    "tools": (0, 1, lambda n=1: ToolCalls(calls=n)),
    "toolslate": (0, 1, lambda n=1: ToolCalls(calls=n, shape="toolslate")),
    "toolsnoid": (0, 1, lambda n=1: ToolCalls(calls=n, shape="toolsnoid")),
    "toolsbad": (0, 1, lambda n=1: ToolCalls(calls=n, shape="toolsbad")),
    "toolsasked": (0, 1, lambda n=1: ToolCalls(calls=n, shape="toolsasked")),
    "parrot": (0, 0, Parrot),
    "inspect": (0, 0, Inspect),
    "big": (1, 1, lambda n: Big(size_bytes=n)),
    "error": (1, 2, lambda status, retry=None: HttpError(status=status, retry_after_s=retry)),
    **{complaint.value: (0, 0, partial(Refused, complaint=complaint)) for complaint in Complaint},
    "html": (1, 1, lambda status: HtmlPage(status=status)),
    "empty": (1, 1, lambda status: EmptyBody(status=status)),
    "hang": (0, 0, lambda: Silence(head=False)),
    "hanghead": (0, 0, lambda: Silence(head=False)),
    "hangbody": (0, 0, lambda: Silence(head=True)),
}

_ENDINGS = {ending.value: ending for ending in Ending}

_NUMBERED_OPTIONS = {
    "every": "interval_ms",
    "pause": "pause_after",
    "split": "split_seed",
    "cutbyte": "cut_byte",
    "after": "delay_ms",
    "flaky": "failures",
}


@lru_cache(maxsize=1024)
def parse_script(model: str) -> Script:
    """The script that a model name stands for.

    Args:
        model: Any text; scenes joined by ``-then-``, each an answer with its numbers, then options.

    Returns:
        The script; that of ``echo-16`` where the name is none of ours or a number is out of range.
    """
    try:
        return Script(scenes=tuple(_parse_scene(name) for name in model.split("-then-")))
    except (ValueError, TypeError):
        return Script(scenes=(_ECHO,))


def script_name(script: Script) -> str:
    """The canonical model name of a script; parsing it gives the same script."""
    return "-then-".join(_scene_name(scene) for scene in script.scenes)


def scene_of_turn(script: Script, turn: int) -> Scene:
    """The scene for a request.

    Args:
        script: What the model name stands for.
        turn: Tool-calling turns of the model since the last user message, from 0.

    Returns:
        Scene number *turn*, or the last one; after a single tool-calling scene, 10 words of text.
    """
    if turn < len(script.scenes):
        return script.scenes[turn]
    last = script.scenes[-1]
    if len(script.scenes) == 1 and isinstance(last.answer, ToolCalls):
        return attrs.evolve(last, answer=Text(tokens=TOOL_ANSWER_TOKENS))
    return last


def expected_tokens(model: str | Script, *, turn: int = 0, prompt: str = "") -> tuple[str, ...]:
    """The content tokens that a model says, in order.

    Args:
        model: A model name or its script.
        turn: Tool-calling turns since the last user message, from 0.
        prompt: The last user message; only ``parrot`` needs it.

    Returns:
        One text for each ``delta.content``; empty for answers without content, and for ``inspect``.
    """
    script = parse_script(model) if isinstance(model, str) else model
    scene = scene_of_turn(script, turn)
    match scene.answer:
        case Text(tokens=tokens) | Reasoning(tokens=tokens):
            return words(scene, tokens)
        case Parrot():
            return tuple(re.findall(r"\s*\S+\s*|\s+", prompt))
        case Big(size_bytes=size):
            return ("x" * size,)
        case _:
            return ()


def expected_text(model: str | Script, *, turn: int = 0, prompt: str = "") -> str:
    """The whole text that a model says: ``expected_tokens`` joined."""
    return "".join(expected_tokens(model, turn=turn, prompt=prompt))


def words(scene: Scene, tokens: int) -> tuple[str, ...]:
    """So many words in the scene's spelling: ``word0``, ``word1``, each with a blank after it."""
    if Flag.NUL in scene.flags:
        return tuple(f"word{index}\x00\ud800 " for index in range(tokens))
    if Flag.UNICODE in scene.flags or scene.split_seed is not None:
        return tuple(f"wörd{index}€🙂 " for index in range(tokens))
    return tuple(f"word{index} " for index in range(tokens))


def _parse_scene(name: str) -> Scene:
    """One scene; ValueError or TypeError where the name is none."""
    (first, numbers), *options = _groups(name)
    if first == "slow":
        tokens, interval_ms = numbers
        scene = Scene(answer=Text(tokens=tokens), interval_ms=interval_ms)
    elif first in _ANSWERS:
        fewest, most, make = _ANSWERS[first]
        if not fewest <= len(numbers) <= most:
            raise ValueError(name)
        scene = Scene(answer=make(*numbers))
    else:  # an option in front: its own number if it has one, then the number of words
        own = 1 if first in _NUMBERED_OPTIONS else 0
        tokens = dict(enumerate(numbers)).get(own, TOKENS_DEFAULT)
        scene = _with_option(Scene(answer=Text(tokens=tokens)), first, numbers[:own])
        if len(numbers) > own + 1:
            raise ValueError(name)
    for word, option_numbers in options:
        scene = _with_option(scene, word, option_numbers)
    return scene


def _groups(name: str) -> list[tuple[str, list[int]]]:
    """The words of a name, each with the numbers after it."""
    groups: list[tuple[str, list[int]]] = []
    for part in name.split("-"):
        if groups and _NUMBER.fullmatch(part):
            groups[-1][1].append(int(part))
        else:
            groups.append((part, []))
    return groups


def _with_option(scene: Scene, word: str, numbers: list[int]) -> Scene:
    if word in _NUMBERED_OPTIONS:
        (number,) = numbers
        change: dict[str, Any] = {_NUMBERED_OPTIONS[word]: number}
        return attrs.evolve(scene, **change)
    if numbers:
        raise ValueError(word)
    if word == "each":
        return attrs.evolve(scene, interval_ms=0)
    if word in _ENDINGS:
        return attrs.evolve(scene, ending=_ENDINGS[word])
    return attrs.evolve(scene, flags=scene.flags | {Flag(word)})


def _scene_name(scene: Scene) -> str:
    parts: list[str | int] = _answer_parts(scene.answer)
    for word, field in _NUMBERED_OPTIONS.items():
        number = getattr(scene, field)
        if number is not None and (number or field not in {"delay_ms", "failures"}):
            parts += [word, number]
    if scene.ending is not Ending.STOP:
        parts.append(scene.ending.value)
    parts += sorted(flag.value for flag in scene.flags)
    return "-".join(str(part) for part in parts)


def _answer_parts(answer: Answer) -> list[str | int]:
    match answer:
        case Text(tokens=tokens):
            return ["echo", tokens]
        case Refusal(tokens=tokens):
            return ["refusal", tokens]
        case Reasoning(reasoning_tokens=reasoning, tokens=tokens, field=field):
            return ["reasoning" if field == "reasoning_content" else "thinking", reasoning, tokens]
        case ToolCalls(calls=calls, shape=shape):
            return [shape, calls]
        case Parrot():
            return ["parrot"]
        case Inspect():
            return ["inspect"]
        case Big(size_bytes=size):
            return ["big", size]
        case HttpError(status=status, retry_after_s=retry):
            return ["error", status] if retry is None else ["error", status, retry]
        case Refused(complaint=complaint):
            return [complaint.value]
        case HtmlPage(status=status):
            return ["html", status]
        case EmptyBody(status=status):
            return ["empty", status]
        case Silence(head=head):
            return ["hangbody" if head else "hang"]
        case _:
            assert_never(answer)
