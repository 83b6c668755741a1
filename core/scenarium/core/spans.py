"""OpenTelemetry traces, where they are asked for: what gateway and workers share. The libraries (extra ``otel``) are imported when a trace is.

``traceparent`` and the sampled flag are those of W3C Trace Context; ``OTEL_…`` variables mean what OpenTelemetry says they mean: where spans
go (OTLP over HTTP), what is sampled, how the service is called.

A trace context is one text on its way through a gateway: the ``traceparent``, which is of one length, and behind it the ``tracestate``, if any.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

from scenarium.core.errors import ScenariumError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider

MODULES = ("opentelemetry.sdk.trace.export", "opentelemetry.exporter.otlp.proto.http.trace_exporter")
"""What a zygote imports for its workers."""
PARENT = 55
"""Characters of a ``traceparent``."""
FLUSH_S = 2.0
"""How long the last spans may take to leave at the end of a process."""


def wanted(setting: bool | None, environ: Mapping[str, str]) -> bool:
    """Whether to trace. ``setting`` None: where ``OTEL_…`` variables name a receiver."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if setting is not None:
        return setting
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    named = any(environ.get(name) for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"))
    return exporter == "otlp" or (not exporter and named)


def make_provider(environ: Mapping[str, str], **about: str) -> TracerProvider:
    """What makes spans and sends them, in a thread of its own. ``about``: attributes of this process.

    Raises:
        ScenariumError: SCN-1120 (the extra is not installed).
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as fault:
        raise ScenariumError("SCN-1120", module=fault.name or str(fault)) from fault
    from scenarium.core import __version__

    if not environ.get("OTEL_SERVICE_NAME") and "service.name=" not in environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
        about = {"service.name": "scenarium", **about}
    provider = TracerProvider(resource=Resource.create({"service.version": __version__, **about}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def close(provider: TracerProvider) -> None:
    """Send what waits, for ``FLUSH_S`` at most: a receiver that is not there must not hold the end up."""
    last = threading.Thread(target=provider.shutdown, name="last spans", daemon=True)
    last.start()
    last.join(FLUSH_S)


def sampled(trace: str) -> bool:
    """Whether a trace context says that its trace is recorded."""
    return trace[PARENT - 1 : PARENT] in ("1", "3", "5", "7", "9", "b", "d", "f")


def trace_id(trace: str) -> str | None:
    """The id of the trace that a trace context names: 32 hexadecimal digits."""
    return trace[3:35] or None


def context_of(trace: str, remote: bool = True) -> Context:
    """The context whose current span a trace context names; one without a span where it names none."""
    from opentelemetry.context import Context
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState, set_span_in_context

    if not trace or trace[:2] == "ff":  # no version (Trace Context, 3.2.2.1)
        return Context()
    states = TraceState.from_header([trace[PARENT:]]) if trace[PARENT:] else None
    found = SpanContext(int(trace[3:35], 16), int(trace[36:52], 16), remote, TraceFlags(int(trace[53:PARENT], 16)), states)
    return set_span_in_context(NonRecordingSpan(found), Context()) if found.is_valid else Context()
