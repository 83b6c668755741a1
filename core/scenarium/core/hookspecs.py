"""Every hook of a scenario, in the order in which they are called: data, model, train, serve.

A plugin implements those that differ from the default and takes only the arguments it needs. Every hook stops at the
first result that is not None (``firstresult``); the defaults of ``scenarium.core.defaults`` (and, for train, of
``scenarium.training.plugin``) stand behind all of them. Hooks are synchronous and called by keyword. State travels as
arguments, so a hook can be called in a test without a server.

Arguments that recur:

``config``
    the scenario's validated settings: an instance of the class that the hook ``config`` returned
``state``
    what ``fit`` returned: JSON values, stored with the version
``processor``
    what ``processor`` returned: the live form of ``state``, made once in each process
``rows``
    a list of ``Row``; ``item``: what one row became (``items``) or what one request became (``preprocess``)

Any hook may raise ``ScenariumError``; ``BadInput`` names a field of the client's request and becomes a 422.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import numpy as np
    import torch
    from pydantic import BaseModel

    from scenarium.core.config import ScenarioConfig
    from scenarium.core.pipeline import Run
    from scenarium.core.runtime import Runtime
    from scenarium.core.types import (
        Baseline,
        Batch,
        Data,
        Environment,
        Evaluation,
        Field,
        Figure,
        Metric,
        Row,
        Schema,
        Signature,
        Source,
        SplitName,
        Traits,
    )

HOOK_API = (1, 0)
"""Version of this file: the major grows when a hook goes or changes its meaning, the minor when one is added."""

hookspec = pluggy.HookspecMarker("scenarium")
hookimpl = pluggy.HookimplMarker("scenarium")


# ── data ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@hookspec(firstresult=True)
def config() -> type[ScenarioConfig]:
    """Return the class of the scenario's settings. Called when the scenario's settings are read.

    A subclass narrows the sections: ``class Config(ScenarioConfig): model: MyModel = MyModel()``. Default: ``ScenarioConfig``.
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def environment() -> Environment | None:
    """Return the interpreter of its own that the scenario needs, if any. Called before train and load. Default: None."""
    raise NotImplementedError


@hookspec(firstresult=True)
def fields(config: ScenarioConfig) -> Mapping[str, Field]:
    """Return the fields that a row of training data has. Called by ``train``, ``data check`` and the readers.

    Required of every plugin: the user's file is mapped onto these names by ``--map field=column``.
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def sources(config: ScenarioConfig) -> Sequence[Source]:
    """Return the data sets to train on when the user names none. Called by ``train`` and ``data check``.

    All sources that are ``free`` are read and joined. Default: none, so that ``--data`` is required.
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def schema(config: ScenarioConfig) -> Schema:
    """Return the pydantic classes of a request and of an answer. Called when a version is built and when a worker starts.

    Required of every plugin. A field of type ``bytes`` takes raw bodies, uploads and base64 strings alike.
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def sample(config: ScenarioConfig) -> BaseModel:
    """Return one valid request. Called when a version is built; used by docs, warm-up, the check on load and ``check``.

    Required of every plugin. It must not need a file of the user's.
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def fit(config: ScenarioConfig, rows: Sequence[Row]) -> Mapping[str, Any]:
    """Learn what must be known before the model exists: label names, vocabulary, mean and scale.

    Called once a training, with the rows of the training split alone. Returns JSON values, stored as ``state.json``.
    Default: an empty mapping.
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def processor(config: ScenarioConfig, state: Mapping[str, Any]) -> Any:
    """Turn ``state`` into what ``encode``, ``preprocess`` and ``postprocess`` use: a tokenizer, a table of labels.

    Called once in each process. Must not import torch where the scenario is to be served from an export. Default: ``state``.
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def items(config: ScenarioConfig, processor: Any, rows: Sequence[Row], split: SplitName) -> Sequence[Any]:
    """Turn rows into training items, by index: windows of a series, chunks of a text. Called once a split. Default: the rows."""
    raise NotImplementedError


@hookspec(firstresult=True)
def encode(config: ScenarioConfig, processor: Any, item: Any, rng: np.random.Generator | None) -> Mapping[str, np.ndarray]:
    """Turn one training item into arrays without a batch axis: every input of the signature, and the targets (``labels``).

    Called by the trainer for each item of each epoch. ``rng`` is seeded by (seed, epoch, index of the item) for augmentation,
    and is None on validation. Needed by the shared trainer.
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def collate(config: ScenarioConfig, signature: Signature, batch: Sequence[Mapping[str, np.ndarray]]) -> Batch:
    """Join encoded items into one batch. Called by the trainer and by the default ``predict_batch``.

    Default: stack; axes declared -1 are filled to the longest with the input's ``pad`` (-100 for arrays that are no input).
    """
    raise NotImplementedError


# ── model ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@hookspec(firstresult=True)
def signature(config: ScenarioConfig, state: Mapping[str, Any]) -> Signature:
    """Return the named inputs and outputs of ``forward``, without the batch axis. Called before training and on load.

    Default: no tensors, for scenarios that are no tensor function.
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def model(config: ScenarioConfig, state: Mapping[str, Any]) -> torch.nn.Module:
    """Build the module. Called by the trainer, and on load before the weights are read.

    ``forward`` is a pure tensor function: it takes the signature's inputs as keyword arguments and returns one tensor, or a
    tuple in the order of the signature's outputs. Pretrained weights are loaded here only when ``config.model`` asks for them.
    """
    raise NotImplementedError


# ── train ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@hookspec(firstresult=True)
def loss(config: ScenarioConfig, signature: Signature, model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | int]:
    """Return (sum of the losses, what it was summed over): rows, tokens, pixels.

    Called for every micro-batch, inside autocast. The trainer divides by the count of the whole effective batch, so that
    accumulation and data parallelism give the big batch's gradient. Default: cross entropy of the first output against
    ``labels`` (int64, -100 is ignored).
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def optimizer(config: ScenarioConfig, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer. Called once a training, after the model is on its device. Default: AdamW from ``config.train``,
    weight decay not on biases and norms."""
    raise NotImplementedError


@hookspec(firstresult=True)
def train(config: ScenarioConfig, data: Data, run: Run) -> bool:
    """Train and write the model's files into ``run.out``. Return True. Called once a training.

    Default: the shared trainer, which writes ``model.safetensors``. Override it where nothing is trained by gradients;
    report by ``run.progress`` and ``run.log``, and write ``run.state`` (what ``fit`` returned) if it changes.
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def export(config: ScenarioConfig, model: torch.nn.Module, signature: Signature, batch: Batch, out: Path) -> Sequence[str]:
    """Write exports into ``out`` and return their file names. Called after training with the inputs of a few held-out rows.

    Whoever calls it compares ``model.onnx`` with the trained model (``Traits.tolerance``) and drops an export that differs. Raises
    ``ScenariumError`` where the model cannot be exported. Default: ``model.onnx`` with free batch and -1 axes, where the signature has inputs.
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def metric(config: ScenarioConfig) -> Metric:
    """Return the primary metric: a key of what ``score`` returns. Called by ``train``, ``evaluate`` and ``promote``. Required."""
    raise NotImplementedError


@hookspec(firstresult=True)
def request(config: ScenarioConfig, row: Row) -> BaseModel:
    """Turn a held-out row into the request that a client would send. Called by the default ``evaluate``.

    Default: the fields of the row that the request class has.
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def evaluate(config: ScenarioConfig, runtime: Runtime, rows: Sequence[Row]) -> Evaluation:
    """Measure a trained version on rows that it never saw. Called after training and by ``scenarium evaluate``.

    Default: every row becomes a request (``request``), is answered by the real serving path, and ``score`` compares.
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def score(config: ScenarioConfig, rows: Sequence[Row], answers: Sequence[Mapping[str, Any]]) -> Mapping[str, float]:
    """Compare answers (JSON form of the response class) with the rows they belong to; metrics by name.

    Called by the default ``evaluate``, and many times on resampled rows by ``promote``, so it must be pure. Required.
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def baseline(config: ScenarioConfig, train: Sequence[Row], test: Sequence[Row]) -> Baseline | None:
    """Measure a simple named method on the same held-out rows. Called after training. Default: None."""
    raise NotImplementedError


@hookspec(firstresult=True)
def report(config: ScenarioConfig, rows: Sequence[Row], answers: Sequence[Mapping[str, Any]]) -> Sequence[Figure]:
    """Return the domain's plots for the training report (confusion matrix, forecast fan). Called after ``evaluate``. Default: none."""
    raise NotImplementedError


# ── serve ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@hookspec(firstresult=True)
def traits(config: ScenarioConfig) -> Traits:
    """Return how the scenario wants to be served: purity, concurrency, batch limit, routing key, modules to preload.

    Called when a version is built (it goes into the manifest). Default: ``Traits()``.
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def load(config: ScenarioConfig, state: Mapping[str, Any], signature: Signature, version: Path, device: str) -> Any:
    """Load a version's files into what ``predict_batch`` and ``stream`` use. Called once in a worker, before it is ready.

    ``version`` is a local folder; ``device`` is ``cpu`` or ``cuda:N``. Default: the engine that ``config.serve.engine`` names
    (``scenarium.core.engines``), a callable from a batch of arrays to a batch of arrays.
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def preprocess(config: ScenarioConfig, processor: Any, request: BaseModel) -> Any:
    """Turn one request into one item, for the default ``predict_batch``: every input of the signature, no batch axis.

    Called in the worker for each request. Raises ``BadInput`` for what the schema cannot see. Default: the request.
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def predict_batch(config: ScenarioConfig, signature: Signature, model: Any, batch: Sequence[Any]) -> Sequence[Any]:
    """Answer a batch: one output an item, in order, as many as came in.

    Called in the worker with at most ``max_batch_size`` items of one bucket. Default: ``collate``, the engine, and one mapping
    of output arrays an item.
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def postprocess(config: ScenarioConfig, processor: Any, request: BaseModel, output: Any) -> BaseModel:
    """Turn one output into the answer. Called in the worker for each request. Default: the output."""
    raise NotImplementedError


@hookspec(firstresult=True)
def stream(config: ScenarioConfig, processor: Any, model: Any, request: BaseModel) -> Iterator[Any]:
    """Yield the parts of an answer (JSON values) as they come. Called in the worker for ``/stream``; closed when the client leaves.

    A wrapper of this hook wraps the iterator. Default: none, ``/stream`` answers 404.
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def log_entry(scenario: str, entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """Change what is about to be logged or audited of a request (``request``, ``answer``, ``error``: JSON values).

    Called in the worker before an entry leaves it; and in the gateway, with the extensions alone, for what a client chose of a line of the access
    log (``request_id``, ``path``). Extensions wrap it to mask personal data. Default: the entry.
    """
    raise NotImplementedError
