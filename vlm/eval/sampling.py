"""Drawing the next token so that a question's answer does not depend on the batch it is asked in.

Source of the trick: the largest of log-probabilities with Gumbel noise added is a draw from them (Gumbel, 1954).
"""

import torch
from torch import Tensor
from transformers import LogitsProcessor, TopKLogitsWarper, TopPLogitsWarper

from vlm.config import SamplingConfig
from vlm.data.samples import draw


class Drawn(LogitsProcessor):
    """Adds noise that follows from (seed, question, place in the answer) to the scores of B questions."""

    def __init__(self, sampling: SamplingConfig, seed: int, questions: list[str], prompt_length: int) -> None:
        self.temperature = sampling.temperature
        self.limits = [TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
        self.limits += [TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
        self.seed = seed
        self.questions = questions
        self.prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores (B, V) whose largest is the token that was drawn; `input_ids` is (B, L)."""
        scores = scores.float() / self.temperature
        for limit in self.limits:
            scores = limit(input_ids, scores)
        place = input_ids.shape[1] - self.prompt_length
        noise = torch.stack([self._noise(question, place, scores.shape[1]) for question in self.questions])
        return scores + noise.to(scores.device)

    def _noise(self, question: str, place: int, size: int) -> Tensor:
        generator = torch.Generator().manual_seed(draw(self.seed, f"{question}/{place}") >> 1)
        return -torch.empty(size).exponential_(generator=generator).log()
