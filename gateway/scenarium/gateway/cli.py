"""``scenarium serve`` and ``scenarium dev``: the commands that start a gateway."""

from __future__ import annotations

import click

from scenarium.core.cli import base


@base.command(
    "serve",
    en="Start the gateway: every trained scenario answers at /scenarios/<name>/predict. Ends on SIGTERM or Ctrl-C after open requests are answered.",
    zh="启动网关：每个已训练的场景在 /scenarios/<名称>/predict 提供服务。收到 SIGTERM 或 Ctrl-C 后处理完未完成的请求再退出。",
    examples=("scenarium serve", "scenarium serve --host 0.0.0.0 --port 80", "scenarium serve --set fraud_text.serve.workers=2"),
)
@base.option("--host", en="Address to listen on (gateway.host).", zh="监听地址（gateway.host）。")
@base.option("--port", type=int, en="Port to listen on (gateway.port); 0: any free one.", zh="监听端口（gateway.port）；0 表示任意空闲端口。")
@base.set_option
def serve(host: str | None, port: int | None, sets: tuple[str, ...]) -> int:
    """Read the settings and hand over to the gateway."""
    from scenarium.core.config import GatewayConfig, check_shared
    from scenarium.core.errors import ScenariumError
    from scenarium.core.registry import Registry, open_registry
    from scenarium.core.store import Store
    from scenarium.gateway.server import serve as run

    given = [f"gateway.host={host}"] if host is not None else []
    given += [f"gateway.port={port}"] if port is not None else []
    path = click.get_current_context().find_root().params.get("config_file")

    def read() -> Registry:
        registry = open_registry(path, sets=(*sets, *given))
        check_shared(registry.settings)
        registry.names()  # a table that belongs to no scenario is an error here, not a setting lost unseen
        return registry

    registry = read()
    config = registry.settings.validate(GatewayConfig, ("gateway",), "gateway")
    try:
        return run(registry, Store(registry.settings.store_url), config, again=read)
    except OSError as fault:
        raise ScenariumError("SCN-1009", host=config.host, port=config.port, reason=fault.strerror or str(fault)) from fault


@base.command(
    "dev",
    en="Serve one plugin while you write it: a single file, a folder or a name. Each save is served within a second.",
    zh="边写边运行一个插件：单个文件、文件夹或名称。每次保存后一秒内生效。",
    examples=("scenarium dev my.py", "scenarium dev my.py --in-process", "scenarium dev plugins/my_scenario --port 9000"),
)
@click.argument("target", metavar="FILE|NAME")
@base.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    en="Port to listen on (default 8080); 0: any free one.",
    zh="监听的端口（默认 8080）；0 表示任意空闲端口。",
)
@base.option(
    "--in-process",
    is_flag=True,
    en="Run the model in the server's own process, so that breakpoint() and debuggers work.",
    zh="在服务器进程内运行模型，以便使用 breakpoint() 和调试器。",
)
@base.set_option
def dev(target: str, port: int, in_process: bool, sets: tuple[str, ...]) -> int:
    """Serve and watch until Ctrl-C."""
    from scenarium.gateway.dev import serve as watch

    return watch(target, port=port, in_process=in_process, sets=sets)
