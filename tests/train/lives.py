"""Run a training that is killed again and again: lives.py settings.yaml base split out ranks kills.json.

A kill is [step, null], after that step's update, or [step, file], in the middle of writing that file of its
checkpoint. Every life is forked from here, so that torch is imported once; SIGKILL ends all ranks of a life.
"""

import json
import os
import signal
import socket
import sys
from pathlib import Path

from omegaconf import OmegaConf

from vlm.config import TrainConfig
from vlm.train import checkpoint, loop
from vlm.train.run import train


def doom(step: int, file: str | None) -> None:
    """Have this process die at a point of its training."""
    take_step, sync = loop.take_step, checkpoint.sync

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def last_step(engine, *rest):
        done = take_step(engine, *rest)
        doomed.append(1)
        return done if file or loop_step() < step else die()

    def last_write(path: Path) -> None:
        if path.name == file and path.parent.name == f"step_{step:06d}.tmp":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            die()
        sync(path)

    doomed: list[int] = []
    first = max([0, *(int(p.name[5:]) for p in OUT.glob("checkpoints/step_*[0-9]"))])

    def loop_step() -> int:
        return first + len(doomed)

    loop.take_step, checkpoint.sync = last_step, last_write


def live(kill: list | None, ranks: int) -> bool:
    """Run one life on `ranks` processes; say whether it came to the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    children = []
    for rank in range(ranks):
        child = os.fork()
        if not child:
            if ranks > 1:
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": str(rank)}
                os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks)}
            if kill and rank == 0:
                doom(*kill)
            train(CFG, 0, base=BASE, split=SPLIT, out=OUT)
            os._exit(0)
        children.append(child)
    _, status = os.waitpid(children[0], 0)
    for child in children[1:]:
        if status:
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), status
    return status == 0


if __name__ == "__main__":
    settings, BASE, SPLIT, OUT = map(Path, sys.argv[1:5])
    CFG = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainConfig), OmegaConf.load(settings)))
    OUT.mkdir(exist_ok=True)
    for kill in json.loads(sys.argv[6]):
        assert not live(kill, int(sys.argv[5])), f"outlived {kill}"
    assert live(None, int(sys.argv[5]))
