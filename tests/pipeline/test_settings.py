import pytest

from vlm.errors import Unusable
from vlm.pipeline.settings import settings_of, typed


def test_runtime_settings_do_not_count_in_the_key(composed):
    names = settings_of(composed(), ("finetune",))
    assert "finetune.lora.rank" in names
    assert not [name for name in names if "runtime" in name or "deepspeed" in name]


def test_looking_at_a_training_counts_in_the_key_only_with_patience(composed):
    looks = [f"finetune.evaluation.{setting}" for setting in ("every=7", "keep_best=2", "tasks.questions.limit=3")]
    without = settings_of(composed("finetune.evaluation.every=null"), ("finetune",))
    assert settings_of(composed(*looks), ("finetune",)) == without
    stops = settings_of(composed(*looks, "finetune.evaluation.patience=2"), ("finetune",))
    assert stops["finetune.evaluation.every"] == 7
    assert stops["finetune.evaluation.patience"] == 2
    assert stops["finetune.evaluation.tasks.questions.limit"] == 3


def test_a_format_and_a_scorer_that_are_not_there_are_refused_in_one_line(composed):
    typed(composed())
    for wrong in ("data.finetune.sources=[{path: a.json, format: cocoa}]", "eval.tasks.questions.scorer=yesno"):
        with pytest.raises(Unusable, match="there is no (format|scorer) ") as refused:
            typed(composed(wrong))
        assert "\n" not in str(refused.value)
