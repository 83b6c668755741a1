"""``scenarium triton``: NVIDIA's Triton over the store's ``models/``, for those without a container; and a look at a model repository."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType

import click

from scenarium.core.cli import base

WORDS = {
    "loaded": ("loaded", "已加载"),
    "unloaded": ("unloaded", "已卸载"),
    "refused": ("refused", "被拒绝"),
    "completed": ("has no outputs; added from the model", "没有输出；已由模型补充"),
}


@base.group("triton", en="Run NVIDIA's Triton over the store's models/, and check repositories.", zh="在存储的 models/ 上运行 NVIDIA Triton；检查模型仓库。")
def triton() -> None:
    """Group of the commands below."""


def _models(chosen: str | None) -> str:
    from scenarium.core import triton_repository
    from scenarium.core.store import Store

    return chosen or triton_repository.root(Store(base.registry().settings.store_url))


@base.command(
    "start",
    group=triton,
    en="Run a real tritonserver (NVIDIA's wheel, in an environment of its own) until Ctrl-C or SIGTERM. It follows promote and rollback within a second.",
    zh="运行真正的 tritonserver（NVIDIA 的 wheel，位于独立环境），直到 Ctrl-C 或 SIGTERM；promote 与 rollback 在一秒内生效。",
    examples=("scenarium triton start --install", "scenarium triton start --print", "scenarium triton start --models ./model_repository"),
)
@base.option("--models", metavar="DIR", en="The model repository (default: the store's models/).", zh="模型仓库（默认：存储的 models/）。")
@base.option("--host", default="127.0.0.1", metavar="HOST", en="Address to listen on.", zh="监听地址。")
@base.option("--http-port", default=8000, metavar="N", en="Port of HTTP.", zh="HTTP 端口。")
@base.option("--grpc-port", default=8001, metavar="N", en="Port of gRPC, which serve.triton_url names.", zh="gRPC 端口，即 serve.triton_url 所指。")
@base.option("--metrics-port", default=8002, metavar="N", en="Port of its metrics.", zh="指标端口。")
@base.option("--install", is_flag=True, en="Make the environment first, where it was not made.", zh="若尚无环境则先创建。")
@base.option("--torch", is_flag=True, en="With --install: torch too, for TorchScript models.", zh="与 --install 合用：同时安装 torch，用于 TorchScript 模型。")
@base.option("--print", "shown", is_flag=True, en="Print the container's command, the normal case, and do nothing.", zh="只显示容器命令（通常情况），不执行。")
def start(models: str | None, host: str, http_port: int, grpc_port: int, metrics_port: int, install: bool, torch: bool, shown: bool) -> None:
    """Run it, and tell what it loads."""
    from scenarium.core.triton import following, server

    root = _models(models)
    if shown:
        click.echo(server.container(root, http_port, grpc_port, metrics_port))
        return
    environment = server.folder()
    if install:
        base.note(f"making {environment}", f"正在创建 {environment}")
        server.install(environment, *([server.TORCH] if torch else []))
    stop = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    Path(root).mkdir(parents=True, exist_ok=True)
    process = server.Server(environment, Path(root), (http_port, grpc_port, metrics_port), host=host, load=())
    try:
        click.echo(f"Triton: http {process.http}  grpc {process.grpc}  metrics {process.metrics}  {root}")
        follower = following.Follower(process.http, Path(root), environment, _tell)
        while not stop.is_set() and process.popen.poll() is None:
            follower.look()
            stop.wait(1.0)
        follower.close()
        if process.popen.poll() is not None:
            raise server.ended(process.log)
    finally:
        process.stop()


def _tell(name: str, what: str, more: str) -> None:
    click.echo(f"{name}: {base.say(*WORDS[what])}" + (f"\n{more}" if "\n" in more or what == "completed" else f": {more}" if more else ""))


@base.command(
    "check",
    group=triton,
    en="Read each config.pbtxt of a repository, and print what it lacks: the outputs, as the model itself tells them.",
    zh="读取仓库中的每个 config.pbtxt，并显示其缺少的内容：由模型得出的输出。",
    examples=("scenarium triton check ./model_repository", "scenarium triton check ./model_repository --write"),
)
@click.argument("models", metavar="[DIR]", required=False)
@base.option("--write", is_flag=True, en="Add it to config.pbtxt.", zh="写入 config.pbtxt。")
def check(models: str | None, write: bool) -> int:
    """Print one line a model, and the additions."""
    from scenarium.core.errors import ScenariumError
    from scenarium.core.importing.triton_entry import CONFIG
    from scenarium.core.triton import entries, server

    root, environment = Path(_models(models)), server.folder()
    wrong = 0
    for name in entries.names(root):
        try:
            entry = entries.read(root / name, environment)
        except ScenariumError as fault:
            wrong += 1
            _tell(name, "refused", str(fault))
            continue
        if not entry.added:
            click.echo(f"{name}: {base.say('complete', '完整')}")
            continue
        _tell(name, "completed", entry.added)
        if write:
            with (root / name / CONFIG).open("a", encoding="utf8") as file:
                file.write(f"\n{entry.added}\n")
    return base.EXIT_FOUND if wrong else 0
