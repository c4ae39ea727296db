"""Answers over MQTT, by paho-mqtt: a topic per stream, a retained status, and a last will."""

import os
import re
import time
from collections import deque
from typing import Any
from urllib.parse import parse_qsl, unquote

import msgspec

from eex.policies.core.errors import EexError
from eex.stream.live.sinks import Item, Target, UnavailableError
from eex.stream.live.streams import shown, url_of

UNCONFIRMED = 1000
"""Answers that may be on their way to the broker; further ones wait in the sink's queue."""
KEEPALIVE_S = 15
PORTS = {"mqtt": 1883, "mqtts": 8883}
PASSWORD = "EEX_MQTT_PASSWORD"


def mqtt(spec: str) -> Target:
    """A connection to an MQTT broker, which is made in the background and again whenever it is lost.

    Answers and refusals go to TOPIC/answers/STREAM, each confirmed by the broker (quality of service 1), so that after
    a broken connection some may come twice. TOPIC/status is retained: "online", and "offline" after the end, also when
    eex dies.

    Parameters
    ----------
    spec
        `mqtt[s]://[USER[:PASSWORD]@]HOST[:PORT]/TOPIC`; a password may be in $EEX_MQTT_PASSWORD instead. `mqtts` is
        encrypted; `?ca=FILE` names the certificates to trust. `mqtt` beyond this machine takes `?plain`.

    Raises
    ------
    EexError
        If the specification is wrong, or paho-mqtt is not installed.
    """
    try:
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion
    except ImportError:
        raise EexError("answers over MQTT need paho-mqtt: pip install 'eex[mqtt]'") from None

    host, port, topic, options = _parsed(spec)
    url = url_of(spec)
    client = Client(CallbackAPIVersion.VERSION2)
    if url.username:
        password = unquote(url.password) if url.password else os.environ.get(PASSWORD)
        client.username_pw_set(unquote(url.username), password)
    if url.scheme == "mqtts":
        try:
            client.tls_set(ca_certs=options.get("ca"))
        except OSError as error:
            raise EexError(f"{options.get('ca')}: cannot be used as certificates: {error.strerror}") from None
    reasons = [f"no connection to {host}:{port} yet"]
    status = f"{topic}/status"

    def connected(client: Any, data: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            reasons[0] = f"the broker refuses: {str(reason).lower()}"
        else:
            reasons[0] = f"the connection to {host}:{port} is lost"  # is why, once there is none
            client.publish(status, "online", qos=1, retain=True)

    def not_connected(client: Any, data: Any) -> None:
        reasons[0] = f"no broker at {host}:{port}"

    client.on_connect, client.on_connect_fail = connected, not_connected
    client.will_set(status, "offline", qos=1, retain=True)
    client.reconnect_delay_set(1, 30)
    client.connect_timeout = 3.0
    client.connect_async(host, port, keepalive=KEEPALIVE_S)
    client.loop_start()
    sent: deque[Any] = deque()

    def deliver(item: Item) -> None:
        while sent and sent[0].is_published():
            sent.popleft()
        if not client.is_connected():
            raise UnavailableError(reasons[0])
        if len(sent) >= UNCONFIRMED:
            raise UnavailableError(f"the broker at {host}:{port} confirms nothing")
        message = client.publish(f"{topic}/answers/{item.stream}", msgspec.json.encode(item), qos=1)
        if message.rc:
            raise UnavailableError(reasons[0])
        sent.append(message)

    def close(seconds: float) -> int:
        until = time.monotonic() + seconds
        last = client.publish(status, "offline", qos=1, retain=True) if client.is_connected() else None
        while client.is_connected() and time.monotonic() < until:
            if all(message.is_published() for message in [*sent, last] if message is not None):
                break
            time.sleep(0.01)
        client.disconnect()
        client.loop_stop()
        return sum(not message.is_published() for message in sent)

    return Target(deliver, close)


def _parsed(spec: str) -> tuple[str, int, str, dict[str, str]]:
    """Host, port, topic and options."""
    from eex.stream.wire.security import is_loopback

    url = url_of(spec)
    options = dict(parse_qsl(url.query, keep_blank_values=True))
    wanted = f"expected {url.scheme}://[USER@]HOST[:PORT]/TOPIC"
    try:
        host, port = url.hostname, url.port or PORTS[url.scheme]
    except ValueError:
        raise EexError(f"{shown(spec)}: its port is not one; {wanted}") from None
    if not host:
        raise EexError(f"{shown(spec)}: has no host; {wanted}")
    topic = unquote(url.path).strip("/") or "eex"
    if re.search(r"[+#\0]", topic):
        raise EexError(f"{shown(spec)}: a topic cannot contain '+' or '#'")
    if unknown := sorted(options.keys() - {"ca", "plain"}):
        raise EexError(f"{shown(spec)}: unknown option '{unknown[0]}'; expected ca=FILE or plain")
    if url.scheme == "mqtt" and "plain" not in options and not is_loopback(f"tcp://{host}:{port}"):
        raise EexError(f"{shown(spec)}: is not encrypted; use mqtts://, or add ?plain")
    return host, port, topic, options
