"""The command line: ``scenarium …``.

Exit codes: 0 done; 1 a ``ScenariumError``; 2 a wrong command line; 3 something that was examined is not in order;
70 a fault of Scenarium itself; 130 interrupted.
"""

from __future__ import annotations

import errno
import sys

import click

from scenarium.core.cli.base import EXIT_FAILED, EXIT_FAULT, Root, option, print_error, say, wants_json
from scenarium.core.errors import ScenariumError


def _version(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        from scenarium.core import __version__

        click.echo(f"scenarium {__version__}")
        context.exit()


@click.group(
    "scenarium",
    cls=Root,
    en="Train a scenario plugin on your data, keep its versions, and serve it.",
    zh="用您的数据训练场景插件，管理其版本，并提供服务。",
    examples=(
        "scenarium list",
        "scenarium train fraud_text --data my.csv --map text=content --map label=class",
        'scenarium predict fraud_text \'{"text": "You have won a prize"}\'',
        "scenarium serve",
        "SCENARIUM_LANG=zh scenarium --help",
    ),
)
@option(
    "--config", "config_file", metavar="FILE", en="The settings file (default: the nearest scenarios.toml).", zh="设置文件（默认：最近的 scenarios.toml）。"
)
@option("--debug", is_flag=True, en="Show the traceback of an error.", zh="出错时显示完整的调用栈。")
@option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, en="Show the version and exit.", zh="显示版本并退出。")
def root(config_file: str | None, debug: bool) -> None:
    """Hold the options that all sub-commands share; ``base.registry`` reads them from the context."""


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit."""
    sys.exit(run(sys.argv[1:] if args is None else args))


def run(args: list[str]) -> int:
    """Run one command line; errors become a message on stderr and an exit code."""
    debug = "--debug" in args
    # The option is welcome in any place, also after the sub-command, where people add it to a line that just failed.
    rest = [arg for arg in args if arg != "--debug"]
    try:
        result = root.main(rest, prog_name="scenarium", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except ScenariumError as error:
        if debug:
            _print_traceback()
        print_error(error, as_json=wants_json())
        return EXIT_FAILED
    except click.ClickException as fault:
        fault.show()
        return fault.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.secho(say("Interrupted.", "已中断。"), err=True)
        return 130
    except Exception as fault:
        full = full_disk(fault)
        if full is None:
            return _report(fault, debug)
        if debug:
            _print_traceback()
        print_error(full, as_json=wants_json())
        return EXIT_FAILED


def full_disk(fault: BaseException | None) -> ScenariumError | None:
    """The error of a fault whose origin is a disk (or a quota) that is full; None for any other."""
    while fault is not None:
        if isinstance(fault, OSError) and fault.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return ScenariumError("SCN-5016", reason=fault.strerror, **({"file": fault.filename} if fault.filename else {}))
        fault = fault.__cause__ or fault.__context__
    return None


def _print_traceback() -> None:
    import traceback

    traceback.print_exc()


def _report(fault: Exception, debug: bool) -> int:
    """A fault that no one foresaw: one line and how to report it."""
    import traceback

    if debug:
        _print_traceback()
    frame = traceback.extract_tb(fault.__traceback__)[-1]
    click.secho(f"{type(fault).__name__}: {fault} ({frame.filename}:{frame.lineno})", fg="red", bold=True, err=True)
    hint = say(
        "This is a fault of Scenarium or of a plugin. Run the command again with --debug and report the whole output with 'scenarium doctor --json'.",
        "这是 Scenarium 或插件的错误。请加上 --debug 重新运行，并把全部输出与 'scenarium doctor --json' 的结果一起反馈。",
    )
    click.secho(f"  {hint}", fg="yellow", err=True)
    return EXIT_FAULT
