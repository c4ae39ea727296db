"""A small RTSP server: one video, MPEG-4 over RTP within the connection, as fast as its interval says."""

import contextlib
import socket
import struct
import threading
import time
from fractions import Fraction

from clips import pyav, shade

CLOCK = 90_000


class RTSPServer:
    """Serves at `url`. `hangs` makes it send nothing more and stay connected; `stop` closes all connections.

    Frames are all key frames; the grey of each says its number.
    """

    def __init__(self, interval=0.02, size=(48, 64)):
        self.interval, self.hangs, self.connections = interval, threading.Event(), 0
        self.packets, self.extra = self.encoded(size)
        self.port, self.server, self.open = 0, None, []
        self.start()

    @staticmethod
    def encoded(size):
        import numpy as np

        av = pyav()
        context = av.CodecContext.create("mpeg4", "w")
        context.height, context.width, context.pix_fmt, context.framerate = *size, "yuv420p", 25
        context.time_base, context.gop_size, context.flags = (
            Fraction(1, 25),
            1,
            1 << 22,
        )  # headers apart, for the description
        packets = []
        for number in range(36):
            image = np.full((*size, 3), shade(number), dtype=np.uint8)
            packets += [bytes(p) for p in context.encode(av.VideoFrame.from_ndarray(image, format="rgb24"))]
        return packets, bytes(context.extradata)

    @property
    def url(self):
        return f"rtsp://127.0.0.1:{self.port}/main"

    def start(self):
        self.server = socket.create_server(("127.0.0.1", self.port))
        self.port = self.server.getsockname()[1]
        threading.Thread(target=self.accept, args=(self.server,), daemon=True).start()

    def stop(self):
        self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()
        for connection in self.open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self.open = []

    def accept(self, server):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                self.open.append(connection)
                threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        with contextlib.suppress(OSError, ValueError):
            file = connection.makefile("rb")
            while request := file.readline():
                method = request.split()[0].decode()
                headers = {}
                while line := file.readline().strip():
                    key, _, value = line.decode().partition(":")
                    headers[key.lower()] = value.strip()
                self.reply(connection, method, headers)
                if method == "PLAY":
                    self.connections += 1
                    threading.Thread(target=self.play, args=(connection,), daemon=True).start()

    def reply(self, connection, method, headers):
        lines = ["RTSP/1.0 200 OK", f"CSeq: {headers['cseq']}"]
        body = ""
        if method == "OPTIONS":
            lines.append("Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN, GET_PARAMETER")
        if method == "DESCRIBE":
            body = (
                "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=test\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\n"
                f"a=rtpmap:96 MP4V-ES/{CLOCK}\r\na=fmtp:96 profile-level-id=1; config={self.extra.hex()}\r\n"
                "a=control:track\r\n"
            )
            lines += ["Content-Type: application/sdp", f"Content-Base: {self.url}/"]
        if method == "SETUP":
            lines += ["Transport: RTP/AVP/TCP;unicast;interleaved=0-1", "Session: 1"]
        if method == "PLAY":
            lines += ["Session: 1", "Range: npt=0-"]
        lines += [f"Content-Length: {len(body)}", "", body]
        connection.sendall("\r\n".join(lines).encode())

    def play(self, connection):
        with contextlib.suppress(OSError):
            for number in range(100_000):
                packet = self.packets[number % len(self.packets)]
                header = struct.pack(">BBHII", 0x80, 0x80 | 96, number & 0xFFFF, int(number * self.interval * CLOCK), 7)
                if not self.hangs.is_set():
                    connection.sendall(struct.pack(">BBH", 0x24, 0, 12 + len(packet)) + header + packet)
                time.sleep(self.interval)
