"""Who may call, and how much: one step before anything else is done for a request.

The hot routes call ``Admission.admit`` (``predict.Endpoint`` does it for every class below it). All other routes stand behind ``cold.Guard``,
which knows them by their path, so that a new route is closed unless it is named here:

- ``/healthz`` and ``/readyz`` are open;
- ``/metrics`` is open where the gateway listens on this machine alone (``[gateway] open_metrics``);
- below ``/admin/`` an admin key is needed, and for all but ``GET`` a JSON content type, which no form of a foreign web page can send.
  While no key exists, administration answers to this machine alone, by a ``Host`` header that names it, since a foreign page may bend
  its own name to this address (DNS rebinding);
- everything else needs any valid key, once one exists; and to change something below ``/scenarios/{name}/``, one for that scenario.

Behind the guard ``scope["caller"]`` tells who calls.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from typing import TYPE_CHECKING, Any

from scenarium.core.errors import ScenariumError
from scenarium.gateway import logs
from scenarium.gateway.keys import Key, KeyFile, Keyring
from scenarium.gateway.limits import Limited, Limits, Shared

if TYPE_CHECKING:
    from scenarium.core.config import GatewayConfig
    from scenarium.core.settings import Settings
    from scenarium.gateway.predict import Call

REASONS = ("no_key", "bad_key", "scope", "admin", "rate", "quota", "slow", "headers", "malformed", "connections", "origin")
"""Why a request is rejected before a scenario sees it: the labels of ``scenarium_rejected_total``."""
CHALLENGE = (b"www-authenticate", b"Bearer")
OPEN = ("/healthz", "/readyz")
ADMIN = "/admin/"
READS = ("GET", "HEAD")
HARMLESS = (*READS, "OPTIONS", "TRACE")
LOCAL_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost")
POLL_S = 1.0
UNREAD = 65_536
"""A refused request with more than so many bytes of body to come ends its connection."""


class Rejected(ScenariumError):
    """A request that is not let in; ``headers`` belong to its answer."""

    def __init__(self, reason: str, code: str, *headers: tuple[bytes, bytes], **values: Any) -> None:
        super().__init__(code, **values)
        self.reason = reason
        self.headers = list(headers)


class Caller:
    """Who makes a request: a key, or nobody in particular where no key exists."""

    __slots__ = ("id", "key")

    def __init__(self, key: Key | None) -> None:
        self.key = key
        self.id = key.id if key else ""


ANONYMOUS = Caller(None)


class Admission:
    """The gate of one gateway."""

    def __init__(self, config: GatewayConfig, settings: Settings) -> None:
        self.config = config
        path = None if config.keys is None else settings.path_of(config.keys, "gateway", "keys")
        self.keyring = Keyring(KeyFile(path) if path else None)
        self.limits = Limits()
        self.shared = Shared(config.redis) if config.redis else None
        self.rejected = dict.fromkeys(REASONS, 0)
        self.local = is_local(config.host)
        """Whether only this machine reaches the gateway."""
        self._told = ""

    async def admit(self, call: Call, scenario: str) -> Caller:
        """Let a request to a scenario in, and count it. ``call.caller`` is who it is, also of one that is refused though its key is known.

        Raises:
            Rejected: SCN-4101, SCN-4102 (401), SCN-4103 (403).
            Limited: SCN-4105, SCN-4106 (429).
        """
        caller = self._who(call, scenario)
        await self.charge(caller)
        return caller

    def admit_here(self, call: Call, scenario: str) -> Caller:
        """``admit`` for a gateway that counts alone."""
        caller = self._who(call, scenario)
        if caller.key and caller.key.limited:
            self._charge_here(caller.key, time.monotonic())
        return caller

    def _who(self, call: Call, scenario: str) -> Caller:
        if self.keyring.asked:
            key = self.identify(call)
            call.caller = Caller(key)
            if not key.may_predict(scenario):
                raise self._reject("scope", "SCN-4103", ident=key.id, name=scenario)
        return call.caller

    async def charge(self, caller: Caller) -> None:
        """Count one request of this caller.

        Raises:
            Limited: SCN-4105, SCN-4106.
        """
        key = caller.key
        if key is None or not key.limited:
            return
        now = time.monotonic()
        self._charge_here(key, now)
        if self.shared:
            self.limits.turn()
            try:
                await self.shared.take(key, self.limits.day, now)
            except Limited as fault:
                self.rejected[fault.reason] += 1
                raise

    def _charge_here(self, key: Key, now: float) -> None:
        try:
            self.limits.take(key, now)
        except Limited as fault:
            self.rejected[fault.reason] += 1
            raise

    async def charge_in_turn(self, caller: Caller, patience: float) -> None:
        """Count one of many requests that came together: it waits up to ``patience`` seconds for its turn.

        Raises:
            Limited: SCN-4105, SCN-4106.
        """
        until = time.monotonic() + patience
        while True:
            try:
                return await self.charge(caller)
            except Limited as fault:
                if time.monotonic() + fault.wait > until:
                    raise
                self.rejected[fault.reason] -= 1  # it is not refused, it waits
                await asyncio.sleep(fault.wait)

    def identify(self, call: Call) -> Key:
        """The valid key that a request carries.

        Raises:
            Rejected: SCN-4101, SCN-4102.
        """
        if not call.credential:
            raise self._reject("no_key", "SCN-4101", CHALLENGE)
        key = self.keyring.find(call.credential.decode("latin-1"))
        if key is None:
            raise self._reject("bad_key", "SCN-4102", CHALLENGE)
        return key

    def check(self, call: Call, method: str, path: str) -> Caller:
        """Let a request to any other route in.

        Raises:
            Rejected: SCN-4101, SCN-4102 (401), SCN-4103, SCN-4104, SCN-4108 (403), SCN-4107 (415).
        """
        if path.startswith(ADMIN):
            return self._admin(call, method)
        if not self.keyring.asked or path in OPEN or (path == "/metrics" and self._open_metrics):
            return ANONYMOUS
        key = self.identify(call)
        if path.startswith("/scenarios/") and method not in READS and not key.may_predict(name := path.split("/", 3)[2]):
            raise self._reject("scope", "SCN-4103", ident=key.id, name=name)
        return Caller(key)

    def control(self, call: Call, origin: bytes) -> Caller:
        """Let a request in that changes something for all callers, on a route whose clients name no content type: a foreign web page
        shows itself by its ``Origin``.

        Raises:
            Rejected: SCN-4101, SCN-4102 (401), SCN-4104, SCN-4108 (403).
        """
        if origin and origin.rpartition(b"//")[2] != call.host.encode("latin-1"):
            raise self._reject("admin", "SCN-4108", value=origin.decode("latin-1"))
        return self._administrator(call)

    def check_origin(self, caller: Caller, origin: bytes, host: str) -> None:
        """See that a web page that opens a WebSocket was served by this gateway's host, or has a key: a browser lets every page do so, and shows it
        what comes.

        Raises:
            Rejected: SCN-4115.
        """
        if origin and caller.key is None and origin.rpartition(b"//")[2] != host.encode("latin-1"):
            raise self._reject("origin", "SCN-4115", value=origin.decode("latin-1"))

    def _administrator(self, call: Call) -> Caller:
        if self.keyring.asked or not self.local:
            key = self.identify(call)
            if not key.admin:
                raise self._reject("admin", "SCN-4104")
            return Caller(key)
        if is_local_name(call.host):
            return ANONYMOUS
        raise self._reject("admin", "SCN-4108", value=call.host)

    def _admin(self, call: Call, method: str) -> Caller:
        caller = self._administrator(call)
        if method not in HARMLESS and call.content_type.partition(";")[0].strip().lower() != "application/json":
            raise self._reject("admin", "SCN-4107", value=call.content_type)
        return caller

    @property
    def _open_metrics(self) -> bool:
        return self.local if self.config.open_metrics is None else self.config.open_metrics

    def _reject(self, reason: str, code: str, *headers: tuple[bytes, bytes], **values: Any) -> Rejected:
        self.rejected[reason] += 1
        return Rejected(reason, code, *headers, **values)

    # ── the key file ──────────────────────────────────────────────────────────────────────────────────────────────────

    def open(self) -> None:
        """Read the keys and today's use before the first request.

        Raises:
            ScenariumError: SCN-1102 (the file cannot be used), SCN-1101 (other machines reach the gateway and no key exists).
        """
        self.keyring.refresh()
        if not (self.keyring.asked or self.local or self.config.allow_anonymous):
            raise ScenariumError("SCN-1101", host=self.config.host)
        self.limits.turn()
        if self.keyring.file and self.keyring.asked:
            self.limits.saved(self.limits.day, {}, self.keyring.file.usage(self.limits.day))

    async def follow(self) -> None:
        """See keys that are made or revoked, and save the day's use, once a second."""
        while True:
            await asyncio.sleep(POLL_S)
            try:
                if await asyncio.to_thread(self.keyring.refresh):
                    logs.event("info", "keys_changed", keys=len(self.keyring.keys))
                await self.save()
                self._told = ""
            except ScenariumError as fault:
                if fault.title() != self._told:  # once, not every second
                    logs.event("error", "keys_unusable", code=fault.code, title=fault.title(), hint=fault.hint())
                self._told = fault.title()

    async def close(self) -> None:
        """Save what is not saved yet."""
        if self.shared:
            await self.shared.close()
        try:
            await self.save()
        except ScenariumError as fault:
            logs.event("error", "keys_unusable", code=fault.code, title=fault.title(), hint=fault.hint())

    async def save(self) -> None:
        """Write the day's use to the key file.

        Raises:
            ScenariumError: SCN-1102.
        """
        self.limits.turn()
        day, written = self.limits.day, dict(self.limits.unsaved)
        if self.keyring.file and written:
            self.limits.saved(day, written, await asyncio.to_thread(self.keyring.file.add_usage, day, written))


def is_local(host: str) -> bool:
    """Whether listening on this address reaches this machine alone."""
    try:
        found = socket.getaddrinfo(host, None)
    except OSError:
        return False  # binding will say what is wrong with it
    return all(ipaddress.ip_address(entry[4][0]).is_loopback for entry in found)


def is_local_name(host: str) -> bool:
    """Whether a ``Host`` header names this machine as only a program on it would."""
    name = host.rpartition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name.lower() in LOCAL_NAMES
