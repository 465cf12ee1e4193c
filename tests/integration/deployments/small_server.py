"""A server with nothing but the standard library, that streams slowly and can be told how busy it is.

`GET /ready`; `GET /stream?pieces=N&wait=S`; `POST /echo`; `GET /metrics` with gauges read from the file $LOAD_FILE;
`GET /version`. It dies at once when it is told to: it is for the gateway not to lose requests.
"""

from __future__ import annotations

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        match url.path:
            case "/ready" if os.environ.get("NEVER_READY"):
                self._say(503, b"no")
            case "/ready" | "/version":
                self._say(200, os.environ.get("ANSWER", "one").encode())
            case "/metrics":
                self._say(200, self._metrics())
            case "/busy":
                self._say(503, b"busy")
            case "/stream":
                self._stream(int(query["pieces"]), float(query["wait"]))
            case "/headers":
                self._say(200, json.dumps(self.headers.items()).encode())
            case "/target":
                self._say(200, self.path.encode())
            case "/break":
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                self.wfile.write(b"4\r\nhalf\r\n")
                self.wfile.flush()
                self.close_connection = True
            case "/close":
                self.close_connection = True
            case _:
                self._say(404, b"nothing here")

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1234")
        self.end_headers()

    def do_POST(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._say(200, body)

    def _stream(self, pieces: int, wait: float) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number in range(pieces):
            line = f"{number}\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            self.wfile.flush()
            time.sleep(wait)
        self.wfile.write(b"0\r\n\r\n")

    def _metrics(self) -> bytes:
        waiting, usage = 0.0, 0.0
        if "LOAD_FILE" in os.environ and Path(os.environ["LOAD_FILE"]).exists():
            waiting, usage = json.loads(Path(os.environ["LOAD_FILE"]).read_text())
        return (
            f"# TYPE millpond_scheduler_waiting_sequences gauge\nmillpond_scheduler_waiting_sequences {waiting}\n"
            f"# TYPE millpond_cache_usage_ratio gauge\nmillpond_cache_usage_ratio {usage}\n"
        ).encode()

    def _say(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Pid", str(os.getpid()))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that leaves is no news."""


if __name__ == "__main__":
    if os.environ.get("FAIL_AT_START"):
        sys.exit("cannot start")
    time.sleep(float(os.environ.get("START_S", "0")))
    Server(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
