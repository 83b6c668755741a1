"""Trains a Rasa project and tells how it goes, one epoch at a time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import rasa.model_training
import rasa.shared.utils.cli
from rasa.utils.tensorflow.callback import RasaTrainingLogger
from scenarium_environment import Fault


class Trainer:
    """The service of a training."""

    async def train(self, project: str, out: str) -> AsyncIterator[dict[str, Any]]:
        """Train the project in folder ``project`` and write ``model.tar.gz`` into ``out``; yields ``{"epoch", "epochs", "metrics"}``."""
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

        def tell(event: dict[str, Any]) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        def run() -> None:
            try:
                tell({"done": train(Path(project), Path(out), tell)})
            except BaseException as fault:
                tell({"fault": fault if isinstance(fault, Fault) else Fault("SCN-6022", reason=why(fault))})

        threading.Thread(target=run, daemon=True).start()
        while True:
            event = await events.get()
            if "fault" in event:
                raise event["fault"]
            if "done" in event:
                return
            yield event


def why(fault: BaseException) -> str:
    """The fault and what caused it: Rasa's own says only which component failed."""
    said = f"{type(fault).__name__}: {fault}"
    return f"{said.rstrip('.')} ({why(fault.__cause__)})" if fault.__cause__ else said


def train(project: Path, out: Path, tell: Any) -> None:
    """Run ``rasa train``; what it would print as an error becomes the reason of the fault."""
    said: list[str] = []
    printed = rasa.shared.utils.cli.print_error
    rasa.shared.utils.cli.print_error = lambda *words: said.append(" ".join(map(str, words)))
    epoch_end = RasaTrainingLogger.on_epoch_end

    def on_epoch_end(self: Any, epoch: int, logs: dict[str, Any] | None = None) -> None:
        tell({"epoch": epoch + 1, "epochs": self.progress_bar.total, "metrics": {name: float(value) for name, value in (logs or {}).items()}})

    RasaTrainingLogger.on_epoch_end = on_epoch_end
    domain = next((path for name in ("domain", "domain.yml", "domain.yaml") if (path := project / name).exists()), project / "domain.yml")
    try:
        result = rasa.model_training.train(
            str(domain), str(project / "config.yml"), [str(project / "data")], output=str(out), force_training=True, fixed_model_name="model"
        )
    except SystemExit:
        raise Fault("SCN-6022", reason="; ".join(said) or "rasa train stopped") from None
    finally:
        rasa.shared.utils.cli.print_error = printed
        RasaTrainingLogger.on_epoch_end = epoch_end
    if result.code or not result.model:
        raise Fault("SCN-6022", reason="; ".join(said) or f"rasa train ended with code {result.code}")
