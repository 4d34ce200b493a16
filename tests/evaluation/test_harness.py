"""lm-evaluation-harness runs a channel, and finds what this package's own evaluation and channel find."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
import yaml

from lcf_lightning import Channel, ModelSpec, SharedContextDataModule
from lcf_lightning.data.prompt_settings import PromptSettings
from lcf_lightning.data.sources import MultipleChoice
from lcf_lightning.errors import DataError, SettingError
from lcf_lightning.evaluation.caches import ArmCaches
from lcf_lightning.evaluation.prediction import run_arms
from tests.pairs import small_module

lm_eval = pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install 'lcf-lightning[lm-eval]'")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from lcf_lightning.evaluation.harness import Fields, HarnessModel, main  # noqa: E402

Spec = Callable[[str], ModelSpec]
# Of the same letters, or nearly: what random models find about equally probable.
CHOICES = [
    "in the red boat",
    "the red boat, in",
    "red, in the boat",
    "boat: in the red",
    "the boat in red",
    "in red, the boat",
]
NAMES = ["Mary", "the sharer", "John", "it", "the cat", "ada", "everyone else", "bob"]
ROWS = [
    {"id": f"{name}{shift}", "question": f"Where is {name}?", "choices": CHOICES[shift : shift + 3],
     "answer": shift % 2, "facts": [f"likes {name} tea .", f"owns bob {CHOICES[shift]} ."], "asked": f"likes {name}"}
    for name in NAMES for shift in (0, 1, 2)
]  # fmt: skip
TASK = {
    "task": "places", "dataset_path": "json", "test_split": "test", "doc_to_text": "Question: {{question}}\nAnswer:",
    "output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "doc_to_target": "answer",
    "metric_list": [{"metric": "acc_bytes"}],
}  # fmt: skip


def saved(spec: Spec, folder: Path, prompts: dict[str, Any] | None = None, **settings: Any) -> str:
    """An adapter folder whose message changes answers, and prompts as they were in training."""
    torch.manual_seed(1)
    module = small_module(spec("llama"), spec("qwen3"), **settings)
    with torch.no_grad():
        for last in module.adapter.fuser.last_maps:
            for parameter in last.parameters():
                parameter.mul_(100)
    module.adapter.save_pretrained(folder)
    config = folder / "lcf_config.json"
    found = json.loads(config.read_text())
    config.write_text(json.dumps(found | {"metadata": {"prompts": prompts or {}}}))
    return str(folder)


@pytest.fixture
def rows(tmp_path: Path) -> str:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(tmp_path / "rows.jsonl")


def evaluated(model: Any, rows: str, model_args: str | None = None, **task: Any) -> dict[str, Any]:
    """What the harness finds of a task over the rows."""
    files = {"data_files": {"test": rows}, "cache_dir": str(Path(rows).parent / "cache")}
    found: dict[str, Any] = lm_eval.simple_evaluate(
        model, model_args=model_args, tasks=[{**TASK, "dataset_kwargs": files, **task}], bootstrap_iters=0,
        log_samples=True, task_manager=TaskManager(include_defaults=False),
    )  # fmt: skip
    return found


def chosen(found: dict[str, Any]) -> dict[str, str]:
    """By row, the choice of highest log probability per byte."""
    answers = {}
    for sample in found["samples"]["places"]:
        choices = sample["doc"]["choices"]
        pairs = zip(sample["filtered_resps"], choices, strict=True)
        scores = [score / len(choice.encode()) for (score, _), choice in pairs]
        answers[sample["doc"]["id"]] = choices[scores.index(max(scores))]
    return answers


def test_the_harness_chooses_row_by_row_what_the_own_evaluation_chooses(spec: Spec, tmp_path: Path, rows: str) -> None:
    channel = Channel.from_pretrained(saved(spec, tmp_path / "adapter", pooler=None))
    data = SharedContextDataModule(
        MultipleChoice(test=rows, answer_with="text"), spec("llama"), spec("qwen3"), eval_batch_size=7,
        prompts=PromptSettings(question="Question: {question}\nAnswer:"),
    )  # fmt: skip
    data.setup("test")
    own = [
        row
        for batch in data.test_dataloader()
        for row in run_arms(ArmCaches(channel.link, channel.writer, batch), ["message", "own_context"], 4)
    ]
    picked: dict[str, dict[str, str]] = {}
    for arm, messages in {"message": "own", "own_context": "none"}.items():
        found = evaluated(HarnessModel(channel, messages, batch_size=5), rows)
        picked[arm] = {row.id: row.prediction for row in own if row.arm == arm}
        right = {row.id: row.exact_match for row in own if row.arm == arm}
        assert len(right) == len(ROWS)
        assert chosen(found) == picked[arm]
        assert {each["doc"]["id"]: each["acc_bytes"] for each in found["samples"]["places"]} == right
        assert found["results"]["places"]["acc_bytes,none"] == pytest.approx(fmean(right.values()))
        assert set(right.values()) == {0.0, 1.0}
    assert picked["message"] != picked["own_context"]


@pytest.mark.parametrize("chat", [False, True])
def test_the_sharer_reads_the_rows_fields_where_the_two_differ(
    spec: Spec, tmp_path: Path, rows: str, chat: bool
) -> None:
    folder = saved(spec, tmp_path / "adapter", {"chat": chat})
    channel = Channel.from_pretrained(folder)
    scores = {}
    for messages in ("own", "none"):
        arguments = f"adapter={folder},sharer_reads=facts,question=asked,messages={messages},batch_size=4"
        found = evaluated("lcf", rows, arguments, doc_to_text="Question: {{asked}}\nAnswer:")
        for sample in found["samples"]["places"]:
            row = sample["doc"]
            message = channel.send(row["facts"], row["asked"]) if messages == "own" else None
            expected = channel.score(message, row["asked"], row["choices"])
            for (log_probability, greedy), score in zip(sample["filtered_resps"], expected, strict=True):
                assert log_probability == pytest.approx(score.log_probability, abs=1e-3)
                assert greedy == score.greedy
            scores[messages, row["id"]] = [score.log_probability for score in expected]
    for row in ROWS:
        assert scores["own", row["id"]] != pytest.approx(scores["none", row["id"]], abs=1e-2)


def test_its_command_line_knows_the_model_class(
    spec: Spec, tmp_path: Path, rows: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the task in a file, and on the device that the harness says of itself."""
    folder = saved(spec, tmp_path / "adapter", pooler=None)
    task = TASK | {"dataset_kwargs": {"data_files": {"test": rows}, "cache_dir": str(tmp_path / "cache")}}
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "places.yaml").write_text(yaml.safe_dump(task))
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # it lists every package, for seconds
    for messages in ("own", "none"):
        arguments = ["run", "--model", "lcf", "--model_args", f"adapter={folder},messages={messages}"]
        arguments += ["--include_path", str(tmp_path / "tasks"), "--tasks", "places"]
        monkeypatch.setattr(sys, "argv", ["lm_eval", *arguments])
        main()
        assert "acc_bytes" in capsys.readouterr().out


def test_a_function_of_the_row_feeds_the_sharer_too(spec: Spec, tmp_path: Path) -> None:
    channel = Channel.from_pretrained(saved(spec, tmp_path / "adapter"))
    asked = [Instance("loglikelihood", row, (f"Question: {row['asked']}\nAnswer:", " tea"), 0) for row in ROWS]
    by_field = HarnessModel(channel, sharer_reads="facts", question="asked").loglikelihood(asked)
    told = HarnessModel(channel, lambda row: ("\n".join(row["facts"]), row["asked"])).loglikelihood(asked)
    assert told == by_field
    assert len({score for score, _ in told}) > len(NAMES)  # rows that ask the same and whose sharers read other facts
    blind = Channel.from_pretrained(saved(spec, tmp_path / "blind", {"share_question": False}))
    HarnessModel(blind, sharer_reads="facts").loglikelihood(asked[:2])
    with pytest.raises(SettingError, match="question='asked' must be left out: the sharer was shown no question"):
        HarnessModel(blind, sharer_reads="facts", question="asked")


@pytest.mark.parametrize("messages", ["own", "none"])
def test_what_is_generated_is_what_the_receiver_answers_up_to_the_stop(
    spec: Spec, tmp_path: Path, rows: str, messages: str
) -> None:
    channel = Channel.from_pretrained(saved(spec, tmp_path / "adapter", pooler=None))
    questions = [row["question"] for row in ROWS]
    sent = channel.send_batch([[]] * len(ROWS), questions) if messages == "own" else [None] * len(ROWS)
    whole = [answer.text for answer in channel.receive_batch(sent, questions, max_new_tokens=9)]
    stop = sorted(whole)[len(ROWS) // 2][2]  # a character in the middle of an answer
    options = {"until": [stop, "never said"], "max_gen_toks": 9}
    task = {"output_type": "generate_until", "generation_kwargs": options, "doc_to_target": "{{choices[0]}}",
            "doc_to_choice": None, "metric_list": [{"metric": "exact_match"}]}  # fmt: skip
    found = evaluated(HarnessModel(channel, messages, batch_size=5), rows, **task)
    said = {sample["doc"]["id"]: sample["resps"][0][0] for sample in found["samples"]["places"]}
    assert list(said.values()) == [text.split(stop)[0].strip() for text in whole]
    assert list(said.values()) != whole
    asked = [Instance("generate_until", ROWS[0], ("Question: Where?\nAnswer:", {"until": "\n", "max_gen_toks": 3}), 0)]
    assert len(HarnessModel(channel, messages).generate_until(asked)) == 1


def test_a_stop_is_looked_for_in_what_was_generated_only(spec: Spec, tmp_path: Path) -> None:
    channel = Channel.from_pretrained(saved(spec, tmp_path / "adapter", pooler=None))
    context = "Question: Where is Mary?\nAnswer:"
    model = HarnessModel(channel, "none")
    (whole,) = model.generate_until([Instance("generate_until", {}, (context, {"max_gen_toks": 6}), 0)])
    options = {"until": [f":{whole[:1]}", "Mary", ""], "max_gen_toks": 6}
    assert model.generate_until([Instance("generate_until", {}, (context, options), 0)]) == [whole]


def test_what_does_not_fit_is_refused(spec: Spec, tmp_path: Path, rows: str) -> None:
    differ, shared = saved(spec, tmp_path / "differ"), saved(spec, tmp_path / "shared", pooler=None)
    for adapter, settings, problem in (
        (differ, {}, "sharer_reads='' must name a field of the task's rows: what the sharer reads"),
        (differ, {"sharer_reads": "facts"}, "question='' must name a field .*: the sharer was shown one in training"),
        (differ, {"messages": "other"}, "messages='other' must be own or none, or from Python a function of the row"),
        (differ, {"messages": dict, "sharer_reads": "facts"}, "sharer_reads='facts' must be left out: messages says"),
        (shared, {"sharer_reads": "facts"}, "sharer_reads='facts' must be left out: both models read the harness's"),
        (shared, {"question": "asked"}, "question='asked' must be left out: both models read the harness's context"),
        (shared, {"messages": dict}, "messages must be own or none, no function: both models read the harness's"),
        (shared, {"batch_size": "auto"}, "batch_size='auto' must be a whole number of at least 1"),
    ):
        with pytest.raises(SettingError, match=problem):
            HarnessModel(adapter, **settings)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="sharer_reads='text' must be a field of the task's rows: facts, asked"):
        Fields("text")({"facts": 1, "asked": 2})
    model = HarnessModel(shared)
    with pytest.raises(SettingError, match="loglikelihood_rolling: nothing is asked there"):
        model.loglikelihood_rolling([])
    with pytest.raises(
        SettingError, match="use_cache must be left out: lm-evaluation-harness keeps results by context"
    ):
        lm_eval.simple_evaluate(model, tasks=[TASK], use_cache=str(tmp_path / "cache"))
    with pytest.raises(SettingError, match="apply_chat_template must be left out"):
        _ = model.tokenizer_name
    assert list(HarnessModel(differ, "none", sharer_reads="facts").sharer.link.sides) == ["receiver"]


def test_without_lm_eval_one_sentence_says_what_to_install() -> None:
    code = "import sys; sys.modules['lm_eval'] = None; import lcf_lightning.evaluation.harness"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: lm_eval is needed here (")
    assert last.endswith("): pip install 'lcf-lightning[lm-eval]'")
