"""The documentation tells of things that are there: files, functions, links, commands, keys, parameters."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote

import attrs
import click
import pytest
import trio
import yaml
from tests.http.server_tools import open_tool_world

from dwctl_trio.cli import main
from dwctl_trio.config import load_config
from dwctl_trio.domain.limits import Limits
from dwctl_trio.protocol.parameters import CREATE_PARAMETERS, Support, names

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SOURCE = ROOT / "src" / "dwctl_trio"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
LIFE = DOCS / "explanation" / "life-of-a-request.md"
PROGRAMS = (
    *("point-the-openai-sdk-at-it.md", "continue-a-conversation.md", "use-the-agents-sdk.md", "use-langchain.md"),
)
"""Pages whose programs run one after the other, against a server that knows any model and a ``get_weather``."""
HOPS = [
    *("http/direct_connection.py", "http/responses.py", "engine/scope.py", "engine/loop.py", "domain/transitions.py"),
    *("engine/execution.py", "engine/emitter.py", "protocol/event_stream.py", "engine/finalize.py"),
    "postgres/responses.py",
]
"""The order in which one request opens the files."""


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def code_spans(page: Path) -> list[str]:
    """What stands in backticks within a line."""
    without_blocks = re.sub(r"```.*?```", "", read(page), flags=re.DOTALL)
    return re.findall(r"`([^`\n]+)`", without_blocks)


def code_blocks(page: Path, *kinds: str) -> Iterator[str]:
    """The contents of the fenced blocks of the given kinds; an empty kind is a block without a name."""
    for kind, text in re.findall(r"^```(\w*)\n(.*?)^```", read(page), flags=re.DOTALL | re.MULTILINE):
        if kind in kinds:
            yield text


def find_file(name: str, page: Path) -> Path | None:
    """A file by its path from the root, from the package, from one of its folders, or from the page's own."""
    for base in (ROOT, SOURCE, SOURCE / "postgres", SOURCE.parent, ROOT / "tests", page.parent):
        if (base / name).exists():
            return base / name
    return None


def defines(path: Path, dotted: str) -> bool:
    """Whether a source file defines a function, class, method, field or constant of this name."""
    body: list[ast.stmt] = ast.parse(read(path)).body
    for part in dotted.split("."):
        for node in body:
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                    found = name == part
                case ast.AnnAssign(target=target) | ast.Assign(targets=[target]):
                    found = ast.unparse(target) == part
                case _:
                    found = False
            if found:
                body = getattr(node, "body", [])
                break
        else:
            return False
    return True


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_file_and_function_that_a_page_names_is_there(page: Path) -> None:
    missing = []
    for_the_reader_to_write = set(re.findall(r"^Write this to `(.+)`:$", read(page), flags=re.MULTILINE))
    for span in code_spans(page):
        named = re.fullmatch(r"([\w./-]+\.(?:py|sql|toml))(?::([\w.]+))?", span)
        if named is None or span in for_the_reader_to_write:
            continue
        path = find_file(named[1], page)
        if path is None or (named[2] and not defines(path, named[2])):
            missing.append(span)

    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_module_function_that_a_page_names_is_there(page: Path) -> None:
    missing = []
    for span in code_spans(page):
        named = re.fullmatch(r"dwctl_trio((?:\.\w+)+)", span)
        if named is None:
            continue
        *folders, last = named[1].removeprefix(".").split(".")
        module = SOURCE.joinpath(*folders, f"{last}.py")
        outer = SOURCE.joinpath(*folders).with_suffix(".py")
        if not (module.exists() or module.with_suffix("").is_dir() or (outer.exists() and defines(outer, last))):
            missing.append(span)

    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_limit_that_a_page_names_is_there(page: Path) -> None:
    known = {field.name for field in attrs.fields(Limits)}
    named = {span.removeprefix("limits.") for span in code_spans(page) if re.fullmatch(r"limits\.[a-z_]+", span)}

    assert named - known - {"md", "py"} == set()


def test_the_life_of_a_request_opens_the_files_in_the_order_of_the_design() -> None:
    opened = re.findall(r"^## \d+\. `(.+)`$", read(LIFE), flags=re.MULTILINE)

    assert opened == HOPS


def test_the_life_of_a_request_names_a_function_of_every_file_that_it_opens() -> None:
    named = {span.partition(":")[0] for span in code_spans(LIFE) if re.fullmatch(r"[\w/]+\.py:[\w.]+", span)}

    assert set(HOPS) <= named


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("run_inline_streaming", True),
        ("ResponseRefused.__init__", True),
        ("run_scope.nothing", False),
        ("run_outline_streaming", False),
    ],
)
def test_a_function_that_is_gone_would_be_noticed(name: str, there: bool) -> None:
    assert defines(SOURCE / "engine" / "scope.py", name) is there


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", read(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_within_the_repository_leads_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", read(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = unquote(target).partition("#")
        found = (page.parent / path) if path else page
        if not found.exists() or (anchor and anchor not in anchors(found)):
            broken.append(target)

    assert broken == []


def test_every_page_is_reached_from_the_index() -> None:
    index = DOCS / "README.md"
    linked = {(DOCS / target.partition("#")[0]).resolve() for target in re.findall(r"\]\(([^)\s]+)\)", read(index))}

    assert {page for page in DOCS.rglob("*.md") if page != index} <= linked


def commands_in(page: Path) -> Iterator[list[str]]:
    """The arguments of every call of ``dwctl-trio`` in a page."""
    shown = [
        *code_spans(page),
        *(line for block in code_blocks(page, "", "console", "sh") for line in block.splitlines()),
    ]
    for text in shown:
        found = re.match(r"(?:\$ )?(?:\.venv/bin/)?dwctl-trio(?: (.+))?$", text.strip())
        if found is not None:
            yield (found[1] or "").replace("'", "").split()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_that_a_page_shows_is_there_with_its_options(page: Path) -> None:
    for arguments in commands_in(page):
        command: click.Command = main
        for argument in arguments:
            if isinstance(command, click.Group) and not argument.startswith("-"):
                assert argument in command.commands, f"{name_of(page)}: {arguments}"
                command = command.commands[argument]
            elif argument.startswith("--"):
                options = {option for parameter in command.params for option in parameter.opts} | {"--help"}
                assert argument in options, f"{name_of(page)}: {arguments}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_make_target_that_a_page_shows_is_there(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", read(ROOT / "Makefile"), flags=re.MULTILINE))
    shown = [*code_spans(page), *(line for block in code_blocks(page, "", "console") for line in block.splitlines())]

    named = {found[1] for text in shown if (found := re.match(r"(?:\$ )?make ([a-z-]+)$", text.strip()))}

    assert named <= targets


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_configuration_that_a_page_shows_is_valid(page: Path, tmp_path: Path) -> None:
    upstreams = {name: {"base_url": "http://127.0.0.1:8000/v1"} for name in ("local", "provider", "simulator")}
    secrets = {"LOCAL_KEY": "k", "PROVIDER_KEY": "k", "DATABASE_PASSWORD": "p"}
    for block in code_blocks(page, "yaml"):
        document = yaml.safe_load(block)
        if "models" in document:
            document = {"upstreams": upstreams} | document
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(document), encoding="utf-8")

        assert load_config(path, secrets)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_python_that_a_page_shows_is_python(page: Path) -> None:
    for block in code_blocks(page, "python"):
        compile(block, name_of(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_page_names_this_machine(page: Path) -> None:
    assert not re.search(r"/(work|root|home)/\w|\.internal\b", read(page))


@pytest.mark.parametrize(
    ("heading", "support"),
    [
        ("Parameters that are honoured", Support.HONOURED),
        ("Parameters that are hints", Support.HINT),
        ("Parameters that are refused", Support.REFUSED),
    ],
)
def test_the_parameters_of_the_http_api_are_those_of_the_parser(heading: str, support: Support) -> None:
    parameters = [name for name in names(CREATE_PARAMETERS, support) if "." not in name]
    section = read(DOCS / "reference" / "http-api.md").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    first_cells = re.findall(r"^\| (`[^|]+) \|", section, flags=re.MULTILINE)
    listed = [name for cell in first_cells for name in re.findall(r"`([a-z_]+)`", cell)]

    assert sorted(listed) == sorted(parameters)


def test_the_fields_of_a_parameter_are_named_in_its_row() -> None:
    section = read(DOCS / "reference" / "http-api.md").partition("## Parameters")[2].partition("\n## Tools\n")[0]
    rows = {found[1]: found[0] for found in re.finditer(r"^\| (?:`\w+`, )*`(\w+)` \|.*$", section, re.MULTILINE)}
    fields = [name.split(".") for name in CREATE_PARAMETERS if "." in name]

    assert len(fields) > 10
    assert [path for path in fields if f"`{path[1]}`" not in rows[path[0]]] == []


def test_the_endpoints_of_the_http_api_are_those_of_the_application() -> None:
    routes = set()
    for path in (SOURCE / "http").glob("*.py"):
        for method, url in re.findall(r"@app\.(get|post|delete)\(\"([^\"]+)\"\)", read(path)):
            placed = re.sub(r"<(?:path:)?(?:response_)?(\w+)>", r"{\1}", url)
            routes.add(f"{method.upper()} {placed}")

    page = read(DOCS / "reference" / "http-api.md")
    listed = set(re.findall(r"^\| `((?:GET|POST|DELETE) [^`]+)` \|", page, flags=re.MULTILINE))

    assert listed == routes


def generate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "docs.generator", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_the_generated_pages_are_up_to_date() -> None:
    done = generate("--check")

    assert done.returncode == 0, done.stderr


def test_a_generated_page_that_is_not_up_to_date_is_named(tmp_path: Path) -> None:
    written = generate("--directory", str(tmp_path))
    (tmp_path / "reference" / "limits.md").write_text("old", encoding="utf-8")
    (tmp_path / "reference" / "cli.md").unlink()

    checked = generate("--check", "--directory", str(tmp_path))

    assert written.returncode == 0
    assert (checked.returncode, checked.stderr) == (1, "Error: out of date: cli.md, limits.md; run 'make docs'\n")


def test_a_generated_page_says_that_it_is_and_by_what() -> None:
    generated = [page for page in PAGES if read(page).startswith("<!-- Generated by `make docs`")]

    assert {page.name for page in generated} == {
        *("cli.md", "compatibility.md", "configuration.md", "errors.md", "events.md", "limits.md", "states.md")
    }


def test_the_python_clients_are_those_that_are_installed() -> None:
    named = re.findall(r"`([a-z-]+)` (\d+\.\d+\.\d+)", read(DOCS / "reference" / "python-clients.md"))

    assert {name for name, _ in named} >= {"openai", "openai-agents", "langchain-openai"}
    assert [(name, version) for name, version in named if metadata.version(name) != version] == []


@pytest.mark.slow
@pytest.mark.parametrize("page", [ROOT / "README.md", *(DOCS / "how-to" / name for name in PROGRAMS)], ids=name_of)
async def test_the_program_of_a_page_runs_as_it_is_shown(page: Path, postgres_dsn: str) -> None:
    program = "\n".join(code_blocks(page, "python"))
    assert "OpenAI(" in program

    async with open_tool_world(postgres_dsn) as world:
        here = program.replace("http://127.0.0.1:3001", world.service.url).replace("sk-dwctl-…", "unused")
        with trio.fail_after(60):
            done = await trio.run_process([sys.executable, "-c", here], check=False, capture_stdout=True)

    assert done.returncode == 0
    assert b"word0 word1 word2" in done.stdout
