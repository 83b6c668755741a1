"""Examines an installation: each check says what it found and, where something is wrong, what to do."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from scenarium.core.errors import Language, ScenariumError, Words
from scenarium.core.registry import Registry

GIGABYTE = 1 << 30
NOTHING = Words("", "")


@dataclass(frozen=True, slots=True)
class Check:
    """One result. ``warning``: works, but less than it could; ``problem``: something will fail."""

    name: str
    status: Literal["ok", "warning", "problem"]
    found: Words
    remedy: Words = NOTHING

    def json(self, lang: Language) -> dict[str, str]:
        """JSON form in one language."""
        return {"check": self.name, "status": self.status, "found": getattr(self.found, lang), "remedy": getattr(self.remedy, lang)}


def examine(registry: Registry) -> Iterator[Check]:
    """Every check in turn; one that fails itself is a problem of its own and stops no other."""
    checks: tuple[Callable[[Registry], Iterator[Check]], ...] = (
        _python,
        _packages,
        _torch,
        _disk,
        _store,
        _index,
        _settings,
        _extensions,
        _plugins,
        _environments,
    )
    for check in checks:
        try:
            yield from check(registry)
        except ScenariumError as fault:
            yield _problem(check.__name__.strip("_"), fault)


def _problem(name: str, fault: ScenariumError) -> Check:
    place = f"{fault.file}:{fault.line}: " if fault.line else f"{fault.file}: " if fault.file else ""
    found = Words(f"{fault.code} {place}{fault.title('en')}", f"{fault.code} {place}{fault.title('zh')}")
    return Check(name, "problem", found, Words(fault.hint("en"), fault.hint("zh")))


def _same(text: str) -> Words:
    return Words(text, text)


def _python(registry: Registry) -> Iterator[Check]:
    version = f"{platform.python_implementation()} {platform.python_version()}, {platform.platform()}, {sys.executable}"
    yield Check("python", "ok", _same(version))


def _packages(registry: Registry) -> Iterator[Check]:
    """Requirements of scenarium and of every plugin against what is installed, as ``pip check`` does."""
    from packaging.requirements import Requirement

    wrong: list[tuple[str, str]] = []
    names = {"scenarium", *(plugin.distribution for plugin in registry.plugins.values())}
    for name in sorted(names):
        try:
            texts = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for requirement in map(Requirement, texts):
            if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
                continue
            try:
                version: str | None = importlib.metadata.version(requirement.name)
            except importlib.metadata.PackageNotFoundError:
                version = None
            if version is None or not requirement.specifier.contains(version, prereleases=True):
                wrong.append((f"{name}: {requirement.name}{requirement.specifier} ({version or '-'})", f"'{requirement.name}{requirement.specifier}'"))
    if not wrong:
        yield Check("packages", "ok", Words(f"the requirements of {len(names)} distributions are met", f"{len(names)} 个发行包的依赖均已满足"))
        return
    run = "pip install " + " ".join(dict.fromkeys(requirement for _, requirement in wrong))
    listed = "; ".join(text for text, _ in wrong)
    yield Check("packages", "problem", Words(f"not met: {listed}", f"未满足：{listed}"), Words(f"Run: {run}", f"请运行：{run}"))


_TORCH_SCRIPT = """
import json
found = {}
try:
    import torch
    found |= {"torch": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip, "devices": []}
    if torch.cuda.is_available():
        found["devices"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found["threads"] = torch.get_num_threads()
except Exception as fault:
    found["torch_error"] = f"{type(fault).__name__}: {fault}"
try:
    import torchvision
    found["torchvision"] = torchvision.__version__
except Exception as fault:
    found["torchvision_error"] = f"{type(fault).__name__}: {fault}"
print(json.dumps(found))
"""


def _torch(registry: Registry) -> Iterator[Check]:
    """Import torch and torchvision in a process of their own. A torchvision built for another torch breaks all of transformers, and neither
    pip nor ``pip check`` sees it."""
    installed = {name: _version(name) for name in ("torch", "torchvision")}
    if installed["torch"] is None:
        remedy = Words("To train, run: pip install 'scenarium[train]'", "如需训练，请运行：pip install 'scenarium[train]'")
        yield Check(
            "torch", "warning", Words("not installed: exported versions can be served, none trained", "未安装：可以服务已导出的版本，但不能训练"), remedy
        )
        return
    try:
        child = subprocess.run([sys.executable, "-c", _TORCH_SCRIPT], capture_output=True, text=True, timeout=120, check=False)
        found = json.loads(child.stdout.strip().rpartition("\n")[2])
    except subprocess.TimeoutExpired:
        yield Check(
            "torch", "problem", Words("the import did not end within 120 s", "导入在 120 秒内没有结束"), Words("Install torch anew.", "请重新安装 torch。")
        )
        return
    except ValueError:
        last = (child.stderr.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
        yield Check("torch", "problem", _same(last), Words("Install torch anew.", "请重新安装 torch。"))
        return
    run = "pip install --force-reinstall 'scenarium[train]'"
    if error := found.get("torch_error"):
        yield Check("torch", "problem", _same(error), Words(f"Run: {run}", f"请运行：{run}"))
        return
    yield Check("torch", "ok", Words(f"{found['torch']}, {found['threads']} threads", f"{found['torch']}，{found['threads']} 线程"))
    if installed["torchvision"] is not None:
        yield _torchvision(installed, found.get("torchvision_error"))
    yield _gpu(found)


def _torchvision(installed: dict[str, str | None], error: str | None) -> Check:
    if error is None:
        return Check("torchvision", "ok", _same(str(installed["torchvision"])))
    reason = Words(
        f"{error} – torchvision {installed['torchvision']} was built for another torch than {installed['torch']}; transformers fails with it too",
        f"{error}：torchvision {installed['torchvision']} 不是为 torch {installed['torch']} 构建的；transformers 也会因此失败",
    )
    run = "pip install --upgrade --force-reinstall torch torchvision"
    return Check("torchvision", "problem", reason, Words(f"Run: {run} – or: pip uninstall torchvision", f"请运行：{run}，或：pip uninstall torchvision"))


def _gpu(found: dict[str, object]) -> Check:
    devices = found.get("devices")
    if isinstance(devices, list) and devices:
        return Check("gpu", "ok", _same(", ".join(map(str, devices))))
    if shutil.which("nvidia-smi") or shutil.which("rocm-smi"):
        built = found.get("cuda") or found.get("hip") or "-"
        reason = Words(f"a driver is installed, but torch ({built}) sees no device", f"已安装驱动，但 torch（{built}）没有检测到设备")
        return Check("gpu", "warning", reason, Words("Install a torch build for this driver: see pytorch.org.", "请安装与该驱动匹配的 torch：见 pytorch.org。"))
    return Check("gpu", "ok", Words("none: everything runs on the CPU", "无：全部在 CPU 上运行"))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _disk(registry: Registry) -> Iterator[Check]:
    from scenarium.core.cache import cache_home

    places = {"cache": cache_home(), "runs": registry.settings.home}
    if "://" not in registry.settings.store_url:
        places["store"] = Path(registry.settings.store_url)
    for name, place in places.items():
        there = next(folder for folder in (place, *place.parents) if folder.exists())
        free = shutil.disk_usage(there).free
        text = Words(f"{free / GIGABYTE:.1f} GB free at {place} ({name})", f"{place}（{name}）剩余 {free / GIGABYTE:.1f} GB")
        status: Literal["ok", "warning", "problem"] = "problem" if free < GIGABYTE // 4 else "warning" if free < 3 * GIGABYTE else "ok"
        clean = Words("Free some space: 'scenarium prune NAME' deletes old versions.", "请清理空间：'scenarium prune 名称' 会删除旧版本。")
        yield Check("disk", status, text, NOTHING if status == "ok" else clean)


def _store(registry: Registry) -> Iterator[Check]:
    """Write and remove a small file."""
    from scenarium.core.store import Store

    url = registry.settings.store_url
    grant = Words("Grant write access, or set another store: SCENARIUM_STORE=…", "请授予写权限，或设置其他存储位置：SCENARIUM_STORE=…")
    try:
        store = Store(url)
        path = f"{store.root}/.doctor-{uuid.uuid4().hex}"
        store.write(path, b"scenarium")
        store.fs.rm_file(path)
        count = len(store.scenarios())
    except ImportError as fault:  # fsspec finds the scheme, its package is missing
        yield Check("store", "problem", _same(f"{url}: {fault}"), Words("Install the package that it names.", "请安装其中提到的软件包。"))
    except (OSError, ValueError, PermissionError) as fault:
        yield Check("store", "problem", _same(f"{url}: {fault}"), grant)
    else:
        yield Check("store", "ok", Words(f"{url}, writable, {count} scenarios", f"{url}，可写，{count} 个场景"))


def _index(registry: Registry) -> Iterator[Check]:
    """Whether the package index answers, from which default data and models come. Any HTTP answer will do."""
    url = os.environ.get("PIP_INDEX_URL")
    if not url:
        asked = subprocess.run([sys.executable, "-m", "pip", "config", "get", "global.index-url"], capture_output=True, text=True, check=False)
        url = asked.stdout.strip() or "https://pypi.org/simple"
    host = urlsplit(url).hostname or url
    try:
        urllib.request.urlopen(urllib.request.Request(f"{url.rstrip('/')}/scenarium/", method="HEAD"), timeout=5).close()
    except urllib.error.HTTPError:
        pass
    except (OSError, ValueError) as fault:
        reason = re.sub(r"//[^@/]*@", "//", str(fault))  # an index address may carry a password
        remedy = Words(
            "Default data cannot be fetched: train with --data, or set PIP_INDEX_URL to an index that this machine reaches.",
            "无法获取默认数据：请使用 --data 训练，或将 PIP_INDEX_URL 设为可访问的软件源。",
        )
        yield Check("index", "warning", Words(f"{host} does not answer: {reason}", f"{host} 没有响应：{reason}"), remedy)
        return
    yield Check("index", "ok", Words(f"{host} answers", f"{host} 可访问"))


def _settings(registry: Registry) -> Iterator[Check]:
    """The shared tables now; each scenario's own when its plugin is known to be sound."""
    from scenarium.core.config import check_shared

    check_shared(registry.settings)
    path = registry.settings.path
    names = registry.names()
    where = Words(str(path), str(path)) if path else Words("no scenarios.toml: defaults", "没有 scenarios.toml：使用默认值")
    yield Check("settings", "ok", Words(f"{where.en}, {len(names)} scenarios", f"{where.zh}，{len(names)} 个场景"))


def _extensions(registry: Registry) -> Iterator[Check]:
    from scenarium.core.relay import HOOKS

    for plugin in registry.extension_plugins:
        try:
            found = plugin.load()
        except ScenariumError as fault:
            yield _problem("extension", fault)
            continue
        wraps = ", ".join(name for name in HOOKS if hasattr(getattr(found, name, None), "scenarium_impl"))
        yield Check(
            "extension",
            "ok",
            Words(f"{plugin.name} ({plugin.distribution} {plugin.version}): {wraps}", f"{plugin.name}（{plugin.distribution} {plugin.version}）：{wraps}"),
        )


def _plugins(registry: Registry) -> Iterator[Check]:
    """Probe every plugin, then validate the settings of the scenarios that are made of sound ones."""
    from scenarium.core.probe import probe

    health = probe(list(registry.plugins.values()))
    for name, plugin in registry.plugins.items():
        fault = health[name].error
        text = f"{name} ({plugin.distribution} {plugin.version}), {health[name].seconds or 0:.2f} s"
        yield _problem("plugin", fault) if fault else Check("plugin", "ok", _same(text))
    for name, plugin_name in registry.names().items():
        if plugin_name in health and health[plugin_name].state != "ok":
            continue
        try:
            registry.scenario(name).config  # noqa: B018 -- validates the settings
        except ScenariumError as fault:
            yield _problem("settings", fault)


def _environments(registry: Registry) -> Iterator[Check]:
    """Environments that plugins declare, made or not."""
    from scenarium.core import environments
    from scenarium.core.probe import known

    for name, plugin_name in registry.names().items():
        plugin = registry.plugins.get(plugin_name)
        if plugin is None or known(plugin).state != "ok":
            continue
        try:
            environment = registry.scenario(name).hook.environment()
        except ScenariumError:
            continue  # its settings are wrong, which was said above
        if environment is None:
            continue
        made = [place for place in environments.places(environment) if place.complete]
        if made:
            yield Check("environment", "ok", _same(f"{name}: {made[0].folder}"))
        else:
            run = f"scenarium env create {name}"
            yield Check("environment", "warning", Words(f"{name}: not made yet", f"{name}：尚未创建"), Words(f"Run: {run}", f"请运行：{run}"))
