"""The small values that hooks exchange: rows, fields, tensor signatures, metrics, evaluations.

Nothing here imports torch or numpy at run time, so listing scenarios stays fast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from pydantic import BaseModel

JSON: TypeAlias = "dict[str, JSON] | list[JSON] | str | int | float | bool | None"

Row: TypeAlias = dict[str, Any]
"""One record of a data set: field name to plain Python value.

Reserved keys start with an underscore: ``_file`` and ``_line`` say where the row was read (for errors),
``_group`` keeps rows together in a split, ``_split`` fixes the split of a row that its publisher assigned."""

Batch: TypeAlias = "dict[str, np.ndarray]"
"""Name to array, first axis is the row."""

SplitName: TypeAlias = Literal["train", "val", "test"]

Origin: TypeAlias = Literal["real", "real parts, generated", "simulated", "generated"]
"""Where a data set comes from; shown beside every answer as ``data_origin``."""

FieldKind: TypeAlias = Literal["text", "label", "number", "integer", "time", "image", "mask", "entities", "json"]
"""What a field of a row holds after reading:

- ``text``, ``label``: ``str``; ``number``: ``float``; ``integer``: ``int``; ``time``: ``datetime`` (naive = UTC)
- ``image``: a path (``str``), encoded ``bytes`` or a ``uint8`` array ``[H, W]`` or ``[H, W, 3]``; ``mask``: the same, one channel
- ``entities``: ``list[dict]`` with ``start``, ``end`` (code-point offsets into the row's text, end exclusive) and ``label``
- ``json``: any JSON value."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field that a scenario's rows must or may have."""

    kind: FieldKind
    doc: str
    required: bool = True


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One named tensor of a model's forward, without the batch axis.

    ``shape`` holds one entry an axis, -1 where the length varies from row to row; ``dtype`` is a NumPy name.
    ``pad`` fills the shorter rows of a batch along the -1 axes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    pad: float = 0


@dataclass(frozen=True, slots=True)
class Signature:
    """What goes into and comes out of ``forward``. Both in order; the batch axis is axis 0 of every tensor."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class Schema(NamedTuple):
    """The pydantic classes of one request and one answer of a scenario."""

    request: type[BaseModel]
    response: type[BaseModel]


@dataclass(frozen=True, slots=True)
class Metric:
    """The primary metric, by which versions are compared.

    ``floor`` is the value a first version must reach to become ``production`` by itself; where it is None the
    baseline's value on the same held-out rows is the floor.
    """

    name: str
    higher_is_better: bool = True
    floor: float | None = None

    def better(self, a: float, b: float) -> bool:
        """Whether ``a`` is strictly better than ``b``."""
        return a > b if self.higher_is_better else a < b


@dataclass(slots=True)
class Evaluation:
    """Held-out quality: metrics by name, and the rows with their answers (JSON form) for reports and comparisons."""

    metrics: dict[str, float]
    rows: list[Row] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)


class Baseline(NamedTuple):
    """A simple method measured on the same held-out rows: its name and its metrics."""

    name: str
    metrics: dict[str, float]


class Figure(NamedTuple):
    """One part of a report: a title, and a self-contained SVG or HTML fragment."""

    title: str
    html: str


@dataclass(frozen=True, slots=True)
class Disagreement:
    """How answers of two versions to the same request are compared while a rollout mirrors requests; see ``scenarium.core.disagreement``."""

    metric: Literal["answer", "label", "number", "boxes", "spans", "tokens", "quantiles"] = "answer"
    pointer: str = ""
    """JSON pointer into the answer to the value that is compared (``/label``); empty: the whole answer."""


@dataclass(frozen=True, slots=True)
class Traits:
    """How a scenario wants to be served."""

    pure: bool = True
    """The answer depends on the request alone, so an item may be run again after a fault."""
    concurrency: int | Literal["batch"] = "batch"
    """``"batch"``: one blocking ``predict_batch`` at a time; n: up to n open items, each predicted or streamed on its own."""
    max_batch_size: int = 32
    streams: bool = False
    """Whether the plugin implements ``stream``."""
    route_key: str | None = None
    """JSON pointer into the request body of the routing key (``/session_id``), when no ``X-Scenarium-Key`` header is sent."""
    preload: tuple[str, ...] = ()
    """Third-party modules that the zygote imports once for all workers (``transformers.models.bert.modeling_bert``). Never plugin code."""
    tolerance: float = 1e-4
    """Largest relative difference allowed between engines and between the stored and the recomputed sample answer."""
    disagreement: Disagreement = Disagreement()
    """How the answers of two versions are compared in a rollout: ``Disagreement("label", "/label")``."""


@dataclass(frozen=True, slots=True)
class Environment:
    """An interpreter of its own for what cannot live in the main one (other Python, conflicting packages).

    ``folder`` holds the plugin's ``env_main.py`` (standard library only at import) and its lock files ``lock-<python>.txt``.
    """

    name: str
    pythons: tuple[str, ...]
    """Accepted Python versions, the preferred first: ``("3.10", "3.11")``."""
    folder: Path


@dataclass(frozen=True, slots=True)
class Source:
    """One default data set of a plugin: what to fetch, and how to read it into rows."""

    name: str
    origin: Origin
    licence: str
    read: Callable[[list[Path]], Sequence[Row]]
    """Given the local paths of ``files`` in order, return the rows, fields named as the scenario names them."""
    files: tuple[Any, ...] = ()
    """``PackageFile``, ``HubFile`` or ``HubDataset`` values (``scenarium.core.sources``)."""
    free: bool = True
    """False where carrier or content is copyleft, non-commercial or unstated: then never a default, and needs ``accept_licence``."""
    doc: str = ""


@dataclass(slots=True)
class Data:
    """A prepared data set: read, checked, deduplicated, split."""

    train: list[Row]
    val: list[Row]
    test: list[Row]
    origin: Origin
    manifest: dict[str, Any]
    """Files with SHA-256, counts, the split rule, the hash of the whole (``sha256``): ``scenarium.core.datasets``."""

    def rows(self, split: SplitName) -> list[Row]:
        """The rows of one split."""
        return {"train": self.train, "val": self.val, "test": self.test}[split]
