"""What the pure parts of the hot path execute, in bytecode instructions: on a busy machine the same as on any."""

import sys

from benchmarks.micro import count_instructions
from benchmarks.micro_cases import LONG, STEPS, TOKENS, Case, cases

MEASURED_WITH = (3, 11)
MEASURED = {
    "SSE decode": 21.9,
    "SSE decode, chunk decode, reassemble": 119.7,
    "TurnOutput": 83.8,
    "encode events": 63.8,
    "Emitter.prepare": 64.3,
    "all of it, one read": 267.0,
    "all of it, one read, 2,000 tokens": 261.6,
    "all of it, a read for each": 586.4,
    "all of it, arguments of a call": 709.5,
    "request: decode and parse": 1529.0,
    "request: encode for its row": 596.0,
    "chat request": 508.0,
    "created and in progress": 1020.0,
    "assemble": 549.0,
    "response: encode": 584.0,
    "turn: encode for its row": 247.0,
    "next_action after one turn": 233.0,
    "all of it, 10 tokens, streamed": 12378.0,
    "decisions, steps 1 to 10 of 50": 1162.9,
    "chat requests, steps 1 to 10 of 50": 1593.0,
    "decisions, steps 41 to 50 of 50": 6151.5,
    "chat requests, steps 41 to 50 of 50": 11349.0,
}
"""Instructions for each unit of a case, as ``python -m benchmarks.micro`` prints them with that version."""
MORE_MAX = 1.1 if sys.version_info[:2] == MEASURED_WITH else 1.25
"""How many times as many there may be: other versions of Python cut the same code into others."""
WHAT_TO_DO = """
The table of what each part costs: python -m benchmarks.micro (--only TEXT for some of it). Compare it with the table
of the branch that you came from. If what was added is worth its instructions, put the new figure into MEASURED and say
in the commit what they are for; else find another way."""


def case_named(name: str) -> Case:
    return next(case for case in cases() if case.name == name)


async def test_no_part_of_the_hot_path_executes_more_than_it_did() -> None:
    counted = {case.name: count_instructions(case) for case in cases()[1:]}

    assert counted.keys() == MEASURED.keys(), "every case but the reference has its figure, and no other"
    too_many = {
        name: f"{count:.1f} instructions, measured were {MEASURED[name]}"
        for name, count in counted.items()
        if count > MEASURED[name] * MORE_MAX
    }
    assert not too_many, WHAT_TO_DO


async def test_a_token_of_a_long_answer_costs_what_one_of_a_short_answer_does() -> None:
    short, long = (
        count_instructions(case_named(name)) for name in ("all of it, one read", "all of it, one read, 2,000 tokens")
    )

    print(f"{short:.1f} instructions a token of {TOKENS}, {long:.1f} a token of {LONG}")
    assert long <= 1.1 * short, WHAT_TO_DO


async def test_what_is_done_for_a_step_grows_no_faster_than_the_steps_before_it() -> None:
    for part in ("decisions", "chat requests"):
        early, late = (
            count_instructions(case_named(f"{part}, steps {span} of {STEPS}")) for span in ("1 to 10", "41 to 50")
        )
        print(f"{part}: {early:.0f} instructions a step in the beginning, {late:.0f} at the end")
        assert late <= early * 45.5 / 5.5, WHAT_TO_DO
