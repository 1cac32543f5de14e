"""What a test's SDK of OpenTelemetry was told, in this process and in others."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from torch.distributed.checkpoint import DefaultSavePlanner


class Exporter(SpanExporter):
    """Keeps spans, or fails."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []
        self.fails = False

    def export(self, spans: Any) -> SpanExportResult:
        if self.fails:
            raise OSError("the collector is away")
        self.spans += spans
        return SpanExportResult.SUCCESS


class Told:
    """The SDK of this process; there is one."""

    def __init__(self) -> None:
        self.exporter = Exporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        trace.set_tracer_provider(provider)
        self._reader = InMemoryMetricReader()
        metrics.set_meter_provider(MeterProvider([self._reader]))
        self._before: dict[tuple[str, frozenset[tuple[str, Any]]], float] = {}

    def spans(self, name: str) -> list[ReadableSpan]:
        """The spans of this name since the test began."""
        return [span for span in self.exporter.spans if span.name == name]

    def children(self, of: ReadableSpan) -> list[ReadableSpan]:
        """Spans directly in another, by when they began."""
        within = [span for span in self.exporter.spans if span.parent and span.parent.span_id == of.context.span_id]
        return sorted(within, key=lambda span: span.start_time)

    def _read(self) -> dict[tuple[str, frozenset[tuple[str, Any]]], float]:
        data = self._reader.get_metrics_data()
        found = {}
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        key = (metric.name, frozenset(point.attributes.items()))
                        found[key] = point.count if hasattr(point, "count") else point.value
        return found

    def metrics(self) -> set[str]:
        """The names of the metrics that changed since the test began."""
        return {key[0] for key, value in self._read().items() if value != self._before.get(key, 0)}

    def metric(self, name: str, **attributes: str) -> float:
        """What a counter rose by since the test began, or how often a histogram was told."""
        names = {"operation": "s3dcp.operation", "error": "error.type", "bucket": "aws.s3.bucket"}
        wanted = {names.get(key, key): value for key, value in attributes.items()}.items()
        return sum(
            value - self._before.get(key, 0)
            for key, value in self._read().items()
            if key[0] == name and wanted <= set(key[1])
        )

    def forget(self) -> None:
        """A test begins."""
        self.exporter.spans.clear()
        self.exporter.fails = False
        self._before = self._read()


class Telling(DefaultSavePlanner):
    """A planner whose arrival sets the SDK up in a process that a save has started, this one or one before it."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._made_in = os.getpid()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if os.getpid() != self._made_in:
            provider = TracerProvider()
            provider.add_span_processor(SimpleSpanProcessor(_ToFiles(self._folder)))
            trace.set_tracer_provider(provider)


class _ToFiles(SpanExporter):
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def export(self, spans: Any) -> SpanExportResult:
        for span in spans:
            (self._folder / f"{span.context.span_id:x}.json").write_text(span.to_json())
        return SpanExportResult.SUCCESS


def in_files(folder: Path) -> Iterator[dict[str, Any]]:
    """The spans that other processes left in a folder."""
    return (json.loads(file.read_text()) for file in folder.iterdir())
