"""Several processes on this machine's CPU, each run bounded in time."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("worker.py")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_all(launchers: Sequence[Sequence[str]], folder: Path, seconds: float) -> None:
    """Start launchers at once, in ``folder``; all must end well, and none outlives ``seconds``."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    logs = [folder / f"launcher_{number}.log" for number in range(len(launchers))]
    running = []
    for launcher, log in zip(launchers, logs, strict=True):
        with log.open("w") as output:
            running.append(subprocess.Popen(
                launcher, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT
            ))  # fmt: skip
    deadline = time.monotonic() + seconds
    try:
        for process in running:
            process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        pass  # the exit code tells
    finally:
        for process in running:
            _end(process)
    said = "\n".join(log.read_text()[-6000:] for log in logs)
    assert [process.returncode for process in running] == [0] * len(running), said


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a launcher; torchrun takes its workers along when it is terminated, not when it is killed."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def torchrun(*options: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--master-addr", "127.0.0.1", *options]


def run_in_two_processes(commands: Sequence[Sequence[str]], folder: Path, seconds: float = 600) -> None:
    """Run commands of ``lcf_lightning`` one after the other in the same two processes, in ``folder``."""
    file = folder / "commands.json"
    file.write_text(json.dumps(commands))
    launcher = torchrun("--nproc-per-node", "2", "--master-port", str(free_port()), str(WORKER), str(file))
    run_all([launcher], folder, seconds)
