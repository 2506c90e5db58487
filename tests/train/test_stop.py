import os
import signal

import pytest

from vlm.errors import Unusable
from vlm.train import loop
from vlm.train.run import train

from .conftest import weights_of


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_asked_to_stop_a_run_saves_its_step_and_goes_on_from_it(
    settings, tiny_model, tiny_shards, tmp_path, monkeypatch, number
):
    cfg = settings(runtime={"save_every": 100})

    def run(name):
        (tmp_path / name).mkdir(exist_ok=True)
        train(cfg, 0, base=tiny_model, split=tiny_shards / "finetune", out=tmp_path / name)
        return weights_of(tmp_path / name / "model")

    unbroken = run("unbroken")
    take_step = loop.take_step
    calls = []

    def asked(*arguments):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), number)
        return take_step(*arguments)

    monkeypatch.setattr(loop, "take_step", asked)
    with pytest.raises(Unusable, match="saved at step 3 of 6"):
        run("stopped")
    assert run("stopped") == unbroken
    assert len(calls) == 6
