"""What Prometheus reads; a registry of its own for each service."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counters of one service.

    Args:
        entries: how many the gallery has. waiting: images in the queue.

    Attributes:
        cut_off: requests that a stop did not wait for.
    """

    def __init__(self, entries: Callable[[], float], waiting: Callable[[], float]) -> None:
        self.cut_off = 0
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "fmcnet_requests", "Requests, by route and status.", ("route", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "fmcnet_request_seconds", "From the head of a request to the end of its answer.", ("route",),
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30), registry=self.registry,
        )  # fmt: skip
        self.working = Gauge("fmcnet_requests_working", "Requests at work.", registry=self.registry)
        self.batch = Histogram(
            "fmcnet_batch_images", "Images the network saw at once.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128), registry=self.registry,
        )  # fmt: skip
        self.images = Counter("fmcnet_images", "Images embedded.", registry=self.registry)
        self.refused = Counter(
            "fmcnet_refused", "Requests turned away before they were read, by reason.", ("reason",),
            registry=self.registry,
        )  # fmt: skip
        Gauge("fmcnet_queue_images", "Images that wait.", registry=self.registry).set_function(waiting)
        Gauge("fmcnet_gallery_entries", "Entries.", registry=self.registry).set_function(entries)

    def batched(self, size: int) -> None:
        """The network got a batch."""
        self.batch.observe(size)
        self.images.inc(size)

    def text(self) -> bytes:
        """In Prometheus's format."""
        return generate_latest(self.registry)
