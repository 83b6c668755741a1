"""What the sub-commands share: bilingual help, ``--json``, the table and the registry of this run."""

from __future__ import annotations

import difflib
import importlib
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from scenarium.core.cli.table import COMMANDS
from scenarium.core.errors import ScenariumError, language

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from scenarium.core.registry import Registry

EXIT_FAILED = 1
"""A ``ScenariumError``: its code, cause and remedy stand on stderr."""
EXIT_FOUND = 3
"""The command ran to its end and what it examined is not in order (``doctor``, ``data check``, ``data verify``)."""
EXIT_FAULT = 70
"""A fault of Scenarium itself (``EX_SOFTWARE``)."""


def say(en: str, zh: str) -> str:
    """The text in the language of ``SCENARIUM_LANG``, else of the locale."""
    return zh if language() == "zh" else en


class Bilingual(click.Command):
    """A command whose help, options and examples are shown in the user's language."""

    def __init__(self, *args: Any, en: str = "", zh: str = "", examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.texts = (en, zh)
        self.examples = tuple(examples)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, " ".join(self.collect_usage_pieces(ctx)), say("Usage: ", "用法："))

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.help = say(*self.texts)
        super().format_help_text(ctx, formatter)
        if self.examples:
            with formatter.section(say("Examples", "示例")):
                for example in self.examples:
                    formatter.write(f"{'':>{formatter.current_indent}}{example}\n")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        records = [record for param in self.get_params(ctx) if (record := param.get_help_record(ctx))]
        if records:
            with formatter.section(say("Options", "选项")):
                formatter.write_dl(records)
        if isinstance(self, click.Group):
            self.format_commands(ctx, formatter)


class BilingualGroup(Bilingual, click.Group):
    """A group of bilingual commands."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section(say("Commands", "命令")):
            formatter.write_dl([(name, self.summary(name)) for name in self.list_commands(ctx)])

    def summary(self, name: str) -> str:
        """The one line beside a command's name."""
        inner = self.commands[name]
        return say(*inner.texts).partition("\n")[0] if isinstance(inner, Bilingual) else inner.get_short_help_str(90)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            close = difflib.get_close_matches(name, self.list_commands(ctx), 1) or [say("none", "无")]
            raise click.UsageError(say(f"there is no command {name!r}; nearest: {close[0]}", f"没有命令 {name!r}；相近的命令：{close[0]}"), ctx)
        return super().resolve_command(ctx, args)


class Root(BilingualGroup):
    """``scenarium`` itself: its sub-commands stand in ``COMMANDS`` and are imported when they are run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].target.partition(":")
        found: click.Command = getattr(importlib.import_module(module), attribute)
        return found

    def summary(self, name: str) -> str:
        return say(COMMANDS[name].en, COMMANDS[name].zh)


class BilingualOption(click.Option):
    """An option whose help is a pair of texts."""

    def __init__(self, *args: Any, texts: tuple[str, str] = ("", ""), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.texts = texts

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        self.help = say(*self.texts)
        return super().get_help_record(ctx)


Decorator = Callable[[Any], Any]


def command(name: str, en: str, zh: str, *, examples: Sequence[str] = (), group: click.Group | None = None) -> Decorator:
    """Make a function a bilingual command. ``group``: the group that it belongs to, for second-level commands."""
    make = group.command if group else click.command
    return make(name, cls=Bilingual, en=en, zh=zh, examples=examples, options_metavar=say("[OPTIONS]", "[选项]"))


def group(name: str, en: str, zh: str) -> Decorator:
    """Make a function a group of bilingual commands."""
    return click.group(name, cls=BilingualGroup, en=en, zh=zh)


def option(*names: str, en: str, zh: str, **kwargs: Any) -> Decorator:
    """A bilingual option."""
    return click.option(*names, cls=BilingualOption, texts=(en, zh), **kwargs)


def complete_scenario(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Shell completion of scenario names; a faulty file completes nothing rather than fail in the shell."""
    from click.shell_completion import CompletionItem

    from scenarium.core.registry import open_registry

    try:
        names = open_registry().names()
    except ScenariumError:
        return []
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def scenario_argument(required: bool = True) -> Decorator:
    """The argument NAME: a scenario."""
    return click.argument("name", metavar="NAME", required=required, shell_complete=complete_scenario)


json_option = option("--json", "as_json", is_flag=True, en="Print JSON for programs.", zh="输出供程序使用的 JSON。")
set_option = option(
    "--set", "sets", metavar="KEY=VALUE", multiple=True, en="A setting for this run: --set train.epochs=2.", zh="本次运行的设置：--set train.epochs=2。"
)
version_option = option(
    "--version", "ref", default="production", metavar="REF", en="A version number or an alias (default: production).", zh="版本号或别名（默认 production）。"
)


def registry(sets: Sequence[str] = (), scenario: str | None = None) -> Registry:
    """The registry of this run: ``--config`` and ``--set`` joined with file and environment."""
    from scenarium.core.registry import open_registry

    context = click.get_current_context(silent=True)
    path = context.find_root().params.get("config_file") if context else None
    return open_registry(path, sets=tuple(sets), scenario=scenario)


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=1, default=str))


def print_table(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Columns aligned by display width (a Chinese character is two cells wide). The last column may be as long as it likes."""
    from rich.cells import cell_len

    lines = [[str(cell) for cell in row] for row in (headers, *rows)]
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    for number, line in enumerate(lines):
        text = "  ".join(cell + " " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True)).rstrip()
        click.secho(text, bold=number == 0)


def note(en: str, zh: str) -> None:
    """A remark beside the output proper: on stderr, so that stdout stays clean for pipes."""
    click.secho(say(en, zh), err=True, dim=True)


def change_over(name: str) -> None:
    """After an alias was set: where gateways ask Triton, wait until its repository needs nothing more of this process."""
    from scenarium.core import triton_repository

    engine = registry().settings.table("scenarios", name, "serve").get("engine")
    if engine == "triton" and triton_repository.pending():
        seconds = round(triton_repository.HOLD_S)
        note(f"models/ keeps the version before for {seconds} s, until gateways have changed over", f"models/ 将上一个版本保留 {seconds} 秒，等待网关完成切换")
        triton_repository.finish()


def print_error(error: ScenariumError, *, as_json: bool = False) -> None:
    """Code, cause and remedy on stderr, in colour on a terminal."""
    lang = language()
    if as_json:
        click.echo(json.dumps({"error": error.problem(lang)}, ensure_ascii=False), err=True)
        return
    first, _, rest = str(error).partition("\n")
    click.secho(first, fg="red", bold=True, err=True)
    if rest:
        click.secho(rest, fg="yellow", err=True)


def wants_json() -> bool:
    """Whether this run was asked for JSON, before click has parsed anything."""
    return "--json" in sys.argv
