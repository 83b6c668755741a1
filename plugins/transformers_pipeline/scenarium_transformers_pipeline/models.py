"""A transformers model from the hub or a folder, and as a pipeline. Safetensors weights only, and never a repository's own code."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import transformers

from scenarium.core import ScenariumError
from scenarium.core.errors import Words
from scenarium_transformers_pipeline import embedding

FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model"]
"""What is fetched from the hub: no pickle, no code."""


def fetch(source: str, task: str, out: Path) -> None:
    """Read the model ``source`` (a hub name or a folder) and write it into ``out``, weights as safetensors.

    Raises:
        ScenariumError: SCN-0002 (it cannot be had), SCN-5119 (no safetensors), SCN-5120 (it does not suit the task).
    """
    folder = Path(source).expanduser()
    if not source or not folder.is_dir():
        folder = _download(source)
    if not any(folder.glob("*.safetensors")):
        raise ScenariumError("SCN-5119", source=source)
    try:
        pooling = embedding.declared(folder) if task == "feature-extraction" else None
        open_pipeline(task, folder, "cpu").save_pretrained(str(out))
        if pooling:
            embedding.write(pooling, out)
    except Exception as fault:
        line = (str(fault).strip().splitlines() or [type(fault).__name__])[0]
        raise ScenariumError("SCN-5120", source=source, task=task, reason=line[:300]) from fault


def _download(source: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=FILES, etag_timeout=5))
    except Exception as fault:  # not found, gated, no network, no valid name
        line = (str(fault).strip().splitlines() or [type(fault).__name__])[0][:300]
        raise ScenariumError("SCN-0002", name=source, reason_en=line, reason_zh=line) from fault


def open_version(task: str, folder: Path, device: str) -> Any:
    """The pipeline of a version's folder."""
    pipe = open_pipeline(task, folder, device)
    if task == "feature-extraction":
        pipe.pooling = embedding.read(folder)
    return pipe


def open_pipeline(task: str, folder: Path, device: str) -> Any:
    """The pipeline of a local folder."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is missing in the folder that the network should be asked for
    logging.getLogger("transformers").setLevel(logging.ERROR)
    auto = {
        "text-classification": transformers.AutoModelForSequenceClassification,
        "zero-shot-classification": transformers.AutoModelForSequenceClassification,
        "token-classification": transformers.AutoModelForTokenClassification,
        "fill-mask": transformers.AutoModelForMaskedLM,
        "feature-extraction": transformers.AutoModel,
        "image-classification": transformers.AutoModelForImageClassification,
        "audio-classification": transformers.AutoModelForAudioClassification,
    }[task]
    model, told = auto.from_pretrained(folder, use_safetensors=True, trust_remote_code=False, local_files_only=True, output_loading_info=True)
    if missing := sorted(told["missing_keys"]):
        raise ValueError(Words(f"its weights lack {', '.join(missing[:3])}, which {task} needs", f"权重缺少 {task} 所需的 {', '.join(missing[:3])}").en)
    parts: dict[str, Any] = {}
    if task == "image-classification":
        parts["image_processor"] = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    elif task == "audio-classification":
        parts["feature_extractor"] = transformers.AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
    else:
        parts["tokenizer"] = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return transformers.pipeline(task, model=model.eval(), device=device, **parts)
