"""Stops the main job at many points, resumes it, and compares it with an undisturbed run.

    python experiments/kill_campaign.py [--points 100]

A tiny run on digits is stopped and resumed, several times, until it ends. Then everything in its
directory (archive, networks, logs, summary) is compared with what an undisturbed run left, timings
apart. A point holds if the job can be resumed after it and the run that it is in ends equal.

Points are of three kinds, drawn at random:

  time    at a time after the start of the job's process, up to two thirds of an undisturbed run
  call    right before one of the job's calls that create, rename or delete a file or folder, up to
          a third of those of an undisturbed run
  file    as soon as a temporary file or folder is there, so that most are inside a write

Eight in ten signals are SIGKILL, the others SIGTERM and SIGINT; after these any exit status will
do. Writes results/kill_campaign.json. Runs that have ended lie in the campaign's folder, so that
the same command goes on after an interruption.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ccsrp_jax import cli
from ccsrp_jax.pipeline.flags import read_flags
from ccsrp_jax.utils import devices, io
from ccsrp_jax.utils.console import Terminal
from ccsrp_jax.utils.digests import sha256_file
from ccsrp_jax.utils.errors import InputError, check_number

HERE = Path(__file__).parent
ROUNDS = 2
FLAGS = (
    *("--train-images", "64", "--search-images", "32", "--test-images", "32", "--width", "0.25"),
    *("--time-steps", "2", "--rounds", str(ROUNDS), "--target-macs", "0", "--batch-size", "32"),
    *("--latency-batch", "8", "--tolerance", "1", "--training.epochs", "2"),
    *("--training.finetune-epochs", "1", "--training.batch-size", "32"),
    *("--training.attack-steps", "1", "--attack.search-steps", "1", "--attack.test-steps", "2"),
    *("--attack.test-restarts", "1", "--search.population", "2", "--search.generations", "2"),
    *("--search.multiple", "1", "--attack.suite", "pgd", "--training.checkpoint-epochs", "1"),
)
COMMAND = (str(HERE / "ccsrp.py"), *FLAGS)

KINDS = ("time", "call", "file")
SIGNALS = (*[signal.SIGKILL] * 8, signal.SIGTERM, signal.SIGINT)
REACH = {"time": 2 / 3, "call": 1 / 3}  # of a whole run, so that most are stopped several times
FILES = 8  # the last temporary file, of one process, at which it may be stopped
PATIENCE = 3600  # seconds for a process to end
TIMED = re.compile("second|step_ms|latency|share_of_peak|run_dir")  # not compared
# Runs a script, and sends its process a signal right before the n-th call that changes the folder
# or reads and writes through an open one, as checkpoints do. Writes the number of calls at the end.
HOOK = """
import atexit, os, runpy, sys
at, number, folder, record = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
calls = 0
changes = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree")
def hook(event, args):
    global calls
    if event == "open":
        wanted = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    else:
        wanted = event in changes
    if wanted and any(part in str(args[0]) for part in (folder, "/proc/self/fd/")):
        calls += 1
        if calls == at:
            open(record, "w").close()
            os.kill(os.getpid(), number)
sys.addaudithook(hook)
if at == 0:
    atexit.register(lambda: open(record, "w").write(str(calls)))
sys.argv = sys.argv[5:]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass(frozen=True)
class Settings:
    """Stop the main job at many points, resume it, and compare it with an undisturbed run.

    Attributes:
      points: how often the job is stopped, in all.
      seed: of the points.
      folder: for the runs, of which only those that did not hold are kept.
      out: file to write.
    """

    points: int = 100
    seed: int = 0
    folder: Path = Path("runs/kill_campaign")
    out: Path = HERE / "results" / "kill_campaign.json"


class Point(NamedTuple):
    """Where a process is stopped.

    Attributes:
      kind: one of `KINDS`.
      at: seconds after the start, or the number of the call or of the temporary file.
      signal: its number.
    """

    kind: str
    at: float
    signal: int


class Life(NamedTuple):
    """The undisturbed run: its directory, seconds and calls that change files."""

    run_dir: Path
    seconds: float
    calls: int


class Ended(NamedTuple):
    """How a process ended: whether it was stopped, its exit status, and its last line."""

    stopped: bool
    status: int
    said: str


def campaign(settings: Settings, terminal: Terminal, command: Sequence[str] = COMMAND) -> dict:
    """Runs the campaign, or the rest of it, and returns its record.

    Raises:
      InputError: the job fails without being disturbed.
    """
    check_number("points", settings.points, 1)
    check_number("seed", settings.seed, 0)
    folder, log = settings.folder.absolute(), settings.folder.absolute() / "runs.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    # a shell that starts a script in the background has its children ignore SIGINT
    signal.signal(signal.SIGINT, signal.default_int_handler)
    job, began = Job(tuple(command), folder), time.perf_counter()
    life = undisturbed(job)
    runs, _ = io.read_rows(log)
    while (done := sum(len(run["points"]) for run in runs)) < settings.points:
        row = disturbed(job, life, (settings.seed, len(runs)), settings.points - done)
        row["seconds"], began = time.perf_counter() - began, time.perf_counter()
        io.append_row(log, row)
        runs.append(row)
        verdict = "equal" if not row["differs"] else f"NOT EQUAL: {row['differs']}"
        terminal.line(f"run {len(runs)}: stopped {len(row['points'])} times, {verdict}")
        write(settings.out, runs, life, command)
    record = write(settings.out, runs, life, command)
    terminal.line(f"{record['held']} of {record['points']} points held; see {settings.out}")
    return record


def write(path: Path, runs: Sequence[Mapping], life: Life, command: Sequence[str]) -> dict:
    """Writes the record of the runs so far."""
    record = summary(runs, life) | {"flags": list(command[1:]), **devices.machine()}
    path.parent.mkdir(parents=True, exist_ok=True)
    io.write_json(path, record)
    return record


class Job(NamedTuple):
    """A command that takes `--run-dir` and `--resume`, and the campaign's folder."""

    command: tuple[str, ...]
    folder: Path

    @property
    def hooked(self) -> Path:
        """Where the hook says how many calls there were, or that it has sent the signal."""
        return self.folder / "calls"

    def start(self, run_dir: Path, at: int = -1, number: int = 0) -> subprocess.Popen:
        """Starts the job, or resumes it; `at` and `number` are the hook's."""
        resume = ["--resume"] if (run_dir / "config.json").exists() else []
        hook = [sys.executable, "-c", HOOK, str(at), str(number), run_dir.name, str(self.hooked)]
        settings = {
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        self.hooked.unlink(missing_ok=True)
        with (self.folder / "output").open("wb") as output:
            return subprocess.Popen(
                [*hook, *self.command, "--run-dir", str(run_dir), *resume],
                env=os.environ | settings,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def said(self) -> str:
        """The last line of the last process."""
        lines = (self.folder / "output").read_text(errors="replace").splitlines()
        return lines[-1][:300] if lines else ""


def undisturbed(job: Job) -> Life:
    """The run that the others are compared with; a first one fills the compilation cache."""
    record, first, whole = (job.folder / name for name in ("life.json", "first", "whole"))
    if not record.exists():
        for run_dir in (first, whole):
            remove(run_dir)
            began = time.perf_counter()
            status = job.start(run_dir, at=0).wait(PATIENCE)
            if status:
                raise InputError(f"the job ends with status {status} by itself: {job.said()}")
        found = {"seconds": time.perf_counter() - began, "calls": int(job.hooked.read_text())}
        if differs := differences(first, whole):
            raise InputError(f"two undisturbed runs are not equal ({differs}): nothing to compare.")
        io.write_json(record, found)
    return Life(whole, **io.read_json(record))


def disturbed(job: Job, life: Life, seed: tuple[int, int], most: int) -> dict:
    """A run that is stopped up to `most` times and resumed until it ends; what happened, as JSON.

    Its `differs` names what is not as the undisturbed run left it.
    """
    run_dir, random = job.folder / f"stopped-{seed[1]}", np.random.default_rng(seed)
    remove(run_dir)
    points: list[dict] = []
    differs: list[str] = []
    while not differs:
        point = draw(random, life) if len(points) < most else None
        before = temporary(run_dir)
        ended = stop(job, run_dir, point)
        if ended.stopped and point:
            left = {"stage": stage(run_dir), "inside_a_write": bool(temporary(run_dir) - before)}
            points.append(point._asdict() | left | {"exit": ended.status})
        elif ended.status:
            differs = [f"cannot be resumed: status {ended.status}, {ended.said}"]
        else:
            differs = differences(life.run_dir, run_dir)
            break
    if not differs:
        remove(run_dir)
    return {"points": points, "differs": differs}


def draw(random: np.random.Generator, life: Life) -> Point:
    kind = KINDS[random.integers(len(KINDS))]
    number = SIGNALS[random.integers(len(SIGNALS))]
    match kind:
        case "time":
            at = REACH["time"] * life.seconds * random.uniform()
        case "call":
            at = 1 + int(REACH["call"] * life.calls * random.uniform())
        case _:
            at = 1 + int(random.integers(FILES))
    return Point(kind, at, int(number))


def stop(job: Job, run_dir: Path, point: Point | None) -> Ended:
    """Starts the job and stops it at a point, if it gets there; without one it ends by itself."""
    in_hook = point is not None and point.kind == "call"
    hook = (int(point.at), point.signal) if point and in_hook else (-1, 0)
    before = temporary(run_dir)
    process, sent = job.start(run_dir, *hook), False
    try:
        if point and not in_hook:
            sent = reached(process, run_dir, point, before)
            if sent:
                process.send_signal(point.signal)
        status = process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        return Ended(False, -1, "it did not end")
    finally:
        process.kill()
        process.wait()
    return Ended(sent or (in_hook and job.hooked.exists()), status, job.said())


def reached(process: subprocess.Popen, run_dir: Path, point: Point, before: set[str]) -> bool:
    """Waits for a point in time, or for a temporary file; False if the process ends before."""
    if point.kind == "time":
        try:
            process.wait(point.at)
        except subprocess.TimeoutExpired:
            return True
        return False
    seen, deadline = set(before), time.perf_counter() + PATIENCE
    while process.poll() is None and time.perf_counter() < deadline:
        seen |= temporary(run_dir)
        if len(seen) - len(before) >= point.at:
            return True
        time.sleep(0.001)
    return False


def temporary(run_dir: Path) -> set[str]:
    """Files and folders of a run that are being written, or deleted."""
    found = set()
    for folder in (run_dir, run_dir / "networks", run_dir / "checkpoints"):
        try:
            names = os.listdir(folder)
        except OSError:
            continue
        endings = (".partial", ".deleted")
        found |= {name for name in names if name.endswith(endings) or ".orbax" in name}
    return found


def stage(run_dir: Path) -> str:
    """How far a run has come, by what lies in its directory."""
    if not (run_dir / "config.json").exists():
        return "before the first file"
    if (run_dir / "summary.json").exists():
        return "report"
    names = [path.stem for path in (run_dir / "checkpoints").glob("*.msgpack")]
    rounds = [int(name) for name in names if name.isdigit()]
    if not rounds:
        return "training"
    return f"round {max(rounds) + 1}" if max(rounds) < ROUNDS else "evaluation"


def differences(whole: Path, other: Path) -> list[str]:
    """Names of files that only one of two runs has, or whose content differs, timings apart."""
    a, b = dict(contents(whole)), dict(contents(other))
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


def contents(run_dir: Path) -> Iterator[tuple[str, str | None]]:
    """Names of a run's files, and of its checkpoints, with what is compared of each."""
    for path in sorted(run_dir.rglob("*")):
        name = path.relative_to(run_dir).as_posix()
        if name.startswith("checkpoints/"):  # names in there are drawn
            if name.count("/") == 1:
                yield name, None
        elif path.suffix in (".json", ".jsonl"):
            lines = [path.read_text()] if path.suffix == ".json" else path.read_text().splitlines()
            yield name, json.dumps([timeless(json.loads(line)) for line in lines])
        elif path.suffix == ".safetensors":
            yield name, sha256_file(path)
        else:  # figures and the page show timings
            yield name, None


def timeless(data: Any) -> Any:
    """JSON data without what is timed."""
    if isinstance(data, Mapping) and "broken_by" in data:  # a suite, whose rows end with seconds
        data = {**data, "rows": [row[:-1] for row in data["rows"]], "sha256": None}
    if isinstance(data, Mapping):
        return {k: timeless(v) for k, v in sorted(data.items()) if not TIMED.search(k)}
    return [timeless(each) for each in data] if isinstance(data, list) else data


def summary(runs: Sequence[Mapping], life: Life) -> dict:
    """How many points held, in all, and by kind, signal and stage; and those that did not."""
    points = [
        point
        | {"held": not run["differs"], "signal": signal.Signals(point["signal"]).name}
        | ({"run": number, "differs": run["differs"]} if run["differs"] else {})
        for number, run in enumerate(runs)
        for point in run["points"]
    ]

    def counted(name: str) -> dict:
        every, held = Counter(), Counter()
        for point in points:
            every[str(point[name])] += 1
            held[str(point[name])] += point["held"]
        return {key: {"points": every[key], "held": held[key]} for key in sorted(every)}

    return {
        "what": "points at which the main job was stopped; held: resumed, with equal results",
        "points": len(points),
        "held": sum(point["held"] for point in points),
        "not_held": [point for point in points if not point["held"]],
        "inside_a_write": sum(point["inside_a_write"] for point in points),
        **{f"by_{name}": counted(name) for name in ("kind", "signal", "stage", "exit")},
        "runs": len(runs),
        "seconds": sum(run["seconds"] for run in runs),
        "seconds_of_an_undisturbed_run": life.seconds,
    }


def remove(run_dir: Path) -> None:
    """Deletes a run of the campaign."""
    for path in sorted(run_dir.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    if run_dir.exists():
        run_dir.rmdir()


def main(args: list[str] | None = None) -> int:
    """Runs the script with these flags; returns the exit status, 1 if a point did not hold."""
    flags, records = sys.argv[1:] if args is None else args, []
    status = cli.guard(
        lambda: records.append(campaign(read_flags(Settings, flags), Terminal())),
        "--folder",
        "the same command",
    )
    return status or int(any(record["not_held"] for record in records))


if __name__ == "__main__":
    sys.exit(main())
