"""What ``/metrics`` shows. Requests add to plain numbers; prometheus-client reads them when it is scraped.

Latency is split as Triton splits it: queue, preprocess, forward, postprocess. Labels come from closed sets (scenario names,
outcomes, states), so no request can add a series.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from scenarium.gateway.app import Gateway
    from scenarium.gateway.job_file import State as JobState
    from scenarium.gateway.services import Service

LATENCY_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256)
OUTCOMES = ("ok", "client_error", "server_error", "busy", "deadline", "cancelled")
ENDED: tuple[JobState, ...] = ("done", "failed", "cancelled")
FRAMES = ("answered", "failed", "dropped")
CALLS = ("ok", "failed", "deadline", "cancelled", "refused")
"""``refused``: by the breaker, so Triton was not asked."""
BREAKER = ("closed", "open", "reloading")
STEPS = ("queue", "preprocess", "forward", "postprocess")


class Histogram:
    """Counts by bucket, and the sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Add one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts in Prometheus' form."""
        found, running = [], 0
        for bound, count in zip((*self.bounds, "+Inf"), self.counts, strict=True):
            running += count
            found.append((str(bound), float(running)))
        return found


class LiveFigures:
    """The figures of a scenario's live connections."""

    def __init__(self) -> None:
        self.open = 0
        self.frames = dict.fromkeys(FRAMES, 0)


class Calls:
    """What became of the calls of a scenario's workers to Triton."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(CALLS, 0)

    def called(self, calls: Mapping[str, int], breaker: str) -> str:
        """Count calls by outcome. What is told by a worker, which runs a plugin's code, is held to the closed sets.

        Raises:
            ValueError: no such outcome or state.
        """
        if not calls.keys() <= self.counts.keys() or breaker not in BREAKER:
            raise ValueError(f"figures of calls {dict(calls)}, {breaker!r}")
        for outcome, count in calls.items():
            self.counts[outcome] += max(0, count)
        return breaker


class Stats:
    """The figures of one scenario."""

    def __init__(self) -> None:
        self.outcomes = dict.fromkeys(OUTCOMES, 0)
        self.latency = Histogram(LATENCY_S)
        self.steps = {step: Histogram(LATENCY_S) for step in STEPS}
        self.batches = Histogram(tuple(map(float, BATCH)))
        self.restarts = 0
        self.live = LiveFigures()
        self.upstream = Calls()
        self._queue, self._preprocess, self._forward, self._postprocess = (self.steps[step].observe for step in STEPS)
        self.batch: Callable[[float], None] = self.batches.observe

    def answered(self, status: int, seconds: float, queued: float, times: tuple[int, int, int, int]) -> None:
        """Count one request that a worker answered."""
        self.outcomes["ok" if status < 400 else "client_error" if status < 500 else "server_error"] += 1
        self.latency.observe(seconds)
        self._queue(queued + times[0] * 1e-6)
        self._preprocess(times[1] * 1e-6)
        self._forward(times[2] * 1e-6)
        self._postprocess(times[3] * 1e-6)

    def shared(self, status: int, seconds: float) -> None:
        """Count one request that was answered without a worker of its own: its answer was kept, or another had asked for it."""
        self.outcomes["ok" if status < 400 else "client_error" if status < 500 else "server_error"] += 1
        self.latency.observe(seconds)

    def failed(self, failure: str | None) -> None:
        """Count one request that its worker did not answer."""
        self.outcomes[failure if failure in ("busy", "deadline", "cancelled") else "busy" if failure == "memory" else "server_error"] += 1


class GatewayCollector(Collector):
    """Reads the figures of all scenarios, and of the gate before them."""

    def __init__(self, services: Mapping[str, Service], gateway: Gateway | None = None) -> None:
        self.services = services
        self.gateway = gateway

    def collect(self) -> Iterator[Metric]:
        from scenarium.gateway.services import STATES

        requests = CounterMetricFamily("scenarium_requests", "Requests by how they ended", labels=("scenario", "outcome"))
        restarts = CounterMetricFamily("scenarium_worker_restarts", "Workers that died after they were ready", labels=("scenario",))
        latency = HistogramMetricFamily("scenarium_request_seconds", "From the whole body to the answer", labels=("scenario",))
        steps = HistogramMetricFamily("scenarium_step_seconds", "Latency split by step", labels=("scenario", "step"))
        batches = HistogramMetricFamily("scenarium_batch_size", "Items given to a worker at once", labels=("scenario",))
        depth = GaugeMetricFamily("scenarium_queue_depth", "Requests that wait", labels=("scenario",))
        running = GaugeMetricFamily("scenarium_requests_open", "Requests that have not ended", labels=("scenario",))
        workers = GaugeMetricFamily("scenarium_workers", "Workers that are ready", labels=("scenario",))
        version = GaugeMetricFamily("scenarium_version", "The version that is served; 0: none", labels=("scenario",))
        state = GaugeMetricFamily("scenarium_state", "1 for the state that the scenario is in", labels=("scenario", "state"))
        for name, service in self.services.items():
            stats = service.stats
            for outcome, count in stats.outcomes.items():
                requests.add_metric((name, outcome), count)
            restarts.add_metric((name,), stats.restarts)
            latency.add_metric((name,), stats.latency.buckets(), stats.latency.total)
            for step, histogram in stats.steps.items():
                steps.add_metric((name, step), histogram.buckets(), histogram.total)
            batches.add_metric((name,), stats.batches.buckets(), stats.batches.total)
            depth.add_metric((name,), service.batcher.depth)
            running.add_metric((name,), service.batcher.live)
            workers.add_metric((name,), sum(link.serving for link in service.links()))
            version.add_metric((name,), service.served or 0)
            for value in STATES:
                state.add_metric((name, value), float(service.state == value))
        rejected = CounterMetricFamily("scenarium_rejected", "Requests that no scenario saw, by reason", labels=("reason",))
        keys = GaugeMetricFamily("scenarium_keys", "API keys that are not revoked")
        written = CounterMetricFamily("scenarium_audit_lines", "Lines of the audit log that were written")
        lost = CounterMetricFamily("scenarium_audit_lost", "Lines of the audit log that could not be written")
        if self.gateway:
            for reason, count in self.gateway.admission.rejected.items():
                rejected.add_metric((reason,), count)
            keys.add_metric((), len(self.gateway.admission.keyring.keys))
            if self.gateway.audit:
                written.add_metric((), self.gateway.audit.lines)
                lost.add_metric((), self.gateway.audit.lost)
        families: Iterable[Metric] = (rejected, keys, written, lost, requests, restarts, latency, steps, batches, depth, running, workers, version, state)
        yield from families
        yield from self._triton()
        yield from self._live()
        yield from self._jobs()
        yield from self._caches()
        yield from self._memory()
        yield from self._rollouts()

    def _triton(self) -> Iterator[Metric]:
        calls = CounterMetricFamily("scenarium_triton_requests", "Batches meant for Triton, by what became of them", labels=("scenario", "outcome"))
        breaker = GaugeMetricFamily("scenarium_triton_breaker", "Workers by the state of their circuit breaker to Triton", labels=("scenario", "state"))
        for name, service in self.services.items():
            if service.config.engine != "triton":
                continue
            for outcome, count in service.stats.upstream.counts.items():
                calls.add_metric((name, outcome), count)
            states = [link.breaker for link in service.links()]
            for state in BREAKER:
                breaker.add_metric((name, state), states.count(state))
        yield from (calls, breaker)

    def _live(self) -> Iterator[Metric]:
        connections = GaugeMetricFamily("scenarium_live_connections", "WebSockets that are open", labels=("scenario",))
        frames = CounterMetricFamily("scenarium_live_frames", "Frames that came by them, by what became of them", labels=("scenario", "outcome"))
        for name, service in self.services.items():
            connections.add_metric((name,), service.stats.live.open)
            for outcome, count in service.stats.live.frames.items():
                frames.add_metric((name, outcome), count)
        yield from (connections, frames)

    def _jobs(self) -> Iterator[Metric]:
        open_ = GaugeMetricFamily("scenarium_jobs", "Jobs that have not ended", labels=("scenario", "state"))
        ended = CounterMetricFamily("scenarium_jobs_ended", "Jobs by how they ended", labels=("scenario", "state"))
        if self.gateway:
            jobs = self.gateway.jobs
            for name in self.services:
                open_.add_metric((name, "queued"), len(jobs.waiting.get(name, ())))
                open_.add_metric((name, "running"), len(jobs.running.get(name, ())))
                for state in ENDED:
                    ended.add_metric((name, state), jobs.ended[name, state])
        yield from (open_, ended)

    def _caches(self) -> Iterator[Metric]:
        requests = CounterMetricFamily("scenarium_cache_requests", "Requests to scenarios that keep answers, by what was found", labels=("scenario", "result"))
        evictions = CounterMetricFamily("scenarium_cache_evictions", "Kept answers that went for want of room, or of age", labels=("scenario",))
        size = GaugeMetricFamily("scenarium_cache_bytes", "Size of the kept answers", labels=("scenario",))
        for name, service in self.services.items():
            for found, count in service.cache.counts.items():
                requests.add_metric((name, found), count)
            evictions.add_metric((name,), service.cache.evictions)
            size.add_metric((name,), service.cache.bytes)
        yield from (requests, evictions, size)

    def _memory(self) -> Iterator[Metric]:
        evictions = CounterMetricFamily("scenarium_evictions", "Times that a scenario's workers were ended to make room for others", labels=("scenario",))
        loads = CounterMetricFamily("scenarium_loads_on_demand", "Times that a request found the scenario idle and loaded it", labels=("scenario",))
        held = GaugeMetricFamily("scenarium_memory_bytes", "Private memory of the scenario's workers when it was last measured", labels=("scenario",))
        used = GaugeMetricFamily(
            "scenarium_memory_used_bytes", "Memory of the gateway and all its processes, files of libraries left out, and what is promised to those that load"
        )
        budget = GaugeMetricFamily("scenarium_memory_budget_bytes", "What they may use; absent where there is no budget")
        on_device = GaugeMetricFamily("scenarium_device_memory_used_bytes", "Memory of a GPU that anyone uses, and what is promised", labels=("device",))
        device_budget = GaugeMetricFamily("scenarium_device_memory_budget_bytes", "What may be used there", labels=("device",))
        if self.gateway:
            memory = self.gateway.memory
            for name in self.services:
                evictions.add_metric((name,), memory.evictions[name])
                loads.add_metric((name,), memory.loads[name])
                held.add_metric((name,), memory.held(name))
            used.add_metric((), memory.used)
            if memory.budget is not None:
                budget.add_metric((), memory.budget)
            for device in memory.devices:
                on_device.add_metric((device,), memory.using[device])
                device_budget.add_metric((device,), memory.limits[device])
        yield from (evictions, loads, held, used, budget, on_device, device_budget)

    def _rollouts(self) -> Iterator[Metric]:
        arms = ("scenario", "arm")
        requests = CounterMetricFamily("scenarium_rollout_requests", "Requests since the rollout began, by who answered and how", labels=(*arms, "outcome"))
        latency = HistogramMetricFamily("scenarium_rollout_seconds", "Their latency; of mirrored ones from the copy to its answer", labels=arms)
        dropped = CounterMetricFamily("scenarium_rollout_dropped", "Requests that were not mirrored because of load", labels=("scenario",))
        compared = CounterMetricFamily("scenarium_rollout_compared", "Mirrored answers that were compared", labels=("scenario",))
        apart = CounterMetricFamily("scenarium_rollout_disagreement", "Sum of their disagreements, each 0 to 1", labels=("scenario",))
        version = GaugeMetricFamily("scenarium_rollout_version", "The version that is tried", labels=("scenario",))
        share = GaugeMetricFamily("scenarium_rollout_share", "Share of the requests that it is to answer", labels=("scenario",))
        ended = CounterMetricFamily("scenarium_rollouts_ended", "Rollouts that ended, by cause", labels=("scenario", "cause"))
        for name, service in self.services.items():
            if service.trial is None:
                continue
            trial = service.trial
            for label, arm in (("production", trial.production), ("canary", trial.canary), ("shadow", trial.shadow)):
                for outcome, count in arm.outcomes.items():
                    requests.add_metric((name, label, outcome), count)
                latency.add_metric((name, label), arm.latency.buckets(), arm.latency.total)
            dropped.add_metric((name,), trial.dropped)
            compared.add_metric((name,), trial.compared)
            apart.add_metric((name,), trial.disagreement)
            version.add_metric((name,), trial.version)
            share.add_metric((name,), trial.rollout.canary)
        if self.gateway:
            for (name, cause), count in self.gateway.rollouts.ended.items():
                ended.add_metric((name, cause), count)
        yield from (requests, latency, dropped, compared, apart, version, share, ended)
