"""The SQL files: each is one statement that PostgreSQL understands, and there is no SQL anywhere else."""

import ast
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conformance.conftest import CALL_S, create_database

import dwctl_trio
from dwctl_trio.postgres.guest_loop import open_guest_loop
from dwctl_trio.postgres.queries import load_query, parse_query
from dwctl_trio.postgres.trio_asyncpg import Connection, connect

SOURCE = Path(dwctl_trio.__file__).parent
FILES = sorted((SOURCE / "postgres" / "sql" / "queries").glob("*.sql"))
BY_ID = [file for file in FILES if "response_id" in load_query(file.stem).parameters]
FINDS_BY_KEY = re.compile(r"using requests_pkey on requests|Insert on requests|Update on requests|Delete on requests")
PARTS = sorted((SOURCE / "postgres" / "sql" / "parts").glob("*.sql"))
MODULES = sorted(SOURCE.rglob("*.py"))
HEADER = "-- example\n-- Says what it is for.\n"
SQL = re.compile(
    r"\s*(select\b|insert\s+into\b|update\s+\S+\s+set\b|delete\s+from\b|with\s+\S+\s+as\b|(create|alter|drop)\s+table\b)",
    re.IGNORECASE,
)
DRIVER = "postgres/trio_asyncpg.py"
"""It asks an empty SELECT for a sign of life; it knows no table."""

every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


@pytest.fixture(scope="module")
def queries_dsn(postgres_server) -> str:
    return create_database(postgres_server, "queries")


@pytest.fixture
async def migrated(queries_dsn: str) -> AsyncIterator[Connection]:
    async with open_guest_loop() as loop:
        yield await connect(loop, queries_dsn, call_s=CALL_S)


# -- the files


def test_there_are_files_to_look_at():
    assert len(FILES) >= 15


@every_file
def test_a_file_is_named_as_its_query_and_says_what_it_is_for(file):
    query = load_query(file.stem)
    assert query.name == file.stem
    assert query.purpose[0].isupper() and query.purpose[-1] in ".;"


@every_file
def test_a_file_holds_one_statement(file):
    assert ";" not in load_query(file.stem).text
    assert file.read_text(encoding="utf-8").endswith("\n")


@every_file
def test_a_statement_names_its_columns(file):
    statement = load_query(file.stem).text
    assert re.search(r"select\s+(\w+\.)?\*|returning\s+(\w+\.)?\*", statement, re.IGNORECASE) is None


@every_file
async def test_postgresql_takes_the_statement_and_knows_the_type_of_each_parameter(migrated, file):
    query = load_query(file.stem)
    await migrated.execute(f"prepare checked as {query.text}")
    types = await migrated.fetchval("select parameter_types::text[] from pg_prepared_statements where name = 'checked'")
    assert len(types) == len(query.parameters)
    assert "unknown" not in types


@pytest.mark.parametrize("file", BY_ID, ids=lambda file: file.stem)
async def test_a_row_that_is_named_is_found_by_its_key_alone(migrated, file):
    """Also by a plan for every argument that is made before there is a single row, when all indexes cost the same."""
    query = load_query(file.stem)
    await migrated.execute("set plan_cache_mode = force_generic_plan")
    await migrated.execute(f"prepare planned as {query.text}")
    nothing = ", ".join(["null"] * len(query.parameters))
    plan = [row[0] for row in await migrated.fetch(f"explain execute planned({nothing})")]
    assert [line for line in plan if re.search(r" on requests\b", line) and not FINDS_BY_KEY.search(line)] == []


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.stem)
def test_every_part_is_shared_by_several_statements_and_says_what_it_is_for(part):
    lines = part.read_text(encoding="utf-8").splitlines()
    assert lines[0] == f"-- {part.stem}"
    assert lines[1].startswith("-- ") and lines[1][-1] == "."
    including = [file for file in FILES if re.search(rf"^-- include {part.stem},?$", file.read_text(), re.MULTILINE)]
    assert len(including) >= 2
    for file in including:
        assert "include" not in load_query(file.stem).text


@every_file
def test_every_query_is_used(file):
    sources = "".join(module.read_text(encoding="utf-8") for module in MODULES)
    reports = re.match(r"report_usage_by_", file.stem)
    assert f'"{file.stem}"' in sources or (reports and f'f"{reports[0]}{{' in sources)


def _texts(module: Path) -> Iterator[str]:
    """The string constants of a module that are not docstrings."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node.value


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(SOURCE)))
def test_there_is_no_sql_in_a_module(module):
    found = [text for text in _texts(module) if SQL.match(text)]
    assert found == (["SELECT"] if module == SOURCE / DRIVER else [])


# -- how a file is read


def test_parameters_are_numbered_in_the_order_in_which_they_are_met():
    query = parse_query(HEADER + "select :b, :a::text, :b::int from t where c = any(:ids::uuid[])")
    assert query.text == "select $1, $2::text, $1::int from t where c = any($3::uuid[])"
    assert query.parameters == ("b", "a", "ids")


def test_a_cast_a_time_and_a_jsonb_operator_are_no_parameters():
    statement = "select a::text, '12:30'::time, b ->> 'type', c::json::text"
    assert parse_query(HEADER + statement).text == statement


def test_comments_are_dropped_with_whatever_they_name():
    query = parse_query(HEADER + "-- about :a\nselect :b -- and :c\nfrom t\n")
    assert query.parameters == ("b",)
    assert "--" not in query.text


def test_arguments_come_in_the_order_of_their_numbers():
    query = parse_query(HEADER + "select :b, :a, :b")
    assert query.arguments({"a": 1, "b": 2}) == [2, 1]


def test_a_parameter_without_a_value_is_an_error_that_names_it():
    with pytest.raises(KeyError, match="'a'"):
        parse_query(HEADER + "select :b, :a").arguments({"b": 2})


def test_a_value_without_a_parameter_is_an_error_that_names_it():
    with pytest.raises(ValueError, match=r"example has no parameter \['c'\]"):
        parse_query(HEADER + "select :a").arguments({"a": 1, "c": 2})


@pytest.mark.parametrize(
    "source",
    [
        "",
        "select 1",
        "-- name\nselect 1",
        "-- Name\n-- Purpose.\nselect 1",
        "-- a name\n-- Purpose.\nselect 1",
        "-- n\n-- P.",
    ],
)
def test_a_file_without_its_header_is_refused(source):
    with pytest.raises(ValueError, match="a query begins with"):
        parse_query(source)


names = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
pieces = st.one_of(
    names.map(lambda name: ("parameter", name)),
    names.map(lambda name: ("cast", name)),
    st.sampled_from(["select", "a.b", ",", "(", ")", "= any", "'x'", "$$", "%s", "{}", "12"]).map(
        lambda word: ("word", word)
    ),
)


@given(st.lists(pieces, min_size=1, max_size=20))
def test_exactly_the_named_parameters_are_numbered_and_nothing_else_changes(parts):
    shown = {"parameter": ":{}", "cast": "x::{}", "word": "{}"}
    statement = " ".join(shown[kind].replace("{}", text) for kind, text in parts)
    query = parse_query(HEADER + statement)
    expected = list(dict.fromkeys(text for kind, text in parts if kind == "parameter"))
    assert list(query.parameters) == expected
    numbered = " ".join(
        f"${expected.index(text) + 1}" if kind == "parameter" else shown[kind].replace("{}", text)
        for kind, text in parts
    )
    assert query.text == numbered


@given(st.text() | st.text(min_size=1).map(lambda text: HEADER + text))
def test_whatever_the_text_it_is_a_query_or_refused(source):
    try:
        query = parse_query(source)
    except ValueError:
        return
    assert query.name
    assert len(set(query.parameters)) == len(query.parameters)
