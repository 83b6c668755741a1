"""``scenarium containerize``: a folder with what a container image and a Kubernetes deployment of this installation need.

The image has the named scenarios' plugins and all extensions in the versions that are installed here, and every library pinned to the
version that is tested here, since the answer to a stored sample may differ with another one. It has no settings but those of serving, and
nothing secret: keys, the store and the jobs are mounted.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from importlib.resources import files
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from scenarium.core.config import GatewayConfig
from scenarium.core.errors import ScenariumError
from scenarium.core.registry import Registry

UID = 10001
PRE_STOP_S = 5
END_S = 10
"""Seconds that the workers may take to end, after the requests."""
MOUNTED = {"host", "port", "keys", "jobs", "audit", "audit_required", "redis", "allow_anonymous", "open_metrics", "drain_s"}
"""Settings of the gateway that the image or the deployment decides, or that may be secret."""
MANIFESTS = ("deployment.yaml", "service.yaml", "pdb.yaml", "hpa.yaml")
_IMAGE = re.compile(r"[a-z0-9]+([._:/-]+[A-Za-z0-9]+)*(@sha256:[0-9a-f]{64})?")
_CPU = re.compile(r"[1-9]\d*m?|\d+\.\d{1,3}")
_MEMORY = re.compile(r"[1-9]\d*(Mi|Gi|M|G)")
_STORE = re.compile(r"/[\w./-]*|[a-z0-9+]+://[\w./:@%?=&-]+")


@dataclass(frozen=True, slots=True)
class Options:
    """What the deployment shall be like."""

    scenarios: Sequence[str] = ()
    """Empty: all that are installed."""
    image: str = "scenarium:latest"
    store: str = "/store"
    replicas: int = 2
    max_replicas: int = 6
    cpu: str = "2"
    memory: str = "4Gi"
    queue_ms: int = 50
    """Average queue time above which pods are added."""
    service_monitor: bool = False

    def check(self) -> None:
        """Refuse what no manifest may hold.

        Raises:
            ScenariumError: SCN-1201.
        """
        for option, value, pattern, example in (
            ("--image", self.image, _IMAGE, "registry.example/scenarium:1"),
            ("--cpu", self.cpu, _CPU, "2, 500m"),
            ("--memory", self.memory, _MEMORY, "4Gi, 512Mi"),
            ("--store", self.store, _STORE, "/store, s3://bucket/store"),
        ):
            if not pattern.fullmatch(value):
                raise ScenariumError("SCN-1201", field=option, value=value, example=example)
        if self.max_replicas < self.replicas:
            raise ScenariumError("SCN-1201", field="--max-replicas", value=self.max_replicas, example=str(self.replicas))


@dataclass(slots=True)
class Chosen:
    """The scenarios of the image, and those that were left out with the reason."""

    names: list[str] = field(default_factory=list)
    left_out: dict[str, ScenariumError] = field(default_factory=dict)


def write(folder: Path, registry: Registry, options: Options) -> tuple[list[Path], Chosen]:
    """Write the folder; returns its files and the chosen scenarios.

    Raises:
        ScenariumError: SCN-1201 (an option), SCN-1202 (the folder holds something), SCN-1203 (a named scenario cannot be in an image), SCN-1204 (none can).
    """
    options.check()
    if folder.exists() and any(folder.iterdir()):
        raise ScenariumError("SCN-1202", file=folder)
    chosen = choose(registry, options.scenarios)
    roots = requirements(registry, chosen.names)
    values = _values(registry, options, chosen)
    written = {
        "requirements.txt": "".join(f"{line}\n" for line in roots),
        "constraints.txt": "".join(f"{line}\n" for line in pins(roots)),
        "wheels/README": "Wheels that are on no index, for the image.\n",
        "Dockerfile": _render("Dockerfile.j2", values),
        ".dockerignore": _render("dockerignore.j2", values),
        "README.md": _render("README.md.j2", values),
        "k8s/prometheus-adapter.yaml": _render("k8s/prometheus-adapter.yaml.j2", values),
        "k8s/kustomization.yaml": _render("k8s/kustomization.yaml.j2", values),
        **{f"k8s/{name}": _render(f"k8s/{name}.j2", values) for name in values["manifests"]},
    }
    for name, text in written.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf8")
    return [folder / name for name in written], chosen


def choose(registry: Registry, names: Sequence[str]) -> Chosen:
    """The named scenarios, or all; one that cannot be in an image is an error where it was named, else it is left out.

    Raises:
        ScenariumError: SCN-1001 and others (no such scenario), SCN-1203, SCN-1204.
    """
    chosen = Chosen()
    for name in names or registry.names():
        try:
            plugin = registry.plugin(name)
            if plugin.error:
                raise plugin.error
            if plugin.target.endswith(".py"):
                raise ScenariumError("SCN-1203", name=name, reason_en="its plugin is a file, no distribution", reason_zh="其插件是单个文件，而非发行包")
            if registry.scenario(name).hook.environment() is not None:
                raise ScenariumError("SCN-1203", name=name, reason_en="it needs an environment of its own", reason_zh="它需要独立的环境")
        except ScenariumError as fault:
            if names:
                raise
            chosen.left_out[name] = fault
        else:
            chosen.names.append(name)
    if not chosen.names:
        raise ScenariumError("SCN-1204")
    return chosen


def requirements(registry: Registry, names: Sequence[str]) -> list[str]:
    """``scenarium`` with the extras that the scenarios' engines need, the plugins' distributions and all extensions, with the versions that are installed."""
    engines = {registry.serve_config(name).engine.partition(":")[0] for name in names} & {"onnx", "openvino"}
    extras = sorted([*(engine for engine in engines if engine in _extras("scenarium")), *(["redis"] if _gateway(registry).redis else [])])
    wanted = f"[{','.join(extras)}]" if extras else ""
    found = {"scenarium": f"scenarium{wanted}=={_public('scenarium')}"}
    for plugin in (*(registry.plugin(name) for name in names), *registry.extension_plugins):
        found.setdefault(canonicalize_name(plugin.distribution), f"{plugin.distribution}=={_public(plugin.distribution)}")
    return list(found.values())


def pins(roots: Sequence[str]) -> list[str]:
    """``name==version`` of everything that ``roots`` need, as it is installed here. A part that is not installed is left to pip."""
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [Requirement(root) for root in roots]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        try:
            needs = [Requirement(line) for line in distribution(name).requires or ()]
        except PackageNotFoundError:
            continue
        found[name] = _public(name)
        for extra in ("", *requirement.extras):
            if (name, extra) not in seen:
                seen.add((name, extra))
                waiting += [need for need in needs if need.marker is None or need.marker.evaluate({"extra": extra})]
    return [f"{name}=={version}" for name, version in sorted(found.items())]


def _values(registry: Registry, options: Options, chosen: Chosen) -> dict[str, Any]:
    config = _gateway(registry)
    deadline = math.ceil(max(registry.serve_config(name).deadline_ms for name in chosen.names) / 1000)
    drain = max(math.ceil(config.drain_s), deadline + 1)
    claim = options.store.startswith("/")
    manifests = [*MANIFESTS, *(["store.yaml"] if claim else []), *(["servicemonitor.yaml"] if options.service_monitor else [])]
    return {
        **{name: getattr(options, name) for name in Options.__slots__},
        "scenarios": chosen.names,
        "required": options.scenarios,
        "settings": dict(_settings(registry, chosen.names)),
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "uid": UID,
        "claim": claim,
        "manifests": manifests,
        "deadline": deadline,
        "drain": drain,
        "pre_stop": PRE_STOP_S,
        "grace": PRE_STOP_S + drain + END_S,
    }


def _settings(registry: Registry, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """What the user set for serving, as the variables that say the same. Single quotes, which hold anything else as it is, are escaped as JSON does."""
    for key, (value, _) in registry.settings.flat.items():
        serves = key[0] == "scenarios" and key[1] in names and key[2:3] in (("plugin",), ("serve",))
        if serves or (key[0] == "gateway" and key[1] not in MOUNTED):
            parts = key[1:] if serves else key
            yield "SCENARIUM_" + "__".join(part.upper() for part in parts), json.dumps(value).replace("'", "\\u0027")


def _gateway(registry: Registry) -> GatewayConfig:
    return registry.settings.validate(GatewayConfig, ("gateway",), "gateway")


def _extras(name: str) -> set[str]:
    return set(distribution(name).metadata.get_all("Provides-Extra") or ())


def _public(name: str) -> str:
    """The installed version as an index has it: ``2.14.1+cpu`` is ``2.14.1`` there."""
    return Version(distribution(name).version).public


def _render(name: str, values: dict[str, Any]) -> str:
    from jinja2 import Environment, StrictUndefined

    source = files("scenarium.gateway").joinpath("container_templates", *name.split("/")).read_text(encoding="utf8")
    return Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False).from_string(source).render(values).rstrip("\n") + "\n"
