"""A sharer and a receiver in two processes that talk over HTTP: by text, and by message (docs/two_processes.md).

    python examples/two_processes.py runs/quickstart/adapter

A child process loads the sharer only, which has read ``--sharer_reads``; this one loads the receiver only, which has
read ``--receiver_reads``, asks the sharer and answers. Printed for both channels: the answer, the bytes that came for
it, and milliseconds, medians of the repeats after two that are thrown away:

    sharer     from the question to the bytes to send: prompt, prefill, and writing a text or pooling a message
    transfer   the rest of the request's round trip: HTTP on this machine
    receiver   from these bytes to the first token: checks, prompt, prefill, for a message fusing, one decoding step
    total      the three, one after the other
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from statistics import median
from time import perf_counter
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

from lcf_lightning import Channel, Message
from lcf_lightning.data.example import Example
from lcf_lightning.data.parsing import parse_passages
from lcf_lightning.errors import DataError, LCFError
from lcf_lightning.evaluation.text_baseline import reading_prompts, text_prompts, write_texts
from lcf_lightning.models.decoding import Answer, Decoder, Decoding
from lcf_lightning.stopwatch import Stopwatch

PATHS = {"text": "/text", "latent": "/message"}
KEY = "LCF_MESSAGE_KEY"  # in the environment: every user of a machine can read command lines
MAX_REQUEST, MAX_REPLY = 16 * 2**10, 16 * 2**20  # bytes
WARMUP = 2
DIRECT = build_opener(ProxyHandler({}))  # past any proxy of the environment


class Handler(BaseHTTPRequestHandler):
    """Answers ``POST`` of ``{"question": "..."}`` with the bytes that ``says`` gives for this path."""

    says: Mapping[str, Callable[[str], bytes]] = {}
    timeout = 10  # seconds: whoever connects and is silent does not hold up the others for long

    def do_POST(self) -> None:
        if self.path not in self.says:
            return self._reply(404, b"no such path.")
        try:
            question = self._question()
            started = perf_counter()
            body = self.says[self.path](question)
        except LCFError as error:
            return self._reply(400, str(error).encode())
        self._reply(200, body, (perf_counter() - started) * 1e3)

    def _question(self) -> str:
        try:
            length = int(self.headers["Content-Length"])
            if not 0 <= length <= MAX_REQUEST:
                raise ValueError
            question: str = json.loads(self.rfile.read(length))["question"]
            question.encode()  # a string, and all of it Unicode
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise DataError(f'a request must be {{"question": "..."}}, JSON of at most {MAX_REQUEST} bytes.') from error
        return question

    def _reply(self, status: int, body: bytes, milliseconds: float = 0) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Sharer-Milliseconds", f"{milliseconds:.3f}")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def serve(args: argparse.Namespace) -> None:
    """The sharer's process: say where it listens, and answer until whoever started it closes its stdin, or ends."""
    key = bytes.fromhex(os.environ[KEY])
    channel = Channel.from_pretrained(args.adapter, sides="sharer")

    def message(question: str) -> bytes:
        asked = question if channel.takes_question else None
        return channel.send(args.sharer_reads, asked).to_bytes(args.dtype, key)

    def text(question: str) -> bytes:
        example = Example("asked", question, ("",), parse_passages(args.sharer_reads), ())
        prompt, last = text_prompts(channel.link, channel.writer, channel.prompts, [example])
        ids = write_texts(channel.link, channel.link.read_sharer(prompt), last, args.text_tokens)
        return channel.writer.texts(ids, "sharer")[0].encode()

    Handler.says = {PATHS["text"]: text, PATHS["latent"]: message}
    with HTTPServer(("127.0.0.1", args.port), Handler) as server:  # one request at a time, as the model takes them
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(f"http://127.0.0.1:{server.server_port}", flush=True)
        sys.stdin.read()
        server.shutdown()


@contextmanager
def sharer_process(arguments: Sequence[str], key: bytes) -> Iterator[str]:
    """Start this script as the sharer; gives its address when it is ready, and ends it whatever happens."""
    command = [sys.executable, __file__, "--serve", *arguments]
    environment = {**os.environ, KEY: key.hex()}
    pipe, own = subprocess.PIPE, True  # in a session of its own Ctrl-C does not reach it; this process ends it
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True, start_new_session=own) as child:
        try:
            address = next((line.strip() for line in child.stdout or () if line.startswith("http://")), None)
            if address is None and child.wait() == 2:
                raise SystemExit(2)  # it has said why
            if address is None:
                raise OSError(f"the sharer's process ended with code {child.returncode} before it was ready.")
            yield address
        finally:
            child.terminate()


def ask(address: str, path: str, question: str) -> tuple[bytes, float, float]:
    """What the sharer says, its milliseconds, and those of the transfer."""
    request = Request(address + path, json.dumps({"question": question}).encode())
    started = perf_counter()
    try:
        with DIRECT.open(request, timeout=600) as reply:
            body = reply.read(MAX_REPLY + 1)
    except HTTPError as error:
        raise DataError(f"the sharer refuses: {error.read(MAX_REQUEST).decode(errors='replace')}") from error
    sharer = float(reply.headers["Sharer-Milliseconds"])
    return body, sharer, (perf_counter() - started) * 1e3 - sharer


def answer(channel: Channel, name: str, body: bytes, key: bytes, args: argparse.Namespace) -> Answer:
    """The receiver's answer to what came over the channel ``name``, decoded in the same way for both."""
    if name == "latent":
        message = Message.from_bytes(body, key=key, origin=channel.origin, max_bytes=MAX_REPLY)
        return channel.receive(message, args.question, args.receiver_reads, args.max_new_tokens)
    example = Example("asked", args.question, ("",), (), parse_passages(args.receiver_reads))
    prompts = replace(channel.prompts, reread=None)  # no message comes
    prompt = reading_prompts(channel.link, channel.writer, prompts, [example], [body.decode()])
    cache, watch = channel.link.read_receiver(prompt.ahead), Stopwatch(channel.link.receiver.device)
    decoding = Decoding.of(channel.link.receiver, args.max_new_tokens, {})
    tokens = prompt.ahead
    return Decoder(channel.link.receiver, cache, tokens.ids, tokens.mask, prompt.last, watch, decoding).answers()[0]


def compare(args: argparse.Namespace, arguments: Sequence[str]) -> None:
    """The receiver's process: ask over both channels in turn, answer, print the table."""
    key = secrets.token_bytes(32)
    rows: dict[str, str] = {}
    times: dict[str, list[tuple[float, ...]]] = {name: [] for name in PATHS}
    with sharer_process(arguments, key) as address:
        channel = Channel.from_pretrained(args.adapter, sides="receiver")
        for _ in range(WARMUP + args.repeats):
            for name, path in PATHS.items():
                body, sharer, transfer = ask(address, path, args.question)
                started = perf_counter()
                said = answer(channel, name, body, key, args)
                receiver = (perf_counter() - started) * 1e3 - said.milliseconds["rest_of_answer"]
                times[name].append((sharer, transfer, receiver, sharer + transfer + receiver))
                rows[name] = f"{name:<8} {' '.join(said.text.split()):<20.20} {len(body):>9,}"
    print(f"{'channel':<8} {'answer':<20} {'bytes':>9} {'sharer':>9} {'transfer':>9} {'receiver':>9} {'total':>9}")
    for name, row in rows.items():
        medians = (median(stage) for stage in zip(*times[name][WARMUP:], strict=True))
        print(row, *(f"{milliseconds:>6.1f} ms" for milliseconds in medians))


def main(arguments: Sequence[str]) -> int:
    """Run one of the two processes; bad input ends with one sentence and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter")
    parser.add_argument("--question", default="likes ada")
    parser.add_argument(
        "--sharer_reads", nargs="+", default=["likes ada tea .", "owns ben lamp .", "seeks cleo ruby ."]
    )
    parser.add_argument("--receiver_reads", nargs="+", default=["finds eva bell ."])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--max_new_tokens", type=int, default=16)
    parser.add_argument("--text_tokens", type=int, default=50, help="longest text that the sharer writes")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16", "int8", "int4"], help="of a message on its way"
    )
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if min(args.repeats, args.max_new_tokens, args.text_tokens) < 1:
        parser.error("--repeats, --max_new_tokens and --text_tokens must be at least 1")
    try:
        serve(args) if args.serve else compare(args, arguments)
    except (LCFError, OSError, OverflowError) as error:  # no adapter, no sharer, no such port
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
