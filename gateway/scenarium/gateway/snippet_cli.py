"""``scenarium snippet``: client code to paste, from a scenario's own sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from scenarium.core.cli import base
from scenarium.gateway.operator_cli import url_option

if TYPE_CHECKING:
    from scenarium.core.registry import Registry
    from scenarium.gateway.snippets import Subject, Way

CHOICES = ("all", "curl", "python", "httpx", "javascript", "types")


@base.command(
    "snippet",
    en="Client code to paste, made of the scenario's own sample: curl, Python (this project's client; httpx), JavaScript; or its request and answer as "
    "Python types (--lang types). The key, where the gateway asks for one, comes from SCENARIUM_API_KEY.",
    zh="根据场景自带的示例生成可直接粘贴的客户端代码：curl、Python（本项目的客户端或 httpx）、JavaScript；或把请求与回答生成为 Python 类型（--lang types）。"
    "网关需要密钥时，从 SCENARIUM_API_KEY 读取。",
    examples=(
        "scenarium snippet fraud_text",
        "scenarium snippet text_generation --lang python --openai --stream",
        "scenarium snippet image_classification --lang curl --url https://models.example.com",
        "scenarium snippet fraud_text --lang types > fraud_text_types.py",
    ),
)
@base.scenario_argument()
@base.option("--lang", "language", type=click.Choice(CHOICES), default="all", show_default=True, en="Which language.", zh="语言。")
@base.option("--stream", is_flag=True, en="The answer in parts, as it comes.", zh="分段获取回答。")
@base.option(
    "--v2", is_flag=True, en="By KServe v2, as Triton speaks it; Python by tritonclient.", zh="使用 KServe v2（Triton 协议）；Python 使用 tritonclient。"
)
@base.option("--openai", is_flag=True, en="By the OpenAI API; Python by openai.", zh="使用 OpenAI API；Python 使用 openai。")
@url_option
@base.json_option
def snippet(name: str, language: str, stream: bool, v2: bool, openai: bool, url: str | None, as_json: bool) -> None:
    """Print one text, or all with a heading each."""
    from scenarium.gateway import snippets
    from scenarium.gateway.snippet_types import module

    if v2 and (stream or openai):
        raise click.UsageError(base.say("--v2 goes with neither --stream nor --openai", "--v2 不能与 --stream 或 --openai 同时使用"))
    subject = describe(base.registry(), name, url)
    if language == "types":
        click.echo(module(subject), nl=False)
        return
    way: Way = "v2" if v2 else "openai" if openai else "stream" if stream else "predict"
    wanted = [each for each in snippets.LANGUAGES if language in ("all", each)]
    texts = {each: snippets.snippet(subject, each, way, stream) for each in wanted}
    if as_json:
        base.print_json(texts)
        return
    for number, (each, text) in enumerate(texts.items()):
        if len(texts) > 1:
            click.secho(f"{chr(10) if number else ''}── {each} ──", bold=True)
        click.echo(text, nl=False)


def describe(registry: Registry, name: str, url: str | None) -> Subject:
    """The scenario as a caller must know it, and whether this installation's gateway asks for a key.

    Raises:
        ScenariumError: SCN-1001 (no such scenario), SCN-1102 (the file of the keys cannot be used).
    """
    from scenarium.core.cli.listing import described
    from scenarium.core.config import GatewayConfig
    from scenarium.gateway.keys import KeyFile
    from scenarium.gateway.operator_cli import address
    from scenarium.gateway.snippets import Subject

    config = registry.settings.validate(GatewayConfig, ("gateway",), "gateway")
    keyed = config.keys is not None and bool(KeyFile(registry.settings.path_of(config.keys, "gateway", "keys")).read())
    about = described(registry, name)
    schemas = (about["request_schema"], about["response_schema"])
    return Subject(name, *schemas, about["sample"], about["streams"], (url or address(config)).rstrip("/"), keyed)
