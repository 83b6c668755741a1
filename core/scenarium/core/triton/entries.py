"""``config.pbtxt`` of any model repository: read, and completed where it names no outputs, which Triton cannot do without for a TorchScript model.

Format: Triton's ``model_config.proto``, by the schema that tritonclient ships.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from scenarium.core.errors import ScenariumError, Words
from scenarium.core.importing.triton_entry import CONFIG, FILES, TYPES, UNNAMED
from scenarium.core.triton import find_outputs


class Entry(NamedTuple):
    """One model of a repository."""

    config: Any
    """``inference.ModelConfig``, complete."""
    added: str
    """What its file lacks, as the lines that complete it; empty: nothing."""


def names(models: Path) -> list[str]:
    """The models of a repository."""
    return sorted(path.parent.name for path in models.glob(f"*/{CONFIG}"))


def read(folder: Path, environment: Path) -> Entry:
    """Read one model's configuration; its outputs are taken from the model where they are missing.

    Raises:
        ScenariumError: SCN-6002 (tritonclient is missing), SCN-6045 (it cannot be read, or the model does not tell its outputs).
    """
    try:
        from google.protobuf import text_format
        from tritonclient.grpc.model_config_pb2 import ModelConfig
    except ModuleNotFoundError as fault:
        raise ScenariumError("SCN-6002", engine="triton", module=fault.name, extra="triton") from fault
    file = folder / CONFIG
    try:
        config = text_format.Parse(file.read_text(encoding="utf8"), ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as fault:
        raise ScenariumError("SCN-6045", file=file, reason=str(fault)) from None
    platform = config.platform or config.backend
    if config.output or platform not in FILES:
        return Entry(config, "")
    added = []
    for number, output in enumerate(_outputs(folder, config, FILES[platform], environment)):
        datatype = next(theirs for theirs, ours in TYPES.items() if ours == output["dtype"])
        dims, reshape = (output["dims"], "") if output["dims"] else ([1], " reshape { shape: [ ] }")
        added.append(f'output [ {{ name: "{output["name"] or UNNAMED.format(number)}" data_type: {datatype} dims: {dims}{reshape} }} ]')
    lines = "\n".join(added)
    text_format.Merge(lines, config)
    return Entry(config, lines)


def _outputs(folder: Path, config: Any, default: str, environment: Path) -> list[dict[str, Any]]:
    versions = sorted((path for path in folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    path = versions[-1] / (config.default_model_filename or default) if versions else folder / "1" / default
    if not path.is_file():
        raise ScenariumError("SCN-6045", file=folder / CONFIG, reason=Words(f"there is no model {path}", f"缺少模型文件 {path}"))
    from tritonclient.grpc.model_config_pb2 import DataType

    inputs = [{"name": each.name, "dtype": TYPES.get(DataType.Name(each.data_type), "bytes"), "dims": list(each.dims)} for each in config.input]
    batched = "batched" if config.max_batch_size else "single"
    command = [str(environment / "bin" / "python"), "-I", find_outputs.__file__, str(path), json.dumps(inputs), batched]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        reason = Words(f"its outputs are missing, and the model does not tell them: {said[-1]}", f"缺少输出，且无法从模型得知：{said[-1]}")
        raise ScenariumError("SCN-6045", file=folder / CONFIG, reason=reason)
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found
