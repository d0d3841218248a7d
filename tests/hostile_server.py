"""A reward server on this machine that misbehaves as it is told, one behaviour per request, and keeps count."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

Behaviour = Callable[["Server", socket.socket, list[str]], None]


@dataclass
class Server:
    """`behaviours` are used up, one per request; then `otherwise` answers. `asked` holds the bodies, `heads` the headers."""

    behaviours: list[Behaviour]
    otherwise: Behaviour
    asked: list[dict[str, Any]] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    sent: int = 0
    over: threading.Event = field(default_factory=threading.Event)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/score"

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def handle(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, ValueError):
            connection.settimeout(10)
            head, body = read_request(connection)
            self.heads.append(head)
            self.asked.append(json.loads(body))
            behaviour = self.behaviours.pop(0) if self.behaviours else self.otherwise
            behaviour(self, connection, self.asked[-1]["responses"])


def read_request(connection: socket.socket) -> tuple[str, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        data += received(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    (length,) = [int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")]
    while len(body) < length:
        body += received(connection)
    return head.decode(), body


def received(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    if not data:
        raise OSError("the other side hung up")
    return data


@contextlib.contextmanager
def serving(*behaviours: Behaviour, otherwise: Behaviour | None = None) -> Iterator[Server]:
    """The server in threads of its own, gone when the block is left."""
    server = Server(list(behaviours), otherwise or lengths)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server.port = listening.getsockname()[1]
        thread = threading.Thread(target=accept, args=(server, listening), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.over.set()
            with contextlib.suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def accept(server: Server, listening: socket.socket) -> None:
    threads = []
    while not server.over.is_set():
        try:
            connection, _ = listening.accept()
        except OSError:
            break
        threads.append(threading.Thread(target=server.handle, args=(connection,), daemon=True))
        threads[-1].start()
    for thread in threads:
        thread.join(10)


# Behaviours


def reply(body: str | bytes, status: str = "200 OK", **headers: str) -> Behaviour:
    """A whole answer."""
    data = body.encode() if isinstance(body, str) else body
    lines = {"Content-Length": str(len(data)), "Connection": "close"} | {k.replace("_", "-"): v for k, v in headers.items()}
    head = f"HTTP/1.1 {status}\r\n" + "".join(f"{key}: {value}\r\n" for key, value in lines.items()) + "\r\n"
    return lambda server, connection, responses: connection.sendall(head.encode() + data)


def lengths(server: Server, connection: socket.socket, responses: Sequence[str]) -> None:
    """What a good server would do: the number of letters of each response."""
    reply(json.dumps({"scores": [len(text) for text in responses]}))(server, connection, list(responses))


def silence(server: Server, connection: socket.socket, responses: Sequence[str]) -> None:
    server.over.wait(10)


def hang_up(server: Server, connection: socket.socket, responses: Sequence[str]) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")


def slow_drip(server: Server, connection: socket.socket, responses: Sequence[str]) -> None:
    """A byte now and then, for ten seconds: no single wait is long."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    drip(server, connection)


def slow_head(server: Server, connection: socket.socket, responses: Sequence[str]) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    drip(server, connection)


def slow_stream(server: Server, connection: socket.socket, responses: Sequence[str]) -> None:
    """The same without a length, so that the end of the connection looks like the end of the answer."""
    connection.sendall(b'HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{"scores": [1]}')
    drip(server, connection)


def drip(server: Server, connection: socket.socket) -> None:
    for _ in range(500):
        connection.sendall(b" ")
        if server.over.wait(0.02):
            return


def gigabyte(server: Server, connection: socket.socket, responses: Sequence[str]) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n")
    flood(server, connection)


def endless(server: Server, connection: socket.socket, responses: Sequence[str]) -> None:
    """A gigabyte that does not say so before."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    flood(server, connection)


def flood(server: Server, connection: socket.socket) -> None:
    block = b"[" * 65536
    for _ in range(2**14):
        connection.sendall(block)
        server.sent += len(block)
        time.sleep(0)
