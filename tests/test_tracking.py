"What a notebook cannot show of the run store: processes that are killed, and many at once."

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from nip.runs.store import RunStore

HYPER_PARAMS = {"scenario": "parity", "interaction_protocol": "nip", "trainer": "vanilla_ppo"}


def start(code: str, *args) -> subprocess.Popen:
    "A Python process that runs `code`"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", code, *map(str, args)], text=True, **pipes)


CREATE = """
import sys
from nip.runs.store import RunStore
store = RunStore(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for i in range(5):
    print(store.create({"scenario": "s", "trainer": "t"}).id)
try:
    print(store.create({}, run_id="mine").id)
except FileExistsError:
    print("taken")
"""


def test_processes_get_runs_of_their_own(tmp_path):
    racers = [start(CREATE, tmp_path) for _ in range(3)]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    said = [name for racer in racers for name in racer.communicate(timeout=60)[0].split()]
    ids = [name for name in said if name != "taken"]
    assert said.count("taken") == 2 and len(set(ids)) == len(ids) == 16
    assert sorted(RunStore(tmp_path).ids()) == sorted(ids)


WRITE = """
import sys
import torch
from nip.runs.store import RunStore
run = RunStore(sys.argv[1]).create({"scenario": "s"}, run_id="run")
tensors = {f"w{i}": torch.zeros(100_000) for i in range(4)}
for step in range(1, 10**6):
    run.log(step, {f"metric {i}": step for i in range(50)})
    run.save_checkpoint(step, {name: t + step for name, t in tensors.items()}, {"step": step})
    if step == 3:
        print("ready", flush=True)
"""


@pytest.mark.parametrize("delay", [0.0, 0.013, 0.047])
def test_killed_while_writing(tmp_path, delay):
    writer = start(WRITE, tmp_path)
    assert writer.stdout.readline() == "ready\n"
    time.sleep(delay)
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()

    run = RunStore(tmp_path).open("run")
    assert run.status == "stopped"
    tensors, state = run.load_checkpoint()
    assert state == {"step": run.latest_checkpoint()} and 1 <= len(run.checkpoints) <= 3
    assert all(torch.equal(t, torch.full((100_000,), float(state["step"]))) for t in tensors.values())

    history = run.history
    assert history.index.tolist() == list(range(1, len(history) + 1)) and len(history) >= state["step"]
    assert (history["metric 49"] == history.index).all()

    run.log(state["step"] + 1, {"metric 0": -1})
    run.save_checkpoint(state["step"] + 1, tensors, {})
    assert len(run.checkpoints) <= run.keep_checkpoints
    assert run.history.loc[state["step"] + 1, "metric 0"] == -1


def test_checkpoint_damaged_at_any_place(tmp_path):
    run = RunStore(tmp_path).create(HYPER_PARAMS, run_id="run")
    for step in (1, 2):
        newest = run.save_checkpoint(step, {"w": torch.full((3,), float(step))}, {"step": step})
    for name in ("weights.safetensors", "state.json"):
        whole = (newest / name).read_bytes()
        flipped = whole.replace(b'"step": 2', b'"step": 3') if name == "state.json" else whole[:-1] + b"!"
        for broken in (b"", whole[: len(whole) // 2], flipped, None):
            (newest / name).unlink()
            if broken is not None:
                (newest / name).write_bytes(broken)
            with pytest.raises(ValueError, match="checkpoint 000002 of run run is damaged"):
                run.load_checkpoint(2)
            with pytest.warns(UserWarning, match="checkpoint 000002 of run run is damaged.*passed over"):
                assert run.latest_checkpoint() == 1
            with pytest.warns(UserWarning, match="passed over"):
                assert run.load_checkpoint()[1] == {"step": 1}
            (newest / name).write_bytes(whole)
    assert run.latest_checkpoint() == 2


def test_equal_metrics_are_equal_bytes(tmp_path):
    for name, wait in (("a", 0), ("b", 0.01)):
        run = RunStore(tmp_path).create(HYPER_PARAMS, run_id=name)
        for step in range(3):
            time.sleep(wait)
            run.log(step, {"loss": torch.tensor(1 / 3), "entropy": float("nan"), "rounds": step})
    a, b = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in "ab")
    assert a == b and a.count(b"\n") == 3
    assert RunStore(tmp_path).open("a").history["entropy"].isna().all()


def test_torn_at_every_byte(tmp_path):
    run = RunStore(tmp_path).create(HYPER_PARAMS, run_id="run")
    run.log(1, {"loss": 1.0})
    run.log(2, {"loss": float("inf")})
    file = run.dir / "metrics.jsonl"
    whole = file.read_bytes()
    for length in range(len(whole) + 1):
        file.write_bytes(whole[:length])
        steps = whole[:length].count(b"\n")
        again = RunStore(tmp_path).open("run")
        assert len(again.history) == steps
        again.log(9, {"loss": 0.5})
        assert again.history.index.tolist() == [*range(1, steps + 1), 9]
        [json.loads(line, parse_constant=pytest.fail) for line in file.read_text().splitlines()]
