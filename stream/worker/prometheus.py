"""Health and Prometheus metrics of a worker, over HTTP on a port that is opened only on request."""

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from eex.policies.core.errors import EexError

if TYPE_CHECKING:
    from eex.stream.worker.front import Front
    from eex.stream.worker.stats import Histogram

HANGS_MS = 10_000.0
"""A worker whose model has been running for this long is not healthy."""


def health(front: "Front") -> dict[str, Any]:
    """What the worker is doing, as plain JSON values; `status` is ok, draining or hanging."""
    service, busy_ms = front.service, front.busy_ms
    status = "draining" if service.draining else "hanging" if busy_ms > HANGS_MS else "ok"
    return {"status": status, "queue": service.queued, "busy_ms": round(busy_ms, 1), "clients": len(service.clients)}


class Collector:
    """Turns a front's running counts into Prometheus metrics, each time they are scraped."""

    def __init__(self, front: "Front") -> None:
        self.front = front

    def collect(self) -> Iterator[Any]:
        """The metrics, as prometheus_client wants them."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        service, stats = self.front.service, self.front.stats
        requests = CounterMetricFamily("eex_requests", "Requests accepted", labels=["model"])
        for model, count in list(stats.requests.items()):
            requests.add_metric([model], count)
        refusals = CounterMetricFamily("eex_refusals", "Messages refused, by kind", labels=["kind"])
        for kind, count in list(stats.refusals.items()):
            refusals.add_metric([kind], count)
        yield requests
        yield refusals
        yield CounterMetricFamily("eex_frames", "Frames run", value=stats.frames)
        yield CounterMetricFamily("eex_expired", "Requests dropped because their deadline had passed", stats.expired)
        yield CounterMetricFamily("eex_unread_replies", "Replies that clients did not read", value=stats.unread)
        yield CounterMetricFamily("eex_strangers", "Connections rejected for their keys", value=stats.strangers)
        if stats.upstream:
            tiers = CounterMetricFamily(
                "eex_upstream_frames",
                "Frames by where they were answered, with an upstream worker",
                labels=["kind"],
            )
            for kind, count in list(stats.upstream.items()):
                tiers.add_metric([kind], count)
            yield tiers
        busy_s = self.front.busy_ms / 1000
        yield GaugeMetricFamily("eex_queue", "Requests under way", value=service.queued)
        yield GaugeMetricFamily("eex_queue_bytes", "Bytes of their features", value=service.queued_bytes)
        yield GaugeMetricFamily("eex_clients", "Clients seen lately", value=len(service.clients))
        yield GaugeMetricFamily("eex_busy_seconds", "Running time of the longest call of a model", value=busy_s)
        for name, text, histogram, unit in (
            ("eex_batch_frames", "Frames in one call of a model", stats.batch_frames, 1.0),
            ("eex_latency_seconds", "From a request's arrival to its answer", stats.latency_ms, 1000.0),
            ("eex_compute_seconds", "Duration of one call of a model", stats.compute_ms, 1000.0),
        ):
            buckets, total = _buckets(histogram, unit)
            yield HistogramMetricFamily(name, text, buckets=buckets, sum_value=total)


def _buckets(histogram: "Histogram", unit: float) -> tuple[list[tuple[str, float]], float]:
    bounds = [*(f"{bound / unit:g}" for bound in histogram.bounds), "+Inf"]
    counts, sums = 0, []
    for count in list(histogram.counts):
        counts += count
        sums.append(float(counts))
    return list(zip(bounds, sums, strict=True)), histogram.total / unit


@contextlib.contextmanager
def monitoring(front: "Front", port: int, host: str = "127.0.0.1") -> Iterator[str]:
    """Answer /health (200, or 503 if the worker cannot serve) and /metrics during the `with` block; yields the URL.

    Raises
    ------
    EexError
        If the port cannot be opened.
    """
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.exposition import CONTENT_TYPE_LATEST

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector(front))

    class Handler(BaseHTTPRequestHandler):
        timeout = 5  # seconds, to read a request

        def do_GET(self) -> None:
            if self.path == "/health":
                state = health(front)
                self._answer(200 if state["status"] == "ok" else 503, "application/json", json.dumps(state).encode())
            elif self.path == "/metrics":
                self._answer(200, CONTENT_TYPE_LATEST, generate_latest(registry))
            else:
                self._answer(404, "text/plain", b"not found; try /health or /metrics\n")

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    try:
        server = ThreadingHTTPServer((host, port), Handler)
    except (OSError, OverflowError) as error:
        raise EexError(f"--metrics-port {port}: cannot listen on {host}: {error}") from None
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
