"""Run a training on one of several gloo ranks: two_ranks.py settings.yaml base split out, in a launcher's environment."""

import sys
from pathlib import Path

from omegaconf import OmegaConf

from vlm.config import TrainConfig
from vlm.eval.suite import Suite
from vlm.train.run import train

if __name__ == "__main__":
    settings, base, split, out = sys.argv[1:]
    cfg = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainConfig), OmegaConf.load(settings)))
    suite = Suite.of(cfg.evaluation, 0, base=Path(base), shards=Path(split).parent, out=Path(out))
    train(cfg, 0, base=Path(base), split=Path(split), out=Path(out), ask=suite)
