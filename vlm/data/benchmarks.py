"""Benchmarks whose questions and answers are in a file of their own shape.

TextVQA    {"data": [{"question_id", "image_id", "question", "answers" × 10}]}; pictures are <image_id>.jpg
VizWiz     [{"image", "question", "answers": [{"answer"} × 10], "answer_type"}]; a question is known by its picture
GQA        {"<question_id>": {"imageId", "question", "answer", "types": {"structural"}}}; pictures are <imageId>.jpg
MME        lines of picture, question, Yes or No with tabs between, as in its eval_tool/Your_Results/<category>.txt;
           the file's name is the category, unless the source has a name
questions  JSON lines of {"question_id", "image"?, "text" or "question", "category"?, "answer" or "answers"?}, which is
           LLaVA's shape of questions; without an answer only stage 05 can use them
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlm.config import SourceConfig
from vlm.data.records import json_list, json_map, json_records
from vlm.data.samples import Reject, Row, Sample, asked, images_of, rows_of, text_of, texts_of
from vlm.data.vqa import SHORT, by_question, most_frequent, with_suffix

VIZWIZ = "When the provided information is insufficient, respond with 'Unanswerable'.\n" + SHORT  # LLaVA's


def textvqa(source: SourceConfig, seed: int) -> Iterator[Row]:
    """Yield the questions of TextVQA in the order of their file."""
    image = images_of(source)

    def make(identity: str, record: Mapping[str, Any]) -> Sample:
        answers = texts_of(record, "answers")
        turns = asked(with_suffix(text_of(record, "question"), source.prompt, SHORT), most_frequent(answers))
        extra = {"question_id": identity, "answers": answers}
        return Sample(identity, source.label, turns, (image(f"{text_of(record, 'image_id')}.jpg"),), extra)

    return rows_of(source.label, by_question(json_list(Path(source.path), "data")), make)


def vizwiz(source: SourceConfig, seed: int) -> Iterator[Row]:
    """Yield the questions of VizWiz in the order of their file."""
    image = images_of(source)

    def make(identity: str, record: Mapping[str, Any]) -> Sample:
        given, name = record.get("answers"), text_of(record, "image")
        if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
            raise Reject("format", "the record has no list of answers")
        answers = [text_of(one, "answer") for one in given]
        turns = asked(with_suffix(text_of(record, "question"), source.prompt, VIZWIZ), most_frequent(answers))
        extra = {"question_id": name, "answers": answers, "category": record.get("answer_type", "all")}
        return Sample(name, source.label, turns, (image(name),), extra)

    return rows_of(source.label, by_question(json_records(Path(source.path))), make)


def gqa(source: SourceConfig, seed: int) -> Iterator[Row]:
    """Yield the questions of GQA in the order of their file."""
    image = images_of(source)

    def make(identity: str, record: Mapping[str, Any]) -> Sample:
        turns = asked(with_suffix(text_of(record, "question"), source.prompt, SHORT), text_of(record, "answer"))
        types = record.get("types")
        extra = {
            "question_id": identity,
            "category": types.get("structural", "all") if isinstance(types, dict) else "all",
        }
        return Sample(identity, source.label, turns, (image(f"{text_of(record, 'imageId')}.jpg"),), extra)

    return rows_of(source.label, json_map(Path(source.path)), make)


def mme(source: SourceConfig, seed: int) -> Iterator[Row]:
    """Yield the questions of one category of MME in the order of their file; two neighbours are a pair."""
    image = images_of(source)

    def make(identity: str, record: Mapping[str, Any]) -> Sample:
        columns = record["columns"]
        if len(columns) < 3 or columns[2].strip() not in {"Yes", "No"}:
            raise Reject("format", "the line is no picture, question and Yes or No with tabs between")
        name, question, label = columns[0], columns[1], columns[2].strip()
        extra = {"question_id": identity, "category": source.label, "image": name}
        suffix = "" if source.prompt is None else source.prompt  # MME's questions say themselves how to answer
        return Sample(identity, source.label, asked(with_suffix(question, suffix, ""), label), (image(name),), extra)

    return rows_of(source.label, _lines(Path(source.path)), make)


def questions(source: SourceConfig, seed: int) -> Iterator[Row]:
    """Yield questions in LLaVA's shape; where there is no answer, it is empty."""
    image = images_of(source)

    def make(identity: str, record: Mapping[str, Any]) -> Sample:
        text = text_of(record, "text" if "text" in record else "question")
        answers = texts_of(record, "answers") if record.get("answers") else [record.get("answer") or ""]
        answer = most_frequent(answers) if any(answers) else ""  # free questions have none
        names = record.get("image") or []
        names = [names] if isinstance(names, str) else names
        turns = asked(with_suffix(text, source.prompt, ""), answer, shows_picture=len(names) == 1)
        if len(names) > 1:
            turns = (type(turns[0])("user", "<image>\n" * len(names) + turns[0].text), turns[1])
        extra = {key: value for key, value in record.items() if key not in {"image", "text", "question"}}
        return Sample(identity, source.label, turns, tuple(map(image, names)), extra)

    return rows_of(source.label, by_question(json_records(Path(source.path))), make)


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines):
            if line.strip():
                yield f"{number}", {"columns": line.rstrip("\n").split("\t")}
