"""Questions with answers of many people: OK-VQA and VQA, and A-OKVQA with its choices.

VQA, OK-VQA  {"questions": [{"image_id", "question", "question_id"}]} and, as `annotations`,
             {"annotations": [{"question_id", "question_type", "answer_type", "answers": [{"answer"} × 10]}]}
A-OKVQA      [{"question_id", "image_id", "question", "choices" × 4, "correct_choice_idx", "direct_answers" × 10,
             "rationales"}]

What is taught is the most frequent answer that has letters, of equals the one that was given first. All ten travel in `extra`, with
the question_id, for scoring.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlm.config import Answers, SourceConfig
from vlm.data.coco import number_of
from vlm.data.records import joined, json_list, json_records
from vlm.data.samples import Reject, Row, Sample, asked, images_of, rows_of, text_of, texts_of
from vlm.errors import Unusable

SHORT = "Answer the question using a single word or phrase."  # LLaVA's
LETTER = "Answer with the option's letter from the given choices directly."  # LLaVA's


def vqa(source: SourceConfig, seed: int) -> Iterator[Row]:
    """Yield the questions of OK-VQA or VQA in the order of their file."""
    image = images_of(source)

    def make(identity: str, record: Mapping[str, Any]) -> Sample:
        annotation = record["annotation"]
        if annotation is None:
            raise Reject("no_answer", f"question {identity} is not in the annotations")
        given = annotation.get("answers")
        if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
            raise Reject("format", "the annotation has no list of answers")
        answers = [text_of(one, "answer") for one in given]
        extra = {"question_id": record["question_id"], "answers": answers}
        extra |= {key: annotation[key] for key in ("question_type", "answer_type") if key in annotation}
        turns = asked(with_suffix(text_of(record, "question"), source.prompt, SHORT), most_frequent(answers))
        name = source.image_names.format(number_of(record))
        return Sample(identity, source.label, turns, (image(name),), extra)

    return rows_of(source.label, _answered(Path(source.path), Path(source.annotations or "")), make)


def aokvqa(source: SourceConfig, seed: int) -> Iterator[Row]:
    """Yield the questions of A-OKVQA; with answers=choice they name the choices and are answered by a letter."""
    image = images_of(source)

    def make(identity: str, record: Mapping[str, Any]) -> Sample:
        question = text_of(record, "question")
        choices, right = texts_of(record, "choices"), record.get("correct_choice_idx")
        answers = record.get("direct_answers") or []
        kept = ("question_id", "choices", "correct_choice_idx", "rationales", "difficult_direct_answer")
        extra = {key: record[key] for key in kept if key in record} | {"answers": answers}
        if source.answers is Answers.choice:
            turns = asked(with_suffix(listed(question, choices), source.prompt, LETTER), letter(choices, right))
        else:
            answers = texts_of(record, "direct_answers")
            turns = asked(with_suffix(question, source.prompt, SHORT), most_frequent(answers))
        name = source.image_names.format(number_of(record))
        return Sample(identity, source.label, turns, (image(name),), extra)

    return rows_of(source.label, by_question(json_records(Path(source.path))), make)


def by_question(records: Iterator[Any]) -> Iterator[tuple[str, Any]]:
    """Yield each record with its question_id as text; one without is named by its place."""
    for number, record in enumerate(records):
        has_id = isinstance(record, dict) and record.get("question_id") is not None
        yield str(record["question_id"]) if has_id else f"row{number}", record


def most_frequent(answers: list[str]) -> str:
    """Return the answer that was given most often, of equals the first; an empty one, like what a normalisation leaves
    of "a", teaches nothing.

    Raises Reject if there is none.
    """
    given = Counter(answer for answer in answers if answer.strip())
    if not given:
        raise Reject("no_answer", "the question has no answers" if not answers else "all its answers are empty")
    return given.most_common(1)[0][0]


def with_suffix(question: str, prompt: str | None, default: str) -> str:
    """Return the question and, on a line of its own, how it is to be answered; an empty prompt adds none."""
    suffix = default if prompt is None else prompt
    return f"{question}\n{suffix}" if suffix else question


def listed(question: str, choices: list[str]) -> str:
    """Return the question with its choices as LLaVA lists them: A. this, B. that."""
    return "\n".join([question, *(f"{chr(ord('A') + i)}. {choice}" for i, choice in enumerate(choices))])


def letter(choices: list[str], right: object) -> str:
    """Return the letter of the right choice.

    Raises Reject if there is none.
    """
    if not isinstance(right, int) or not 0 <= right < len(choices):
        raise Reject("no_answer", f"the right choice is {right!r} of {len(choices)}")
    return chr(ord("A") + right)


def _answered(questions: Path, annotations: Path) -> Iterator[tuple[str, Any]]:
    """Yield each question with its annotation under 'annotation'."""

    def identity(record: object) -> str:
        if not isinstance(record, dict) or record.get("question_id") is None:
            raise Unusable(f"{questions} or {annotations}: a record has no question_id")
        return str(record["question_id"])

    pairs = joined(json_list(questions, "questions"), json_list(annotations, "annotations"), identity)
    for question, annotation in pairs:
        yield identity(question), {**question, "annotation": annotation}
