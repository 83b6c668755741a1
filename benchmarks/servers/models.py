"""The real models of the serving benchmarks, the same eager torch module and the same Python before and after it for every server.

``resnet``: ResNet-18 on JPEGs, a version of the plugin image_classification; ``bert``: the small BERT of ``bert_plugin`` on text;
``bert_base``: that of ``bert_base_plugin``.
A model is made of a version's folder; requests are JSON: ``{"image": BASE64}`` or ``{"text": …}``.
"""

from __future__ import annotations

import base64
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_model

sys.path.insert(0, str(Path(__file__).parent))


class Resnet:
    """Pictures to labels."""

    field = "image"

    def __init__(self, version: Path) -> None:
        from scenarium_image_classification.network import Classifier

        self.processor = json.loads((version / "state.json").read_text())
        self.module = Classifier(self.processor["backbone"], len(self.processor["labels"]), self.processor["size"]).eval()
        load_model(self.module, version / "model.safetensors")

    def read(self, text: str) -> np.ndarray:
        """One request to the network's input [3, 224, 224]."""
        import scenarium_image_classification as plugin

        return plugin.to_input(plugin.images.read_image(base64.b64decode(text)), self.processor["size"])

    def forward(self, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Logits [n, classes]."""
        with torch.inference_mode():
            return self.module(torch.from_numpy(np.stack(inputs))).numpy()

    def answer(self, logits: np.ndarray) -> dict[str, Any]:
        """One answer."""
        import scenarium_image_classification as plugin

        asked = plugin.Ask.model_construct(image=b"", top_k=5)
        return plugin.postprocess(processor=self.processor, request=asked, output={"logits": logits}).model_dump()


class Bert:
    """Texts to labels."""

    field = "text"

    plugin = "bert_plugin"

    def __init__(self, version: Path) -> None:
        self.plugin = importlib.import_module(self.plugin)
        self.module = self.plugin.model().eval()
        load_model(self.module, version / "model.safetensors")

    def read(self, text: str) -> dict[str, np.ndarray]:
        """One request to the network's inputs, [words] each."""
        return self.plugin.preprocess(self.plugin.Ask(text=text))

    def forward(self, inputs: Sequence[dict[str, np.ndarray]]) -> np.ndarray:
        """Logits [n, 2]. All texts of the benchmark are equally long, so that no server has to pad."""
        with torch.inference_mode():
            return self.module(**{name: torch.from_numpy(np.stack([each[name] for each in inputs])) for name in inputs[0]}).numpy()

    def answer(self, logits: np.ndarray) -> dict[str, Any]:
        """One answer."""
        return self.plugin.postprocess({"logits": logits}).model_dump()


class BertBase(Bert):
    """The same in the size of BERT-base."""

    plugin = "bert_base_plugin"


MODELS = {"resnet": Resnet, "bert": Bert, "bert_base": BertBase}
