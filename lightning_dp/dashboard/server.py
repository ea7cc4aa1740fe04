"""Serves a written site to whoever on this machine knows its address, which holds a secret."""

import hmac
import secrets
import sys
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_LOOPBACK = "127.0.0.1"


class _Handler(SimpleHTTPRequestHandler):
    """Files of one folder, for requests that were meant for this machine and know its token."""

    server: "SiteServer"
    timeout = 30  # a request that never ends holds no thread for good

    def send_head(self) -> Any:
        # A page of another site may reach a loopback server by a name of its own (DNS rebinding).
        host = self.headers.get("Host", "").rsplit(":", 1)[0]
        _, token, rest = (*self.path.split("?", 1)[0].split("/", 2), "", "")[:3]
        # Other users of this machine reach the port too. Bytes, as a text may hold what can't be compared.
        known = hmac.compare_digest(token.encode(errors="replace"), self.server.token.encode())
        if host not in (_LOOPBACK, "localhost") or not known:
            self.send_error(HTTPStatus.FORBIDDEN)
            return None
        self.path = f"/{rest}"
        try:
            return super().send_head()
        except (ValueError, OSError):  # no name of a file, such as one with a zero in it
            self.send_error(HTTPStatus.NOT_FOUND)
            return None

    def list_directory(self, path: Any) -> None:
        self.send_error(HTTPStatus.NOT_FOUND)

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-store")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Content-Type-Options", "nosniff")
        super().end_headers()

    def version_string(self) -> str:
        return "lightning-dp"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a line per file would bury the address."""


class SiteServer(ThreadingHTTPServer):
    """A server whose files begin at `/TOKEN/`.

    Attributes:
        token: the secret part of the address, new at each start.
    """

    daemon_threads = True

    def __init__(self, folder: Path, *, port: int) -> None:
        self.token = secrets.token_urlsafe(24)
        super().__init__((_LOOPBACK, port), partial(_Handler, directory=str(folder)))

    @property
    def url(self) -> str:
        """What to open."""
        return f"http://{_LOOPBACK}:{self.server_port}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A request that was broken off is no fault; anything else is one line."""
        error = sys.exception()
        if not isinstance(error, ConnectionError | TimeoutError):
            print(f"lightning-dp dashboard: a request failed ({type(error).__name__})", file=sys.stderr)


def make_server(folder: Path, *, port: int) -> SiteServer:
    """A server of the folder on the loopback address; `serve_forever` starts it.

    Args:
        folder: a site written by `write_site`.
        port: 0 takes a free one.

    Raises:
        ValueError: the port is taken or not allowed.
    """
    try:
        return SiteServer(folder, port=port)
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"--port {port} can't be used ({error}); choose another, or 0 for a free one"
        ) from error
