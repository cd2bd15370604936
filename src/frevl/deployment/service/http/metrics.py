"""Counters of the service, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["Metrics"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ITEMS = tuple(float(2**power) for power in range(11))


class Metrics:
    """Counters of one service, not shared with other services of the process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ["route", "method", "status"]
        self.requests = Counter("frevl_requests", "Requests answered.", labels, registry=self.registry)
        self.seconds = Histogram(
            "frevl_request_seconds",
            "Time from the first byte to the answer.",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.refused = Counter("frevl_refused", "Requests answered with an error.", ["code"], registry=self.registry)
        self.batch_items = Histogram(
            "frevl_batch_items", "Items per batch.", ["work"], buckets=_ITEMS, registry=self.registry
        )
        self.batch_seconds = Histogram(
            "frevl_batch_seconds", "Time per batch.", ["work"], buckets=_SECONDS, registry=self.registry
        )
        self.waiting = Gauge("frevl_queue_items", "Items waiting for the model.", registry=self.registry)
        self.under_way = Gauge("frevl_requests_under_way", "Requests being answered.", registry=self.registry)
        # Looking a counter up by its labels takes longer than counting.
        self._counters: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        counters = self._counters.get((route, method, status))
        if counters is None:
            counters = self.requests.labels(route, method, str(status)), self.seconds.labels(route)
            self._counters[(route, method, status)] = counters
        counters[0].inc()
        counters[1].observe(seconds)

    def batch(self, work: str, items: int, seconds: float) -> None:
        """Count a batch."""
        self.batch_items.labels(work).observe(items)
        self.batch_seconds.labels(work).observe(seconds)

    def text(self) -> bytes:
        """Return all counters in Prometheus text format."""
        return generate_latest(self.registry)
