"""Answers beside LLaVA's way of giving them: the same model, questions and number types, in one run, taking turns.

    python -m benchmarks.eval                     at a scaled shape on a CPU, about a minute
    python -m benchmarks.eval pope ok_vqa         some of the cases
    python -m benchmarks.eval pope --shape clip_l_336_qwen1_5_4b       at the true size, on a GPU

LLaVA's way is that of its model_vqa.py: for one question after another the picture is opened and preprocessed, the
prompt tokenized, `generate` called, and the answer written. Ours is what stage 05 does between the questions' file and
the predictions. Both models are loaded before. The answers whose text is the same are counted.
"""

import argparse
import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature, LlavaForConditionalGeneration, LlavaProcessor

from benchmarks.corpus import COCO, WORDS, make_corpus
from benchmarks.scaled import SHAPES, make_model
from benchmarks.timing import in_turns, load, spread
from vlm.config import EvalRuntime, SourceConfig, TaskConfig
from vlm.eval.answer import Answerer, answer_all
from vlm.eval.batch import Ask
from vlm.eval.benchmark import Benchmark
from vlm.eval.question import Question
from vlm.eval.tasks import read_questions


@dataclass(frozen=True)
class Case:
    """Questions, and how many there are about each picture."""

    pictures: int
    about_each: int


CASES = {
    "pope": Case(2, 18),  # 9,000 questions about 500 pictures
    "vqa": Case(7, 5),  # VQAv2
    "ok_vqa": Case(24, 1),
}


def main() -> None:
    """Time every case; print the tables and, last, everything as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; none: all")
    parser.add_argument("--shape", default="scaled", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--model", type=Path, help="a Llava folder, in place of a random model of that shape")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=3, help="of an answer")
    parser.add_argument("--batch-size", type=int, default=EvalRuntime().batch_size)
    parser.add_argument("--times", type=int, default=1, help="as many pictures as a case has by itself")
    chosen = parser.parse_args()
    if unknown := set(chosen.cases) - set(CASES):
        parser.error(f"there is no case {', '.join(sorted(unknown))}: choose of {', '.join(CASES)}")
    found: dict[str, object] = {"cpus": os.cpu_count(), "threads": torch.get_num_threads(), "load_before": load()}
    with tempfile.TemporaryDirectory() as folder:
        model = chosen.model or make_model(Path(folder) / "parts", SHAPES[chosen.shape])
        theirs, ours = OneAtATime(model, chosen.tokens), InBatches(model, chosen.tokens, chosen.batch_size)
        for name in chosen.cases or CASES:
            case = CASES[name]
            corpus = make_questions(Path(folder) / name, Case(case.pictures * chosen.times, case.about_each))
            found[name] = compare(name, corpus, theirs, ours, chosen.rounds)
    found["load_after"] = load()
    print(f"load average {found['load_before']} before, {found['load_after']} after, {found['cpus']} processors")
    print(json.dumps(found))


def make_questions(folder: Path, case: Case) -> SourceConfig:
    """Write pictures like COCO's and questions about them in LLaVA's format, of 22 words as POPE's are with its prompt."""
    make_corpus(folder, COCO, case.pictures, seed=0)
    rng = np.random.default_rng(0)
    lines = []
    for number in range(case.pictures * case.about_each):
        text = " ".join(rng.choice(WORDS, int(rng.integers(18, 27))))  # of a token each
        picture = f"{number // case.about_each:06d}.jpg"
        lines.append(json.dumps({"question_id": number, "image": picture, "text": text, "answer": "yes"}) + "\n")
    (folder / "questions.jsonl").write_text("".join(lines))
    return SourceConfig(path=str(folder / "questions.jsonl"), format="questions", images=str(folder / "images"))


class InBatches:
    """Stage 05 from the questions' file to the predictions."""

    def __init__(self, folder: Path, tokens: int, batch_size: int) -> None:
        self.answerer = Answerer(folder)
        self.tokens = tokens
        self.batch_size = batch_size

    def __call__(self, source: SourceConfig) -> dict[str, str]:
        """Return the answers by question id."""
        task, samples, questions = self._read(source)
        asks = [Ask(one, one.prompt, one.own) for one in questions]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "questions.jsonl"
            found = answer_all(
                self.answerer, samples, asks, path, task, seed=0, batch_size=self.batch_size, label="ours"
            )
        return {identity: one.answer for identity, one in found.items()}

    def prompt(self, source: SourceConfig) -> list[int]:
        """Return the ids of the first question."""
        return self._read(source)[2][0].prompt.tolist()

    def _read(self, source: SourceConfig) -> tuple[TaskConfig, Benchmark, list[Question]]:
        task = TaskConfig(sources=[source], max_new_tokens=self.tokens)
        samples = Benchmark("questions", task.sources, 0)
        return task, samples, read_questions("questions", task, samples, self.answerer.chat)


class OneAtATime:
    """LLaVA's llava/eval/model_vqa.py on `LlavaForConditionalGeneration`."""

    def __init__(self, folder: Path, tokens: int) -> None:
        on_gpu = torch.cuda.is_available()
        dtype = torch.bfloat16 if on_gpu else torch.float32
        self.model = LlavaForConditionalGeneration.from_pretrained(folder, local_files_only=True, dtype=dtype)
        self.model.to("cuda" if on_gpu else "cpu").eval()
        self.processor = LlavaProcessor.from_pretrained(folder, local_files_only=True)
        self.tokens = tokens

    def __call__(self, source: SourceConfig) -> dict[str, str]:
        """Return the answers by question id."""
        found = {}
        with tempfile.TemporaryFile("w") as handle:
            for line in Path(source.path).read_text().splitlines():
                record = json.loads(line)
                inputs = self._inputs(source, record)
                inputs = inputs.to(self.model.device, self.model.dtype)
                with torch.inference_mode():
                    written = self.model.generate(**inputs, do_sample=False, max_new_tokens=self.tokens, use_cache=True)
                answer = self.processor.tokenizer.decode(
                    written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
                ).strip()
                handle.write(json.dumps({"question_id": record["question_id"], "text": answer}) + "\n")
                handle.flush()
                found[str(record["question_id"])] = answer
        return found

    def prompt(self, source: SourceConfig) -> list[int]:
        """Return the ids of the first question."""
        record = json.loads(Path(source.path).read_text().splitlines()[0])
        return self._inputs(source, record)["input_ids"][0].tolist()

    def _inputs(self, source: SourceConfig, record: dict) -> BatchFeature:
        messages = [{"role": "user", "content": "<image>\n" + record["text"]}]
        prompt = self.processor.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        with Image.open(Path(source.images) / record["image"]) as picture:
            return self.processor(images=picture.convert("RGB"), text=prompt, return_tensors="pt")


def compare(name: str, source: SourceConfig, theirs: OneAtATime, ours: InBatches, rounds: int) -> dict[str, object]:
    """Let both answer the questions; print and return samples a second, their ratio, and how many answers agree."""
    answers: dict[str, dict[str, str]] = {}
    if theirs.prompt(source) != ours.prompt(source):
        raise SystemExit("the contenders are not asked the same: their first prompts differ")

    def timed(contender: str, run: "OneAtATime | InBatches") -> float:
        start = time.perf_counter()
        answers[contender] = run(source)
        return len(answers[contender]) / (time.perf_counter() - start)

    rates = in_turns(
        {"LLaVA's way": lambda: timed("LLaVA's way", theirs), "stage 05": lambda: timed("stage 05", ours)}, rounds
    )
    ratios = sorted(b / a for a, b in zip(*rates.values(), strict=True))
    one, other = answers.values()
    same = sum(one[key] == other[key] for key in one)
    for contender, figures in rates.items():
        print(f"{name:8} {contender:12} {spread(figures)} samples/s")
    print(
        f"{name:8} {ratios[len(ratios) // 2]:.1f} x ({ratios[0]:.1f} to {ratios[-1]:.1f}); {same} of {len(one)} answers the same"
    )
    return {"rates": rates, "ratios": ratios, "same": same, "questions": len(one)}


if __name__ == "__main__":
    main()
