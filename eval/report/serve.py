"""Serve one page on the loopback interface, for browsers that open no files."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ADDRESS = "127.0.0.1"


def server_of(page: Path, port: int = 0) -> ThreadingHTTPServer:
    """A server of this one file, at ``/``; every other path, and every other name of this host, is refused.

    Parameters
    ----------
    port
        0: any free port.
    """

    class Handler(BaseHTTPRequestHandler):
        """Answers with the page as it is on disk."""

        def do_GET(self) -> None:
            """Send the page."""
            name = f"{ADDRESS}:{self.connection.getsockname()[1]}"
            is_page = self.path == "/" and self.headers.get("Host") == name  # no other name: DNS rebinding
            body = page.read_bytes() if is_page else b"not here\n"
            self.send_response(200 if is_page else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8" if is_page else "text/plain")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Print nothing per request."""

    return ThreadingHTTPServer((ADDRESS, port), Handler)


def serve(page: Path, port: int) -> None:
    """Serve until Ctrl-C."""
    with server_of(page, port) as server:
        print(f"serving on http://{ADDRESS}:{server.server_address[1]}/ until Ctrl-C", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return
