"""``scenarium import``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from scenarium.core.cli import base

if TYPE_CHECKING:
    from scenarium.core.importing import Imported

HUB = "hf:"
"""Before the name or the folder of a transformers model."""


@base.command(
    "import",
    en="Register a model that exists already as a version: no plugin, no training. It is served by its tensors (predict and KServe v2) as ONNX; a PyTorch "
    "file is converted once, in a process of its own that runs what the file holds. The first version becomes production.",
    zh="把已有的模型登记为一个版本：无需插件，无需训练。以 ONNX 形式按张量提供服务（predict 与 KServe v2）；PyTorch 文件会在独立进程中转换一次，"
    "该进程会运行文件中的代码。第一个版本成为生产版本。",
    examples=(
        "scenarium import model.onnx --name scorer",
        "scenarium import resnet.pt --name photos --input image:float32:-1,3,224,224",
        "scenarium import runs:/0123456789abcdef/model --name scorer --promote",
        "scenarium import triton/models/bert-base --name bert_base",
        "scenarium import hf:distilbert/distilbert-base-uncased-finetuned-sst-2-english --task text-classification --name sentiment",
    ),
)
@click.argument("source", metavar="SOURCE")
@base.option("--name", required=True, metavar="NAME", en="The scenario's name.", zh="场景的名称。")
@base.option("--promote", is_flag=True, en="Make it production though there is one already.", zh="即使已有生产版本也设为生产版本。")
@base.option(
    "--input",
    "inputs",
    metavar="NAME:TYPE:DIMS",
    multiple=True,
    en="An input of a PyTorch file, with its batch axis and -1 for every free length: image:float32:-1,3,224,224.",
    zh="PyTorch 文件的输入，含批次轴，长度可变处写 -1：image:float32:-1,3,224,224。",
)
@base.option("--task", metavar="TASK", en="The pipeline task of a transformers model (hf:…).", zh="transformers 模型（hf:…）的 pipeline 任务。")
@base.option(
    "--sample",
    type=click.Path(path_type=Path),
    metavar="FILE",
    en='One request as JSON ({"inputs": {...}}), where the model does not run on generated inputs.',
    zh='一个 JSON 请求（{"inputs": {...}}），用于模型无法在生成的输入上运行时。',
)
@base.json_option
def import_command(source: str, name: str, promote: bool, inputs: tuple[str, ...], task: str | None, sample: Path | None, as_json: bool) -> None:
    """Import, and say what can be done now."""
    from scenarium.core.importing import import_model, import_pipeline
    from scenarium.core.importing.sources import Given
    from scenarium.core.progress_view import view
    from scenarium.core.store import Store

    given = []
    for text in inputs:
        try:
            given.append(Given.parse(text))
        except ValueError:
            en = f"--input {text!r} is not of the form NAME:TYPE:DIMS, e.g. image:float32:-1,3,224,224"
            raise click.UsageError(base.say(en, f"--input {text!r} 不是 名称:类型:维度 的形式，例如 image:float32:-1,3,224,224")) from None
    registry = base.registry()
    store = Store(registry.settings.store_url)
    shown = view(as_json=as_json)
    if source.startswith(HUB):
        if task is None:
            raise click.UsageError(base.say("hf:… needs --task, e.g. --task text-classification", "hf:… 需要 --task，例如 --task text-classification"))
        found = import_pipeline(source.removeprefix(HUB), task, name, registry, store, promote=promote, progress=shown)
    else:
        found = import_model(source, name, registry, store, promote=promote, given=given, sample=sample, progress=shown)
    if as_json:
        kept = {"scenario", "version", "inputs", "outputs", "max_batch_size", "tags"}
        base.print_json({**found.version.manifest.model_dump(mode="json", include=kept), "production": found.production, "folder": str(found.version.folder)})
    else:
        _print(name, found)


def _print(name: str, found: Imported) -> None:
    manifest = found.version.manifest
    click.secho(base.say(f"{name}: version {found.version.number}", f"{name}：版本 {found.version.number}"), bold=True)
    rows = [
        [base.say(*side), spec.name, spec.dtype, str(list(spec.shape)).replace("-1", "n")]
        for side, specs in ((("input", "输入"), manifest.inputs), (("output", "输出"), manifest.outputs))
        for spec in specs
    ]
    if rows:
        base.print_table([base.say("", ""), base.say("TENSOR", "张量"), base.say("TYPE", "类型"), base.say("SHAPE OF A ROW", "单行形状")], rows)
    for key in ("parity", "sample"):
        if key in manifest.tags:
            click.echo(manifest.tags[key])
    if found.production:
        click.echo(base.say("It is production now. Next:", "它现在是生产版本。下一步："))
        click.echo("  scenarium serve   " + base.say("(a gateway that runs: scenarium reload)", "（网关已在运行时：scenarium reload）"))
        click.echo(f"  scenarium snippet {name}")
    else:
        click.echo(f"{base.say('Next', '下一步')}:\n  scenarium promote {name} {found.version.number}")
