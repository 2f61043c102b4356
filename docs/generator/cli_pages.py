"""The page on the command line."""

from collections.abc import Iterable, Iterator

import click
from docs.generator.markdown import code, table

from dwctl_trio.cli import main


def cli_page() -> Iterable[str]:
    """Every command, with its arguments and options."""
    yield "# Command line"
    yield ""
    yield (
        "The exit status is 0 when the command did what it says, 1 when it could not, and 2 when it was "
        "called or configured wrongly."
    )
    yield "What goes wrong is one line on standard error; an interrupted command ends with 130."
    for path, command in _commands("dwctl-trio", main):
        yield ""
        yield f"## `{path}`"
        yield ""
        yield " ".join((command.help or "").split())
        yield ""
        yield "```"
        context = click.Context(command, info_name=path)
        yield " ".join([path, *command.collect_usage_pieces(context)])
        yield "```"
        rows = [row for parameter in command.params for row in _row(parameter, context)]
        if rows:
            yield ""
            yield from table(("option", "default", "meaning"), rows)
    yield ""
    yield "Every command also has `--help`, and `dwctl-trio` has `--version`."


def _commands(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for name in sorted(command.commands):
            yield from _commands(f"{path} {name}", command.commands[name])
    else:
        yield path, command


def _row(parameter: click.Parameter, context: click.Context) -> Iterator[tuple[str, str, str]]:
    if not isinstance(parameter, click.Option):
        return
    name = " ".join([", ".join(parameter.opts), "" if parameter.is_flag else parameter.make_metavar(context)]).strip()
    default = "required" if parameter.required else "" if parameter.default is None else code(str(parameter.default))
    if not isinstance(parameter.default, str | int | float | type(None)):
        default = "required" if parameter.required else ""
    yield code(name), default, " ".join((parameter.help or "").split())
