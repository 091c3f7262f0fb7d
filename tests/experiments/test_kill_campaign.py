"""The kill campaign tells a job that can be stopped anywhere from one that cannot."""

import json
import signal

import pytest
from conftest import experiment

from ccsrp_jax.utils.console import Terminal
from ccsrp_jax.utils.errors import InputError

SCRIPT = experiment("kill_campaign")
JOB = """
import json, sys, time
from pathlib import Path

folder = Path(sys.argv[sys.argv.index("--run-dir") + 1])
sound, steps = {sound}, 8

def write(name, data):
    path = folder / name
    if sound:
        partial = path.with_name(name + ".partial")
        with partial.open("w") as file:
            file.write(json.dumps(data))
            time.sleep(0.003)
        partial.rename(path)
    else:
        with path.open("w") as file, path.with_name("more").open("w"):
            file.write(json.dumps(data))

folder.mkdir(exist_ok=True)
for partial in folder.glob("*.partial"):
    partial.unlink()
if "--resume" not in sys.argv:
    write("config.json", {{"steps": steps}})
state = folder / "state.json"
done = json.loads(state.read_text()) if state.exists() else []
while len(done) < steps:
    if {repeats}:
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({{"step": len(done)}}) + chr(10))
    time.sleep(0.02)
    done.append(len(done) ** 2)
    write("state.json", done)
write("summary.json", {{"sum": sum(done), "seconds": time.perf_counter()}})
"""


def campaign(folder, points, *, sound=True, repeats=False, ends=""):
    folder.mkdir(exist_ok=True)
    (folder / "job.py").write_text(JOB.format(sound=sound, repeats=repeats) + ends)
    settings = SCRIPT.Settings(points=points, folder=folder / "runs", out=folder / "record.json")
    record = SCRIPT.campaign(settings, Terminal(), [str(folder / "job.py")])
    assert record == json.loads(settings.out.read_text())
    return record


def test_a_job_that_writes_atomically_holds_at_every_point(tmp_path):
    record = campaign(tmp_path, 8)
    assert record["points"] == record["held"] == 8 and record["not_held"] == []
    for name in ("kind", "signal", "stage", "exit"):
        assert sum(each["points"] for each in record[f"by_{name}"].values()) == 8
    assert record["by_kind"].keys() <= set(SCRIPT.KINDS) and len(record["by_kind"]) > 1
    assert record["by_signal"]["SIGKILL"]["points"] > 3 and record["inside_a_write"]
    assert record["by_exit"].keys() <= {"-9", "-15", "-2", "130", "143", "1"}
    assert record["versions"] and record["device"]
    done = (tmp_path / "runs" / "runs.jsonl").read_text()
    assert campaign(tmp_path, 10)["held"] == 10  # goes on
    assert (tmp_path / "runs" / "runs.jsonl").read_text().startswith(done)


@pytest.mark.parametrize(
    ("changes", "says"), (({"sound": False}, "cannot be resumed"), ({"repeats": True}, "metrics"))
)
def test_a_job_that_does_not_is_found_out(tmp_path, monkeypatch, changes, says):
    monkeypatch.setattr(SCRIPT, "KINDS", ("call",))  # which do not depend on the machine's speed
    record = campaign(tmp_path, 6, **changes)
    assert record["held"] < record["points"] == 6
    assert any(says in point["differs"][0] for point in record["not_held"])


def test_a_job_that_fails_by_itself_is_refused(tmp_path):
    with pytest.raises(InputError, match="status 3 by itself: no room"):
        campaign(tmp_path, 1, ends="print('no room')\nsys.exit(3)")
    with pytest.raises(InputError, match="not equal"):
        campaign(tmp_path, 1, ends="write('noise.json', time.time())")


def test_what_is_timed_is_not_compared():
    data = {"seconds": 1, "rows": [{"step_ms": 2, "loss": 3}], "latency_ms": 4, "run_dir": "x"}
    assert SCRIPT.timeless(data) == {"rows": [{"loss": 3}]}
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
