"""What is going to be asked: requests, tokens and cost, counted before the first call."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from vlm.config import InstructConfig
from vlm.endpoint.asker import cost_of
from vlm.instruct.prompts import Task, opening, query


class Tokens:
    """Counts tokens by a real tokenizer; an endpoint's own may differ, and what it counts is what is paid."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._openings: dict[str, int] = {}  # tokens of what a kind's requests begin with, by the prompt's version
        self._answers: dict[str, int] = {}  # tokens of a kind's examples, on average

    @classmethod
    def load(cls, folder: Path) -> "Tokens":
        """Load the tokenizer of stage 00."""
        return cls(AutoTokenizer.from_pretrained(folder, local_files_only=True))

    def of(self, text: str) -> int:
        """Return the tokens of a text."""
        return len(self._tokenizer.encode(text, add_special_tokens=False))

    def prompt(self, task: Task) -> int:
        """Return the tokens of a request's messages, those of the chat template included if there is one.

        What a kind's requests begin with is counted once, so a token that would cross into the query counts as two.
        """
        if task.version not in self._openings:
            messages = [*opening(task.kind), {"role": "user", "content": ""}]
            if self._tokenizer.chat_template is None:
                text = "".join(message["content"] for message in messages)
            else:
                text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            self._openings[task.version] = self.of(text)
        return self._openings[task.version] + self.of(query(task.kind, task.facts.captions, task.facts.boxes))

    def likely_answer(self, task: Task, max_tokens: int) -> int:
        """Return how long an answer may be expected to be: like the kind's examples; `max_tokens` without any."""
        if task.version not in self._answers:
            counts = [self.of(example.answer) for example in task.kind.examples]
            self._answers[task.version] = round(sum(counts) / len(counts)) if counts else max_tokens
        return min(self._answers[task.version], max_tokens)


def estimate(tasks: Iterable[Task], tokens: Tokens, cfg: InstructConfig) -> str:
    """Return a table of what is to be asked: by kind, and the sum.

    `likely` is with answers as long as the kind's examples, `at most` with all of max_tokens and every answer asked
    for twice, since a rejected one is.
    """
    requests, prompts, likely = Counter(), Counter(), Counter()
    for task in tasks:
        requests[task.name] += 1
        prompts[task.name] += tokens.prompt(task)
        likely[task.name] += tokens.likely_answer(task, cfg.max_tokens)
    lines = [
        f"{'kind':<16}{'requests':>10}{'prompt tokens':>16}{'answer tokens':>16}{'likely cost':>14}{'at most':>14}"
    ]
    for counted in [*requests, None] if requests else []:
        n, asked, said = (count.total() if counted is None else count[counted] for count in (requests, prompts, likely))
        cost = cost_of(asked, said, cfg.runtime)
        most = 2 * cost_of(asked, n * cfg.max_tokens, cfg.runtime)
        lines.append(f"{counted or 'all':<16}{n:>10,}{asked:>16,}{said:>16,}{cost:>14,.4f}{most:>14,.4f}")
    if requests and not (cfg.runtime.input_price or cfg.runtime.output_price):
        lines.append("no price is set: instruct.runtime.input_price= and output_price=, for a million tokens")
    return "\n".join(lines) if requests else "nothing is left to ask"
