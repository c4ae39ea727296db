"""Prometheus metrics of a session that is served over HTTP."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from eex.stream.worker.stats import LATENCY_BUCKETS_MS

if TYPE_CHECKING:
    from eex.stream.serving.watch import Series, Watch


class _Collector:
    """Turns running counts into Prometheus metrics."""

    def __init__(self, summary: dict[str, Any], watch: "Watch", refusals: Mapping[int, int]) -> None:
        self.summary, self.watch, self.refusals = summary, watch, refusals

    def collect(self) -> Iterator[Any]:
        """The metrics, as prometheus_client wants them."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        rows, link = self.summary["streams"], self.summary["link"]
        series = {name: one for name, one in list(self.watch.series.items())}

        def counter(name: str, text: str, *labels: str) -> Any:
            return CounterMetricFamily(name, text, labels=labels)

        submitted = counter("eex_stream_frames", "Frames submitted", "stream")
        answered = counter("eex_stream_answers", "Frames answered", "stream")
        refused = counter("eex_stream_refusals", "Frames that got no answer, by reason", "stream", "reason")
        waiting = GaugeMetricFamily("eex_stream_waiting", "Frames that wait to be run", labels=["stream"])
        under_way = GaugeMetricFamily("eex_stream_under_way", "Frames that are run or offloaded", labels=["stream"])
        for row in rows:
            submitted.add_metric([row["stream"]], row["frames"])
            answered.add_metric([row["stream"]], row["answered"])
            for reason in ("stale", "full", "undecodable", "closed", "failed"):
                refused.add_metric([row["stream"], reason], row["refused"].get(reason, 0))
            waiting.add_metric([row["stream"]], row["waiting"])
            under_way.add_metric([row["stream"]], row["under_way"])
        yield from (submitted, answered, refused, waiting, under_way)
        yield from self._of_streams(series)
        histogram = HistogramMetricFamily(
            "eex_stream_latency_seconds", "From a frame's capture or arrival to its answer", labels=["stream"]
        )
        for name, one in series.items():
            buckets, total = _buckets(one)
            histogram.add_metric([name], buckets, total)
        yield histogram
        round_trip = GaugeMetricFamily("eex_link_round_trip_seconds", "Estimated round trip", labels=["worker"])
        alive = GaugeMetricFamily("eex_link_up", "Whether the worker answers: 1 or 0", labels=["worker"])
        breaker = GaugeMetricFamily(
            "eex_link_breaker_open", "Whether the worker is spared, as it failed too often: 1 or 0", labels=["worker"]
        )
        for worker in link.get("workers", ()):
            if worker["round_trip_ms"] is not None:
                round_trip.add_metric([worker["endpoint"]], worker["round_trip_ms"] / 1000)
            alive.add_metric([worker["endpoint"]], float(worker["state"] == "up"))
            breaker.add_metric([worker["endpoint"]], float(worker["breaker"] == "open"))
        yield from (round_trip, alive, breaker)
        requests = counter("eex_link_requests", "Requests to the workers, by what became of them", "kind")
        for kind, count in link.items():
            if isinstance(count, int):
                requests.add_metric([kind], count)
        yield requests
        strangers = counter("eex_http_refusals", "HTTP requests refused before they were read, by status", "status")
        for status, count in self.refusals.items():
            strangers.add_metric([str(status)], count)
        yield strangers

    @staticmethod
    def _of_streams(series: "Mapping[str, Series]") -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily

        for attribute, name, text in (
            ("offloaded", "eex_stream_offloaded", "Frames meant for the cloud"),
            ("fallbacks", "eex_stream_fallbacks", "Frames that the edge answered because no reply came"),
            ("dropped", "eex_stream_dropped", "Frames dropped for too little confidence"),
            ("bytes", "eex_stream_bytes", "Bytes sent to the cloud"),
        ):
            family = CounterMetricFamily(name, text, labels=["stream"])
            for stream, one in series.items():
                family.add_metric([stream], getattr(one, attribute))
            yield family
        exits = CounterMetricFamily("eex_stream_exits", "Frames by the exit that answered", labels=["stream", "exit"])
        for stream, one in series.items():
            for e, count in enumerate(one.by_exit.tolist()):
                exits.add_metric([stream, "cloud" if e == one.exits - 1 else str(e + 1)], count)
        yield exits


def _buckets(series: "Series") -> tuple[list[tuple[str, float]], float]:
    bounds = [*(f"{bound / 1000:g}" for bound in LATENCY_BUCKETS_MS), "+Inf"]
    sums = series.buckets.cumsum().tolist()
    return list(zip(bounds, map(float, sums), strict=True)), series.latency_ms / 1000


def exposition(summary: dict[str, Any], watch: "Watch", refusals: Mapping[int, int]) -> tuple[bytes, str]:
    """The metrics in Prometheus's text format, and its content type.

    Parameters
    ----------
    summary
        The session's.
    watch
        Of its streams.
    refusals
        Requests refused by the outermost layer, by status.
    """
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.exposition import CONTENT_TYPE_LATEST

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(summary, watch, refusals))
    return generate_latest(registry), CONTENT_TYPE_LATEST
