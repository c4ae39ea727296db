"""Small videos, made in the test, and servers that stream them."""

import http.server
import ssl
import threading
import time

import numpy as np
import pytest


def pyav():
    """PyAV; the test is skipped without it."""
    return pytest.importorskip("av", reason="decoding video needs PyAV (eex[video])")


def shade(number):
    """The grey of a frame, from its number in a clip."""
    return 20 + 6 * (number % 36)


def clip(
    path,
    frames=20,
    size=(48, 64),
    rate=25,
    codec="mpeg4",
    grey=shade,
    times=None,
    colour=None,
    gop=5,
    reordered=0,
    **options,
):
    """Write a video whose frame k is of one grey, or of the colour; its left upper quarter is white."""
    av = pyav()
    with av.open(str(path), "w", **options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.options = {"g": str(gop), "bf": str(reordered)}
        for number in range(frames):
            image = np.full((*size, 3), grey(number) if colour is None else colour, dtype=np.uint8)
            image[: size[0] // 2, : size[1] // 2] = 255
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if times is not None:
                frame.pts = times[number]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def jpeg(grey=128, size=(48, 64)):
    """The bytes of a JPEG of one grey."""
    import io

    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(np.full((*size, 3), grey, dtype=np.uint8)).save(data, "JPEG")
    return data.getvalue()


class Server:
    """Streams MJPEG at `/cam` as long as `alive` is set, files of a folder elsewhere, and nothing at `/stalled`."""

    def __init__(self, folder, certificate=None):
        server = self
        self.alive, self.connections, self.interval = threading.Event(), 0, 0.02
        self.alive.set()

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *arguments):
                super().__init__(*arguments, directory=str(folder))

            def log_message(self, *_):
                pass

            def do_GET(self):
                if self.path not in ("/cam", "/stalled"):
                    return super().do_GET()
                if not server.alive.is_set():
                    return self.send_error(503)
                server.connections += 1
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                number = 0
                while server.alive.is_set():
                    data = jpeg(shade(number))
                    part = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n"
                    try:
                        if self.path == "/cam" or number < 5:
                            self.wfile.write(part % (len(data), data))
                    except OSError:
                        return None
                    number += 1
                    time.sleep(server.interval)
                return None

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.http.socket = context.wrap_socket(self.http.socket, server_side=True)
        self.url = f"http{'s' * (certificate is not None)}://127.0.0.1:{self.http.server_address[1]}"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    def close(self):
        self.alive.clear()
        self.http.shutdown()
        self.http.server_close()
