"""Serves a written site to this machine only."""

from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_LOOPBACK = "127.0.0.1"


class _Handler(SimpleHTTPRequestHandler):
    """Files of one folder, for requests that were meant for this machine."""

    def send_head(self) -> Any:
        # A page of another site may reach a loopback server by a name of its own (DNS rebinding).
        host = self.headers.get("Host", "").rsplit(":", 1)[0]
        if host not in (_LOOPBACK, "localhost"):
            self.send_error(HTTPStatus.FORBIDDEN)
            return None
        return super().send_head()

    def list_directory(self, path: Any) -> None:
        self.send_error(HTTPStatus.NOT_FOUND)

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a line per file would bury the address."""


def make_server(folder: Path, *, port: int) -> ThreadingHTTPServer:
    """A server of the folder on the loopback address; `serve_forever` starts it.

    Args:
        folder: a site written by `write_site`.
        port: 0 takes a free one.

    Raises:
        ValueError: the port is taken or not allowed.
    """
    try:
        return ThreadingHTTPServer((_LOOPBACK, port), partial(_Handler, directory=str(folder)))
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"--port {port} can't be used ({error}); choose another, or 0 for a free one"
        ) from error
