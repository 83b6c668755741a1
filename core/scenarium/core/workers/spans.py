"""The spans of a worker: one ``predict`` (or ``stream``) for each sampled request, its steps below it, and the plugin's own spans.

A batch is computed once for several requests. Its first sampled request's span is the current one meanwhile, so that spans of the plugin
become its children; the spans of the others link to it. The steps are those of the batch, measured by the runtime and laid end to end: where
items of several shapes make several forwards, ``forward`` is their sum.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextvars import Token
from typing import TYPE_CHECKING

from scenarium.core import spans

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

    from scenarium.core.runtime import Times

STEPS = ("preprocess", "forward", "postprocess")


class Spans:
    """What makes this process's spans; the plugin's own come from the same, by OpenTelemetry's global provider."""

    def __init__(self, scenario: str) -> None:
        from opentelemetry import trace

        about = {"scenarium.scenario": scenario, "process.pid": str(os.getpid())}
        self.provider = spans.make_provider(os.environ, **about)
        trace.set_tracer_provider(self.provider)
        self.tracer = self.provider.get_tracer("scenarium.worker")
        self.attributes = {"scenarium.scenario": scenario}

    def begin(self, name: str, traces: Sequence[str], size: int) -> Open | None:
        """Start the spans of a batch of ``size`` items with these trace contexts; None where none is sampled."""
        found = [trace for trace in traces if spans.sampled(trace)]
        return Open(self, name, found, size) if found else None

    def close(self) -> None:
        """Send what waits."""
        spans.close(self.provider)


class Open:
    """The spans of one batch that runs."""

    def __init__(self, owner: Spans, name: str, traces: Sequence[str], size: int) -> None:
        from opentelemetry import context, trace

        self.owner = owner
        self.began = time.time_ns()
        self.spans: list[Span] = []
        links: list[trace.Link] = []
        attributes: dict[str, str | int] = {**owner.attributes, "scenarium.batch_size": size}
        for each in traces:
            self.spans.append(owner.tracer.start_span(name, spans.context_of(each), links=links, attributes=attributes, start_time=self.began))
            links = links or [trace.Link(self.spans[0].get_span_context())]
        self._token: Token[Context] = context.attach(trace.set_span_in_context(self.spans[0]))

    def end(self, times: Times) -> None:
        """The batch is done; ``times`` are nanoseconds."""
        from opentelemetry import context, trace

        context.detach(self._token)
        ended = time.time_ns()
        for span in self.spans:
            within, at = trace.set_span_in_context(span), self.began
            for step in STEPS:
                if took := getattr(times, step):
                    self.owner.tracer.start_span(step, within, start_time=at).end(at + took)
                    at += took
            span.end(max(ended, at))
