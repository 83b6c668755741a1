"""The settings of a scenario, and where each value came from.

Later wins: the plugin's default < ``scenarios.toml`` < ``SCENARIUM_…`` environment variables < ``--set a.b=c``.
The field documentation below each setting is what ``scenarium config explain`` and the hand-book show.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ByteSize, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from scenarium.core.errors import BadValue
from scenarium.core.settings import DESCRIBED
from scenarium.core.settings import Origin as Origin
from scenarium.core.settings import Settings as Settings


class Section(BaseModel):
    """A table of settings. Unknown keys are refused; each field is documented by the string below it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=DESCRIBED, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _keep_the_holders_defaults(cls, values: Any) -> Any:
        """``train: TrainConfig = TrainConfig(epochs=8)`` stays at 8 epochs where the user's table sets ``train.lr`` alone."""
        if isinstance(values, dict):
            held = {name: info.default for name, info in cls.model_fields.items() if isinstance(info.default, Section)}
            filled = {name: {**default.model_dump(), **values[name]} for name, default in held.items() if isinstance(values.get(name), dict)}
            return {**values, **filled}
        return values


class DataConfig(Section):
    """Which data to train on and how to split it."""

    path: str | None = None
    """The user's own data: a file, a folder or any fsspec URL; `hf://` and `ms://` name hub data sets. None: the plugin's default sources."""
    val_path: str | None = None
    """The user's own validation rows, beside `path`. None: taken from `path`."""
    test_path: str | None = None
    """The user's own held-out rows, beside `path`. None: taken from `path`."""
    encoding: str | None = None
    """Encoding of text files (`gb18030`, `big5`, …). None: found out line by line, and stated where it is not UTF-8."""
    map: dict[str, str] = {}
    """Field of the scenario to column of the file: `--map text=content`."""
    map_label: dict[str, str] = {}
    """Label in the file to label of the scenario: `--map-label spam=fraud`."""
    split: str = "random"
    """`random`, `time:COLUMN` (the latest rows are held out) or `group:COLUMN` (a group is never torn apart)."""
    val: float = Field(0.1, ge=0, lt=1)
    """Share of the rows for validation while training."""
    test: float = Field(0.2, ge=0, lt=1)
    """Share of the rows held out for the final measurement."""
    limit: int | None = Field(None, gt=0)
    """Use at most so many rows (a trial run)."""
    accept_licence: list[str] = []
    """Names of default sources whose licence needs consent and is accepted."""


class ModelConfig(Section):
    """The model's settings; plugins subclass it."""


class TrainConfig(Section):
    """The shared trainer's settings."""

    epochs: int = Field(3, gt=0)
    """Passes over the training rows."""
    max_steps: int | None = Field(None, gt=0)
    """Stop after so many optimizer steps."""
    batch_size: int = Field(32, gt=0)
    """Rows of a micro-batch on one device."""
    accumulate: int = Field(1, gt=0)
    """Micro-batches of one optimizer step."""
    lr: float = Field(1e-3, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(0.01, ge=0)
    """AdamW's weight decay, not on biases and norms."""
    warmup: float = Field(0.05, ge=0)
    """Linear warm-up: a share of all steps below 1, a number of steps from 1 on."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning rate after the warm-up."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """`auto`: bf16 where the processor multiplies it natively, else fp32. fp16 uses a GradScaler."""
    clip: float | None = Field(1.0, gt=0)
    """Largest norm of the gradient of one step; None: no clipping."""
    patience: int | None = Field(None, gt=0)
    """Stop after so many epochs without a better validation loss."""
    seed: int = 0
    """Seed of weights, row order and augmentation."""
    checkpoint_steps: int | None = Field(None, gt=0)
    """Optimizer steps between checkpoints; None: at the end of each epoch and every 60 s."""
    nproc: int = Field(1, gt=0)
    """Processes for data parallel training on this machine."""
    threads: int | None = Field(None, gt=0)
    """Threads of one process; None: the cores dealt evenly."""


class ServeConfig(Section):
    """How the scenario is served; the only section that a gateway reads from `scenarios.toml`."""

    engine: str = "torch"
    """What runs the forward: `torch`, `onnx`, `openvino`, `openvino:bf16` or `triton`. An optimised version keeps its own, unless this is `triton`."""
    device: str = "auto"
    """`auto`, `cpu` or `cuda:N`."""
    workers: int = Field(1, gt=0)
    """Worker processes."""
    threads: int | None = Field(None, gt=0)
    """Threads of one worker; None: cores dealt among busy workers."""
    worker_group: str | None = None
    """Scenarios with the same name here share each worker process. Empty: a process of its own. None: on a GPU one group a device, else its own."""
    max_batch_size: int | None = Field(None, gt=0)
    """Most items of one batch; None: the plugin's own limit."""
    max_delay_ms: float = Field(0, ge=0)
    """A free worker waits at most so long for as many requests as were lately open at once. 0: it takes what waits."""
    deadline_ms: float = Field(30_000, gt=0)
    """A request that is not answered in time ends with 504."""
    hang_s: float = Field(15, gt=0)
    """A worker that answers no ping in so long hangs as a whole and is replaced."""
    probe_s: float = Field(60, ge=0)
    """An idle worker of a pure scenario answers its sample so often, which its readiness rests on. 0: pings alone."""
    queue_size: int = Field(256, gt=0)
    """Requests that may wait; more are refused with 503 and Retry-After."""
    max_body_bytes: int = Field(16 * 1024 * 1024, gt=0)
    """Largest request body."""
    required: bool = False
    """Whether the gateway's /readyz waits for this scenario. It is kept warm."""
    keep_warm: bool = False
    """Whether it always has workers, however short memory is (`gateway.memory_budget`)."""
    cache_size: int = Field(0, ge=0)
    """Bytes of answers that the gateway keeps and gives to identical requests; pure scenarios alone. 0: none are kept."""
    cache_ttl_s: float = Field(300, gt=0)
    """How long an answer is kept."""
    triton_url: str = Field("127.0.0.1:8001", pattern=r"^[^\s/:]+:\d+$|^\[[^\s]+\]:\d+$")
    """For `engine = "triton"`: `HOST:PORT` of Triton's gRPC protocol."""
    triton_model: str | None = None
    """For `engine = "triton"`: the model's name there; None: the scenario's."""
    upstream: str | None = Field(None, pattern=r"^https?://[^\s]+$")
    """Address of another server of the OpenAI API (vLLM or any), as `http://host:8000/v1`, that answers what comes for this scenario below `/v1`."""
    upstream_model: str | None = None
    """The upstream's name of the model; None: the scenario's."""
    upstream_key_env: str | None = None
    """Environment variable of the gateway that holds the upstream's API key."""
    log_payloads: bool = False
    """Write each request and answer to the log, masked by the installed extensions."""


class ScenarioConfig(Section):
    """All settings of one scenario."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    serve: ServeConfig = ServeConfig()


class GatewayConfig(Section):
    """The gateway's own settings: table `[gateway]`."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(8080, ge=0, lt=65536)
    """Port to listen on; 0: any free one."""
    grpc_port: int | None = Field(None, ge=0, lt=65536)
    """Port of the KServe v2 protocol over gRPC (`pip install "scenarium[triton]"`; Triton's own is 8001); 0: any free one. None: no gRPC."""
    drain_s: float = Field(30.0, gt=0)
    """How long requests in flight may take after SIGTERM."""
    log_format: Literal["json", "text"] = "json"
    """Form of the log lines."""
    keys: str | None = "keys.sqlite"
    """File of the API keys that `scenarium keys` makes; a relative path lies beside `scenarios.toml`. None: no keys are asked for."""
    allow_anonymous: bool = False
    """Listen beyond this machine though no key exists, for a gateway behind a proxy that knows its callers. Once a key exists, keys are asked for."""
    open_metrics: bool | None = None
    """Whether /metrics answers without a key. None: where the gateway listens on this machine alone."""
    redis: str | None = None
    """`redis://HOST:PORT/N`: several gateways count the limits of a key together (`pip install "scenarium[redis]"`). None: each gateway for itself."""
    audit: str | None = None
    """File for the audit log: one line a request, chained by hash, without payloads. A relative path lies beside `scenarios.toml`. None: no audit log."""
    audit_required: bool = False
    """Let no request in (503) while the audit log cannot be written. False: answers go on; what no longer fits into memory is lost, counted and confessed."""
    body_timeout_s: float = Field(30.0, gt=0)
    """How long a client may take to send its headers, and then its body (and 1 s more for each 16 KiB of it); slower ends with 408."""
    keep_alive_s: float = Field(5.0, gt=0)
    """How long a connection without a request stays open."""
    max_header_bytes: int = Field(65_536, ge=1024)
    """Largest request line and headers together; larger ends with 431."""
    max_connections: int = Field(4096, gt=0)
    """Connections at once; one more is answered with 503 and closed."""
    memory_budget: ByteSize | None = Field(None, gt=0)
    """Bytes (`4GiB`, `500MB`) that the gateway and its workers may use; scenarios come and go within. None: 80 % of a container's limit, else no budget."""
    device_budget: ByteSize | None = Field(None, gt=0)
    """Bytes of each GPU that may be used before scenarios are evicted there. None: 90 % of what it has."""
    residence_s: float = Field(2.0, ge=0)
    """How long a scenario stays at least, once it was loaded, before it is evicted for another."""
    access_log: float = Field(0, ge=0, le=1)
    """Share of the requests that get a line in the log (id, scenario, version, status, milliseconds, key id, trace id). 0: none; 1: all."""
    tracing: bool | None = None
    """Send traces by OpenTelemetry, as the `OTEL_…` variables say (`pip install "scenarium[otel]"`). None: where they name a receiver."""
    jobs: str | None = "jobs.sqlite"
    """File of the jobs of this gateway; a relative path lies beside `scenarios.toml`. None: no jobs."""
    job_deadline_s: float = Field(3600.0, gt=0)
    """How long a job may take from when it is begun."""
    jobs_keep_s: float = Field(86_400.0, gt=0)
    """How long the result of a job is kept after its end, and how long a job may wait to be begun."""
    jobs_at_once: int = Field(4, gt=0)
    """Jobs of one scenario that are begun at once."""
    max_jobs: int = Field(1000, gt=0)
    """Jobs that may wait or run; one more is refused with 503 and Retry-After."""
    max_job_bytes: int = Field(32 * 1024 * 1024, gt=0)
    """Largest body of a batch job, and largest result of any job."""

    @field_validator("audit_required")
    @classmethod
    def _has_a_file(cls, value: bool, known: ValidationInfo) -> bool:
        if value and known.data.get("audit", "") is None:
            raise BadValue("needs the file of an audit log: set gateway.audit", "需要审计日志的文件：请设置 gateway.audit")
        return value


class CoreConfig(Section):
    """What all scenarios share: table `[scenarium]`."""

    store: str | None = None
    """Where versions are kept: a folder or any fsspec URL (`SCENARIUM_STORE`). None: `store` beside `scenarios.toml`, else in the user's data folder."""


SHARED: dict[str, type[Section]] = {"gateway": GatewayConfig, "scenarium": CoreConfig}
"""The tables that belong to no scenario."""


def check_shared(settings: Settings) -> None:
    """Validate the tables that belong to no scenario.

    Raises:
        ScenariumError: SCN-1003, SCN-1004, SCN-1007.
    """
    for name, cls in SHARED.items():
        settings.validate(cls, (name,), name)


def explain(settings: Settings, cls: type[Section], name: str, prefix: tuple[str, ...] | None = None) -> Iterator[tuple[str, Any, Origin, str]]:
    """Every setting below ``prefix`` (default: the scenario's table): dotted name, value, origin, documentation."""
    prefix = ("scenarios", name) if prefix is None else prefix
    config = settings.validate(cls, prefix, name, ignore=("plugin", "enabled"))

    def walk(section: Section, path: tuple[str, ...]) -> Iterator[tuple[str, Any, Origin, str]]:
        for field, info in type(section).model_fields.items():
            value = getattr(section, field)
            if isinstance(value, Section):
                yield from walk(value, (*path, field))
            else:
                yield ".".join((*path, field)), value, settings.origin(*prefix, *path, field), info.description or ""

    yield from walk(config, ())
