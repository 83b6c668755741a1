"""Where a model that exists already may come from, and how each becomes ``model.onnx`` in a folder.

- a file: ONNX as it is; TorchScript (``.pt``) and torch.export (``.pt2``) are converted
- ``runs:/<id>/<path>``: an MLflow model of the flavour onnx or pytorch
- a Triton model repository, or one entry of it (``onnxruntime_onnx``, ``pytorch_libtorch``)

A PyTorch archive is code and pickle, so it is opened once, by a process of its own (``scenarium.training.torch_file``), and never when serving.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scenarium.core.errors import ScenariumError, Words
from scenarium.core.importing import onnx_file, triton_entry
from scenarium.core.progress import Progress
from scenarium.core.tracking import download

TORCH = (".pt", ".pth", ".pt2", ".ts")
MLMODEL = "MLmodel"


@dataclass(frozen=True)
class Given:
    """One input as the user or a ``config.pbtxt`` tells it; ``dims`` with the batch axis, -1 where a length is free."""

    name: str
    dtype: str
    dims: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> Given:
        """Read ``name:dtype:dims``, e.g. ``image:float32:-1,3,224,224``.

        Raises:
            ValueError: it is of another form.
        """
        name, dtype, dims = text.rsplit(":", 2)
        found = cls(name, dtype, tuple(int(length) for length in dims.split(",") if length.strip()))
        if not name or dtype not in onnx_file.TYPES.values() or any(length == 0 or length < -1 for length in found.dims):
            raise ValueError(text)
        return found


@dataclass(frozen=True)
class Fetched:
    """What is known of a model beside its file."""

    notes: dict[str, str] = field(default_factory=dict)
    max_batch_size: int | None = None


def fetch(source: str, folder: Path, scratch: Path, given: Sequence[Given], progress: Progress) -> Fetched:
    """Make ``folder / "model.onnx"`` from ``source``. ``scratch`` is a folder for what is needed on the way.

    Raises:
        ScenariumError: SCN-5101 (no such source), and what is wrong with it (SCN-51xx).
    """
    if source.startswith("runs:/"):
        return _mlflow(download(source, scratch / "mlflow"), source, folder, scratch, given, progress)
    path = Path(source).expanduser()
    if path.is_dir():
        if (path / MLMODEL).is_file():
            return _mlflow(path, source, folder, scratch, given, progress)
        return _triton(path, source, folder, scratch, given, progress)
    if not path.is_file():
        raise ScenariumError("SCN-5101", source=source, reason=Words("there is no such file or folder", "没有这样的文件或目录"))
    return _file(path, folder, scratch, given, (), progress)


def _file(path: Path, folder: Path, scratch: Path, given: Sequence[Given], outputs: Sequence[str], progress: Progress, unnamed: str = "") -> Fetched:
    if path.suffix in TORCH:
        return convert(path, folder, scratch, given, outputs, unnamed, progress)
    onnx_file.place(path, folder)
    return Fetched()


def _mlflow(model: Path, source: str, folder: Path, scratch: Path, given: Sequence[Given], progress: Progress) -> Fetched:
    """``MLmodel`` names the flavours and their files (MLflow, "MLflow Models", storage format)."""
    if model.is_file():
        return _file(model, folder, scratch, given, (), progress)
    if not (model / MLMODEL).is_file():
        raise ScenariumError("SCN-5101", source=source, reason=Words("it is no MLflow model: it has no file MLmodel", "它不是 MLflow 模型：缺少 MLmodel 文件"))
    import yaml

    flavors: dict[str, Any] = (yaml.safe_load((model / MLMODEL).read_text(encoding="utf8")) or {}).get("flavors", {})
    if "onnx" in flavors:
        return _file(model / flavors["onnx"].get("data", "model.onnx"), folder, scratch, given, (), progress)
    if "pytorch" in flavors:
        data = model / flavors["pytorch"].get("model_data", "data")
        files = [path for path in sorted(data.iterdir()) if path.suffix in TORCH] if data.is_dir() else []
        if files:
            return _file(files[0], folder, scratch, given, (), progress)
    known = ", ".join(flavors) or "-"
    en = f"the MLflow model has the flavours {known}; one with a model file of onnx or pytorch is needed"
    reason = Words(en, f"该 MLflow 模型的 flavor 为 {known}，需要含模型文件的 onnx 或 pytorch")
    raise ScenariumError("SCN-5101", source=source, reason=reason)


def _triton(path: Path, source: str, folder: Path, scratch: Path, given: Sequence[Given], progress: Progress) -> Fetched:
    entry = triton_entry.read(path, source)
    told = given or [Given(*each) for each in entry.inputs]
    fetched = _file(entry.file, folder, scratch, told, entry.outputs, progress, triton_entry.UNNAMED)
    notes = {**fetched.notes, "triton": f"{entry.platform}, version {entry.file.parent.name}"}
    return Fetched(notes, entry.max_batch_size or None)


def convert(path: Path, folder: Path, scratch: Path, given: Sequence[Given], outputs: Sequence[str], unnamed: str, progress: Progress) -> Fetched:
    """Have a process of its own open a PyTorch file, write ``model.onnx`` and compare the two on generated inputs.

    Raises:
        ScenariumError: SCN-5108 (it cannot be converted), SCN-5109 (its inputs are unknown), SCN-5110 (the conversion answers differently).
    """
    progress.note(f"converting {path.name} to ONNX in a process of its own, which runs what your file holds")
    told, result = scratch / "job.json", scratch / "result.json"
    told.write_text(
        json.dumps({"file": str(path), "out": str(folder), "inputs": [asdict(each) for each in given], "outputs": list(outputs), "unnamed": unnamed}),
        encoding="utf8",
    )
    ended = subprocess.run([sys.executable, "-m", "scenarium.training.torch_file", str(told), str(result)], capture_output=True, text=True, check=False)
    if not result.is_file():
        last = (ended.stderr.strip().splitlines() or ["-"])[-1]
        raise ScenariumError("SCN-5108", file=path, file_name=path.name, reason=f"exit code {ended.returncode}: {last[:300]}")
    found = json.loads(result.read_text(encoding="utf8"))
    if "code" in found:
        raise ScenariumError(found["code"], file=path, file_name=path.name, **found["values"])
    note = f"largest difference to {path.name} on generated inputs: absolute {found['absolute']:.3g}, relative {found['relative']:.3g}"
    progress.note(note)
    return Fetched({"converted": f"{found['kind']} by {found['by']}", "parity": note})
