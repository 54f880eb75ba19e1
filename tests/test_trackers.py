"Trackers that stay on this machine: what they wrote is read back, of a run that stopped and went on."

import math
import sqlite3

import pytest
import torch

from nip.runs.store import RunStore

HYPER_PARAMS = {"scenario": "parity", "rl": {"lr": 0.1, "betas": [0.9, 0.99]}}


def stopped_and_gone_on(folder, tracker: str):
    "A run that measures 0 to 3, goes on from its checkpoint of step 2, and measures 2 to 4"
    for first, last, status, result in (
        (0, 4, "interrupted", {}),
        (2, 5, "finished", {"test_accuracy": 0.75}),
    ):
        run = RunStore(folder).begin(
            HYPER_PARAMS, {"wandb_project": "oversight"}, "run", active_trackers=[tracker]
        )
        for step in range(first, last):
            run.log(step, {"accuracy": torch.tensor(step + first / 8), "loss": math.nan, "who": "prover"})
            if step == 1:
                run.save_checkpoint(2, {"w": torch.zeros(2)}, {})
        run.finish(status, result)
    assert not (run.dir / "log.txt").exists(), "a tracker that failed is told of there"
    return run


def test_tensorboard(tmp_path):
    reading = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is optional"
    )
    run = stopped_and_gone_on(tmp_path, "tensorboard")
    events = reading.EventAccumulator(str(run.dir / "tensorboard")).Reload()
    of = lambda name: [(e.step, e.value) for e in events.Scalars(name)]
    assert (
        of("accuracy")
        == [(0, 0.0), (1, 1.0), (2, 2.25), (3, 3.25), (4, 4.25)]
        == list(run.history["accuracy"].items())
    )
    assert all(math.isnan(value) for _, value in of("loss")) and of("test/accuracy") == [(0, 0.75)]
    (text,) = {e.tensor_proto.string_val[0] for e in events.Tensors("hyper_params/text_summary")}
    assert b'"lr": 0.1' in text


def test_trackio(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="trackio is optional")
    stopped_and_gone_on(tmp_path / "runs", "trackio")
    assert capsys.readouterr().out == ""
    from trackio.sqlite_storage import SQLiteStorage

    (file,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(file) as db:
        assert db.execute("select distinct run_name from metrics").fetchall() == [("run",)]
    rows = SQLiteStorage.get_logs("oversight", "run")
    seen = [(row["step"], row["accuracy"]) for row in rows if "accuracy" in row]
    assert seen == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0), (2, 2.25), (3, 3.25), (4, 4.25)]
    assert [row["final/test_accuracy"] for row in rows if "final/test_accuracy" in row] == [0.75]
    assert SQLiteStorage.get_run_config("oversight", "run")["rl"] == HYPER_PARAMS["rl"]
