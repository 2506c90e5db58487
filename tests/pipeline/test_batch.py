"""The texts themselves are compared in test_cluster.py."""

from pathlib import Path

import yaml

from vlm.config import ClusterConfig, SingleTaskConfig
from vlm.pipeline import batch
from vlm.pipeline.stage import Stage

RANKS = Stage("stages/03_pretrain.py", (), ("seed",), print, distributed=True)
SINGLE = Stage("stages/01_assemble.py", (), ("seed",), print)
GPUS = ClusterConfig(nodes=2, gpus_per_node=4, constraint="a100", partition="gpu", single=SingleTaskConfig("cpu"))


def test_each_stage_asks_for_what_it_uses():
    asked = {stage.name: batch.resources(stage, GPUS) for stage in (RANKS, SINGLE)}
    names = ("nodes", "ntasks_per_node", "gpus_per_node", "partition", "constraint")
    assert {stage: tuple(found.get(name) for name in names) for stage, found in asked.items()} == {
        "03_pretrain": (2, 4, 4, "gpu", "a100"),
        "01_assemble": (1, 1, None, "cpu", None),
    }
    assert batch.resources_of(RANKS, GPUS) == "2 x 4 tasks, 4 GPUs a node, 8 cores each, 1440 min"


def test_the_line_to_run_by_hand_has_as_many_ranks_as_the_job():
    config = Path("/r/jobs/03_pretrain.frozen.yaml")
    assert "torch.distributed.run --nproc-per-node 8 /" in batch.by_hand(RANKS, GPUS, config)
    assert batch.by_hand(SINGLE, GPUS, config).endswith(
        "01_assemble.py --config-dir /r/jobs --config-name 03_pretrain.frozen"
    )


def test_frozen_settings_ask_for_no_cluster(tmp_path, composed):
    settings = composed("+cluster=slurm_cpu", "wait=true", "seed=3")
    frozen = yaml.safe_load(batch.freeze(tmp_path, "03_pretrain", settings, tmp_path / "r/sweep/seed=3").read_text())
    assert (frozen["cluster"], frozen["wait"], frozen["seed"], frozen["run"]) == (None, False, 3, "r/sweep/seed=3")
