"""A Slurm of one node in a folder: munge, slurmctld and slurmd on free ports, beside whatever else runs."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
PROGRAMS = ("slurmctld", "slurmd", "squeue", "sbatch", "srun", "scancel", "scontrol", "munged")
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=30
CompleteWait=0
NodeName=node NodeHostname={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=1000
PartitionName=low Nodes=node Default=YES PriorityTier=1
PartitionName=patient Nodes=node PriorityTier=1 GraceTime=60
PartitionName=high Nodes=node PriorityTier=10 PreemptMode=OFF
"""


def missing() -> list[str]:
    """The programs of Slurm and munge that this machine does not have."""
    return [name for name in PROGRAMS if not shutil.which(name, path=search_path())]


def search_path() -> str:
    """PATH, with the folders of daemons, which a user's often lacks."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on."""
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in taken:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in taken]


def wait_until(
    true: Callable[[], object], what: str, seconds: float = 60, still: Callable[[], None] | None = None
) -> None:
    """Look until something is so; AssertionError with `what` where it is not in time. `still`: done at each look."""
    end = time.monotonic() + seconds
    while not true():
        if still:
            still()
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.2)


class Slurm:
    """The daemons of a cluster that lives in a folder, and what users ask it. A context: at its end nothing is left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "PATH": search_path(), "SLURM_CONF": str(folder / "slurm.conf")}
        self.daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Slurm:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> None:
        """Write the configuration and start munged, slurmctld and slurmd; returns when the node is idle."""
        for name in ("state", "spool"):
            (self.folder / name).mkdir(parents=True)
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        controller, node = free_ports(2)
        host = socket.gethostname().split(".")[0]
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
        text = CONFIGURATION.format(host=host, controller=controller, node=node, user=user, folder=self.folder)
        (self.folder / "slurm.conf").write_text(text)
        places = {
            "key-file": "munge.key",
            "pid-file": "munged.pid",
            "seed-file": "munge.seed",
            "log-file": "munged.log",
        }
        options = [f"--{option}={self.folder / name}" for option, name in places.items()]
        self.daemon("munged", "--foreground", "--force", f"--socket={self.folder / 'munge.socket'}", *options)
        wait_until((self.folder / "munge.socket").exists, "munged listens", 20, self.look_after)
        self.daemon("slurmctld", "-D", "-c")
        self.daemon("slurmd", "-D", "-c", "-N", "node")
        wait_until(lambda: "idle" in self.ask("sinfo", "-h", "-o", "%T"), "the node is idle", 30, self.look_after)

    def daemon(self, name: str, *words: str) -> None:
        """Start a daemon as a child of this process, its output in a file."""
        with (self.folder / f"{name}.out").open("wb") as out:
            program = shutil.which(name, path=search_path())
            assert program, f"{name} is installed"
            self.daemons.append(
                subprocess.Popen(
                    [program, *words],
                    env=self.environment,
                    stdout=out,
                    stderr=out,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )  # fmt: skip
            )

    def look_after(self) -> None:
        """A daemon that has ended is an AssertionError."""
        for daemon in self.daemons:
            assert daemon.poll() is None, f"{daemon.args} ended with exit code {daemon.returncode}"  # type: ignore[str-bytes-safe]

    def ask(self, *command: str) -> str:
        """The output of a command of Slurm's, empty where it failed."""
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False).stdout

    def tell(self, *command: str) -> str:
        """The output of a command of Slurm's, which must not fail."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout.strip()

    def jobs(self) -> dict[str, tuple[str, int]]:
        """Of each job of a sweep that is queued or runs: its number, state, and how often it was started again."""
        lines = self.ask("squeue", "-h", "-r", "--name=lra", "--Format=JobArrayID:24,State:24,RestartCnt:12")
        return {name: (state, int(restarts)) for name, state, restarts in map(str.split, lines.splitlines())}

    def logs(self) -> str:
        """The last lines of what the daemons wrote."""
        texts = [
            f"--- {file.name}\n" + "\n".join(file.read_text(errors="replace").splitlines()[-25:])
            for file in sorted(self.folder.iterdir())
            if file.suffix in (".out", ".log")
        ]
        return "\n".join(texts)

    def stop(self) -> None:
        """End every job, every daemon, and whatever process of theirs is left, undisturbed by another Ctrl-C."""
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, signal.SIG_IGN)
        if len(self.daemons) == 3:
            self.ask("scancel", "--signal=KILL", "--full", "--state=RUNNING", f"--user={os.getuid()}")
            self.ask("scancel", f"--user={os.getuid()}")
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self.daemons = []
        for process in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        wait_until(lambda: not list(self.processes()), "no process of the cluster is left", 10)

    def processes(self) -> Iterator[int]:
        """The processes whose environment names this cluster: daemons, steps and jobs, wherever they were started."""
        mark = f"SLURM_CONF={self.folder / 'slurm.conf'}".encode()
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                    yield int(entry.name)
