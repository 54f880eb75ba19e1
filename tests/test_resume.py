"""Runs that are killed at random moments, again and again, end with the bits of one that never was."""

import json
import multiprocessing
import os
import random
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

from nip import HyperParameters, RunStore, run_experiment
from nip.experiments.run import resume_experiment
from nip.parameters.validation import ParameterError

FEW = {"rl.num_iterations": 6, "rl.num_test_iterations": 1, "rl.frames_per_batch": None, "rl.rollouts_per_iteration": 24,
       "rl.num_epochs": 2, "rl.minibatch_size": 32, "rl.num_normalization_steps": 24, "rl.anneal_lr": True}  # fmt: skip
READERS = {
    "message_regression.enabled": True,
    "message_regression.reset_on_fit": False,
    "message_regression.mlp_num_epochs": 1,
}

# Each has state of another kind: games in play, penalties, readers of messages, twins, bodies of their own, schedules.
CASES = {
    "ppo": ("vanilla_ppo", {"ppo.loss_type": "kl_penalty", "rl.steps_per_env_per_iteration": 3} | READERS),
    "reinforce": ("reinforce", {"reinforce.use_advantage_and_critic": True, "rl.use_shared_body": False}),
    "spg": ("spg", {"interaction_protocol": "debate"}),
    "noise": ("vanilla_ppo", {"scenario": "graph_isomorphism", "dataset": "test", "agents.verifier.noise_sigma": 0.1,
                              "agents.verifier.transformer_dropout": 0.5}),
    "zero knowledge": ("vanilla_ppo", {"protocol_common.zero_knowledge": True, "agents.simulator.update_schedule":
                       {"_type": "ContiguousPeriodicUpdateSchedule", "period": 2, "start": 0, "stop": 1}}),
    "pretrained": ("reinforce", {"pretrain_agents": True, "solo_agent.num_epochs": 3, "rl.num_iterations": 20, "interaction_protocol": "adp"}),
    "solo": ("solo_agent", {"solo_agent.num_epochs": 12, "solo_agent.batch_size": 32}),
}  # fmt: skip


def experiment(case: str) -> HyperParameters:
    trainer, changes = CASES[case]
    where = changes.get("scenario", "parity"), trainer, changes.get("dataset", "parity4")
    return HyperParameters.construct_test_params(*where).replace(FEW | changes)


def train(hyper_params: dict, store: str, run_id: str) -> None:
    "In a process of its own: a new run, or on with one that has stopped; a checkpoint after every iteration"
    torch.set_num_threads(1)
    silent = partial(tqdm, disable=True)
    hyper_params = HyperParameters.from_dict(hyper_params)
    run_experiment(hyper_params, run_store=store, run_id=run_id, checkpoint_minutes=0, tqdm_func=silent,
                   ignore_cache=hyper_params.pretrain_agents)  # fmt: skip


@pytest.fixture(scope="module")
def processes():
    "Processes that begin with everything imported"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["nip.run", "nip.parity", "nip.graph_isomorphism"])
    first = context.Process(target=experiment, args=("ppo",))
    first.start()
    first.join()
    return context


def trained(processes, *arguments, after: float | None = None, how=signal.SIGKILL) -> int:
    "Train; `how` reaches the process `after` so many seconds, if it still lives; its exit code"
    process = processes.Process(target=train, args=arguments)
    process.start()
    process.join(after)
    if after is not None and process.is_alive():
        os.kill(process.pid, how)
    process.join()
    return process.exitcode


def files(run) -> tuple[bytes, bytes]:
    return (run.dir / "metrics.jsonl").read_bytes(), (run.dir / "result.json").read_bytes()


def state(run) -> tuple[dict, dict]:
    return run.load_checkpoint(run.latest_checkpoint())


def check_same(straight, broken) -> None:
    assert files(straight) == files(broken)
    (tensors, rest), (others, other_rest) = state(straight), state(broken)
    assert tensors.keys() == others.keys() and str(rest) == str(other_rest)
    assert [name for name in tensors if not torch.equal(tensors[name], others[name])] == []


def kill_often(processes, case: str, folder: Path, kills: int) -> None:
    moments, hyper_params, store = random.Random(case), experiment(case).to_dict(), RunStore(folder)
    began = time.monotonic()
    assert trained(processes, hyper_params, str(folder), "straight") == 0
    whole, killed = time.monotonic() - began, 0
    for _ in range(3 * kills):
        if (
            killed == kills
            or trained(
                processes, hyper_params, str(folder), "broken", after=moments.uniform(0.05, 0.7 * whole)
            )
            == 0
        ):
            break
        killed += 1
        if "broken" in store:
            run = store.open("broken")
            assert run.status in ("stopped", "finished")  # in the very moment
            assert run.history.index.tolist() == list(range(len(run.history)))
    if "broken" not in store or store.open("broken").status != "finished":
        assert trained(processes, hyper_params, str(folder), "broken") == 0
    assert killed > 0
    check_same(store.open("straight"), store.open("broken"))


@pytest.mark.parametrize("case", CASES)
def test_killed_again_and_again(processes, tmp_path, case):
    kill_often(processes, case, tmp_path, kills=3)


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(5))
@pytest.mark.parametrize("case", CASES)
def test_killed_many_times(processes, tmp_path, case, attempt):
    kill_often(processes, case, tmp_path / str(attempt), kills=12)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop(processes, tmp_path, how):
    "A person's interrupt and a scheduler's: the iteration ends, the run says so, and goes on by its name alone"
    hyper_params = experiment("ppo").replace({"rl.num_iterations": 40}).to_dict()
    store = RunStore(tmp_path)
    process = processes.Process(target=train, args=(hyper_params, str(tmp_path), "run"))
    process.start()
    while not (tmp_path / "run" / "checkpoints" / "000002").exists():
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, how)
    process.join()
    run = store.open("run")
    assert process.exitcode == 0 and run.status == "interrupted" and 2 <= len(run.history) < 40
    result = resume_experiment(run, tqdm_func=partial(tqdm, disable=True))
    assert result.status == "finished" and len(result.history) == 40
    assert len(store.open("run").read("versions")["resumed"]) == 1


def test_a_damaged_checkpoint_costs_one_step(tmp_path):
    hyper_params, quiet = (
        experiment("ppo"),
        {"run_store": tmp_path, "tqdm_func": partial(tqdm, disable=True), "checkpoint_minutes": 0},
    )
    straight = run_experiment(hyper_params, run_id="straight", **quiet).run
    run_experiment(hyper_params, run_id="broken", stop_after=4, **quiet)
    newest = tmp_path / "broken" / "checkpoints" / "000004" / "weights.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.warns(
        UserWarning, match="checkpoint 000004 of run broken is damaged: wrong checksum; passed over"
    ):
        broken = run_experiment(hyper_params, run_id="broken", **quiet).run
    check_same(straight, broken)


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    hyper_params, quiet = (
        experiment("ppo"),
        {"run_store": tmp_path, "tqdm_func": partial(tqdm, disable=True), "checkpoint_minutes": 0},
    )
    straight = run_experiment(hyper_params, run_id="straight", **quiet).run
    calls, fsync = iter(range(10**6)), os.fsync

    def full(descriptor):
        if next(calls) > 12:
            raise OSError(28, "No space left on device")
        return fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        run_experiment(hyper_params, run_id="broken", **quiet)
    monkeypatch.undo()
    run = RunStore(tmp_path).open("broken")
    assert 0 < len(run.history) < 6 and run.latest_checkpoint()
    assert not list(tmp_path.rglob(".*.*-*"))  # nothing half-written is left
    check_same(straight, run_experiment(hyper_params, run_id="broken", **quiet).run)


def test_what_must_not_go_on(tmp_path):
    quiet = {"run_store": tmp_path, "tqdm_func": partial(tqdm, disable=True)}
    run_experiment(experiment("ppo"), run_id="run", stop_after=1, **quiet)
    other = experiment("ppo").replace({"rl.lr": 0.5})
    with pytest.raises(ParameterError, match="other hyper-parameters: rl.lr is 0.003 there and 0.5 now"):
        run_experiment(other, run_id="run", **quiet)
    held = RunStore(tmp_path).open("run").hold()
    with pytest.raises(BlockingIOError, match="run 'run' is being written by another process"):
        run_experiment(experiment("ppo"), run_id="run", **quiet)
    held.finish("interrupted", {})
    afresh = run_experiment(experiment("ppo"), run_id="run", do_not_load_checkpoint=True, **quiet)
    assert afresh.status == "finished" and len(afresh.history) == 6
    with pytest.raises(FileExistsError, match="run 'run' is finished; choose another run_id"):
        run_experiment(experiment("ppo"), run_id="run", **quiet)


def test_checkpoints_leave_no_trace_and_are_pruned(tmp_path):
    quiet = {"run_store": tmp_path, "tqdm_func": partial(tqdm, disable=True), "checkpoint_minutes": None}
    seldom = run_experiment(experiment("spg"), run_id="seldom", **quiet).run
    often = run_experiment(
        experiment("spg"),
        run_id="often",
        checkpoint_period=1,
        keep_checkpoints=1,
        keep_checkpoint_every=2,
        **quiet,
    ).run
    assert (seldom.checkpoints, often.checkpoints) == ([6], [2, 4, 6])
    check_same(seldom, often)
    assert json.loads((often.dir / "rollouts" / "test.json").read_text())[0]["over"]
