"""Health and Prometheus metrics of a worker, over HTTP on a port that is opened only on request."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from eex.policies.core.errors import EexError

if TYPE_CHECKING:
    from eex.stream.worker.front import Front
    from eex.stream.worker.stats import Histogram

HANGS_MS = 10_000.0
"""A worker whose model has been running for this long is not healthy."""

DEAD = ("stuck", "hanging")
"""States that a restart may end and waiting will not."""

MOST_CONNECTIONS = 32
REQUEST_S = 5.0  # for a request and its answer


def health(front: "Front") -> dict[str, Any]:
    """What the worker is doing, as plain JSON values.

    `status` is "ok", or why it answers no requests: "draining", "hanging" (a call of a model takes too long), "lost"
    (no replica of the models is there) or "stuck" (the service itself has stopped).
    """
    service, busy_ms, now = front.service, front.busy_ms, time.monotonic()
    if 1000 * (now - front.turned) > HANGS_MS:
        status = "stuck"
    elif service.draining:
        status = "draining"
    elif not front.pool.ready:
        status = "lost"
    else:
        status = "hanging" if busy_ms > HANGS_MS else "ok"
    return {
        "status": status,
        "queue": service.queued,
        "busy_ms": round(busy_ms, 1),
        "clients": service.clients.present(now),
        "replicas": front.pool.ready,
    }


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
        models = GaugeMetricFamily(
            "eex_model", "Models served, and the model that answers images", labels=["model", "answerer"]
        )
        for welcome in list(service.welcomes.values()):
            models.add_metric([welcome.model, welcome.answerer], 1)
        yield models
        yield requests
        yield refusals
        yield CounterMetricFamily("eex_frames", "Frames run", value=stats.frames)
        yield CounterMetricFamily("eex_expired", "Requests dropped because their deadline had passed", stats.expired)
        yield CounterMetricFamily("eex_unread_replies", "Replies that clients did not read", value=stats.unread)
        yield CounterMetricFamily("eex_shared", "Messages with what edges have learned", value=stats.shared)
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
        yield GaugeMetricFamily("eex_clients", "Clients seen lately", value=service.clients.present(time.monotonic()))
        yield GaugeMetricFamily("eex_replicas", "Replicas of the models that are there", value=self.front.pool.ready)
        dropped = 0 if stats.log is None else stats.log.dropped
        yield CounterMetricFamily(
            "eex_log_dropped", "Lines that were not logged", value=dropped + self.front.unwritten()
        )
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


class _Server(ThreadingHTTPServer):
    """A server with few connections at a time, each for a short time; more make the oldest end."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._open: dict[socket.socket, float] = {}  # since when, oldest first
        self._changing = threading.Lock()
        super().__init__(address, handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            request, address = super().get_request()
        except OSError:
            time.sleep(0.1)  # no descriptor is free
            raise
        with self._changing:
            self._open[request] = time.monotonic()
            if len(self._open) > MOST_CONNECTIONS:
                self._end(next(iter(self._open)))
        return request, address

    def service_actions(self) -> None:
        now = time.monotonic()
        with self._changing:
            for request, since in list(self._open.items()):
                if now - since > REQUEST_S:
                    self._end(request)

    def shutdown_request(self, request: Any) -> None:
        with self._changing:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke concerns nobody else."""

    def _end(self, request: socket.socket) -> None:
        self._open.pop(request, None)
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)  # its thread then closes it


class _Server6(_Server):
    address_family = socket.AF_INET6


@contextlib.contextmanager
def monitoring(front: "Front", port: int, host: str = "127.0.0.1") -> Iterator[str]:
    """Answer /metrics, /health, /ready and /alive during the `with` block; yields the URL.

    /health and /ready answer 200 if the worker can serve requests now, else 503; /alive answers 503 only where nothing
    but a restart will help. Connections are few and short-lived, whatever their other ends do.

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
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path in ("/health", "/ready", "/alive"):
                state = health(front)
                well = state["status"] == "ok" or (path == "/alive" and state["status"] not in DEAD)
                self._answer(200 if well else 503, "application/json", json.dumps(state).encode())
            elif path == "/metrics":
                self._answer(200, CONTENT_TYPE_LATEST, generate_latest(registry))
            else:
                self._answer(404, "text/plain", b"not found; try /health, /ready, /alive or /metrics\n")

        do_HEAD = do_GET

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    bare = host.strip("[]")
    try:
        server = (_Server6 if ":" in bare else _Server)((bare, port), Handler)
    except (OSError, OverflowError) as error:
        raise EexError(f"--metrics-port {port}: cannot listen on {host}: {error}") from None
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True)
    thread.start()
    try:
        yield f"http://{f'[{bare}]' if ':' in bare else bare}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
