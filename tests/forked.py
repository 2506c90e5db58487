"""Scripts that begin with everything imported: forked from a process that has done so, where a fresh Python takes seconds.

forked = Forked()                                    # starts this file as a script
forked.start(["stages/03_pretrain.py", "run=x"])     # as python would, with output and status to wait for
"""

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
PRELOADED = (
    "vlm.train.run",
    "vlm.train.adapters",
    "vlm.eval.run",
    "vlm.eval.suite",
    "vlm.model.build",
    "vlm.data.shards",
)
OF_A_RANK = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
)  # trainings in the tests leave them behind


class Process:
    """A script that runs. Its status is negative if a signal ended it, as with subprocess."""

    def __init__(self, forked: "Forked", pid: int, output: Path) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._forked = forked
        self._output = output

    def poll(self) -> int | None:
        return self._reap(os.WNOHANG)

    def kill(self) -> None:
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> tuple[int, str]:
        """Wait for its end; return its status and what it printed."""
        return self._reap(0), self.said()

    def said(self) -> str:
        return self._output.read_text(errors="replace")

    def _reap(self, options: int) -> int | None:
        if self.returncode is None:
            self.returncode = self._forked.ask(pid=self.pid, options=options)
        return self.returncode


class Forked:
    """The process that has everything imported, and starts the others."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._started = 0
        self._parent = subprocess.Popen(
            [sys.executable, __file__, *PRELOADED],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={name: value for name, value in os.environ.items() if name not in OF_A_RANK} | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def start(self, command: Sequence[str], cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> Process:
        """Start a script with its arguments, beside the environment of the tests with `env`."""
        self._started += 1
        output = Path(self._folder.name) / str(self._started)
        told = {"command": [str(word) for word in command], "cwd": str(cwd), "env": dict(env or {})}
        return Process(self, self.ask(**told, output=str(output)), output)

    def run_ranks(self, ranks: int, command: Sequence[str]) -> tuple[int, str]:
        """Run a script on so many ranks; return the first status that is not 0, and what that rank printed.

        The other ranks end with it, as under torchrun.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            world = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        running = [
            self.start(command, env=world | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(ranks)
        ]
        while None in [process.poll() for process in running] and not any(process.returncode for process in running):
            time.sleep(0.02)
        first = next((process for process in running if process.returncode), running[0])
        for process in running:
            process.kill()
            process.wait()
        return first.wait()

    def ask(self, **request: object) -> int | None:
        self._parent.stdin.write(json.dumps(request) + "\n")
        self._parent.stdin.flush()
        return json.loads(self._parent.stdout.readline())

    def close(self) -> None:
        self._parent.stdin.close()
        self._parent.wait()
        self._folder.cleanup()


def serve() -> dict | None:
    """Start and await what stdin asks for; in a new process return what it shall be."""
    while line := sys.stdin.readline():
        request = json.loads(line)
        if "command" in request:
            answer = os.fork()
            if answer == 0:
                return request
        else:
            ended, status = os.waitpid(request["pid"], request["options"])
            answer = os.waitstatus_to_exitcode(status) if ended else None
        print(json.dumps(answer), flush=True)
    return None


def become(command: list[str], cwd: str, env: dict[str, str], output: str) -> None:
    """Be the script from here on."""
    os.chdir(cwd)
    os.environ.update(env)
    for path, flags, numbers in ((os.devnull, os.O_RDONLY, [0]), (output, os.O_CREAT | os.O_WRONLY, [1, 2])):
        opened = os.open(path, flags)
        for number in numbers:
            os.dup2(opened, number)
        os.close(opened)
    sys.argv = command
    sys.path[0] = str(Path(command[0]).parent)
    runpy.run_path(command[0], run_name="__main__")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        __import__(name)
    if asked := serve():
        become(**asked)
