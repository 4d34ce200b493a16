"""A vLLM server under load: requests with a message each, beside the same questions with the text in the prompt.

    python benchmarks/vllm_load.py MODEL --requests 200 --concurrency 16     # in the environment of tests/serving/run

MODEL is a folder that vLLM serves, on both sides of an untrained `carry` adapter, which starts as the identity. Every
message is of another text. Prints JSON: how many answers are those of `Channel.receive` (exit code 1 if one is not),
requests a second, and the median time to the first token; what comes before a request is timed by itself.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice, product
from pathlib import Path
from socket import create_server
from statistics import median
from typing import Any
from urllib.request import Request, urlopen

import torch

from lcf_lightning import AdapterConfig, AdapterSettings, CacheAdapter, Channel, ModelSpec
from lcf_lightning.link import identity_of
from lcf_lightning.models.loading import load_frozen
from lcf_lightning.serving import prefill

NAMES = ("Ada", "Bob", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana", "Ivo")
PLACES = (
    "Oslo",
    "Lima",
    "Rome",
    "Cairo",
    "Paris",
    "Quito",
    "Delhi",
    "Tokyo",
    "Accra",
    "Turin",
    "Sofia",
    "Perth",
    "Minsk",
)
SPOTS = ("harbour", "old market", "river", "station")
PROMPTS = {
    "chat": True, "question": "Question: {question}\nGive only the answer, as short as possible.", "reread": "question",
}  # fmt: skip
TOKENS = 16


def channel_of(folder: str) -> Channel:
    model = load_frozen(ModelSpec(folder, dtype="float32"), torch.device("cpu"))
    identity = identity_of(model.spec)
    settings = AdapterSettings(d=16, pooler="carry", gate_noise="none")
    adapter = CacheAdapter(AdapterConfig(identity, identity, settings, {"prompts": PROMPTS}))
    return Channel(model, model, adapter.requires_grad_(False).eval())


def requests(channel: Channel, count: int, folder: str) -> Iterator[tuple[dict[str, Any], dict[str, Any], str, float]]:
    """Requests by message and by text, the channel's own answer, and what sending and reading took."""
    for name, place, spot in islice(product(NAMES, PLACES, SPOTS), count):
        text, question = f"{name} lives in {place}, near the {spot}.", f"Where does {name} live?"
        started = time.perf_counter()
        message = channel.send([text], question)
        asked = prefill(channel, message, question).save(folder)
        took = time.perf_counter() - started
        whole = {"prompt": prefill(channel, None, question, [text]).ids.tolist()}
        yield asked, whole, str(channel.receive(message, question, max_new_tokens=TOKENS)), took


@contextmanager
def served(model: str, folder: str) -> Iterator[str]:
    """The address of a server of ``model`` that reads what is saved in ``folder``."""
    with create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    connector = {
        "kv_connector": "LCFConnector", "kv_connector_module_path": "lcf_lightning.serving.vllm",
        "kv_role": "kv_consumer", "kv_connector_extra_config": {"folder": folder},
    }  # fmt: skip
    options = ["--port", str(port), "--host", "127.0.0.1", "--dtype", "float32", "--max-model-len", "512"]
    options += ["--kv-transfer-config", json.dumps(connector), "--enforce-eager", "--disable-uvicorn-access-log"]
    with open(f"{folder}/server.log", "w") as log:
        program = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
        server = subprocess.Popen([*program, *options], stdout=log, stderr=log)
        try:
            until = time.monotonic() + 300
            while not _healthy(f"http://127.0.0.1:{port}/health"):
                if server.poll() is not None or time.monotonic() > until:
                    sys.exit(f"the server did not start:\n{Path(log.name).read_text()[-3000:]}")
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/v1/completions"
        finally:
            server.terminate()
            server.wait()


def _healthy(address: str) -> bool:
    try:
        with urlopen(address, timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def load(address: str, bodies: Sequence[dict[str, Any]], concurrency: int) -> dict[str, Any]:
    """All answers, at most so many at a time; requests a second, and the first tokens' times."""

    def ask(body: dict[str, Any]) -> tuple[str, float]:
        data = json.dumps({**body, "max_tokens": TOKENS, "temperature": 0, "stream": True}).encode()
        started, first, text = time.perf_counter(), 0.0, ""
        with urlopen(Request(address, data, {"Content-Type": "application/json"}), timeout=300) as answer:
            for line in answer:
                if line.startswith(b"data: {"):
                    first = first or time.perf_counter() - started
                    text += json.loads(line.removeprefix(b"data: "))["choices"][0]["text"]
        return text.strip(), first

    with ThreadPoolExecutor(concurrency) as clients:
        started = time.perf_counter()
        answers, firsts = zip(*clients.map(ask, bodies), strict=True)
        seconds = time.perf_counter() - started
    return {
        "answers": answers, "requests a second": round(len(bodies) / seconds, 2),
        "first token, ms": round(1000 * median(firsts), 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--requests", type=int, default=200, choices=range(1, 468), metavar="1..467")
    parser.add_argument("--concurrency", type=int, default=16)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        first, *asked = requests(channel_of(args.model), 1 + args.requests, folder)
        by_message, by_text, expected, took = zip(*asked, strict=True)
        with served(args.model, folder) as address:
            load(address, first[:2], args.concurrency)  # what the server does once
            found = {
                "message": load(address, by_message, args.concurrency),
                "text": load(address, by_text, args.concurrency),
            }
    said = found["message"].pop("answers")
    differ = [(own, other) for own, other in zip(expected, said, strict=True) if own != other]
    found["text"].pop("answers")
    found["message"] |= {"as Channel.receive": len(said) - len(differ), "of": len(said), "differ": differ[:5]}
    found["before a request, ms"] = round(1000 * median(took), 1)
    print(json.dumps(found, indent=2))
    sys.exit(bool(differ))


if __name__ == "__main__":
    main()
