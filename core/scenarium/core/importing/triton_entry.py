"""One entry of a Triton model repository: ``<name>/config.pbtxt`` and ``<name>/<version>/model.onnx`` (or ``model.pt``).

Format: Triton Inference Server, "Model Repository" and ``model_config.proto``, read by the schema that tritonclient ships.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scenarium.core.errors import ScenariumError, Words
from scenarium.core.importing.onnx_file import first_line

CONFIG = "config.pbtxt"
FILES = {"onnxruntime_onnx": "model.onnx", "onnxruntime": "model.onnx", "pytorch_libtorch": "model.pt", "pytorch": "model.pt"}
"""Platform or backend to the model's file."""
UNNAMED = "OUTPUT__{}"
"""An output without a name, by its place: as Triton's pytorch backend wants it."""
TYPES = {"TYPE_BOOL": "bool", "TYPE_FP16": "float16", "TYPE_FP32": "float32", "TYPE_FP64": "float64"}
TYPES |= {f"TYPE_{sign.upper()}INT{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}


@dataclass(frozen=True)
class Entry:
    """What an entry tells of its model."""

    file: Path
    """The newest version's model, or the newest that its policy serves."""
    platform: str
    max_batch_size: int
    inputs: list[tuple[str, str, tuple[int, ...]]]
    """Name, NumPy type and dims, with the batch axis where the model has one."""
    outputs: list[str]


def read(path: Path, source: str) -> Entry:
    """Read an entry, or the only one of a repository.

    Raises:
        ScenariumError: SCN-5101 (no entry, or several), SCN-5115 (tritonclient is missing).
    """
    entry = _only(path, source)
    config = _config(entry / CONFIG, source) if (entry / CONFIG).is_file() else None
    platform = (config.platform or config.backend) if config else "onnxruntime_onnx"
    if platform not in FILES:
        known = "onnxruntime_onnx, pytorch_libtorch"
        raise _refused(source, f"its platform {platform!r} is none of {known}", f"平台 {platform!r} 不在 {known} 之列")
    versions = sorted(int(child.name) for child in entry.iterdir() if child.is_dir() and child.name.isdigit())
    if config and config.version_policy.specific.versions:
        versions = [number for number in versions if number in config.version_policy.specific.versions]
    name = (config.default_model_filename if config else "") or FILES[platform]
    if not versions or not (entry / str(versions[-1]) / name).is_file():
        place = f"{versions[-1] if versions else '<version>'}/{name}"
        raise _refused(source, f"it has no model file {place}", f"缺少模型文件 {place}")
    batch = (-1,) if config and config.max_batch_size else ()
    inputs = [(each.name, _dtype(each), (*batch, *each.dims)) for each in config.input] if config else []
    outputs = [each.name for each in config.output] if config else []
    return Entry(entry / str(versions[-1]) / name, platform, config.max_batch_size if config else 0, inputs, outputs)


def _only(path: Path, source: str) -> Path:
    """``path`` itself where it is an entry, else the entry in it."""
    if (path / CONFIG).is_file() or any(child.name.isdigit() and child.is_dir() for child in path.iterdir()):
        return path
    entries = sorted(child.name for child in path.iterdir() if child.is_dir() and (child / CONFIG).is_file())
    if len(entries) == 1:
        return path / entries[0]
    if entries:
        listed = ", ".join(f"{source.rstrip('/')}/{entry}" for entry in entries)
        raise _refused(source, f"it is a repository of several models; give one: {listed}", f"它是包含多个模型的仓库，请给出其中一个：{listed}")
    raise _refused(source, f"the folder is no model: it has neither {CONFIG} nor MLmodel", f"该目录不是模型：既没有 {CONFIG} 也没有 MLmodel")


def _config(file: Path, source: str) -> Any:
    try:
        from google.protobuf import text_format
        from tritonclient.grpc import model_config_pb2
    except ModuleNotFoundError as fault:
        raise ScenariumError("SCN-5115", module=fault.name, extra="triton") from fault
    try:
        return text_format.Parse(file.read_text(encoding="utf8"), model_config_pb2.ModelConfig())
    except (text_format.ParseError, OSError, UnicodeDecodeError) as fault:
        raise _refused(source, f"{CONFIG}: {first_line(fault)}", f"{CONFIG}：{first_line(fault)}") from fault


def _dtype(tensor: Any) -> str:
    from tritonclient.grpc import model_config_pb2

    name = model_config_pb2.DataType.Name(tensor.data_type)
    if name not in TYPES:
        raise ScenariumError("SCN-5105", side=Words("input", "输入"), tensor=tensor.name, type=name)
    return TYPES[name]


def _refused(source: str, en: str, zh: str) -> ScenariumError:
    return ScenariumError("SCN-5101", source=source, reason=Words(en, zh))
