from __future__ import annotations

from dataclasses import replace

import pytest

from lcf_lightning.errors import DataError
from lcf_lightning.evaluation.prediction import Prediction
from lcf_lightning.evaluation.seeds import summarise_seeds
from tests.evaluation.answers import answer


def run(seed: int, message: int, mismatched: int, n: int = 50) -> list[Prediction]:
    """Answers of one seed, to questions of its own."""
    rights = {"message": message, "mismatched": mismatched}
    rows = [answer(f"{seed}/{i}", arm, float(i < right)) for arm, right in rights.items() for i in range(n)]
    return [*rows, answer(f"{seed}/own", "message", 1.0, needs_sharer=False)]


def test_each_seed_counts_alike_and_gains_are_paired_within_it() -> None:
    found = summarise_seeds([run(1, 40, 10), run(2, 30, 5), run(3, 10, 5, n=10)])
    assert found["arms"]["message"]["each"] == pytest.approx([0.8, 0.6, 1.0])
    assert found["arms"]["message"]["mean"]["value"] == pytest.approx(0.8)
    gain = found["comparisons"]["content_attributable_gain"]
    assert gain["each"] == pytest.approx([0.6, 0.5, 0.5])
    assert gain["mean"]["value"] == pytest.approx(1.6 / 3)
    assert gain["mean"]["low"] < 0.5 < 0.6 < gain["mean"]["high"]


def test_the_interval_knows_seeds_and_examples() -> None:
    alike = summarise_seeds([run(seed, 25, 0) for seed in range(3)])["arms"]["message"]["mean"]
    apart = summarise_seeds([run(0, 5, 0), run(1, 25, 0), run(2, 45, 0)])["arms"]["message"]["mean"]
    assert alike["high"] - alike["low"] < (apart["high"] - apart["low"]) / 2
    assert alike["low"] < 0.5 < alike["high"]


def test_only_what_all_runs_have_is_shown() -> None:
    without = [row for row in run(2, 30, 5) if row.arm == "message"]
    assert set(summarise_seeds([run(1, 40, 10), without])["arms"]) == {"message"}
    with pytest.raises(DataError, match="seeds need at least two"):
        summarise_seeds([without])
    with pytest.raises(DataError, match="share no arm"):
        summarise_seeds([without, [answer("a", "zero", 1.0)]])


def test_open_ended_questions_have_a_loss_only() -> None:
    rows = [answer(str(i), arm, None, loss=loss) for i in range(4)
            for arm, loss in (("message", 1.0), ("mismatched", 1.5))]  # fmt: skip
    found = summarise_seeds([rows, [replace(row, loss=row.loss + 1) for row in rows]])
    assert found["score"] == "loss, nats"
    assert found["arms"]["mismatched"]["each"] == [1.5, 2.5]
    assert found["comparisons"]["content_attributable_gain"]["each"] == [0.5, 0.5]
    others = [replace(row, loss=row.loss + 1) for row in rows]
    mixed = summarise_seeds([[*rows, answer("own", "message", 1.0)], [*others, answer("own", "message", 0.0)]])
    assert (mixed["score"], mixed["arms"]["message"]["each"]) == ("exact match", [1.0, 0.0])  # nats are no part of it
    assert "mismatched" not in mixed["arms"]


def test_the_same_questions_thrice_are_not_three_times_as_many() -> None:
    first = [answer(str(i), "message", float(i < 50)) for i in range(100)]
    again = [[replace(row, loss=2.0) for row in first[::-1]], [replace(row, loss=3.0) for row in first]]
    others = [[replace(row, id=f"{seed}/{row.id}") for row in first] for seed in range(3)]
    same, other = (summarise_seeds(runs)["arms"]["message"]["mean"] for runs in ([first, *again], others))
    assert same["high"] - same["low"] == pytest.approx(2 * 1.96 * 0.05, rel=0.1)
    assert other["high"] - other["low"] < 0.7 * (same["high"] - same["low"])


def test_a_message_is_compared_with_the_better_text_of_each_run() -> None:
    def texts(seed: int, plain: int, form: int) -> list[Prediction]:
        rights = {"message": 30, "t2t_50": plain, "t2t_50_form": form}
        return [answer(f"{seed}/{i}", arm, float(i < right)) for arm, right in rights.items() for i in range(50)]

    found = summarise_seeds([texts(1, 10, 20), texts(2, 25, 5)])["comparisons"]
    assert found["gain_over_t2t_50_at_its_better"]["each"] == pytest.approx([0.2, 0.1])


def test_arms_that_nobody_knows_here_are_shown_and_not_compared() -> None:
    runs = [[*run(seed, 20, 5), answer(f"{seed}/x", "halved", 1.0)] for seed in range(2)]
    found = summarise_seeds(runs)
    assert found["arms"]["halved"]["each"] == [1.0, 1.0]
    assert list(found["comparisons"]) == ["content_attributable_gain"]
    runs = [[replace(row, loss=row.loss + seed) for row in rows] for seed, rows in enumerate(runs)]
    for part in (runs[0], runs[0][::2]):  # a sample of a run is no other seed
        with pytest.raises(DataError, match="two of the evaluations hold the same answers"):
            summarise_seeds([runs[0], runs[1], part])
