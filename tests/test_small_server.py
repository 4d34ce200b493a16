"""`examples/small_server.py`: nothing that a stranger does holds it up, grows without bound, or is written out."""

from __future__ import annotations

import json
import logging
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from types import ModuleType

import pytest

from lcf_lightning.errors import DataError

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def small() -> Iterator[ModuleType]:
    """The file as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        import small_server

        yield small_server
    sys.modules.pop("small_server")


BEGUN: list[str] = []
GO = threading.Event()  # until it is set, who asks to wait is not answered


def said(fields: Mapping[str, str]) -> bytes:
    BEGUN.append(fields["question"])
    if fields["question"] == "wait":
        GO.wait(20)
    if fields["question"] == "refused":
        raise DataError("\x1b[2Jno \udc80such question.")
    return fields["question"].encode()


@contextmanager
def served(small: ModuleType, **limits: float) -> Iterator[tuple[str, object]]:
    """Its address, and its limits."""
    limit = replace(small.Limits(seconds=20), **limits)
    BEGUN.clear()
    GO.clear()
    serving = small.server({"/ask": said}, ["question"], limit)
    with socket.create_server(("127.0.0.1", 0), backlog=limit.connections) as listening:
        thread = threading.Thread(target=serving.run, args=[[listening]])
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}", limit
        finally:
            GO.set()
            serving.should_exit = True
            thread.join()


def answers(small: ModuleType, address: str, limits: object) -> bool:
    """Whether it does, now or, on a busy machine, when asked again."""
    for _ in range(20):
        try:
            return bool(small.ask(address, "/ask", {"question": "tea"}, limits)[0] == b"tea")
        except DataError:
            time.sleep(0.1)
    return False


def connected(address: str) -> socket.socket:
    host, port = address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def head(length: int, more: str = "") -> bytes:
    return f"POST /ask HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n{more}\r\n".encode()


def all_of(sock: socket.socket) -> bytes:
    """What comes until the other side closes, or cuts."""
    found = b""
    try:
        while part := sock.recv(65536):
            found += part
    except ConnectionResetError:
        pass
    return found


def test_what_is_slow_is_answered_in_time(small: ModuleType) -> None:
    with served(small, seconds=0.3) as (address, limits):
        client = replace(limits, seconds=10)
        with pytest.raises(DataError, match=r"the sharer refuses \(503\): no answer within 0.3 seconds"):
            small.ask(address, "/ask", {"question": "wait"}, client)
        GO.set()
        for begun in (b"", head(2)[:-9], head(40) + b'{"que'):  # silent, in its headers, in its body
            with connected(address) as slow:
                slow.sendall(begun)
                started = time.perf_counter()
                reply = all_of(slow)
                assert time.perf_counter() - started < 5
                assert reply == b"" or reply.startswith(b"HTTP/1.1 503 ")
        assert answers(small, address, client)


def test_what_waits_too_long_is_never_begun(small: ModuleType) -> None:
    with served(small, seconds=0.3) as (address, limits), ThreadPoolExecutor(3) as pool:
        client = replace(limits, seconds=10)
        asked = [pool.submit(small.ask, address, "/ask", {"question": "wait"}, client) for _ in range(3)]
        assert all("no answer within" in str(each.exception()) for each in asked)
        GO.set()
        assert answers(small, address, client)
    assert BEGUN.count("wait") == 1


def test_what_is_too_large_is_refused(small: ModuleType) -> None:
    with served(small, request=1000, headers=2000) as (address, limits):
        with pytest.raises(DataError, match=r"the sharer refuses \(413\): a request is at most 1000 bytes"):
            small.ask(address, "/ask", {"question": "a" * 1000}, limits)
        for sent, status in (
            (head(10**9) + b"a" * 2000, b"413"),
            (head(2, f"More: {'a' * 3000}\r\n") + b"{}", b"431"),
            (head(2, f"More: {'a' * 3000}")[:-4], b"400"),  # and they have no end yet
            (head(2, "".join(f"More-{place}: a\r\n" for place in range(10_000))) + b"{}", b"400"),
            (head(4) + b"{}", b""),  # its other half never comes
            (b"GET /ask HTTP/1.1\r\nHost: x\r\n\r\n", b"405"),
            (b"\x16\x03\x01" * 100, b"400"),
        ):
            with connected(address) as sock:
                sock.sendall(sent)
                if not status:
                    sock.shutdown(socket.SHUT_WR)
                assert all_of(sock)[9:12] == status
        assert answers(small, address, limits)


@pytest.mark.parametrize("body", ["no JSON", "[]", "{}", '{"question": 1}', '{"question": "a", "more": "b"}',
                                  '{"question": "\\ud800"}', "[" * 900])  # fmt: skip
def test_a_request_of_another_kind_is_refused(small: ModuleType, body: str) -> None:
    with served(small) as (address, _), closing(HTTPConnection(address.removeprefix("http://"))) as connection:
        connection.request("POST", "/ask", body)
        reply = connection.getresponse()
        assert (reply.status, reply.read()) == (400, b"a request must be JSON of a text for each of question.")


def test_more_than_may_wait_are_told_so(small: ModuleType) -> None:
    with served(small, waiting=1) as (address, limits), ThreadPoolExecutor(1) as pool:
        first = pool.submit(small.ask, address, "/ask", {"question": "wait"}, limits)
        while not BEGUN:
            time.sleep(0.01)
        for _ in range(3):
            with pytest.raises(DataError, match=r"the sharer refuses \(503\)"):
                small.ask(address, "/ask", {"question": "tea"}, limits)
        GO.set()
        assert first.result()[0] == b"wait"
        assert BEGUN == ["wait"]
    with served(small, connections=2) as (address, limits):
        open_ones = [connected(address) for _ in range(2)]
        with pytest.raises(DataError, match="the sharer does not answer"):
            small.ask(address, "/ask", {"question": "tea"}, limits)
        for each in open_ones:
            each.close()


def test_who_hangs_up_is_not_written_about(small: ModuleType, capfd: pytest.CaptureFixture[str]) -> None:
    body = json.dumps({"question": "wait"}).encode()
    with served(small) as (address, limits):
        for sent in (head(len(body)) + body, head(len(body)) + body[:5], head(5)[:20], b""):
            with connected(address) as sock:
                sock.sendall(sent)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # it is reset
        GO.set()
        assert answers(small, address, limits)
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("uvicorn.error").getEffectiveLevel() == logging.ERROR  # a fault of ours would be


@contextmanager
def says(*parts: bytes, pause: float = 0) -> Iterator[str]:
    """The address of a server that says just this to whoever comes first."""

    def speak() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(65536)
            for part in parts:
                try:
                    connection.sendall(part)
                except OSError:
                    return
                time.sleep(pause)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):  # or what has come is lost with the connection
                pass

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=speak)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread.join()


OK = b"HTTP/1.1 200 OK\r\nSharer-Milliseconds: 1\r\n"


@pytest.mark.parametrize("begun", [[OK, *[b"More: a\r\n"] * 90], [OK + b"Content-Length: 99\r\n\r\n"]])
def test_who_asks_waits_no_longer_than_it_said(small: ModuleType, begun: list[bytes]) -> None:
    with says(*begun, *[b"a"] * 30, pause=0.1) as address:
        started = time.perf_counter()
        with pytest.raises(DataError, match=r"does not answer: nothing within 0.5 s|cut off after [0-9]+ bytes"):
            small.ask(address, "/ask", {}, small.Limits(seconds=0.5))
        assert 0.4 < time.perf_counter() - started < 2.5


@pytest.mark.parametrize(
    ("reply", "match"),
    [
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", r"refuses \(302\): $"),
        (b"HTTP/1.1 400 No\r\nContent-Length: 9\r\n\r\n\x1b[2J\nno.\x07", r"refuses \(400\): \?\[2J\?no\.\?$"),
        (OK + b"Content-Length: 9\r\n\r\nhalf", r"cut off after 4 bytes"),
        (OK + b"Content-Length: 2000\r\n\r\n" + b"a" * 2000, r"longer than 1000 bytes"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na", "does not say what it took"),
        (b"HTTP/1.1 200 OK\r\nSharer-Milliseconds: \x1b[2J\r\nContent-Length: 1\r\n\r\na", r"not answer: [ -~]+$"),
        (b"\x1b]0;title\x07\r\n\r\n", r"does not answer: [ -~]+$"),
        (b"", "does not answer: "),
    ],
)  # fmt: skip
def test_what_is_no_answer_is_said_in_print(small: ModuleType, reply: bytes, match: str) -> None:
    with says(reply) as address, pytest.raises(DataError, match=match):
        small.ask(address, "/ask", {"question": "tea"}, small.Limits(seconds=5, reply=1000))


def test_nobody_there_is_a_sentence(small: ModuleType) -> None:
    with pytest.raises(DataError, match=r"the sharer does not answer: .*refused"):
        small.ask("http://127.0.0.1:1", "/ask", {}, small.Limits(seconds=5))
    with served(small) as (address, limits), pytest.raises(DataError, match=r"\(400\): \?\[2Jno \?such question"):
        small.ask(address, "/ask", {"question": "refused"}, limits)
