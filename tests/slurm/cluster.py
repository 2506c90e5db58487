"""A real SLURM on this machine: controller, accounting in MariaDB, and four virtual nodes with declared GPUs.

    python tests/slurm/cluster.py sinfo                start one, run a command on its login node, stop it
    python tests/slurm/cluster.py bash                 the same, to look around

Everything runs in Linux namespaces of its own, so it needs root but touches nothing of the host: no port, no file of
/etc or /run, no service. Each node has its own host name and network address (10.213.0.11 to .14 on a bridge): a job
that dials 127.0.0.1 where it means another node fails here as it does on real nodes. When the process that started
the cluster ends, in whatever way, the kernel ends everything in the namespaces.

What Debian calls the packages is in PACKAGES.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGES = (
    *("slurmctld", "slurmd", "slurm-client", "munge"),
    *("slurmdbd", "mariadb-server-core", "mariadb-client-core", "iproute2"),
)
PROGRAMS = ("slurmctld", "slurmd", "slurmdbd", "munged", "sbatch", "mariadbd", "mariadb-install-db", "ip", "nsenter")
ETC = Path(__file__).parent / "etc"
NODES = ("node1", "node2", "node3", "node4")
DATABASE = """
CREATE DATABASE slurm_acct_db;
CREATE USER 'slurm'@'%' IDENTIFIED BY 'slurm';
GRANT ALL ON slurm_acct_db.* TO 'slurm'@'%';
"""
# The first process of the namespaces: it lives as long as its stdin is open, and leaves no zombies.
INIT = "hostname login; exec env --ignore-signal=CHLD cat"
LOGIN = """
set -e
mount -t tmpfs none /run
mkdir -p /run/slurm /run/munge /run/lock
mount --bind {folder} /run/slurm
mount --bind {folder}/etc /etc/slurm
mount --bind {folder}/hosts /etc/hosts
mknod -m 666 /run/nvidia0 c 1 3
mknod -m 666 /run/nvidia1 c 1 3
ip link set lo up
ip link add bridge0 type bridge
ip addr add 10.213.0.1/24 dev bridge0
ip link set bridge0 up
head -c 1024 /dev/urandom > /run/munge/key
chmod 400 /run/munge/key
munged --force --key-file=/run/munge/key --socket=/run/munge/munge.socket.2 --pid-file=/run/munge/pid \
    --log-file=/run/slurm/log/munged.log --seed-file=/run/munge/seed
"""
DURABLE_ENOUGH = ("--innodb-flush-method=nosync", "--innodb-doublewrite=0", "--innodb-log-file-size=16M")


class Unavailable(Exception):
    """No cluster can be started here; the reason in one line."""


class Cluster:
    """The cluster while it runs: `with Cluster(folder) as slurm`. Logs and state are in `folder`."""

    def __init__(self, folder: Path) -> None:
        """Raises Unavailable if a package or a right is missing on this machine."""
        self.folder = folder
        self._inside: dict[str, int] = {}  # a process of the login node and of each node, whose namespaces are joined
        self._keepers: list[subprocess.Popen] = []  # end with the cluster
        missing = [program for program in PROGRAMS if not shutil.which(program, path=SEARCH)]
        if missing:
            raise Unavailable(f"{', '.join(missing)} not found: apt-get install {' '.join(PACKAGES)}")
        if os.geteuid() != 0:
            raise Unavailable("a SLURM of one's own needs root")

    def __enter__(self) -> "Cluster":
        try:
            self._start()
        except (Unavailable, subprocess.SubprocessError, OSError) as problem:
            logs = {path: path.read_text(errors="replace") for path in self.folder.glob("log/*.log")}
            self.stop()
            tails = [f"{path.name}: {text.strip().splitlines()[-1]}" for path, text in logs.items() if text.strip()]
            said = (getattr(problem, "stderr", None) or str(problem)).strip().splitlines()[-1]
            raise Unavailable(f"SLURM did not start: {said}; {'; '.join(tails)}") from None
        return self

    def __exit__(self, *problem: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End every process of the cluster, and with them its mounts and networks."""
        for keeper in reversed(self._keepers):
            if keeper.stdin:
                keeper.stdin.close()
        for keeper in self._keepers:
            keeper.wait(20)
        self._keepers.clear()

    def command(self, *command: str | Path, node: str = "login") -> list[str]:
        """Return what to start on the host so that `command` runs on a node, in the host's working folder."""
        enter = ["nsenter", f"--target={self._inside[node]}", "--mount", "--uts", "--net", "--pid"]
        return [*enter, "env", f"--chdir={Path.cwd()}", f"PATH={SEARCH}", *map(str, command)]

    def run(self, *command: str | Path, node: str = "login", timeout: float = 60) -> str:
        """Run a command on a node to its end; return what it printed on stdout.

        Raises CalledProcessError, with its stderr, if it fails.
        """
        return subprocess.run(
            self.command(*command, node=node), check=True, capture_output=True, text=True, timeout=timeout
        ).stdout.strip()

    def state(self, job: str) -> str:
        """Return a job's state as the accounting has it, PENDING or COMPLETED say; "" before it has."""
        found = self.run("sacct", "-nPX", "--format=state", f"--jobs={job}").splitlines()
        return found[-1].split()[0] if found else ""

    def processes(self, node: str) -> dict[int, dict[str, str]]:
        """Return the environment of every process on a node by its id on the host."""
        here = Path(f"/proc/{self._inside[node]}/ns/uts").readlink()
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if (process / "ns/uts").readlink() == here:
                    entries = (process / "environ").read_bytes().decode(errors="replace").split("\0")
                    found[int(process.name)] = dict(entry.split("=", 1) for entry in entries if "=" in entry)
            except OSError:  # it ended meanwhile
                continue
        found.pop(self._inside[node], None)
        return found

    def kill(self, node: str) -> None:
        """Cut a node's power: every process on it ends at once."""
        for process in self.processes(node):
            os.kill(process, signal.SIGKILL)

    def wait_until_idle(self) -> None:
        """Wait until every node is there and free."""
        wait("all nodes idle", lambda: self.run("sinfo", "-hNo%t", "-pmain").split() == ["idle"] * len(NODES), 90)

    def stop_slurmd(self, node: str) -> None:
        """Kill a node's slurmd alone; its jobs run on, and SLURM takes the node for dead after SlurmdTimeout."""
        self.run("sh", "-c", f"kill -9 $(cat /run/slurmd.{node}.pid)", node=node)

    def boot(self, node: str) -> None:
        """Start a node's slurmd."""
        (self.folder / "spool" / node).mkdir(parents=True, exist_ok=True)
        self.run("slurmd", "-N", node, node=node)

    @contextmanager
    def slow_network(self, rate: str = "40mbit") -> Iterator[None]:
        """Let every node send no faster than `rate`, so that a training over the network takes its time.

        Raises Unavailable if this kernel cannot.
        """
        try:
            for node in NODES:
                shape = f"qdisc add dev eth0 root tbf rate {rate} burst 128kb limit 4mb"
                self.run("tc", *shape.split(), node=node)
        except subprocess.CalledProcessError as problem:
            raise Unavailable(f"no slow network: {problem.stderr.strip()}") from None
        try:
            yield
        finally:
            for node in NODES:
                self.run("tc", "qdisc", "del", "dev", "eth0", "root", node=node)

    def _start(self) -> None:
        for name in ("etc", "log", "state", "spool", "db"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        for path in ETC.iterdir():
            shutil.copyfile(path, self.folder / "etc" / path.name)
        (self.folder / "etc/slurmdbd.conf").chmod(0o600)
        version = subprocess.run(["slurmd", "-V"], capture_output=True, text=True, env={"PATH": SEARCH}).stdout
        is_old = tuple(map(int, version.split()[-1].split(".")[:2])) < (24, 5)
        # slurmd wants a cgroup plugin though nothing uses one: the one that needs nothing mounted
        (self.folder / "etc/cgroup.conf").write_text(f"CgroupPlugin={'cgroup/v1' if is_old else 'disabled'}\n")
        addresses = [("127.0.0.1", "localhost"), ("10.213.0.1", "login")]
        addresses += [(f"10.213.0.1{i}", node) for i, node in enumerate(NODES, 1)]
        (self.folder / "hosts").write_text("".join(f"{address} {name}\n" for address, name in addresses))

        unshare = ["unshare", "--mount", "--uts", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._inside["login"] = self._keep([*unshare, "sh", "-c", INIT])
        self.run("sh", "-c", LOGIN.format(folder=self.folder))
        self._start_accounting()
        self.run("slurmctld")
        for i, node in enumerate(NODES, 1):
            alone = f"hostname {node}; exec cat"
            self._inside[node] = self._keep(self.command("unshare", "--uts", "--net", "sh", "-c", alone))
            inner = self._inner(self._inside[node])
            self.run("ip", "link", "add", f"veth{i}", "type", "veth", "peer", "name", "eth0", "netns", inner)
            self.run("ip", "link", "set", f"veth{i}", "master", "bridge0", "up")
            for words in ("link set lo up", f"addr add 10.213.0.1{i}/24 dev eth0", "link set eth0 up"):
                self.run("ip", *words.split(), node=node)
            self.boot(node)
        self.wait_until_idle()

    def _start_accounting(self) -> None:
        (self.folder / "db.sql").write_text(DATABASE)
        self.run(
            "mariadb-install-db", "--no-defaults", "--user=root", "--datadir=/run/slurm/db", "--skip-test-db",
            *DURABLE_ENOUGH,
        )  # fmt: skip
        mariadb = self.command(
            "mariadbd", "--no-defaults", "--user=root", "--datadir=/run/slurm/db", "--socket=/run/db.sock",
            "--pid-file=/run/db.pid", "--bind-address=login", "--port=26806", "--init-file=/run/slurm/db.sql",
            "--log-error=/run/slurm/log/mariadb.log", "--innodb-buffer-pool-size=64M", "--skip-name-resolve",
            "--innodb-lock-wait-timeout=900", "--innodb-flush-log-at-trx-commit=0", *DURABLE_ENOUGH,
        )  # fmt: skip
        self._keepers.append(subprocess.Popen(mariadb, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        wait("MariaDB", lambda: self._listens(26806))
        self.run("slurmdbd")
        wait("slurmdbd", lambda: self._listens(26819))
        manage = ("sacctmgr", "--immediate", "--quiet")
        wait("accounting", lambda: self.run(*manage, "add", "cluster", "test") is not None)
        self.run(*manage, "add", "account", "vision")
        self.run(*manage, "add", "user", "root", "account=vision")
        self.run(*manage, "add", "qos", "small", "flags=DenyOnLimit", "MaxTRESPerJob=cpu=1")
        self.run(*manage, "modify", "user", "root", "set", "qos+=small")

    def _listens(self, port: int) -> bool:
        return bool(self.run("bash", "-c", f"exec 3<>/dev/tcp/login/{port} && echo yes"))

    def _keep(self, command: list[str]) -> int:
        """Start a process that ends when this one does; return the id of the child that the namespaces are of."""
        keeper = subprocess.Popen(command, stdin=subprocess.PIPE, env=os.environ | {"PATH": SEARCH})
        self._keepers.append(keeper)
        children = Path(f"/proc/{keeper.pid}/task/{keeper.pid}/children")

        def named() -> bool:  # it has its namespaces and runs its script
            if keeper.poll() is not None:
                raise Unavailable(f"{command[0]} failed: namespaces of one's own are not allowed here")
            found = children.read_text().split()
            return bool(found) and Path(f"/proc/{found[0]}/comm").read_text() == "cat\n"

        wait("namespaces", named)
        return int(children.read_text().split()[0])

    def _inner(self, process: int) -> str:
        """Return a process's id as the cluster's own processes see it."""
        status = Path(f"/proc/{process}/status").read_text()
        return next(line.split()[-1] for line in status.splitlines() if line.startswith("NSpid:"))


SEARCH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


def wait(what: str, is_true: Callable[[], bool], seconds: float = 30) -> None:
    """Ask every 50 ms, later every second, until it is so; a command that fails says no.

    Raises Unavailable after `seconds`.
    """
    began = time.monotonic()
    while (waited := time.monotonic() - began) < seconds:
        try:
            if is_true():
                return
        except subprocess.SubprocessError:
            pass
        time.sleep(min(1, max(0.05, waited / 10)))
    raise Unavailable(f"timed out after {seconds:g} s: {what}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="slurm-") as scratch:
        try:
            with Cluster(Path(scratch)) as slurm:
                sys.exit(subprocess.run(slurm.command(*(sys.argv[1:] or ["sinfo"]))).returncode)
        except Unavailable as problem:
            sys.exit(str(problem))
