"""A sharer and a receiver in two processes that talk over HTTP: by text, and by message (docs/two_processes.md).

    pip install 'lcf-lightning[serve]'
    python examples/two_processes.py runs/quickstart/adapter

A child process loads the sharer only, which has read ``--sharer_reads``; this one loads the receiver only, which has
read ``--receiver_reads``, asks the sharer and answers. A message is signed, for this receiver and this request alone,
and expires. Printed for both channels: the answer, the bytes that came for it, and milliseconds, medians of the
repeats after two that are thrown away:

    sharer     from the question to the bytes to send: prompt, prefill, and writing a text or pooling a message
    transfer   the rest of the request's round trip: HTTP on this machine
    receiver   from these bytes to the first token: checks, prompt, prefill, for a message fusing, one decoding step
    total      the three, one after the other
"""

from __future__ import annotations

import argparse
import os
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from time import perf_counter

import uvicorn
from small_server import Limits, ask, printable, server

from lcf_lightning import Channel, Inbox, Message
from lcf_lightning.data.example import Example
from lcf_lightning.data.parsing import parse_passages
from lcf_lightning.errors import LCFError, SettingError
from lcf_lightning.evaluation.text_baseline import reading_prompts, text_prompts, write_texts
from lcf_lightning.models.decoding import Answer, Decoder
from lcf_lightning.models.options import Decoding
from lcf_lightning.stopwatch import Stopwatch

PATHS = {"text": "/text", "latent": "/message"}
KEYS = "LCF_MESSAGE_KEYS"  # in the environment: every user of a machine can read command lines
RECEIVER = "receiver"  # the name that messages are for
WARMUP = 2


def keys() -> list[bytes]:
    """The keys of the environment, in hexadecimal, with commas between them: the first signs, all are accepted."""
    try:
        return [bytes.fromhex(key) for key in os.environ[KEYS].split(",")]
    except ValueError as error:
        raise SettingError(f"{KEYS} must be keys in hexadecimal, with commas between them.") from error


def serve(args: argparse.Namespace) -> None:
    """The sharer's process: say where it listens, and answer until whoever started it closes its stdin, or ends."""
    key, limits = keys()[0], Limits(args.seconds)
    channel = Channel.from_pretrained(args.adapter, sides="sharer")

    def message(asked: dict[str, str]) -> bytes:
        told = asked["question"] if channel.takes_question else None
        binding = {"to": RECEIVER, "session": asked["session"], "expires": limits.seconds}
        return channel.send(args.sharer_reads, told, **binding).to_bytes(args.dtype, key)

    def text(asked: dict[str, str]) -> bytes:
        example = Example("asked", asked["question"], ("",), parse_passages(args.sharer_reads), ())
        prompt, last = text_prompts(channel.link, channel.writer, channel.prompts, [example])
        ids = write_texts(channel.link, channel.link.read_sharer(prompt), last, args.text_tokens)
        return channel.writer.texts(ids, "sharer")[0].encode()

    fields = ("question", "session")
    serving = server({PATHS["text"]: text, PATHS["latent"]: message}, fields, limits)
    with socket.create_server(("127.0.0.1", args.port), backlog=limits.connections) as listening:
        print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
        threading.Thread(target=_end_with_stdin, args=[serving], daemon=True).start()
        serving.run([listening])


def _end_with_stdin(serving: uvicorn.Server) -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    serving.should_exit = True


@contextmanager
def sharer_process(arguments: Sequence[str], keys: Sequence[bytes]) -> Iterator[str]:
    """Start this script as the sharer; gives its address when it is ready, and ends it whatever happens."""
    command = [sys.executable, __file__, "--serve", *arguments]
    environment = {**os.environ, KEYS: ",".join(key.hex() for key in keys)}
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


def answer(channel: Channel, told: Message | str, args: argparse.Namespace) -> Answer:
    """The receiver's answer to what it was told, decoded in the same way for both."""
    if isinstance(told, Message):
        return channel.receive(told, args.question, args.receiver_reads, args.max_new_tokens)
    example = Example("asked", args.question, ("",), (), parse_passages(args.receiver_reads))
    prompts = replace(channel.prompts, reread=None)  # no message comes
    prompt = reading_prompts(channel.link, channel.writer, prompts, [example], [told])
    cache, watch = channel.link.read_receiver(prompt.ahead), Stopwatch(channel.link.receiver.device)
    decoding = Decoding.of(channel.link.receiver, args.max_new_tokens, {})
    tokens = prompt.ahead
    return Decoder(channel.link.receiver, cache, tokens.ids, tokens.mask, prompt.last, watch, decoding).answers()[0]


def compare(args: argparse.Namespace, arguments: Sequence[str]) -> None:
    """The receiver's process: ask over both channels in turn, answer, print the table."""
    accepted = keys() if KEYS in os.environ else [secrets.token_bytes(32)]
    inbox, limits = Inbox(RECEIVER), Limits(args.seconds)
    rows: dict[str, str] = {}
    times: dict[str, list[tuple[float, ...]]] = {name: [] for name in PATHS}
    with sharer_process(arguments, accepted) as address:
        channel = Channel.from_pretrained(args.adapter, sides="receiver")
        for _ in range(WARMUP + args.repeats):
            for name, path in PATHS.items():
                session = secrets.token_hex(16)  # of this request: what answers another one is refused
                body, sharer, transfer = ask(address, path, {"question": args.question, "session": session}, limits)
                started = perf_counter()
                if name == "latent":
                    checks = {"max_bytes": limits.reply, "inbox": inbox, "session": session}
                    told = Message.from_bytes(body, accepted, channel.origin, **checks)
                said = answer(channel, told if name == "latent" else body.decode(errors="replace"), args)
                receiver = (perf_counter() - started) * 1e3 - said.milliseconds["rest_of_answer"]
                times[name].append((sharer, transfer, receiver, sharer + transfer + receiver))
                rows[name] = f"{name:<8} {printable(' '.join(said.text.split())):<20.20} {len(body):>9,}"
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
    parser.add_argument("--seconds", type=float, default=30, help="that a request, and a message, may take")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if min(args.repeats, args.max_new_tokens, args.text_tokens) < 1:
        parser.error("--repeats, --max_new_tokens and --text_tokens must be at least 1")
    if not 0 < args.seconds <= 3600:
        parser.error("--seconds must be above 0 and at most 3600")
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
