"""Runs inside the Rasa environment: ``start`` gives the trainer or the bot. Standard library only until then."""

from __future__ import annotations

import logging
import os
from typing import Any

QUIET = {
    "RASA_TELEMETRY_ENABLED": "false",
    "RASA_MAX_CACHE_SIZE": "0",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "SQLALCHEMY_SILENCE_UBER_WARNING": "1",
    "CUDA_VISIBLE_DEVICES": "-1",
}
"""No telemetry, no training cache in the current folder, no start-up chatter, and no look for a GPU: the environment has the CPU build."""


async def start(settings: dict[str, Any]) -> Any:
    """Make the service that ``settings["role"]`` names: ``train`` or ``serve``."""
    os.environ.update(QUIET)
    threads = str(settings.get("threads") or 1)
    os.environ.update(TF_INTRA_OP_PARALLELISM_THREADS=threads, TF_INTER_OP_PARALLELISM_THREADS="1")
    from rasa.utils.log_utils import configure_structlog
    from rasa.utils.tensorflow.environment import setup_tf_environment

    # Unconfigured, structlog prints every event, with the users' words, in full.
    configure_structlog(logging.WARNING)
    setup_tf_environment()
    logging.getLogger("rasa").setLevel(logging.WARNING)
    if settings["role"] == "train":
        from rasa_training import Trainer

        return Trainer()
    from rasa_bot import open_bot

    return await open_bot(settings)
