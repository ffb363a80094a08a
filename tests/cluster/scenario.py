"""What a cluster does to a sweep: a cell is preempted, one comes to its time limit, one is cancelled."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from tests.cluster.slurm import Slurm, wait_until
from tests.runs import ROOT, logits, records, result

CAP, STEPS = 2, 600
RUN = (
    "task=listops", "attn=softmax", "task.source=synthetic", "model.seq_len=64", "model.dim=16", "model.head_dim=8",
    "model.ffn=16", f"train.steps={STEPS}", "train.warmup=10", "train.batch_size=8", "train.eval_every=300",
    "train.checkpoint_every=300", "train.log_every=5", "train.lr=1e-3", "tracker=jsonl", "device=cpu",
)  # fmt: skip
BEGAN = time.monotonic()


def say(line: str) -> None:
    """One line a step, with the seconds since the start."""
    print(f"{time.monotonic() - BEGAN:4.0f} s  {line}", flush=True)


class Login:
    """What somebody does on the login node, in a folder that the nodes share."""

    def __init__(self, slurm: Slurm, work: Path) -> None:
        self.slurm, self.work = slurm, work
        self.environment = {
            **slurm.environment, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        self.most = 0

    @contextlib.contextmanager
    def sweep(self, name: str, *words: str) -> Iterator[subprocess.Popen[bytes]]:
        """The sweep of four seeds under way; what it prints goes to a file."""
        launcher = ("hydra/launcher=submitit_slurm", f"hydra.launcher.array_parallelism={CAP}", *words)
        with self.command(
            name, "lra.sweep", *RUN, "seed=0,1,2,3", "hydra.launcher.cpus_per_task=1", *launcher
        ) as given:
            yield given

    @contextlib.contextmanager
    def command(self, name: str, module: str, *words: str) -> Iterator[subprocess.Popen[bytes]]:
        """A command of the project under way; killed where it has not ended by then."""
        command = [sys.executable, "-m", module, *words]
        with (self.work / f"{name}.txt").open("wb") as out:
            given = subprocess.Popen(command, cwd=self.work, env=self.environment, stdout=out, stderr=subprocess.STDOUT)
        try:
            yield given
        finally:
            given.kill()
            given.wait()

    def said(self, name: str) -> str:
        """What a command has printed so far."""
        return (self.work / f"{name}.txt").read_text(errors="replace")

    def jobs(self) -> dict[str, tuple[str, int]]:
        """The jobs in the queue, of which never more than the cap run."""
        jobs = self.slurm.jobs()
        running = sum(state == "RUNNING" for state, _ in jobs.values())
        assert running <= CAP, f"{running} cells at once, with a cap of {CAP}: {jobs}"
        self.most = max(self.most, running)
        return jobs

    def wait(self, true: Callable[[], object], what: str, seconds: float = 300) -> None:
        """Until something is so, with an eye on the cap and the daemons."""

        def still() -> None:
            self.slurm.look_after()
            self.jobs()

        wait_until(true, what, seconds, still)

    def run(self, seed: int) -> Path:
        """The directory of a cell's run."""
        found = [path for path in self.work.glob("runs/mlpen/listops/softmax/*") if path.name.endswith(f"seed{seed}")]
        return found[0] if found else self.work / "not begun"

    def trains(self, seed: int) -> bool:
        """Whether a cell is in the middle of its training."""
        file = self.run(seed) / "metrics.jsonl"
        return file.exists() and len(file.read_bytes().splitlines()) > 5

    def finished(self, seed: int) -> bool:
        return (self.run(seed) / "result.json").exists() and result(self.run(seed))["status"] == "finished"

    def stopped_at(self, seed: int) -> int:
        """The step at which a cell was stopped with everything saved, in the middle of its training."""
        self.wait((self.run(seed) / "result.json").exists, f"seed {seed} has saved everything")
        told = result(self.run(seed))
        assert told["status"] == "interrupted", f"seed {seed} was stopped too late: {told['status']}"
        assert 0 < told["steps"] < STEPS
        return told["steps"]

    def started_again(self, job: str) -> bool:
        """Whether Slurm has put a job back into its queue."""
        return self.jobs().get(job, ("", 0))[1] == 1

    def release(self, job: str) -> None:
        """Let a job that was queued again start now; Slurm would wait two minutes."""
        self.wait(lambda: self.jobs()[job][0] == "PENDING", f"job {job} is out of the way")
        # A start in the second of the end before it is refused as that one's.
        time.sleep(3)
        self.slurm.tell("scontrol", "update", f"JobId={job}", "StartTime=now")

    def preempt(self, cores: int) -> str:
        """Take the place of one cell, by a job of more priority on so many of 4 cores; returns the cell's job."""
        before = set(self.jobs())
        self.slurm.tell("sbatch", "--partition=high", f"--cpus-per-task={cores}", "--output=/dev/null", "--wrap=true")
        self.wait(lambda: any(map(self.started_again, before)), "a cell is preempted")
        return next(job for job in before if self.started_again(job))


def play(slurm: Slurm, work: Path) -> None:
    """The whole scenario; AssertionError says what was not as it should be."""
    login = Login(slurm, work)
    work.mkdir()
    say(f"{slurm.tell('sinfo', '--version')} is up, one node")
    with login.sweep("first", "hydra.launcher.partition=low") as first:
        login.wait(lambda: len(login.jobs()) == 4, "the cells are queued")
        jobs = login.jobs()
        array = next(iter(jobs)).split("_")[0]
        assert set(jobs) == {f"{array}_{seed}" for seed in range(4)}
        say(f"4 cells are array {array}")
        with login.sweep("again", "hydra.launcher.partition=low") as again:
            login.wait(lambda: login.trains(0) and login.trains(1), "two cells train")
            preempted_and_near_the_time_limit(login, array)
            cancelled(login, array)
            login.wait(lambda: again.poll() is not None, "the same command again ends")
        assert {job.split("_")[0] for job in login.jobs()} <= {array}, login.said("again")
        assert all(job in login.said("again") for job in jobs), login.said("again")
        say("the same command again left all four to their jobs")
        login.wait(lambda: first.poll() is not None, "the sweep ends")
    assert first.returncode == 1, login.said("first")
    assert [login.finished(seed) for seed in range(4)] == [True, True, False, True]
    assert login.most == CAP
    say(f"the sweep has ended: three cells finished, one interrupted, never more than {CAP} at once")
    preempted_with_a_grace_time(login)
    same_bits(login)


def preempted_and_near_the_time_limit(login: Login, array: str) -> None:
    """Seeds 0 and 1: one is preempted, the other gets the signal that comes before the time limit."""
    preempted = login.preempt(cores=3)
    seed = int(preempted.split("_")[1])
    late = f"{array}_{1 - seed}"
    login.slurm.tell("scancel", "--signal=USR2", f"{late}.0")
    login.wait(lambda: login.started_again(late), "the cell near its time limit is queued again")
    say(f"seed {seed} was preempted at step {login.stopped_at(seed)}, is saved and queued again")
    say(f"seed {1 - seed} was told at step {login.stopped_at(1 - seed)} that its time is over, is queued again")
    for job in (preempted, late):
        login.release(job)


def cancelled(login: Login, array: str) -> None:
    """Seed 2 is cancelled: saved, and not queued again."""
    login.wait(lambda: login.trains(2), "seed 2 trains")
    login.slurm.tell("scancel", f"{array}_2")
    login.wait(lambda: f"{array}_2" not in login.jobs(), "the cancelled job is gone")
    say(f"seed 2 was cancelled at step {login.stopped_at(2)}, is saved and not queued again")


def preempted_with_a_grace_time(login: Login) -> None:
    """The same command again runs what is missing: seed 2, preempted where Slurm leaves it to the job to go in time."""
    before = login.stopped_at(2)
    with login.sweep("missing", "hydra.launcher.partition=patient") as missing:
        login.wait(lambda: len(login.slurm.jobs()) == 1, "one cell is missing")
        [job] = login.slurm.jobs()
        log = login.run(2) / "log.txt"
        login.wait(lambda: f"going on from step {before}" in log.read_text(), "seed 2 goes on")
        login.preempt(cores=4)
        say(f"seed 2 went on from step {before}, was preempted at step {login.stopped_at(2)} with a grace time")
        missing.send_signal(signal.SIGINT)
        login.wait(lambda: missing.poll() is not None, "Ctrl-C ends the waiting")
    assert missing.returncode == 130, login.said("missing")
    assert "the jobs go on" in login.said("missing"), login.said("missing")
    assert job in login.jobs()
    say("Ctrl-C ended the waiting, the job is still queued")
    login.release(job)
    login.wait(lambda: login.finished(2), "seed 2 finishes with nobody waiting for it")
    login.wait(lambda: not login.jobs(), "its job ends")


def same_bits(login: Login) -> None:
    """Every cell that was disturbed has the metrics and the predictions of a run that never was."""
    alone = {seed: login.work / f"alone{seed}" for seed in range(3)}
    with contextlib.ExitStack() as stack:
        runs = [
            stack.enter_context(login.command(path.name, "lra.train", *RUN, f"seed={seed}", f"run_dir={path}"))
            for seed, path in alone.items()
        ]
        login.wait(lambda: all(run.poll() is not None for run in runs), "the same cells run undisturbed")
    for seed, path in alone.items():
        assert records(login.run(seed)) == records(path), f"the metrics of seed {seed}"
        np.testing.assert_array_equal(logits(login.run(seed)), logits(path), f"the predictions of seed {seed}")
    say("the three disturbed cells have the bits of undisturbed runs")
