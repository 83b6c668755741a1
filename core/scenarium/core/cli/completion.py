"""``scenarium completion``."""

from __future__ import annotations

import click

from scenarium.core.cli import base


@base.command(
    "completion",
    en="Print the completion script of a shell. It completes commands, options and scenario names.",
    zh="输出命令行补全脚本，可补全命令、选项和场景名称。",
    examples=(
        'eval "$(scenarium completion bash)"',
        "scenarium completion zsh > ~/.zfunc/_scenarium",
        "scenarium completion fish > ~/.config/fish/completions/scenarium.fish",
    ),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print click's own script for ``scenarium``."""
    from click.shell_completion import get_completion_class

    from scenarium.core.cli import root

    cls = get_completion_class(shell)
    assert cls is not None, "the choice above names what click knows"
    click.echo(cls(root, {}, "scenarium", "_SCENARIUM_COMPLETE").source())
