"""A web application of the standard library alone: / says what it is, /health that it lives."""

import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ABOUT = Path(__file__).with_name("about.txt")


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        match self.path:
            case "/":
                self.answer(200, ABOUT.read_bytes())
            case "/health":
                self.answer(200, b"well\n")
            case _:
                self.answer(404, b"not found\n")

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    address = ("0.0.0.0", int(os.environ.get("PORT", "8000")))
    ThreadingHTTPServer(address, Page).serve_forever()
