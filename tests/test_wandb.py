"""Weights & Biases with the real client: offline, read back; online, against a server on loopback; a real account where there is one."""

import json
import os
import struct
import subprocess
import sys
import time
import uuid
from functools import partial

import numpy as np
import pytest
import torch
import wandb
from tqdm import tqdm
from wandb_server import ENTITY, WandbServer

from nip import HyperParameters, RunStore, find_run, run_experiment
from nip.experiments.run import resume_experiment
from nip.parameters.settings import ExperimentSettings
from nip.parameters.validation import ParameterError
from nip.runs.run import Run
from nip.runs.wandb import WandbTracker

FEW = {"rl.num_iterations": 4, "rl.num_test_iterations": 1, "rl.frames_per_batch": None, "rl.rollouts_per_iteration": 24,
       "rl.num_normalization_steps": 24}  # fmt: skip


def tiny(**changes) -> HyperParameters:
    return HyperParameters.construct_test_params("parity", "vanilla_ppo", "parity4").replace(FEW | changes)


QUIET = {
    "tqdm_func": partial(tqdm, disable=True),
    "checkpoint_minutes": None,
    "checkpoint_period": 2,
    "use_wandb": True,
}


@pytest.fixture
def at_home(tmp_path, monkeypatch):
    "Whatever the client writes beside the run goes here, and nothing is remembered from before"
    wandb.teardown()
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_PROJECT", "oversight")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("NIP_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def server(at_home, monkeypatch):
    server = WandbServer()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    yield server
    server.close()
    assert server.unknown == []


def records(file) -> list:
    "Of a `.wandb` file, when the client's process has written its last"
    end, found = time.monotonic() + 20, parsed(file)
    while not any(r.HasField("exit") for r in found) and time.monotonic() < end:
        time.sleep(0.1)
        found = parsed(file)
    return found


def parsed(file) -> list:
    "Of a `.wandb` file as it is: blocks of 32 KiB after a header of 7 bytes, in them pieces with checksum, length and kind"
    from wandb.proto.wandb_internal_pb2 import Record

    data, found, whole, at = file.read_bytes(), [], b"", 7
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole, at = whole + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            found.append(Record.FromString(whole))
            whole = b""
    return found


def test_offline(at_home, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    result = run_experiment(
        tiny(), run_store=tmp_path, run_id="run", tags=["one"], wandb_tags=["two"], wandb_group="g", **QUIET
    )
    (file,) = result.run_dir.glob("wandb/offline-run-*/run-run.wandb")
    kept = records(file)
    (run,) = (r.run for r in kept if r.HasField("run"))
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert HyperParameters.from_dict({k: v for k, v in config.items() if k != "_wandb"}) == tiny()
    assert (run.project, run.run_group, list(run.tags)) == ("oversight", "g", ["one", "two"])
    name = lambda item: item.key or ".".join(item.nested_key)
    rows = [
        {name(i): json.loads(i.value_json) for i in r.history.item} for r in kept if r.HasField("history")
    ]
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3]
    assert [row["mean_accuracy"] for row in rows] == result.history["mean_accuracy"].tolist()
    artifacts = [r.request.log_artifact.artifact for r in kept if r.request.HasField("log_artifact")]
    artifacts += [r.artifact for r in kept if r.HasField("artifact")]
    assert {a.type for a in artifacts} == {"checkpoint", "rollouts", "transcripts"}
    assert not (tmp_path / "home" / "artifacts").exists()  # what is to be sent waits in the run's folder
    assert any(result.run_dir.glob("wandb/staged/*/artifacts/staging/*"))


def test_settings_as_dict_and_metrics_as_tensors(at_home, monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_PROJECT")
    monkeypatch.setenv("WANDB_MODE", "offline")
    settings = {"wandb_project": "elsewhere", "wandb_tags": ["a"], "tags": ["a", "b"]}
    run = RunStore(tmp_path).create({"seed": 1}, settings, "run", active_trackers=["wandb"])
    run.log(
        0, {"tensor": torch.tensor(0.25), "array": np.float32(0.5), "count": np.int64(3), "who": "prover"}
    )
    run.finish("finished", {"test_accuracy": torch.tensor(1.0)})
    (file,) = run.dir.glob("wandb/offline-run-*/run-run.wandb")
    kept = records(file)
    (there,) = (r.run for r in kept if r.HasField("run"))
    assert (there.project, sorted(there.tags)) == ("elsewhere", ["a", "b"])
    (row,) = ({i.nested_key[0]: i.value_json for i in r.history.item} for r in kept if r.HasField("history"))
    assert {k: json.loads(v) for k, v in row.items() if k[0] != "_"} == {
        "iteration": 0, "tensor": 0.25, "array": 0.5, "count": 3
    }  # fmt: skip


def test_online_and_fetched(server, tmp_path):
    result = run_experiment(tiny(), run_store=tmp_path / "here", run_id="run", **QUIET)
    there = server.runs["oversight", "run"]
    assert there["state"] == "finished" and there["config"]["rl"]["value"]["num_iterations"] == 4
    assert there["summary"]["test_mean_accuracy"] == result.metrics["test_mean_accuracy"]
    versions = [sorted(a["aliases"]) for a in server.artifacts.values() if a["type"] == "checkpoint"]
    assert versions == [["step-2"], [], ["latest", "step-4"]]  # the last once more, with the result
    kept = [p for p in (tmp_path / "home" / "artifacts").rglob("*") if p.is_file()]
    assert kept == []  # no copies in the user's folders,
    assert not any(result.run_dir.glob("wandb/staged/*"))  # nor in the run's

    found = find_run("run", tmp_path / "elsewhere", project="oversight")
    (tensors, state), (again, state_again) = result.run.load_checkpoint(), found.load_checkpoint()
    assert str(state) == str(state_again) and all(torch.equal(tensors[k], again[k]) for k in tensors)
    assert found.history.equals(result.history) and found.status == "finished"
    assert found.read("result") == result.run.read("result")
    assert find_run("run", tmp_path / "elsewhere", version="2").checkpoints == [2]
    assert find_run("run", tmp_path / "elsewhere", entity=ENTITY, version="v0").checkpoints == [2]
    with pytest.raises(FileNotFoundError, match=f"no checkpoint '7' of run 'run' in {ENTITY}/oversight"):
        find_run("run", tmp_path / "elsewhere", version="7")
    with pytest.raises(FileNotFoundError, match=r"no run 'lost' in .*; .*no run 'lost' in tester/oversight"):
        find_run("lost", tmp_path / "elsewhere")


def test_goes_on_where_no_folder_of_it_is(server, tmp_path):
    "A machine is lost in the middle; another one goes on, and ends with the same bits"
    straight = run_experiment(tiny(), run_store=tmp_path, run_id="straight", **QUIET | {"use_wandb": False})
    run_experiment(tiny(), run_store=tmp_path / "lost", run_id="run", stop_after=3, **QUIET)
    elsewhere = {"run_store": tmp_path / "other", "run_id": "run", **QUIET}
    with pytest.raises(ParameterError, match="allow_resuming_wandb_run=True resumes it"):
        run_experiment(tiny(), **elsewhere)
    with pytest.raises(
        ParameterError,
        match=r"other hyper-parameters on Weights & Biases \(rl.lr\); allow_overriding_wandb_config",
    ):
        run_experiment(tiny(**{"rl.lr": 0.5}), allow_resuming_wandb_run=True, **elsewhere)
    assert not (tmp_path / "other").exists()
    result = run_experiment(tiny(), allow_resuming_wandb_run=True, **elsewhere)
    assert (result.run_dir / "metrics.jsonl").read_bytes() == (
        straight.run_dir / "metrics.jsonl"
    ).read_bytes()
    a, b = result.run.load_checkpoint()[0], straight.run.load_checkpoint()[0]
    assert all(torch.equal(a[k], b[k]) for k in b)
    assert server.runs["oversight", "run"]["state"] == "finished"
    with pytest.raises(FileExistsError, match="is finished"):
        resume_experiment(result.run, tqdm_func=QUIET["tqdm_func"])

    other = tiny(**{"rl.lr": 0.5})  # what was made with other hyper-parameters is not gone on with
    allowed = {"allow_resuming_wandb_run": True, "allow_overriding_wandb_config": True}
    result = run_experiment(other, run_store=tmp_path / "third", run_id="run", **allowed, **QUIET)
    assert result.status == "finished" and result.history.index.tolist() == [0, 1, 2, 3]
    assert server.runs["oversight", "run"]["config"]["rl"]["value"]["lr"] == 0.5
    assert HyperParameters.from_dict(find_run("run", tmp_path / "x").hyper_params) == other


def test_only_a_config_is_there(server, tmp_path):
    "As of a run of the field's existing toolkit"
    with wandb.init(
        id="old",
        project="oversight",
        config=tiny().to_dict(),
        dir=tmp_path,
        settings=wandb.Settings(silent=True),
    ):
        pass
    found = find_run("old", tmp_path / "elsewhere")
    assert HyperParameters.from_dict(found.hyper_params) == tiny() and found.checkpoints == []
    (tmp_path / "here").mkdir()
    settings = {"run_id": "old", "allow_resuming_wandb_run": True}
    WandbTracker().prepare("old", RunStore(tmp_path / "here"), tiny(), settings)
    assert list((tmp_path / "here").iterdir()) == []  # nothing to go on from: it begins


def test_download_that_fails_leaves_nothing(server, tmp_path):
    run = RunStore(tmp_path).create({"seed": 1}, None, "run", active_trackers=["wandb"])
    run.save_checkpoint(1, {"w": torch.zeros(2)}, {})
    run.finish("finished", {})
    lost = [
        path
        for path, content in server.storage.items()
        if content == (run.dir / "hyper_params.yaml").read_bytes()
    ]
    for path in lost:
        del server.storage[path]
    (tmp_path / "to").mkdir()
    with pytest.raises(Exception, match="404|not found|failed"):  # whatever the client makes of it
        WandbTracker.fetch("run", tmp_path / "to" / "run", "oversight")
    assert lost and list((tmp_path / "to").iterdir()) == []


def test_synced_later(server, monkeypatch, tmp_path):
    "What was made offline is sent by the client's own command, and can be fetched"
    with monkeypatch.context() as offline:
        offline.setenv("WANDB_MODE", "offline")
        result = run_experiment(tiny(), run_store=tmp_path, run_id="off", **QUIET)
    assert server.runs == {}
    (folder,) = result.run_dir.glob("wandb/offline-run-*")
    subprocess.run(
        [sys.executable, "-m", "wandb", "sync", str(folder)], check=True, timeout=100, capture_output=True
    )
    assert len(server.runs["oversight", "off"]["history"]) == 4
    assert find_run("off", tmp_path / "elsewhere").history.equals(result.history)


def test_pushed_later(server, tmp_path):
    result = run_experiment(tiny(), run_store=tmp_path, run_id="late", **QUIET | {"use_wandb": False})
    result.run.label(add=["good"])
    result.run.push("wandb", ExperimentSettings(wandb_project="oversight"))
    there = server.runs["oversight", "late"]
    assert there["tags"] == ["good"] and len(there["history"]) == 4
    assert Run(find_run("late", tmp_path / "elsewhere").dir).latest_checkpoint() == 4


def test_no_account(at_home, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    with pytest.raises(ParameterError, match="use_wandb.*wandb login.*WANDB_API_KEY.*WANDB_MODE=offline"):
        run_experiment(tiny(), run_store=tmp_path / "runs", run_id="run", **QUIET)
    assert RunStore(tmp_path / "runs").ids() == []


def test_nothing_is_looked_up_offline(at_home, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(wandb, "Api", None)
    with pytest.raises(FileNotFoundError, match=r"no run 'typo' in .*; wandb: WANDB_MODE says offline"):
        find_run("typo", tmp_path)


def test_no_file_beside_the_package_is_taken(at_home, monkeypatch):
    "Where there is no `.env` in the working folder or above, python-dotenv by itself would look beside our code"
    import dotenv

    from nip.core.files import read_env

    monkeypatch.setattr(dotenv, "load_dotenv", lambda *_: pytest.fail("nothing was to be loaded"))
    read_env()


def test_dotenv(at_home, monkeypatch, tmp_path):
    from nip.runs.wandb import where_to

    monkeypatch.delenv("WANDB_PROJECT")
    for name in ("WANDB_ENTITY", "WANDB_KEY", "WANDB_API_KEY"):  # taken back when the test ends
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    (tmp_path / ".env").write_text("WANDB_PROJECT=from-file\nWANDB_ENTITY=lab\nWANDB_KEY=secret\n")
    monkeypatch.setenv("WANDB_ENTITY", "mine")
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    assert where_to(None) == ("from-file", "mine")
    assert os.environ.pop("WANDB_API_KEY") == os.environ.pop("WANDB_KEY") == "secret"
    os.environ.pop("WANDB_PROJECT")


ACCOUNT = {name: os.environ.get(name) for name in ("WANDB_API_KEY", "NIP_TEST_WANDB_PROJECT")}
OPTIONAL = {
    "WANDB_ENTITY": os.environ.get("NIP_TEST_WANDB_ENTITY"),
    "WANDB_BASE_URL": os.environ.get("WANDB_BASE_URL"),
}


@pytest.mark.skipif(
    None in ACCOUNT.values(), reason="set WANDB_API_KEY and NIP_TEST_WANDB_PROJECT to try a real account"
)
def test_real_account(at_home, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", ACCOUNT["WANDB_API_KEY"])
    monkeypatch.setenv("WANDB_PROJECT", ACCOUNT["NIP_TEST_WANDB_PROJECT"])
    for variable, value in OPTIONAL.items():
        if value:
            monkeypatch.setenv(variable, value)
    name = f"nip-test-{uuid.uuid4().hex[:8]}"
    result = run_experiment(tiny(), run_store=tmp_path / "here", run_id=name, **QUIET)
    tensors, again = (
        result.run.load_checkpoint()[0],
        find_run(name, tmp_path / "elsewhere").load_checkpoint()[0],
    )
    assert all(torch.equal(tensors[k], again[k]) for k in tensors)
