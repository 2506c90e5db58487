"""Names in the settings that the code below them answers to: formats of corpora, and scorers of tasks.

Only vlm/data/sources.py and vlm/eval/scorers.py list them, so that a new one is written in one place. No torch.
"""

import itertools

from vlm.config import RootConfig
from vlm.data.sources import format_of
from vlm.eval.scorers import scorer_of


def check_names(cfg: RootConfig) -> None:
    """Raise Unusable, with the nearest name that there is, for a format or a scorer that there is not."""
    tasks = (cfg.pretrain.evaluation.tasks, cfg.finetune.evaluation.tasks, cfg.eval.tasks)
    splits = (cfg.data.pretrain, cfg.data.finetune)
    sources = [source for split in splits for source in (*split.sources, *split.held_out)]
    sources += [*cfg.data.exclude, *cfg.instruct.sources]
    for name, task in itertools.chain.from_iterable(map(dict.items, tasks)):
        scorer_of(name, task)
        sources += task.sources
    for source in sources:
        format_of(source)
