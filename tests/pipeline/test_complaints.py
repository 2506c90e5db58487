from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from vlm.pipeline.complaints import plainly

CONF = str(Path(__file__).parents[2] / "conf")
SAID = {
    "finetune.runtime.save_evry=3": "there is no setting finetune.runtime.save_evry: did you mean finetune.runtime.save_every?",
    "cluster=slurm_cpu": "a cluster is chosen with a plus: +cluster=NAME",
    "qqq=1": "there is no setting qqq; --help lists them",
}


@pytest.mark.parametrize("override", SAID)
def test_what_cannot_be_composed_is_said_in_one_sentence(override):
    assert complaint_of(override) == SAID[override]


def test_a_choice_that_is_not_there_names_those_that_are():
    said = complaint_of("deepspeed@finetune.deepspeed=zero9")
    assert said.startswith("there is no conf/deepspeed/zero9.yaml: choose one of ") and "zero3_offload" in said


def complaint_of(override: str) -> str:
    with initialize_config_dir(CONF, version_base="1.3"), pytest.raises(HydraException) as refused:
        compose("config", ["run=r", override])
    return plainly(refused.value)
