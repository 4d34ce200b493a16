"""A small HTTP server before one model (Starlette on uvicorn), and a client for it (docs/two_processes.md).

Whatever a stranger can make grow has a bound: `Limits`. One request a connection; the model takes one at a time.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from http.client import HTTPException as BadReply
from threading import Event, Timer
from time import perf_counter

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from lcf_lightning.errors import DataError, LCFError

Says = Callable[[dict[str, str]], bytes]
"""What is answered to a request's fields: the bytes of the reply. An LCFError refuses it."""
MILLISECONDS = "Sharer-Milliseconds"  # header of a reply: what `Says` took


@dataclass(frozen=True)
class Limits:
    """Of a server, and of who asks it.

    Attributes:
        seconds: From a request's headers to its answer, the wait for the model included; else 503. A connection,
            silent or not, is cut after twice as long.
        headers: Bytes of a request's headers; more is a 431, or, where they have not all come, a 400.
        request: Bytes of its body; more is a 413.
        reply: Bytes of a reply that the client reads.
        waiting: Requests at a time, of which all but one wait for the model; more are answered 503 at once.
        connections: Open ones, requests or not, and as many that the kernel holds until they are accepted; more are
            cut.
    """

    seconds: float = 30
    headers: int = 16 * 2**10
    request: int = 16 * 2**10
    reply: int = 16 * 2**20
    waiting: int = 100
    connections: int = 256


def server(says: Mapping[str, Says], names: Collection[str], limits: Limits) -> uvicorn.Server:
    """A server that answers a ``POST`` to each of these paths: JSON of a text for each of ``names``."""
    model = ThreadPoolExecutor(1)  # one request at a time, as the model takes them

    def route(path: str, answer: Says) -> Route:
        def timed(fields: dict[str, str]) -> tuple[bytes, float]:
            started = perf_counter()
            return answer(fields), (perf_counter() - started) * 1e3

        async def reply(request: Request) -> Response:
            if sum(map(len, itertools.chain(*request.headers.raw))) > limits.headers:
                raise HTTPException(431, f"a request's headers are at most {limits.headers} bytes.")
            fields = _fields(await _body(request, limits.request), names)
            return _reply(200, *await asyncio.get_running_loop().run_in_executor(model, timed, fields))

        async def endpoint(request: Request) -> Response:
            try:
                return await asyncio.wait_for(reply(request), limits.seconds)
            except asyncio.TimeoutError:
                return _reply(503, f"no answer within {limits.seconds} seconds.".encode())
            except LCFError as error:
                return _reply(400, str(error).encode(errors="replace"))
            except ClientDisconnect:
                return _reply(400, b"")  # nobody is there to read it

        return Route(path, endpoint, methods=["POST"])

    return uvicorn.Server(
        uvicorn.Config(
            Starlette(routes=[route(path, answer) for path, answer in says.items()]),
            http=_protocol(limits),
            ws="none",
            loop="asyncio",
            lifespan="off",
            backlog=limits.connections,
            limit_concurrency=limits.waiting + 1,  # which it counts as one too many
            h11_max_incomplete_event_size=limits.headers,
            headers=[("Connection", "close")],
            server_header=False,
            access_log=False,
            log_level="error",  # of what is wrong here; what strangers do wrong is not logged
            timeout_graceful_shutdown=1,
        )
    )


def _protocol(limits: Limits) -> type[H11Protocol]:
    """Connections that end in time, whatever they do, and are not too many: uvicorn waits for headers without end."""

    class Limited(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            self.end = self.loop.call_later(2 * limits.seconds, transport.abort)
            super().connection_made(transport)
            if len(self.connections) > limits.connections:
                transport.abort()

        def connection_lost(self, exc: Exception | None) -> None:
            self.end.cancel()
            super().connection_lost(exc)

    return Limited


async def _body(request: Request, most: int) -> bytes:
    """The request's body; a 413 where it is longer."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most:
            raise HTTPException(413, f"a request is at most {most} bytes.")
    return bytes(body)


def _fields(body: bytes, names: Collection[str]) -> dict[str, str]:
    try:
        fields: dict[str, str] = json.loads(body)
        if fields.keys() != set(names):
            raise ValueError
        "".join(fields.values()).encode()  # texts, and all of them Unicode
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"a request must be JSON of a text for each of {', '.join(names)}.") from error
    return fields


def _reply(status: int, body: bytes, milliseconds: float = 0) -> Response:
    return Response(body, status, {MILLISECONDS: f"{milliseconds:.3f}"}, "application/octet-stream")


def ask(address: str, path: str, fields: Mapping[str, str], limits: Limits) -> tuple[bytes, float, float]:
    """What a server says to ``fields``, its milliseconds, and those of the rest of the round trip.

    Redirects are not followed, and proxies of the environment not used.

    Raises:
        DataError: If it refuses, is not there, says what is no reply, or has not said it within ``limits.seconds``.
    """
    started, late = perf_counter(), Event()
    connection = HTTPConnection(address.removeprefix("http://"), timeout=limits.seconds)

    def cut(connected: socket.socket) -> None:
        late.set()
        with suppress(OSError):  # it has just ended
            connected.shutdown(socket.SHUT_RDWR)

    with closing(connection), ExitStack() as ending:
        try:
            connection.connect()
            left = limits.seconds - (perf_counter() - started)
            end = Timer(left, cut, [connection.sock])  # of the whole: a socket's own limit begins anew with each byte
            ending.callback(end.cancel)
            end.start()
            connection.request("POST", path, json.dumps(fields), {"Content-Type": "application/json"})
            reply = connection.getresponse()
            body = reply.read(limits.reply + 1)
            missing, milliseconds = reply.length, float(reply.headers[MILLISECONDS] or "nan")
        except (OSError, BadReply, ValueError) as error:
            late_or_not = late.is_set() or isinstance(error, TimeoutError)
            why = f"nothing within {limits.seconds} seconds" if late_or_not else printable(str(error)) or "it hung up"
            raise DataError(f"the sharer does not answer: {why}.") from error
    if late.is_set() or (missing and len(body) <= limits.reply):
        raise DataError(f"the sharer's answer was cut off after {len(body)} bytes.")
    if reply.status != 200:
        raise DataError(f"the sharer refuses ({reply.status}): {printable(body[:1000].decode(errors='replace'))}")
    if len(body) > limits.reply or not 0 <= milliseconds < 1e9:
        raise DataError(f"the sharer's answer is longer than {limits.reply} bytes, or does not say what it took.")
    return body, milliseconds, (perf_counter() - started) * 1e3 - milliseconds


def printable(text: str) -> str:
    """A stranger's text for a terminal: what would steer it, or begin a line, is a question mark."""
    return "".join(each if each.isprintable() else "?" for each in text)
