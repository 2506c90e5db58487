"""The corpus: LLaVA JSON, the same bytes again."""

import json
import subprocess
import sys
from pathlib import Path

from vlm.demo.corpus import write_corpus
from vlm.demo.parts import make_part
from vlm.demo.questions import ASKERS

from .conftest import SMALL, digests


def test_corpus_is_llava_json(corpus: Path) -> None:
    splits = {split: json.loads((corpus / f"{split}.json").read_text()) for split in ("pretrain", "finetune", "test")}
    for record in (record for records in splits.values() for record in records):
        said = record["conversations"]
        assert (corpus / "images" / record["image"]).is_file()
        assert [turn["from"] for turn in said] == ["human", "gpt"] * (len(said) // 2)
        assert [turn["value"].count("<image>") for turn in said] == [1] + [0] * (len(said) - 1)
    assert {len(record["conversations"]) for record in splits["finetune"]} == {8}
    questions = splits["test"]
    assert len({record["question_id"] for record in questions}) == len(questions)
    assert {record["category"] for record in questions} == set(ASKERS)
    assert not {record["image"] for record in questions} & {record["image"] for record in splits["finetune"]}


def test_corpus_is_the_same_bytes_again_even_after_an_interruption(tmp_path: Path, corpus: Path) -> None:
    left = tmp_path / "again.partial"
    (left / "images").mkdir(parents=True)
    (left / "images" / "half.jpg").write_bytes(b"\xff\xd8")
    make_part(tmp_path / "again", lambda folder: write_corpus(folder, seed=3, size=SMALL))
    assert digests(tmp_path / "again") == digests(corpus)
    assert not left.exists()


def test_the_corpus_needs_no_torch() -> None:
    seen = "import sys, vlm.demo.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", seen]).returncode == 0
