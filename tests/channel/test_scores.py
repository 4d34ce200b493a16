"""Candidates scored on a channel, and a receiver that hears nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lcf_lightning import Channel, Score
from lcf_lightning.errors import DataError, MessageError, SettingError
from lcf_lightning.evaluation.caches import ArmCaches
from lcf_lightning.evaluation.prediction import answer_losses, run_arms
from lcf_lightning.likelihood import Candidate, score_candidates
from lcf_lightning.models.decoding import generate
from lcf_lightning.receiving import decoder
from tests.channel.conftest import FACTS, Spec
from tests.pairs import small_data, small_module

CANDIDATES = ["tea", "a ruby", "lamp", "tea for two"]


def plain_score(channel: Channel, question: str, candidate: str) -> Score:
    """From one plain forward pass of the receiver, of prompt and candidate together."""
    receiver = channel.link.receiver
    prompt = receiver.tokenizer(channel.prompts.question.replace("{question}", question))["input_ids"]
    ids = receiver.tokenizer(f" {candidate}", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = receiver.model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)[len(prompt) - 1 : -1]
    log_probability = float(logits[range(len(ids)), ids].sum())
    return Score(log_probability, logits.argmax(-1).tolist() == ids)


def test_without_a_message_a_score_is_that_of_a_plain_forward(channel: Channel) -> None:
    said = channel.receive(None, "likes ada", max_new_tokens=2).text
    candidates = [*CANDIDATES, said]
    scores = channel.score(None, "likes ada", candidates)
    for score, candidate in zip(scores, candidates, strict=True):
        expected = plain_score(channel, "likes ada", candidate)
        assert score.log_probability == pytest.approx(expected.log_probability, abs=1e-3)
        assert score.greedy == expected.greedy
    assert len({score.log_probability for score in scores[:4]}) == 4


def test_what_is_greedily_decoded_is_said_to_be_greedy(channel: Channel) -> None:
    greedy = {}
    for name, message in {"alone": None, "message": channel.send(FACTS, "likes ada")}.items():
        made = decoder(channel, [message], ["likes ada"], [()], 3, {})
        last = made.ids[:, -1:]
        ids = generate(channel.link.receiver, made.cache, last, 3)[0].tolist()
        tokens = [ids, ids[:1], [*ids[:-1], (ids[-1] + 1) % 300], [(ids[0] + 1) % 300, *ids[1:]]]
        found = score_candidates(channel.link, made.cache, last, [Candidate(0, row) for row in tokens], at_once=3)
        greedy[name] = [score.greedy for score in found]
        assert found[0].log_probability < found[1].log_probability
    assert list(greedy.values()) == [[True, True, False, False]] * 2


def test_with_a_message_a_score_is_that_of_the_evaluation(spec: Spec, channel: Channel) -> None:
    data = small_data(spec("llama"), spec("qwen3"), eval_batch_size=1)
    data.setup("test")
    for batch in list(data.test_dataloader())[:4]:
        example = batch.examples[0]
        own = [passage[0] for passage in example.receiver]
        message = channel.send([passage[0] for passage in example.sharer], example.question)
        caches = ArmCaches(channel.link, channel.writer, batch)
        for heard, reading in ((message, caches.message), (None, caches.own_context)):
            (score,) = channel.score(heard, example.question, [example.answers[0]], own)
            without_end = int(batch.answer_mask.sum()) - 1
            shorter = type(batch)(**{**vars(batch), "answers": batch.answers[:, :-1],
                                     "answer_mask": batch.answer_mask[:, :-1]})  # fmt: skip
            loss = answer_losses(channel.link, reading, shorter)
            assert score.log_probability == pytest.approx(-float(loss) * without_end, abs=1e-3)
        (alone,) = run_arms(caches, ["own_context"], 6)
        assert channel.receive(None, example.question, own, max_new_tokens=6).text.split("\n")[0].strip() == (
            alone.prediction
        )


@pytest.mark.parametrize("settings", [{}, {"pooler": "prefix"}, {"pooler": None}])
def test_a_batch_may_hold_rows_that_hear_nothing(spec: Spec, tmp_path: Path, settings: dict[str, str | None]) -> None:
    module = small_module(spec("llama"), spec("gemma3"), **settings)
    with torch.no_grad():
        for last in module.adapter.fuser.last_maps:
            for parameter in last.parameters():
                parameter.mul_(30)
    module.adapter.save_pretrained(tmp_path / "adapter")
    channel = Channel.from_pretrained(tmp_path / "adapter")
    questions, texts = ["likes ada", "who", "owns bob the lamp", "who"], [FACTS, FACTS[:1], [], FACTS[:1]]
    sent = channel.send_batch(texts, questions)
    messages = [sent[0], None, None, sent[3]]
    candidates = [CANDIDATES, CANDIDATES[:1], [], CANDIDATES[:1]]
    together = channel.score_batch(messages, questions, candidates, texts)
    answers = channel.receive_batch(messages, questions, texts, max_new_tokens=4)
    for row, message in enumerate(messages):
        single = channel.score(message, questions[row], candidates[row], texts[row])
        assert [score.log_probability for score in together[row]] == pytest.approx(
            [score.log_probability for score in single], abs=1e-3
        )
        answer = channel.receive(message, questions[row], texts[row], max_new_tokens=4)
        assert (answers[row].text, answers[row].prompt_tokens) == (answer.text, answer.prompt_tokens)
    assert abs(together[1][0].log_probability - together[3][0].log_probability) > 1e-2  # the message is heard
    assert channel.score_batch([], [], []) == []


def test_what_cannot_be_scored_is_refused(channel: Channel, trained: Path) -> None:
    for wrong in (5, None, ["tea"]):
        with pytest.raises(DataError, match="candidate .* must be a text of at least one token"):
            channel.score(None, "likes ada", ["tea", wrong])  # type: ignore[list-item]
    with pytest.raises(DataError, match="candidates of a batch must be a list, not str"):
        channel.score(None, "likes ada", "tea")
    with pytest.raises(DataError, match="1 messages, 1 questions, 2 candidates, 1 texts of a batch must be as many"):
        channel.score_batch([None], ["a"], [["b"], ["c"]])
    with pytest.raises(DataError, match="candidates of a batch must be a list, not str"):
        channel.score_batch([None], ["a"], ["b"])
    with pytest.raises(MessageError, match="message= must be a Message, or several"):
        channel.score(5, "likes ada", ["tea"])  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="this channel has no receiver"):
        Channel.from_pretrained(trained, sides="sharer").score(None, "likes ada", ["tea"])


def test_a_receivers_limit_is_said_on_the_callers_line(trained: Path) -> None:
    config = trained / "lcf_config.json"
    config.write_text(config.read_text().replace('"max_receiver_tokens": null', '"max_receiver_tokens": 60'))
    channel = Channel.from_pretrained(trained)
    with pytest.warns(UserWarning, match="max_receiver_tokens, as in training, leaves out") as warned:
        channel.score(None, "likes ada", ["tea"], FACTS * 4)
    assert {warning.filename for warning in warned} == {__file__}
