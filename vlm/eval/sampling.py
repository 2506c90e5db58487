"""Drawing the next token so that a question's answer does not depend on the batch it is asked in.

Source of the trick: the largest of log-probabilities with Gumbel noise added is a draw from them (Gumbel, 1954).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor, TopKLogitsWarper, TopPLogitsWarper

from vlm.config import SamplingConfig
from vlm.data.samples import draw


class Drawn:
    """Adds noise that follows from (seed, question, place in the answer) to scores."""

    def __init__(self, sampling: SamplingConfig, seed: int) -> None:
        self.temperature = sampling.temperature
        self.limits = [TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
        self.limits += [TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
        self.seed = seed

    def __call__(self, scores: Tensor, questions: Sequence[str], place: int) -> Tensor:
        """Return scores (B, V) whose largest is the token that was drawn, for B questions by their ids."""
        scores = scores.float() / self.temperature
        for limit in self.limits:
            scores = limit(None, scores)
        noise = torch.stack([self._noise(question, place, scores.shape[1]) for question in questions])
        return scores + noise.to(scores.device)

    def as_processor(self, questions: Sequence[str], prompt_length: int) -> LogitsProcessor:
        """Return the same as transformers' `generate` takes it."""
        return _Processor(self, questions, prompt_length)

    def _noise(self, question: str, place: int, size: int) -> Tensor:
        generator = torch.Generator().manual_seed(draw(self.seed, f"{question}/{place}") >> 1)
        return -torch.empty(size).exponential_(generator=generator).log()


class _Processor(LogitsProcessor):
    def __init__(self, drawn: Drawn, questions: Sequence[str], prompt_length: int) -> None:
        self.drawn = drawn
        self.questions = questions
        self.prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self.drawn(scores, self.questions, input_ids.shape[1] - self.prompt_length)
