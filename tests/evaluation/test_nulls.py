from __future__ import annotations

import random
from dataclasses import replace

import pytest

from lcf_lightning.evaluation.nulls import follow, guess
from lcf_lightning.evaluation.scoring import normalised, score
from tests.evaluation.answers import answer

PLACES = ("kitchen", "garden", "office", "hallway", "bathroom", "bedroom")


def test_the_majority_answer_and_chance() -> None:
    texts = ["office", "The garden", "Garden.", "garden"]
    rows = [answer(str(i), "message", 0.0, answers=(text,), choices=4 - i % 2 * 2) for i, text in enumerate(texts)]
    found = guess(rows)
    assert found is not None
    assert (found["answer"], found["majority"]["value"], found["different"]) == ("garden", 0.75, 2)
    assert found["chance"] == pytest.approx((1 / 4 + 1 / 2) / 2)
    assert found["majority"]["high"] < 1  # Wilson's
    accepting = guess([*rows, answer("4", "message", 0.0, answers=("hall", "office")), rows[0], rows[0]])
    assert accepting is not None
    assert (accepting["answer"], accepting["chance"]) == ("office", None)  # any accepted answer counts
    assert guess([answer("a", "message", None)]) is None


def test_who_always_says_the_same_follows_nobody() -> None:
    """A receiver that knows six places and guesses follows in a sixth; that is what the deals show."""
    rng = random.Random(0)
    rows, alone = {}, {}
    for i in range(600):
        own, theirs = rng.sample(PLACES, 2)
        guessed = rng.choice(PLACES)
        rows[str(i)] = answer(str(i), "mismatched", 0.0, prediction=guessed, answers=(own,), partner_answers=(theirs,))
        alone[str(i)] = answer(str(i), "own_context", 0.0, prediction="no idea", answers=(own,))
    found = follow(rows, alone)
    assert found is not None
    assert found["rate"]["value"] == pytest.approx(1 / 6, abs=0.05)
    assert found["permuted"]["low"] < found["rate"]["value"] < found["permuted"]["high"]
    assert found["p"] > 0.05
    assert found["own_context"] is not None
    assert (found["own_context"]["value"], found["n"]) == (0, 600)


def test_who_follows_is_told_from_who_guesses() -> None:
    rows = {}
    for i in range(120):
        own, theirs = PLACES[i % 6], PLACES[(i + 1 + i // 6 % 5) % 6]
        said = theirs.title() + "." if i % 2 else own
        rows[str(i)] = answer(str(i), "mismatched", 0.0, prediction=said, answers=(own,), partner_answers=(theirs,))
    found = follow(rows, {})
    assert found is not None
    assert found["rate"]["value"] == 0.5
    assert found["permuted"]["high"] < 0.3
    assert (found["p"] < 0.001, found["own_context"]) == (True, None)


def test_answers_are_dealt_within_a_benchmark() -> None:
    """Two data sets with answers of their own: across them nothing could ever be followed, which would flatter."""
    rows = {}
    for i in range(40):
        benchmark, text = ("arc", "yes") if i % 2 else ("babi", "garden")
        rows[str(i)] = answer(
            str(i), "mismatched", 0.0, prediction=text, answers=("none",), partner_answers=(text,), benchmark=benchmark
        )
    found = follow(rows, {})
    assert found is not None
    assert (found["permuted"]["value"], found["p"]) == (1.0, 1.0)


@pytest.mark.parametrize("text", ["The  Beatles!", "a-b", "an Apple, a day", "theory of it", "  U.S.A. ", "", "don't"])
def test_texts_are_normalised_as_they_are_scored(text: str) -> None:
    for other in ("the beatles", "ab", "apple day", "theory of it", "usa", "", "dont", "beatles"):
        assert (normalised(text) == normalised(other)) == bool(score(text, [other]).exact_match)


def test_a_right_answer_is_no_deal_that_was_followed() -> None:
    """Yes and no: a receiver that follows every second wrong message and else answers right."""
    rows = {}
    for i in range(200):
        own, theirs = ("yes", "no") if i % 2 else ("no", "yes")
        said = theirs if i % 4 < 2 else own
        rows[str(i)] = answer(str(i), "mismatched", 0.0, prediction=said, answers=(own,), partner_answers=(theirs,))
    found = follow(rows, {})
    assert found is not None
    assert found["rate"]["value"] == 0.5
    assert found["permuted"]["value"] == pytest.approx(0.5, abs=0.02)  # of two answers, the other one is the partner's
    always = {id: replace(row, prediction=row.partner_answers[0]) for id, row in rows.items()}
    assert (follow(always, {}) or {})["permuted"]["value"] == 1.0
