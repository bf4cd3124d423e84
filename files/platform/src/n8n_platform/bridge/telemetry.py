# SPDX-License-Identifier: GPL-3.0-or-later
"""Logs as JSON lines and hand-made spans, joined by the ids of what is being worked on."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from n8n_platform.bridge.settings import Settings

TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
# Attributes every log record has; all others came as `extra`.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
# Made once: ``json.dumps`` makes one for each call that sets anything.
_ENCODE = json.JSONEncoder(ensure_ascii=False, default=str).encode
_CONTEXT: ContextVar[Mapping[str, str]] = ContextVar("bridge_log_context", default={})  # noqa: B039  (never changed)


# --- logs -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def log_context(**fields: str | None) -> Iterator[None]:
    """Add fields to all log lines of this task: ``event_id``, ``execution_id``, ``message_id``, ``tenant``, ..."""
    token = _CONTEXT.set({**_CONTEXT.get(), **{name: value for name, value in fields.items() if value}})
    try:
        yield
    finally:
        _CONTEXT.reset(token)


class JsonFormatter(logging.Formatter):
    """One JSON object a line. For the journal each begins with its priority, which the journal takes off again."""

    def __init__(self, service: str, instance: str, journal: bool = False) -> None:
        super().__init__()
        self.fixed = {"service": service, "instance": instance}
        self.journal = journal

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as a line; fields come from the record's ``extra`` and from :func:`log_context`."""
        line: dict[str, Any] = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            "logger": record.name,
            **self.fixed,
            **_CONTEXT.get(),
            **{name: value for name, value in vars(record).items() if name not in _STANDARD},
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        text = _ENCODE(line)
        return f"<{_PRIORITIES.get(record.levelno, 6)}>{text}" if self.journal else text


def configure_logging(service: str, instance: str, level: str = "info") -> None:
    """Send all logs to the standard error output as JSON lines; replaces what was configured before."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(service, instance, journal="JOURNAL_STREAM" in os.environ))
    # What no line here says need not be found out (https://docs.python.org/3/howto/logging.html#optimization).
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for noisy in ("httpx", "httpcore", "alembic", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # While PostgreSQL is away it prints a stack each time it tries; we say it in a line.
    logging.getLogger("asyncpg.pool").setLevel(logging.CRITICAL)


# --- traces -----------------------------------------------------------------------------------------------------------


def valid_traceparent(text: str | None) -> str | None:
    """Return a W3C ``traceparent`` that can be used, otherwise None: a bad one is ignored, as the standard wants."""
    return text if text is not None and TRACEPARENT.fullmatch(text) else None


def trace_id_of(traceparent: str | None) -> str | None:
    """Return the trace id of a ``traceparent``, for logs."""
    return traceparent[3:35] if traceparent else None


@dataclass
class Span:
    """A span under way. ``traceparent`` is what to send along: None when there is no trace."""

    traceparent: str | None
    otel: Any = None

    @property
    def trace_id(self) -> str | None:
        """The trace id, for logs."""
        return trace_id_of(self.traceparent)

    def set(self, **attributes: Any) -> None:
        """Set attributes; a name's underscores of two become dots (``messaging__system``). None is left out."""
        if self.otel is not None:
            for name, value in attributes.items():
                if value is not None:
                    self.otel.set_attribute(name.replace("__", "."), value)

    def fail(self, error: str) -> None:
        """Mark the span as failed."""
        if self.otel is not None:
            from opentelemetry.trace import Status, StatusCode  # noqa: PLC0415

            self.otel.set_status(Status(StatusCode.ERROR, error))


class Tracing:
    """Makes spans and sends them to the collector; parent-based, so that a trace is whole or not there at all.

    Without an address nothing is made, and the ``traceparent`` that came in is passed on as it is.
    """

    def __init__(self, settings: Settings, service: str, instance: str, exporter: Any = None) -> None:
        self._provider: Any = None
        if not settings.tracing.endpoint and exporter is None:
            return
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor  # noqa: PLC0415
        from opentelemetry.sdk.trace.sampling import ParentBased  # noqa: PLC0415
        from opentelemetry.trace import SpanKind  # noqa: PLC0415

        from n8n_platform.bridge.sampling import LimitedSampler  # noqa: PLC0415

        resource = {
            "service.name": service,
            "service.instance.id": instance,
            "deployment.environment": settings.environment,
        }
        self._provider = TracerProvider(
            sampler=ParentBased(LimitedSampler(settings.tracing.ratio, settings.tracing.per_second)),
            resource=Resource(resource),
        )
        if exporter is None:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415

            address = settings.tracing.endpoint.rstrip("/") + "/v1/traces"
            self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=address, timeout=5)))
        else:
            self._provider.add_span_processor(SimpleSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("n8n_platform.bridge")
        self._kinds = {
            "server": SpanKind.SERVER,
            "client": SpanKind.CLIENT,
            "producer": SpanKind.PRODUCER,
            "consumer": SpanKind.CONSUMER,
            "internal": SpanKind.INTERNAL,
        }

    @property
    def enabled(self) -> bool:
        """Whether spans are made."""
        return self._provider is not None

    @contextlib.contextmanager
    def span(
        self,
        name: str,
        kind: str,
        parent: str | None = None,
        attributes: Mapping[str, Any] | None = None,
        start_ns: int | None = None,
    ) -> Iterator[Span]:
        """Make a span below a ``traceparent`` (None: the first of a new trace).

        ``kind``: server, client, producer, consumer or internal. ``start_ns``: Unix time of a span that began earlier.
        An exception marks the span as failed and goes on.
        """
        if self._provider is None:
            yield Span(valid_traceparent(parent))
            return
        made = self._tracer.start_span(
            name, _remote(parent), kind=self._kinds[kind], attributes=attributes, start_time=start_ns
        )
        span = Span(_format(made.get_span_context()), made if made.is_recording() else None)
        try:
            yield span
        except BaseException as error:
            span.fail(type(error).__name__)
            raise
        finally:
            made.end()

    def shutdown(self) -> None:
        """Send what is left; blocks for a few seconds at most."""
        if self._provider is not None:
            self._provider.shutdown()


def _remote(traceparent: str | None) -> Any:
    """Return the context of a parent elsewhere, or an empty one: never that of whoever calls."""
    from opentelemetry.context import Context  # noqa: PLC0415
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context  # noqa: PLC0415

    good = valid_traceparent(traceparent)
    if good is None:
        return Context()
    _, trace, span, flags = good.split("-")
    parent = SpanContext(int(trace, 16), int(span, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))
    return set_span_in_context(NonRecordingSpan(parent), Context())


def _format(context: Any) -> str:
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags) & 1:02x}"
