"""Mixed precision: which number format the forward uses, and the gradient scaler that fp16 needs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Precision:
    """The format of the forward on one device."""

    name: str
    """``fp32``, ``bf16`` or ``fp16``."""
    device: torch.device

    @classmethod
    def choose(cls, wanted: str, device: torch.device) -> Precision:
        """``auto`` is bf16 where the processor multiplies it natively, else fp32."""
        return cls(("bf16" if bf16_is_native(device) else "fp32") if wanted == "auto" else wanted, device)

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a forward. It can be entered again and again."""
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16 if self.name == "bf16" else torch.float16)

    def scaler(self) -> torch.amp.GradScaler | None:
        """fp16 gradients underflow without a scale (Micikevicius et al., arXiv:1710.03740); the other formats need none."""
        return torch.amp.GradScaler(self.device.type) if self.name == "fp16" else None


def bf16_is_native(device: torch.device) -> bool:
    """Whether bf16 is faster than fp32: AVX512-BF16 or AMX on a CPU, compute capability 8.0 on CUDA. Emulated bf16 is slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
