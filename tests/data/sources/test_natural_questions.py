from __future__ import annotations

from pathlib import Path

from lcf_lightning.data.sources import NaturalQuestions
from tests.data.sources.rows import CONTEXT, REAL, needs_real_data, text_of, write


def test_the_sharer_reads_the_whole_passage_and_the_receiver_nothing(tmp_path: Path) -> None:
    row = {"id": "n/0", "question": "who sat", "answers": ["Ben", "Benny", "Ben"], "title": "Tea", "context": CONTEXT}
    train, test = (write(tmp_path / f"{id}.jsonl", [row | {"id": id}]) for id in ("n1", "n2"))
    source = NaturalQuestions(train=train, test=test, validation_size=1)
    (example,) = source.examples("test", 5)
    assert (example.id, example.question, example.answers) == ("n2", "who sat", ("Ben", "Benny"))
    ((title, *sentences),) = example.sharer
    assert (title, sentences[:2], "".join(sentences)) == ("Tea: ", ["Ada likes tea.", " Ben sat down."], CONTEXT)
    assert example.receiver_reads == ()
    assert [example.id for example in source.examples("validation", 5)] == ["n1"]


@needs_real_data
def test_real_natural_questions_are_answered_by_the_sharers_passage() -> None:
    examples = NaturalQuestions(test=str(REAL / "nq_open_oracle.jsonl.gz")).examples("test", 42)
    assert len(examples) == 2655
    assert all(any(answer in text_of(example.sharer) for answer in example.answers) for example in examples)
    assert {len(example.sharer) for example in examples} == {1}
