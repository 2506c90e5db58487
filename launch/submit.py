"""Submit all stages to a cluster, in one process: launch/all.sh +cluster=NAME does this."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import hydra
from omegaconf import DictConfig

from vlm.pipeline.chain import submit_all
from vlm.pipeline.stage import Stage, start

STAGES = Path(__file__).resolve().parents[1] / "stages"


def stage_of(script: Path) -> Stage:
    """Return what a stage script defines; its name begins with a digit, so it cannot be imported by name."""
    spec = spec_from_file_location(f"stage_{script.stem}", script)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.stage


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def main(composed: DictConfig) -> None:
    """Submit every stage on the composed settings."""
    submit_all([stage_of(script) for script in sorted(STAGES.glob("[0-9][0-9]_*.py"))], composed)


if __name__ == "__main__":
    start(main)
