"""Clients that speak to an HTTP service over real sockets, and pictures for it."""

import contextlib
import io
import json
import socket
from http.client import HTTPConnection
from urllib.parse import urlsplit

from PIL import Image


def picture(colour=(200, 90, 30), size=(2, 2), kind="PNG"):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()


class Client:
    """Speaks HTTP to a service, a connection per request unless `kept`."""

    def __init__(self, url, service, session, said):
        self.url, self.service, self.session, self.said = url, service, session, said
        split = urlsplit(url)
        self.address = (split.hostname, split.port)
        self._kept = None

    def __call__(self, method, path, body=None, headers=None, kept=False):
        connection = self._kept if kept and self._kept else HTTPConnection(*self.address, timeout=20)
        self._kept = connection if kept else self._kept
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            data = response.read()
            if response.headers.get_content_type() == "application/json":
                return response.status, json.loads(data)
            return response.status, data.decode()
        finally:
            if not kept:
                connection.close()

    def close(self):
        if self._kept:
            self._kept.close()

    def get(self, path, **headers):
        return self("GET", path, headers=headers)

    def answer(self, stream="door", body=None, **query):
        text = "".join(f"&{key}={value}" for key, value in query.items())
        return self("POST", f"/v1/answer?stream={stream}{text}", picture() if body is None else body)

    def settings(self, stream="door", **given):
        return self("PUT", f"/v1/settings?stream={stream}", json.dumps(given))

    @contextlib.contextmanager
    def raw(self):
        with socket.create_connection(self.address, timeout=20) as connection:
            yield connection
