"""Fault: preprocess needs torch, though the version is served from its export."""

from __future__ import annotations

from healthy import *


@hookimpl
def preprocess(request: Ask) -> Mapping[str, np.ndarray]:
    import torch

    return {"letters": torch.tensor([ord(letter) % 97 + 1 for letter in request.text[:LONGEST]]).numpy()}
