"""Hostile requests to the dashboard's server."""

import contextlib
import io
import socket
import threading
from collections.abc import Callable

from place import Kind, Place

from lightning_dp.dashboard.server import SiteServer, make_server


def request(make: Callable[[SiteServer], bytes]) -> Callable[[Place], str]:
    """Raw bytes to a served folder; returns the status line and what the server printed."""

    def attack(place: Place) -> str:
        site = place.folder / "site"
        site.mkdir()
        (site / "data.js").write_text("private")
        (place.folder / "outside.txt").write_text("private")
        said = io.StringIO()
        with contextlib.redirect_stderr(said), make_server(site, port=0) as server:
            thread = threading.Thread(
                target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
            )
            thread.start()
            with socket.create_connection(("127.0.0.1", server.server_port), timeout=5) as client:
                client.sendall(make(server))
                client.shutdown(socket.SHUT_WR)
                answer = b""
                with contextlib.suppress(ConnectionError, TimeoutError):
                    while piece := client.recv(65536):
                        answer += piece
            server.shutdown()
            thread.join()
        assert b"private" not in answer
        assert "Traceback" not in said.getvalue()
        if answer.startswith(b"<"):  # as HTTP 0.9 has it, without a status line
            answer = answer[answer.index(b"Error code") :]
        return answer.splitlines()[0].decode(errors="replace") if answer else "nothing"

    return attack


def get(
    path: str, *, host: str = "127.0.0.1", token: bool = True, method: str = "GET"
) -> Callable[[Place], str]:
    def make(server: SiteServer) -> bytes:
        start = f"/{server.token}" if token else ""
        return f"{method} {start}{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()

    return request(make)


KINDS = [
    Kind("request", "no token", get("/data.js", token=False), "403"),
    Kind("request", "wrong token", get("/x/data.js", token=False), "403"),
    Kind(
        "request",
        "token cut off",
        request(lambda s: f"GET /{s.token[:-1]}/data.js HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()),
        "403",
    ),
    Kind(
        "request",
        "token in other letters",
        request(lambda s: f"GET /{s.token}\xe9/data.js HTTP/1.1\r\nHost: localhost\r\n\r\n".encode("latin1")),
        "403",
    ),
    Kind(
        "request",
        "token as a parameter of nothing",
        request(lambda s: f"GET /data.js?{s.token} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()),
        "403",
    ),
    Kind("request", "another site's name", get("/data.js", host="evil.example"), "403"),
    Kind("request", "no host", request(lambda s: f"GET /{s.token}/data.js HTTP/1.0\r\n\r\n".encode()), "403"),
    Kind("request", "a zero", get("/%00"), "404"),
    Kind("request", "way out", get("/../outside.txt"), "404"),
    Kind("request", "way out, written otherwise", get("/%2e%2e/outside.txt"), "404"),
    Kind("request", "way out by an absolute path", get("//etc/passwd"), "404"),
    Kind("request", "listing", get("/"), "404"),
    Kind("request", "long path", get("/" + "a" * 5000), "404"),
    Kind("request", "very long path", get("/" + "a" * 70_000), "414"),
    Kind("request", "writing", get("/data.js", method="PUT"), "501"),
    Kind("request", "no HTTP", request(lambda _: b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n"), "400|nothing"),
    Kind(
        "request",
        "200 headers",
        request(lambda s: f"GET /{s.token}/x HTTP/1.1\r\n".encode() + b"a: b\r\n" * 200 + b"\r\n"),
        "431",
    ),
    Kind("request", "broken off", request(lambda s: f"GET /{s.token}/data".encode()), "nothing|40[03]"),
]
