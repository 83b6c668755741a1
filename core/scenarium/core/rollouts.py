"""A rollout as the store keeps it: a candidate version that is tried beside production before it takes over.

It stands in ``aliases.json`` (member ``rollout``), so it changes by the same atomic write as the aliases, and every gateway that polls
them follows it. While it runs the alias ``candidate`` names its version, which keeps ``prune`` away and puts it into Triton's models.
The last rollout stays there after its end, with the cause, until the next one starts.

Which requests the candidate answers follows from a hash of (scenario, version, key) alone: gateways agree without a word between them, a
restart changes nothing, and a larger share keeps those that a smaller one had.
"""

from __future__ import annotations

import hashlib
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import ValidationError

from scenarium.core import disagreement
from scenarium.core.errors import ScenariumError, Words
from scenarium.core.manifest import Manifest, Part
from scenarium.core.store import ALIASES, PRODUCTION, user

if TYPE_CHECKING:
    from scenarium.core.store import Store

CANDIDATE = "candidate"
State = Literal["running", "promoted", "stopped", "rolled_back"]
Cause = Literal["error_rate", "latency", "disagreement", "load", "crash", "promoted", "stopped"]
CAUSES: tuple[Cause, ...] = ("error_rate", "latency", "disagreement", "load", "crash", "promoted", "stopped")


class Limits(Part):
    """When a gateway takes the candidate back by itself; see ``scenarium.gateway.verdicts``."""

    min_requests: int = 50
    """Answers of the candidate before anything is judged by them."""
    max_error_rate: float = 0.02
    """How far its share of server errors may lie above production's."""
    max_latency_ratio: float = 1.5
    """Its 95th percentile of latency over production's."""
    max_disagreement: float = 0.2
    """Its mean disagreement with production on mirrored requests, 0 to 1."""


class Rollout(Part):
    """One rollout."""

    id: str
    version: int
    production: int
    """The version beside which it began."""
    canary: float
    """Share of the requests that the candidate answers, 0 to 1."""
    shadow: bool
    """Whether it also gets copies of what production answered."""
    limits: Limits
    state: State = "running"
    started: datetime
    by: str
    ended: datetime | None = None
    cause: Cause | None = None
    reason: dict[str, str] = {}
    """Why it ended, by language."""
    figures: dict[str, Any] = {}
    """What the gateway that ended it had measured."""

    @property
    def running(self) -> bool:
        """Whether gateways are to try the candidate."""
        return self.state == "running"


class Standing(NamedTuple):
    """What a gateway follows."""

    production: int | None
    rollout: Rollout | None


def standing(store: Store, name: str) -> Standing:
    """The production version and the last rollout of a scenario.

    Raises:
        ScenariumError: SCN-5009 (the alias file is damaged).
    """
    record = store.aliases(name)
    return Standing(record["aliases"].get(PRODUCTION), _read(store, name, record))


def _read(store: Store, name: str, record: dict[str, Any]) -> Rollout | None:
    try:
        return Rollout.model_validate(record["rollout"]) if record.get("rollout") else None
    except ValidationError as fault:
        raise ScenariumError("SCN-5009", file=store.path(name, ALIASES), name=name) from fault


def in_canary(name: str, version: int, share: float, key: str) -> bool:
    """Whether the candidate answers what has this key; a pure function, uniform over keys."""
    digest = hashlib.blake2b(f"{name}/{version}/{key}".encode("utf8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2.0**64


def start(store: Store, name: str, version: int, canary: float, shadow: bool, limits: Limits) -> Rollout:
    """Begin a rollout, or change share, shadow and limits of the one that runs for this version.

    Raises:
        ScenariumError: SCN-5010, SCN-4004 (no production), SCN-5013 (another one runs), SCN-5014 (cannot be tried so), SCN-5001, SCN-5002
            (no such version, or a damaged one).
    """
    production = store.resolve(name)
    manifest = store.open(name, version).manifest
    if reason := _unfit(manifest, production, shadow):
        raise ScenariumError("SCN-5014", name=name, version=version, reason=reason)
    with store.lock(name):
        record = store.aliases(name)
        before = _read(store, name, record)
        if before and before.running and before.version != version:
            raise ScenariumError("SCN-5013", name=name, version=version, running=before.version)
        if before and before.running:
            found = before.model_copy(update={"canary": canary, "shadow": shadow, "limits": limits})
        else:
            found = Rollout(
                id=uuid.uuid4().hex,
                version=version,
                production=production,
                canary=canary,
                shadow=shadow,
                limits=limits,
                started=datetime.now(UTC),
                by=user(),
            )
        record["rollout"] = found.model_dump(mode="json")
        record["aliases"][CANDIDATE] = version
        shown = f"canary {canary:.4g}{', shadow' if shadow else ''}"
        _note(record, "rollout", before.version if before and before.running else None, version, found.by, shown)
        store.save_aliases(name, record)
    return found


def _unfit(manifest: Manifest, production: int, shadow: bool) -> Words | None:
    if manifest.version == production:
        return Words("it is production already.", "它已是生产版本。")
    if shadow and not manifest.pure:
        return Words(
            "the scenario is not pure, so a mirrored request would have effects twice; use --canary alone.",
            "该场景不是纯函数型，镜像请求会产生两次效果；请只使用 --canary。",
        )
    pointer = manifest.disagreement.pointer
    if shadow and manifest.answer is not None and disagreement.found(manifest.answer, pointer) is None:
        return Words(f"its answers have nothing at {pointer!r}, which traits.disagreement names.", f"其回答中没有 traits.disagreement 所指的 {pointer!r}。")
    return None


def end(store: Store, name: str, ident: str, state: State, cause: Cause, reason: Words, figures: dict[str, Any] | None = None) -> bool:
    """End the rollout ``ident``, for all gateways. False: it does not run any more, so somebody was faster.

    Raises:
        OSError: the store cannot be written.
        ScenariumError: SCN-5009, SCN-5008.
    """
    with store.lock(name):
        record = store.aliases(name)
        found = _read(store, name, record)
        if found is None or found.id != ident or not found.running:
            return False
        _finish(record, found, user(), state, cause, reason, figures or {})
        store.save_aliases(name, record)
    return True


def stop(store: Store, name: str) -> Rollout:
    """End the rollout that runs by hand; production answers everything again.

    Raises:
        ScenariumError: SCN-5015 (none runs).
    """
    found = standing(store, name).rollout
    if found is None or not found.running or not end(store, name, found.id, "stopped", "stopped", Words("stopped by hand", "手动停止")):
        raise ScenariumError("SCN-5015", name=name)
    return found


def settle(store: Store, name: str, record: dict[str, Any], alias: str, number: int) -> None:
    """What becomes of a running rollout when an alias is set: called with the record that is about to be written.

    Production on the candidate's version: it is promoted. Production or candidate elsewhere: what was compared is gone, so it stops.
    """
    found = _read(store, name, record) if alias in (PRODUCTION, CANDIDATE) else None
    if found is None or not found.running or (alias == CANDIDATE and number == found.version):
        return
    if alias == PRODUCTION and number == found.production:
        return
    if alias == PRODUCTION and number == found.version:
        _finish(record, found, user(), "promoted", "promoted", Words("promoted", "已提升为生产版本"), {})
        return
    reason = Words(f"{alias} was set to version {number}", f"{alias} 被设为版本 {number}")
    _finish(record, found, user(), "stopped", "stopped", reason, {})


def _finish(record: dict[str, Any], found: Rollout, by: str, state: State, cause: Cause, reason: Words, figures: dict[str, Any]) -> None:
    change = {"state": state, "cause": cause, "reason": reason._asdict(), "figures": figures, "ended": datetime.now(UTC)}
    record["rollout"] = found.model_copy(update=change).model_dump(mode="json")
    if record["aliases"].get(CANDIDATE) == found.version:
        del record["aliases"][CANDIDATE]
    _note(record, state, found.version, None, by, reason.en)


def _note(record: dict[str, Any], action: str, before: int | None, after: int | None, by: str, reason: str) -> None:
    entry = {"alias": CANDIDATE, "action": action, "from": before, "to": after, "at": datetime.now(UTC).isoformat()}
    record["history"].append({**entry, "by": by, "reason": reason, "forced": False})
