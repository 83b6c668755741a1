"""A rollout as one gateway carries it out: a candidate version beside production, with a queue and workers of its own.

- **Canary**: a share of the requests goes to the candidate, by a hash of the routing key, else of the request id (``core.rollouts.in_canary``).
  Where the candidate fails a request that may be run again, production answers it: the failure counts against the candidate alone. So it is
  for what no worker has begun, and, in a pure scenario, for what is no stream.
- **Shadow**: what production has answered goes to the candidate once more, and both answers are compared. The copy is made after the answer is
  on its way, is dropped where production has more waiting than it can take at once, where ``MIRRORED`` copies are open, or where a canary
  request is; nobody waits for it. Without a canary the candidate's workers run at the lowest priority (``NICE``).
- **Rollback**: every poll judges (``verdicts``). A candidate that is worse, cannot be loaded, or dies again and again is left at once, and the
  store is told, so that the other gateways leave it too. Where the store cannot be written this gateway leaves it all the same.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from scenarium.core import disagreement
from scenarium.core import rollouts as stored
from scenarium.core.errors import ScenariumError, Words
from scenarium.core.rollouts import Cause, Rollout, Standing, in_canary
from scenarium.gateway import logs
from scenarium.gateway.generations import DEATH_WINDOW_S, QUICK_DEATHS
from scenarium.gateway.requests import Failure, Outcome, Request
from scenarium.gateway.services import Service
from scenarium.gateway.verdicts import WINDOW, Arm, Verdict, judge

if TYPE_CHECKING:
    from scenarium.core.config import ServeConfig
    from scenarium.core.registry import Plugin
    from scenarium.core.store import Version
    from scenarium.gateway.links import WorkerLink

NICE = 19
MIRRORED, MIRRORED_BYTES = 64, 64 << 20
"""Copies that may be open, and the bytes of their bodies and of the answers they are compared with."""
ROUNDING_S = 1e-6
"""Sums of clock readings differ by less."""
TOLD_S = 2.0
"""How often a store that could not be written is told again."""
COPIED = ("content_type", "ident", "infer", "key", "language", "priority", "stream", "trace", "watch")


class Candidate(Service):
    """The candidate's queue and workers: a service like any other, whose workers' lines and settings are the scenario's."""

    def __init__(self, production: Service, gentle: bool) -> None:
        config, memory = _config(production.config), production.memory
        super().__init__(production.name, production.plugin, config, production.registry, production.store, production.nursery, memory)
        self.production = production
        self.share = production.share
        self.gentle = gentle
        """Whether its workers run at the lowest priority."""

    def configure(self, config: ServeConfig) -> None:
        """Take over changed settings."""
        super().configure(_config(config))

    def said(self, link: WorkerLink, line: str) -> None:
        self.production.said(link, line)

    def hello(self, version: Version, plugin: Plugin, threads: int) -> dict[str, Any]:
        """What a worker must know."""
        return super().hello(version, plugin, threads) | ({"nice": NICE} if self.gentle else {})


class _Twin(Request):
    """A request as the candidate runs it. Since when and where it runs shows in the original too."""

    __slots__ = ("given_up", "original")

    def __init__(self, original: Request, resolve: Callable[[Outcome], None]) -> None:
        self.original = original
        self.given_up = False
        super().__init__(original.rid, original.body, original.deadline, resolve, original.entered)
        for name in COPIED:
            setattr(self, name, getattr(original, name))

    @property
    def sent(self) -> float:
        """When a worker got it."""
        return self.original.sent

    @sent.setter
    def sent(self, value: float) -> None:
        self.original.sent = value

    @property
    def slot(self) -> Any:
        """The worker that has it."""
        return self.original.slot

    @slot.setter
    def slot(self, value: Any) -> None:
        self.original.slot = value

    def cancel(self, request: Request, failure: Failure = "cancelled") -> None:
        """End the original: it is this that lies in a queue."""
        self.given_up = True
        if self.home:
            self.home.cancel(self, failure)


class Trial:
    """One rollout in this gateway."""

    def __init__(self, service: Service, rollout: Rollout) -> None:
        self.service = service
        self.rollout = rollout
        self.version = rollout.version
        self.candidate = Candidate(service, rollout.canary == 0)
        self.production, self.canary, self.shadow = Arm(), Arm(), Arm()
        self.disagreements: deque[float] = deque(maxlen=WINDOW)
        self.compared = self.dropped = 0
        self.disagreement = 0.0
        """Sum over all that were compared."""
        self.mirrored: dict[int, tuple[Request, int]] = {}
        """The copies that are open, with their size."""
        service.pins += 1
        service.spawn(self.candidate.load(self.version, wake=True))

    # ── requests ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def chosen(self, request: Request) -> bool:
        """Whether the candidate is to answer this request, and can."""
        share, candidate = self.rollout.canary, self.candidate
        if not share or not candidate.ready or candidate.batcher.depth >= candidate.config.queue_size:
            return False
        return in_canary(self.service.name, self.version, share, request.key or request.ident.decode("latin-1"))

    def takes(self, request: Request) -> bool:
        """Take a request for the candidate; else it is production's, whose answer is looked at in passing."""
        if not self.chosen(request):
            request.resolve = partial(self._answered, request, request.resolve)
            return False
        twin = _Twin(request, lambda outcome: self._tried(twin, outcome))
        request.home = twin
        self.candidate.enqueue(twin, twin.entered)
        return True

    def _tried(self, twin: _Twin, outcome: Outcome) -> None:
        """The candidate's word on a canary request."""
        self.canary.note(outcome, time.monotonic() - twin.entered, self._hurried(twin))
        request = twin.original
        request.watch = twin.watch
        if self._again(twin, outcome):
            request.sent, request.slot = 0.0, None
            self.service.enqueue(request, time.monotonic())
            return
        request.done = True
        request.resolve(outcome)

    def _again(self, twin: _Twin, outcome: Outcome) -> bool:
        """Whether production may run what the candidate failed."""
        if twin.given_up or outcome.failure == "deadline" or (outcome.failure is None and outcome.status < 500):
            return False
        version = self.candidate.version
        return not twin.sent or (twin.stream is None and version is not None and version.manifest.pure)

    def _answered(self, request: Request, resolve: Callable[[Outcome], None], outcome: Outcome) -> None:
        """Production's word on a request."""
        resolve(outcome)
        self.production.note(outcome, time.monotonic() - request.entered, self._hurried(request))
        if self.rollout.shadow and outcome.failure is None and outcome.status < 400 and self._comparable(request) and self.service.trial is self:
            asyncio.get_running_loop().call_soon(self._mirror, request, outcome)  # after the answer has been written

    def _hurried(self, request: Request) -> bool:
        """Whether its client chose a shorter deadline than the scenario's."""
        return request.deadline - request.entered < self.service.config.deadline_ms / 1000 - ROUNDING_S

    @staticmethod
    def _comparable(request: Request) -> bool:
        """Whether two answers to it can be compared: those to tensors have no form that the scenario's metric knows."""
        return request.stream is None and not request.infer

    def _mirror(self, request: Request, outcome: Outcome) -> None:
        candidate, batcher = self.candidate, self.service.batcher
        size = len(request.body) + len(outcome.body)
        if self.service.trial is not self or not candidate.ready:
            return
        if (
            batcher.depth > _capacity(self.service)
            or (self.rollout.canary and candidate.batcher.live)
            or len(self.mirrored) >= min(MIRRORED, 2 * _capacity(candidate))
            or sum(each for _, each in self.mirrored.values()) + size > MIRRORED_BYTES
        ):
            self.dropped += 1
            return
        now = time.monotonic()
        copy = Request(request.rid, request.body, now + candidate.config.deadline_ms / 1000, partial(self._mirrored, request.rid, outcome.body), now)
        for name in COPIED:
            setattr(copy, name, getattr(request, name))
        copy.priority, copy.watch = "low", None
        self.mirrored[request.rid] = copy, size
        candidate.enqueue(copy, now)

    def _mirrored(self, rid: int, production: bytes, outcome: Outcome) -> None:
        """The candidate's word on a copy."""
        copy, _ = self.mirrored.pop(rid)
        self.shadow.note(outcome, time.monotonic() - copy.entered)
        version = self.candidate.version
        if outcome.failure or outcome.status >= 500 or version is None:
            return
        value = disagreement.distance(version.manifest.disagreement, production, outcome.body) if outcome.status < 400 else 1.0
        self.disagreements.append(value)
        self.compared += 1
        self.disagreement += value

    # ── its life ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def update(self, rollout: Rollout) -> None:
        """Take over another share, shadow or limits; and look after a candidate that found no memory."""
        self.rollout, candidate = rollout, self.candidate
        if candidate.gentle != (rollout.canary == 0):
            candidate.gentle = rollout.canary == 0
            self.service.spawn(candidate.reload(self.version))
        elif candidate.state == "idle" and not candidate.loading:
            self.service.spawn(candidate.load(self.version, wake=True))

    def reload(self) -> None:
        """New workers, of the settings and the plugin that the scenario has now."""
        candidate, service = self.candidate, self.service
        candidate.registry, candidate.plugin = service.registry, service.plugin
        self.service.spawn(candidate.reload(self.version))

    def verdict(self) -> Verdict | None:
        """Why it is to end now, if anything."""
        candidate = self.candidate
        if candidate.fault:
            return Verdict("load", Words(candidate.fault.title("en"), candidate.fault.title("zh")))
        deaths = _deaths(candidate)
        if deaths >= QUICK_DEATHS and deaths > _deaths(self.service):
            last = Words(*(candidate.last_fault[lang]["title"] if candidate.last_fault else "" for lang in ("en", "zh")))
            seconds = f"{DEATH_WINDOW_S:.0f}"
            return Verdict("crash", Words(f"{deaths} workers died within {seconds} s. {last.en}", f"{seconds} 秒内有 {deaths} 个进程退出。{last.zh}"))
        return judge(self.rollout.limits, self.production, self.canary, self.shadow, self.disagreements)

    async def close(self, timeout: float) -> None:
        """Let what is open in the candidate finish, and end its workers."""
        for copy, _ in list(self.mirrored.values()):
            self.candidate.batcher.cancel(copy)
        if timeout <= 0:
            self.candidate.batcher.close()
        await self.candidate.close(timeout)

    def status(self) -> dict[str, Any]:
        """What operators see of it while it runs."""
        rollout, candidate = self.rollout, self.candidate
        about = {"id": rollout.id, "version": self.version, "canary": rollout.canary, "shadow": rollout.shadow}
        return about | {"state": candidate.state, "ready": candidate.ready} | self.figures()

    def figures(self) -> dict[str, Any]:
        """What was measured so far."""
        return {
            "production": self.production.figures(),
            "canary": self.canary.figures(),
            "shadow": self.shadow.figures() | {"dropped": self.dropped, "compared": self.compared},
            "disagreement": round(self.disagreement / self.compared, 4) if self.compared else None,
        }


class Rollouts:
    """The rollouts of one gateway: does what the store says of them."""

    def __init__(self, services: Mapping[str, Service]) -> None:
        self.services = services
        self.ended: Counter[tuple[str, Cause]] = Counter()
        """Rollouts that ended here, by scenario and cause."""
        self._refused: dict[str, str] = {}
        """Scenario to the rollout that this gateway took back last."""

    def follow(self, name: str, standing: Standing) -> None:
        """Do what the store says of one scenario; called every second."""
        service, (production, rollout) = self.services.get(name), standing
        if service is None or service.wrong or production is None or rollout is None:
            return
        trial = service.trial
        if trial and rollout.id != trial.rollout.id:
            self._leave(trial, "stopped", Words("another rollout began", "另一个灰度发布已开始"))
            trial = None
        if rollout.running and rollout.version != production:
            if trial:
                self._look(trial, rollout)
            elif rollout.id != self._refused.get(name) and service.version and (service.ready or service.state == "idle"):
                service.trial = Trial(service, rollout)
                logs.event("info", "rollout_started", scenario=name, version=rollout.version, canary=rollout.canary, shadow=rollout.shadow)
        elif trial and not (rollout.state == "promoted" and _coming(service, production, trial.version)):
            self._leave(trial, rollout.cause or "stopped", Words(rollout.reason.get("en", ""), rollout.reason.get("zh", "")))

    def _look(self, trial: Trial, rollout: Rollout) -> None:
        """Take over what changed, and take the candidate back where it is worse."""
        trial.update(rollout)
        verdict = trial.verdict()
        if verdict is None:
            return
        self._refused[trial.service.name] = rollout.id
        figures = trial.figures()
        self._leave(trial, *verdict, patience=0.0 if verdict.cause in ("load", "crash") else None)
        trial.service.spawn(self._tell(trial.service, rollout, verdict, figures))

    def _leave(self, trial: Trial, cause: Cause, reason: Words, patience: float | None = None) -> None:
        """Send nothing more to the candidate, and end it when it has answered what it holds."""
        service = trial.service
        service.trial = None
        service.pins -= 1
        self.ended[service.name, cause] += 1
        logs.event(
            "info" if cause in ("promoted", "stopped") else "warning",
            "rollout_ended",
            scenario=service.name,
            version=trial.version,
            cause=cause,
            reason=reason.en,
            **trial.figures(),
        )
        service.spawn(trial.close(trial.candidate.patience() if patience is None else patience))

    async def _tell(self, service: Service, rollout: Rollout, verdict: Verdict, figures: dict[str, Any]) -> None:
        """Write the rollback to the store, again and again until it is written or this gateway ends."""
        name, told = service.name, False
        while not service.batcher.closed:
            try:
                await asyncio.to_thread(stored.end, service.store, name, rollout.id, "rolled_back", *verdict, figures)
                return
            except (OSError, ScenariumError) as fault:
                if not told:
                    logs.event("error", "rollback_unwritten", scenario=name, version=rollout.version, reason=f"{type(fault).__name__}: {fault}")
                told = True
            await asyncio.sleep(TOLD_S)


def _config(config: ServeConfig) -> ServeConfig:
    """The scenario's settings for a candidate: it has workers before a request comes, in no group's process, and keeps no answers of its own."""
    return config.model_copy(update={"keep_warm": True, "worker_group": "", "cache_size": 0})


def _coming(service: Service, production: int, version: int) -> bool:
    """Whether production's workers of a promoted version are on their way: till then the candidate answers its share."""
    return production == version != service.served and (service.tried != version or service.loading)


def _capacity(service: Service) -> int:
    """Items that its workers take at once."""
    return sum(link.concurrency or link.max_batch for link in service.links() if link.serving)


def _deaths(service: Service) -> int:
    """Workers that died lately after they had been ready."""
    since = time.monotonic() - DEATH_WINDOW_S
    return sum(at > since for at in service.current.deaths) if service.current else 0
