# SPDX-License-Identifier: GPL-3.0-or-later
"""Which traces that begin here are kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult, TraceIdRatioBased
from opentelemetry.trace import Link, SpanKind, TraceState
from opentelemetry.util.types import Attributes

from n8n_platform.bridge.bucket import Bucket


class LimitedSampler(Sampler):
    """Keeps a share of all traces, and no more than ``per_second``.

    At light load every event can be followed; at full load spans cost a quarter to a third of the throughput.
    """

    def __init__(self, ratio: float, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._share = TraceIdRatioBased(ratio)
        self._clock = clock
        self._bucket = Bucket(per_second, max(per_second, 1), clock())

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """Decide on a trace by its first span."""
        found = self._share.should_sample(parent_context, trace_id, name, kind, attributes, links)
        if found.decision is Decision.RECORD_AND_SAMPLE and self._bucket.take(1, self._clock()):
            return SamplingResult(Decision.DROP)
        return found

    def get_description(self) -> str:
        """Return what it is called in messages."""
        return f"LimitedSampler{{{self._share.get_description()},{self._bucket.rate:g}/s}}"
