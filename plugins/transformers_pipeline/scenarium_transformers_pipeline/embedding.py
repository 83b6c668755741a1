"""One vector a text: how a model's token vectors become it, and their calculation.

What sentence-transformers writes beside a model says so (``modules.json`` and the pooling's ``config.json``); the vectors of a model that was trained
with another pooling than it is used with are worth little. A model without these files is averaged over its tokens, to length 1.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

FILE = "pooling.json"
"""In the version's folder of the model."""
MODES = {"mean_tokens": "mean", "cls_token": "first", "lasttoken": "last"}
"""The names of sentence-transformers to ours."""
KNOWN = ("Transformer", "Pooling", "Normalize")


class Pooling(NamedTuple):
    """From the vectors of a text's tokens to its own."""

    mode: str = "mean"
    """``mean``, ``first`` or ``last`` token."""
    normalise: bool = True
    """To length 1, so that a product of two is their cosine."""


def declared(source: Path) -> Pooling:
    """What the files of sentence-transformers beside a model say.

    Raises:
        ValueError: a kind of pooling, or a step after it, that is not known here.
    """
    if not (source / "modules.json").is_file():
        return Pooling()
    modules = json.loads((source / "modules.json").read_text(encoding="utf8"))
    kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
    if strange := [kind for kind in kinds if kind not in KNOWN]:
        raise ValueError(f"its step {strange[0]} after the model is not supported")
    modes = ["mean"]
    if "Pooling" in kinds:
        about = json.loads((source / modules[kinds.index("Pooling")]["path"] / "config.json").read_text(encoding="utf8"))
        named = {name.removeprefix("pooling_mode_") for name, value in about.items() if name.startswith("pooling_mode_") and value is True}
        modes = [MODES.get(name, name) for name in sorted(named)]
    if len(modes) != 1 or modes[0] not in MODES.values():
        raise ValueError(f"its pooling ({', '.join(modes) or 'none'}) is not supported")
    return Pooling(modes[0], "Normalize" in kinds)


def write(pooling: Pooling, folder: Path) -> None:
    """Keep it beside the model."""
    (folder / FILE).write_text(json.dumps(pooling._asdict()), encoding="utf8")


def read(folder: Path) -> Pooling:
    """What was kept."""
    return Pooling(**json.loads((folder / FILE).read_text(encoding="utf8")))


@torch.inference_mode()
def embed(pipe: Any, texts: Sequence[str], pooling: Pooling) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of each text its vector, and those of its tokens. Without a padding token texts run one by one."""
    if pipe.tokenizer.pad_token is None and len(texts) > 1:
        return [found for text in texts for found in embed(pipe, [text], pooling)]
    feed = pipe.tokenizer(list(texts), padding=len(texts) > 1, truncation=True, return_tensors="pt").to(pipe.device)
    hidden = pipe.model(**feed)[0].float()
    found = []
    for tokens, mask in zip(hidden, feed["attention_mask"].bool(), strict=True):
        own = tokens[mask]
        vector = own.mean(0) if pooling.mode == "mean" else own[0 if pooling.mode == "first" else -1]
        if pooling.normalise:
            vector = torch.nn.functional.normalize(vector, dim=0)
        found.append((vector, own))
    return found
