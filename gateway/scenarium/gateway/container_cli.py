"""``scenarium containerize``."""

from __future__ import annotations

from pathlib import Path

import click

from scenarium.core.cli import base


@base.command(
    "containerize",
    en="Write a Dockerfile and Kubernetes manifests for the installed scenarios, every library pinned to the version that is installed here.",
    zh="为已安装的场景生成 Dockerfile 与 Kubernetes 清单，所有依赖固定为此处安装的版本。",
    examples=(
        "scenarium containerize deploy/scenarium",
        "scenarium containerize out --scenario fraud_text --image registry.example/fraud:1",
        "scenarium containerize out --store s3://bucket/store --cpu 4 --memory 8Gi --replicas 3",
    ),
)
@click.argument("folder", metavar="FOLDER", type=click.Path(file_okay=False, path_type=Path))
@base.option("--scenario", "scenarios", metavar="NAME", multiple=True, en="A scenario of the image (default: all).", zh="镜像中的场景（默认全部）。")
@base.option("--image", metavar="NAME:TAG", default="scenarium:latest", en="Name of the image.", zh="镜像名称。")
@base.option(
    "--store",
    metavar="PATH|URL",
    default="/store",
    en="Where the versions are: a path in the container, on a volume (default: /store), or a URL such as s3://bucket/store.",
    zh="版本存储：容器内卷的路径（默认 /store），或 s3://bucket/store 之类的 URL。",
)
@base.option("--replicas", type=click.IntRange(1, 1000), default=2, en="Pods, at least (default: 2).", zh="最少的 Pod 数（默认 2）。")
@base.option("--max-replicas", type=click.IntRange(1, 1000), default=6, en="Pods, at most (default: 6).", zh="最多的 Pod 数（默认 6）。")
@base.option("--cpu", default="2", en="Cores of a pod (default: 2).", zh="每个 Pod 的核数（默认 2）。")
@base.option("--memory", default="4Gi", en="Memory of a pod (default: 4Gi).", zh="每个 Pod 的内存（默认 4Gi）。")
@base.option(
    "--queue-ms",
    type=click.IntRange(1, 3_600_000),
    default=50,
    en="Average time in the queue above which pods are added (default: 50).",
    zh="平均排队毫秒数超过该值时增加 Pod（默认 50）。",
)
@base.option(
    "--service-monitor", is_flag=True, en="Write a ServiceMonitor for the Prometheus operator too.", zh="同时生成 Prometheus Operator 的 ServiceMonitor。"
)
def containerize(folder: Path, **options: object) -> None:
    """Write the folder and list its files."""
    from scenarium.gateway.containers import Options, write

    files, chosen = write(folder, base.registry(), Options(**options))  # type: ignore[arg-type]  # click has checked the types
    for name, fault in chosen.left_out.items():
        base.note(f"left out {name}: {fault.title('en')}", f"未包含 {name}：{fault.title('zh')}")
    for file in files:
        click.echo(file)
    base.note(f"Next: see {folder / 'README.md'}", f"下一步：见 {folder / 'README.md'}")
