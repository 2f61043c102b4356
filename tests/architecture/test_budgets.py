"""The house rules that a machine can hold: sizes, broad excepts, docstrings, and what tests never do."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "dwctl_trio"
TESTS = ROOT / "tests"

FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70
SMALL_FILES = {"app.py": 149, "engine/scope.py": 149}
REAL_SLEEP_S_MIN = 0.1

SUPERVISION_BOUNDARIES = {
    ("daemon/producer.py", "Daemon._claim"),
    ("daemon/producer.py", "Daemon._work"),
    ("engine/cancel.py", "_restore"),
    ("engine/chat.py", "_run"),
    ("engine/chat.py", "end_chat_as_cancelled"),
    ("engine/chat.py", "run_claimed_chat"),
    ("engine/finalize.py", "write_ending"),
    ("engine/leases.py", "_try_to_renew"),
    ("engine/leases.py", "run_lease_watch"),
    ("engine/leases.py", "run_rescuer"),
    ("engine/proxied.py", "run_call"),
    ("engine/queued.py", "_remember"),
    ("engine/queued.py", "run_claimed"),
    ("engine/retention.py", "_Pruner._try_to_prune"),
    ("engine/scope.py", "open_scope"),
    ("engine/scope.py", "run_scope"),
    ("engine/tool_calls.py", "_run_http"),
    ("engine/unreadable.py", "_read_open_steps"),
    ("http/direct_connection.py", "DirectConnection._exchange_one"),
    ("http/server.py", "_run_connection"),
    ("http/server.py", "_turn_away"),
    ("http/stored.py", "show_listed"),
    ("postgres/guest_loop.py", "GuestLoop._supervise"),
    ("postgres/guest_transport.py", "GuestTransport._read"),
    ("postgres/notifications.py", "PostgresWakeups._try_to_listen"),
    ("postgres/notifications.py", "PostgresWakeups._try_to_send"),
    ("protocol/stored_request.py", "read_input"),
    ("protocol/stored_request.py", "read_request"),
}
"""Where any ``Exception`` ends one thing instead of the process; each says so in a comment."""

PRINTING_FILES = {"cli.py", "demo.py"}
ABSTRACT_PARTS_OF_ASYNCIO = {"postgres/guest_loop.py"}


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(read(path))


def source_files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def files_of_tests() -> list[Path]:
    return sorted(TESTS.rglob("*.py"))


def name_of(path: Path) -> str:
    base = SOURCE if path.is_relative_to(SOURCE) else TESTS
    return path.relative_to(base).as_posix()


def functions(path: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function of a file with its qualified name."""

    def walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield prefix + child.name, child
                yield from walk(child, f"{prefix}{child.name}.")
            elif isinstance(child, ast.ClassDef):
                yield from walk(child, f"{prefix}{child.name}.")
            else:
                yield from walk(child, prefix)

    yield from walk(parse(path), "")


def test_a_file_can_be_read_at_one_sitting() -> None:
    lines = {name_of(path): len(read(path).splitlines()) for path in source_files()}

    assert {name: count for name, count in lines.items() if count > SMALL_FILES.get(name, FILE_LINES_MAX)} == {}


def test_a_function_fits_on_a_screen() -> None:
    lines = {
        (name_of(path), name): (node.end_lineno or 0) - node.lineno + 1
        for path in source_files()
        for name, node in functions(path)
    }

    assert {place: count for place, count in lines.items() if count > FUNCTION_LINES_MAX} == {}


def broad_handlers() -> Iterator[tuple[str, str, ast.ExceptHandler, str]]:
    """File, function, handler, and the name that it catches, of every broad except in the package."""
    for path in source_files():
        for name, function in functions(path):
            inner = {id(child) for _, node in _inner_functions(function) for child in ast.walk(node)}
            for node in ast.walk(function):
                if isinstance(node, ast.ExceptHandler) and id(node) not in inner:
                    caught = "BaseException" if node.type is None else ast.unparse(node.type)
                    if caught in {"Exception", "BaseException"}:
                        yield name_of(path), name, node, caught


def _inner_functions(function: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    for node in ast.walk(function):
        if node is not function and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node


def test_a_broad_except_stands_at_a_named_supervision_boundary_only() -> None:
    found = {(file, function) for file, function, _, caught in broad_handlers() if caught == "Exception"}

    assert found == SUPERVISION_BOUNDARIES


def test_every_supervision_boundary_says_what_it_is() -> None:
    for file, _, handler, caught in broad_handlers():
        if caught == "Exception":
            line = read(SOURCE / file).splitlines()[handler.lineno - 1]
            assert "supervision boundary: " in line


def test_what_catches_everything_raises_it_again() -> None:
    swallowing = {
        (file, function)
        for file, function, handler, caught in broad_handlers()
        if caught == "BaseException" and not any(isinstance(node, ast.Raise) for node in ast.walk(handler))
    }

    assert swallowing == RAISES_LATER


RAISES_LATER = {
    ("postgres/embedded.py", "_beside"),
    ("postgres/guest_call.py", "GuestCall._advance"),
}
"""Keeps the exception and raises it outside of its nursery, or where it is waited for."""


def test_nothing_is_left_for_later() -> None:
    found = {
        (name_of(path), word)
        for path in source_files()
        for word in ("TODO", "FIXME", "XXX", "HACK", "NotImplementedError")
        if word in read(path)
    }

    assert found <= {(name, "NotImplementedError") for name in ABSTRACT_PARTS_OF_ASYNCIO}


def test_only_commands_print() -> None:
    printing = {
        name_of(path)
        for path in source_files()
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"print", "sys.stdout.write"}
    }

    assert printing <= PRINTING_FILES


def is_public(name: str) -> bool:
    return not any(part.startswith("_") for part in name.split("."))


def undocumented(path: Path) -> Iterator[str]:
    """The module, its public classes, and its public functions that no function hides, as far as they say nothing."""
    tree = parse(path)
    found = list(functions(path))
    nested = {id(inner) for _, function in found for _, inner in _inner_functions(function)}
    if not ast.get_docstring(tree):
        yield "the module"
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and is_public(node.name) and not ast.get_docstring(node):
            yield node.name
    for name, function in found:
        if is_public(name) and id(function) not in nested and not ast.get_docstring(function):
            yield name


def test_every_module_and_everything_public_in_it_is_documented() -> None:
    assert {(name_of(path), name) for path in source_files() for name in undocumented(path)} == set()


def real_sleeps(path: Path) -> list[int]:
    """Lines of a test file that wait for real time to pass."""
    text = read(path)
    tree = parse(path)
    has_virtual_time = "autojump_clock" in text or "MockClock" in text
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"trio.sleep", "asyncio.sleep", "time.sleep"}:
            seconds = node.args[0] if node.args else None
            is_long = isinstance(seconds, ast.Constant) and float(seconds.value) >= REAL_SLEEP_S_MIN
            if ast.unparse(node.func) == "time.sleep" or (is_long and not has_virtual_time):
                lines.append(node.lineno)
    return lines


def test_no_test_waits_for_real_time() -> None:
    assert {name_of(path): lines for path in files_of_tests() if (lines := real_sleeps(path))} == {}


def test_a_real_sleep_would_be_noticed(tmp_path: Path) -> None:
    path = tmp_path / "test_sleepy.py"
    path.write_text("time.sleep(0.01)\nasync def f():\n    await trio.sleep(0.1)\n    await trio.sleep(0)\n")

    assert real_sleeps(path) == [1, 3]


def names_in(path: Path) -> set[str]:
    """Every name that a file reads, takes as an argument or imports, in small letters."""
    used: set[str] = set()
    for node in ast.walk(parse(path)):
        match node:
            case ast.Attribute(attr=name) | ast.Name(id=name) | ast.arg(arg=name):
                used.add(name.lower())
            case ast.Import(names=aliases):
                used |= {part for alias in aliases for part in alias.name.lower().split(".")}
            case ast.ImportFrom(module=module, names=aliases):
                used |= {*(module or "").lower().split("."), *(alias.name.lower() for alias in aliases)}
    return used


def test_no_test_is_skipped_expected_to_fail_or_run_on_mocks() -> None:
    hiding = {"skip", "skipif", "skipunless", "xfail", "importorskip", "mock", "magicmock", "mocker"}

    assert {name_of(path): found for path in files_of_tests() if (found := names_in(path) & hiding)} == {}


def test_every_file_of_tests_says_what_it_holds_and_every_test_is_a_sentence() -> None:
    trees = {name_of(path): parse(path) for path in files_of_tests()}
    tests = [
        (name, node.name)
        for name, tree in trees.items()
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    ]

    assert [name for name, tree in trees.items() if not ast.get_docstring(tree)] == []
    assert [place for place in tests if place[1].count("_") < 3] == []
