"""Health and metrics of a worker over HTTP."""

import contextlib
import json
import socket
import threading
import urllib.error
import urllib.request

import pytest
from loopback import PATIENCE_S, Cloud, Gate, collect, features, submit, until
from prometheus_client.parser import text_string_to_metric_families

from eex.policies.core.errors import EexError
from eex.stream.worker import clients
from eex.stream.worker.pool import LocalReplica
from eex.stream.worker.prometheus import MOST_CONNECTIONS, monitoring

pytestmark = pytest.mark.timeout(120)


def get(url):
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=PATIENCE_S) as answer:
        return answer.read().decode()


def test_health_and_metrics():
    gate = Gate()
    gate.open.set()
    with Cloud([LocalReplica({"model-a": gate})]) as cloud, cloud.edge() as edge, monitoring(cloud.front, 0) as url:
        assert url.startswith("http://127.0.0.1:")
        for id in range(3):
            submit(edge, id, 1, "blur", features())
            collect(edge, 1)
        submit(edge, 9, 7, "blur", features())
        collect(edge, 1)
        assert json.loads(get(f"{url}/health"))["status"] == "ok"
        samples = {
            (s.name, *s.labels.values()): s.value
            for family in text_string_to_metric_families(get(f"{url}/metrics"))
            for s in family.samples
        }
        assert samples["eex_requests_total", "model-a"] == 3
        assert samples["eex_model", "", "model-a"] == 1  # no other model answers images
        assert samples["eex_refusals_total", "stage"] == 1
        assert samples["eex_frames_total",] == 3
        assert samples["eex_queue",] == 0
        assert samples["eex_batch_frames_bucket", "1"] == samples["eex_batch_frames_count",] == 3
        assert samples["eex_latency_seconds_bucket", "+Inf"] == samples["eex_compute_seconds_count",] == 3
        assert 0 < samples["eex_latency_seconds_sum",] < PATIENCE_S
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(f"{url}/secrets")
        port = int(url.rsplit(":", 1)[1])
        with pytest.raises(EexError, match=f"--metrics-port {port}: cannot listen"), monitoring(cloud.front, port):
            pass
        cloud.front.service.draining = True
        with pytest.raises(urllib.error.HTTPError, match="503"):
            get(f"{url}/health")
        cloud.front.service.draining = False


def test_head_is_answered_without_a_body():
    with Cloud([LocalReplica({"model-a": Gate()})]) as cloud, monitoring(cloud.front, 0) as url:
        for path in ("health", "ready", "alive", "metrics"):
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
                urllib.request.Request(f"{url}/{path}", method="HEAD"), timeout=PATIENCE_S
            ) as answer:
                assert (answer.status, answer.read()) == (200, b"")
                assert int(answer.headers["Content-Length"]) > 0


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_an_ipv6_address(host):
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("needs IPv6")
    with Cloud([LocalReplica({"model-a": Gate()})]) as cloud, monitoring(cloud.front, 0, host) as url:
        assert url.startswith("http://[::1]:")
        assert json.loads(get(f"{url}/health"))["status"] == "ok"


def test_connections_that_ask_nothing_end_when_there_are_too_many():
    with Cloud([LocalReplica({"model-a": Gate()})]) as cloud, monitoring(cloud.front, 0) as url:
        address = ("127.0.0.1", int(url.rsplit(":", 1)[1]))
        with contextlib.ExitStack() as stack:
            idle = [stack.enter_context(socket.create_connection(address)) for _ in range(3 * MOST_CONNECTIONS)]
            assert json.loads(get(f"{url}/health"))["status"] == "ok"
            for oldest in idle[:MOST_CONNECTIONS]:
                oldest.settimeout(PATIENCE_S)
                with contextlib.suppress(ConnectionError):
                    assert oldest.recv(1) == b""
            assert sum(thread.name.startswith("Thread-") for thread in threading.enumerate()) < 2 * MOST_CONNECTIONS


def test_clients_that_left_are_not_counted(monkeypatch):
    monkeypatch.setattr(clients, "GONE_S", 0.3)
    with Cloud([LocalReplica({"model-a": Gate()})]) as cloud, monitoring(cloud.front, 0) as url:
        with cloud.edge() as edge:
            until(lambda: edge.poll() == [] and json.loads(get(f"{url}/health"))["clients"] == 1)
        until(lambda: json.loads(get(f"{url}/health"))["clients"] == 0)
