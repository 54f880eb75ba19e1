"""Runs that begin where others have been: their parameters, their tests, their agents, and what they wrote in older versions."""

import json
import shutil
from functools import partial
from math import isnan

import pytest
import torch
import yaml
from tqdm import tqdm

from nip import HyperParameters, RunStore, prepare_experiment, preset, run_all, run_experiment
from nip.agents.checkpoints import completed
from nip.analysis.playback import player, trained
from nip.experiments.reproduction import reproduce
from nip.experiments.run import resume_experiment
from nip.parameters.settings import ExperimentSettings
from nip.parameters.validation import ParameterError
from nip.runs.trackers import Tracker, trackers

FEW = {"rl.num_iterations": 3, "rl.rollouts_per_iteration": 48, "rl.minibatch_size": 48, "rl.num_test_iterations": 2,
       "rl.num_normalization_steps": 96, "solo_agent.num_epochs": 3}  # fmt: skip
TRAINERS = ("vanilla_ppo", "solo_agent", "reinforce", "spg")
quiet = {"tqdm_func": partial(tqdm, disable=True), "checkpoint_period": 1, "keep_checkpoint_every": 1}
silent = pytest.mark.filterwarnings("ignore:agents are taken from run")


def experiment(trainer: str = "vanilla_ppo", **changes) -> HyperParameters:
    dotted = {k.replace("__", "."): v for k, v in changes.items()}
    return preset("parity_quick").replace(
        FEW | {"trainer": trainer, "agents.verifier": {"d_hidden": 8}} | dotted
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    "A short run of each trainer, and a second one of `vanilla_ppo` with another seed and other widths"
    folder = tmp_path_factory.mktemp("earlier")
    for trainer in TRAINERS:
        run_experiment(experiment(trainer), run_store=folder, run_id=trainer, **quiet)
    other = experiment(seed=7, agents__verifier={"d_hidden": 12}, agents__prover={"d_hidden": 20})
    run_experiment(other, run_store=folder, run_id="other", **quiet)
    return RunStore(folder)


@pytest.fixture
def here(store, tmp_path):
    "A store of the test's own, with copies of the earlier runs"
    return RunStore(shutil.copytree(store.root, tmp_path / "runs"))


@pytest.fixture(autouse=True)
def no_trackers(monkeypatch):
    "No test looks for runs elsewhere, whatever accounts there are"
    local = {"local": (trackers["local"], {})}
    list(trackers)  # all are registered from here on
    monkeypatch.setattr(trackers, "_entries", local)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(v == b[k] or (isnan(v) and isnan(b[k])) for k, v in a.items())


def final_test(metrics: dict) -> dict:
    return {k: v for k, v in metrics.items() if "test_" in k}


def weights(run, agent: str) -> dict:
    return {k: v for k, v in run.load_checkpoint()[0].items() if k.startswith(f"agents/{agent}.")}


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# Base runs


def asking(kind: str, run_id: str, **changes) -> HyperParameters:
    "Hyper-parameters of somebody who leaves all to the earlier run"
    base = {"base_run_type": kind, "run_id": run_id}
    return HyperParameters("parity", "vanilla_ppo", "parity4", base_run=base, **changes)


@silent
@pytest.mark.parametrize("trainer", TRAINERS)
def test_parameters_of_an_earlier_run_give_its_metrics(here, trainer):
    result = run_experiment(asking("parameters", trainer), run_store=here, run_id="again", **quiet)
    earlier = here.open(trainer)
    assert same(result.metrics, earlier.read("result")["metrics"])
    then, now = (HyperParameters.from_dict(r.hyper_params) for r in (earlier, result.run))
    assert set(then.diff(now)) == {"base_run.base_run_type", "base_run.run_id"}
    shutil.rmtree(earlier.dir)  # the record is complete
    assert (
        reproduce(result.run, run_store=here, iterations=1, tqdm_func=quiet["tqdm_func"]).again.history.shape[
            0
        ]
        == 1
    )


@silent
@pytest.mark.parametrize("trainer", TRAINERS)
def test_tests_run_again_are_the_same_to_the_bit(here, trainer):
    asked = asking("rerun_tests", trainer, rl={"num_test_iterations": 2})
    result = run_experiment(asked, run_store=here, run_id="again", **quiet)
    earlier = here.open(trainer)
    assert same(result.metrics, final_test(earlier.read("result")["metrics"]))
    assert list(result.history.index) == earlier.checkpoints == [1, 2, 3]
    assert result.history.iloc[0].to_dict() != result.history.iloc[-1].to_dict()
    assert all(equal(weights(earlier, a), weights(result.run, a)) for a in ("prover", "verifier"))
    assert result.status == result.run.status == "finished"


@silent
def test_new_test_parameters_hold_and_others_do_not(here):
    asked = asking("rerun_tests", "vanilla_ppo", rl={"num_test_iterations": 5, "lr": 1.0}, seed=99)
    result = run_experiment(asked, run_store=here, run_id="again", **quiet)
    hp, then = (HyperParameters.from_dict(here.open(r).hyper_params) for r in ("again", "vanilla_ppo"))
    changed = {"base_run.base_run_type", "base_run.run_id", "rl.num_test_iterations"}
    assert set(then.diff(hp)) == changed and hp.rl.num_test_iterations == 5
    assert not same(result.metrics, final_test(here.open("vanilla_ppo").read("result")["metrics"]))


@silent
def test_a_table_of_experiments_knows_what_it_has_run(here):
    "Though what was recorded is not what was asked for"
    table = {"again": asking("parameters", "vanilla_ppo"), "mixed": mixed()}
    runs = run_all(table, run_store=here, workers=0)
    times = {name: (run.dir / "result.json").stat().st_mtime_ns for name, run in runs.items()}
    runs = run_all(table, run_store=here, workers=0)
    assert times == {name: (run.dir / "result.json").stat().st_mtime_ns for name, run in runs.items()}


@silent
def test_a_damaged_checkpoint_is_passed_over_and_none_is_refused(here):
    folder = here.open("vanilla_ppo").dir / "checkpoints"
    (folder / "000002" / "state.json").write_text("{")
    asked = asking("rerun_tests", "vanilla_ppo")
    with pytest.warns(UserWarning, match="checkpoint 000002 of run vanilla_ppo is damaged"):
        result = run_experiment(asked, run_store=here, **quiet)
    assert list(result.history.index) == [1, 3]
    shutil.rmtree(folder)
    with pytest.raises(ParameterError, match="base_run.run_id: 'vanilla_ppo' is a run without a checkpoint"):
        run_experiment(asked, run_store=here, **quiet)


def test_agents_that_differ_are_told_of(here):
    asked = asking("parameters", "vanilla_ppo", agents={"prover": {"d_value": 5}})
    with pytest.warns(UserWarning) as caught:
        hp = completed(asked, ExperimentSettings(run_store=here))
    text = str(caught[0].message)
    assert "agents.prover.d_value is 5 here and 16 there" in text
    assert "agents.verifier" not in text  # nothing was asked of it
    assert hp.agents["prover"].d_value == 16


def test_same_agents_are_not_told_of(here, recwarn):
    completed(
        experiment(base_run={"base_run_type": "parameters", "run_id": "vanilla_ppo"}),
        ExperimentSettings(run_store=here),
    )
    assert not [w for w in recwarn if "agents are taken" in str(w.message)]


@silent
def test_a_run_that_is_not_there_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ParameterError, match="base_run.run_id: 'nowhere' is not found"):
        run_experiment(asking("parameters", "nowhere"), run_store=tmp_path, **quiet)
    assert not list(tmp_path.iterdir())


# Agents of earlier runs


def lent(run_id: str, **more) -> dict:
    return {"load_checkpoint_and_parameters": True, "checkpoint_run_id": run_id} | more


def mixed(trainer="vanilla_ppo", verifier="vanilla_ppo", prover="other", freeze=True, **changes):
    agents = {
        "agents.verifier": lent(verifier, freeze_agent=freeze),
        "agents.prover": lent(prover, freeze_agent=freeze),
    }
    return preset("parity_quick").replace(FEW | {"trainer": trainer, "seed": 3} | agents | changes)


def test_a_verifier_of_one_run_and_a_prover_of_another(here):
    "Frozen, they stay as they were, statistics and all"
    result = run_experiment(mixed(), run_store=here, run_id="mixed", **quiet)
    for agent, source in (("verifier", "vanilla_ppo"), ("prover", "other")):
        assert equal(weights(here.open(source), agent), weights(result.run, agent))
        assert any(k.endswith("started") and v for k, v in weights(result.run, agent).items())
    agents = HyperParameters.from_dict(result.run.hyper_params).agents
    assert (agents["verifier"].d_hidden, agents["prover"].d_hidden) == (8, 20)
    assert agents["prover"].freeze_agent


@pytest.mark.parametrize("trainer", ["vanilla_ppo", "reinforce", "spg"])
def test_agents_go_on_learning(here, trainer):
    "Weights move; statistics of observations, taken once, are those of the earlier run"
    result = run_experiment(mixed(trainer, freeze=False), run_store=here, run_id="mixed", **quiet)
    then, now = weights(here.open("vanilla_ppo"), "verifier"), weights(result.run, "verifier")
    observed = [k for k in now if ".features.norm." in k]
    assert observed and all(torch.equal(then[k], now[k]) for k in observed)
    assert not torch.equal(
        then["agents/verifier.body.instance.weight"], now["agents/verifier.body.instance.weight"]
    )


def test_supervised_agents_can_be_lent_too(here):
    hp = mixed("solo_agent", "solo_agent", "solo_agent", freeze=False).replace(
        {"agents.prover.freeze_agent": True}
    )
    result = run_experiment(hp, run_store=here, run_id="mixed", **quiet)
    assert equal(weights(here.open("solo_agent"), "prover"), weights(result.run, "prover"))
    assert not equal(weights(here.open("solo_agent"), "verifier"), weights(result.run, "verifier"))


def test_an_early_checkpoint_and_a_whole_run_by_default(here):
    agents = {"_default": lent("vanilla_ppo", checkpoint_version="1")}
    prepared = prepare_experiment(preset("parity_quick").replace(agents=agents), run_store=here)
    tensors, _ = here.open("vanilla_ppo").load_checkpoint(1)
    loaded = prepared.scenario_instance.state_dict()
    assert equal(
        {f"agents/{k}": v for k, v in loaded.items()},
        {k: v for k, v in tensors.items() if k.startswith("agents/")},
    )


def test_statistics_are_lent_even_where_none_were_taken(here):
    "Weights that learned from plain observations get plain observations"
    run_experiment(experiment(rl__normalize_observations=False), run_store=here, run_id="plain", **quiet)
    result = run_experiment(mixed(verifier="plain", freeze=False), run_store=here, run_id="mixed", **quiet)
    means = [v for k, v in weights(result.run, "verifier").items() if k.endswith("features.norm.mean")]
    assert means and not any(m.any() for m in means)


def test_statistics_inside_networks_are_not_primed_again(here):
    "Before the first iteration, an agent that will learn is what it was, norms and all"
    likeness = {"agents.prover": {"block_selector": "likeness", "num_layers": 3}}
    run_experiment(experiment().replace(likeness), run_store=here, run_id="likeness", **quiet)
    hp = mixed(prover="likeness", freeze=False).replace({"rl.num_iterations": 0})
    result = run_experiment(hp, run_store=here, run_id="mixed", **quiet)
    for agent, source in (("verifier", "vanilla_ppo"), ("prover", "likeness")):
        assert equal(weights(here.open(source), agent), weights(result.run, agent))
    assert any("selector.norm" in k for k in weights(result.run, "prover"))


def test_a_mixed_run_stands_alone(here):
    "It goes on, and can be evaluated, when the runs it came from are gone"
    whole = run_experiment(mixed(freeze=False), run_store=here, run_id="whole", **quiet)
    run_experiment(mixed(freeze=False), run_store=here, run_id="mixed", stop_after=1, **quiet)
    for run_id in ("vanilla_ppo", "other"):
        shutil.rmtree(here.root / run_id)
    resumed = resume_experiment(here.open("mixed"), stop_after=None, tqdm_func=quiet["tqdm_func"])
    assert same(resumed.metrics, whole.metrics)
    assert player(trained(resumed.run)).instance.agents["verifier"].params.d_hidden == 8


def test_pretraining_leaves_lent_agents_alone(here):
    hp = mixed().replace({"pretrain_agents": True, "agents.prover": {"d_hidden": 6}})
    result = run_experiment(hp, run_store=here, run_id="mixed", **quiet)
    assert equal(weights(here.open("vanilla_ppo"), "verifier"), weights(result.run, "verifier"))
    assert "prover.pretrain_test_accuracy" in result.metrics


REFUSED = {
    "is not to be found": {"agents.verifier.checkpoint_run_id": "nowhere"},
    "must be given": {"agents.verifier.checkpoint_run_id": None},
    "has no checkpoint '9' in the run store, but latest, 1, 2, 3": {"agents.verifier.checkpoint_version": "9"},
    "has no checkpoint 'v3' in the run store": {"agents.verifier.checkpoint_version": "v3"},
    "d_representation: 16 there, 8 here": {"d_representation": 8},
    "message_size: 1 there, 2 here": {"message_size": 2},
    "numbers sent beside: 0 there, 2 here": {"include_linear_message_space": True},
    "scenario: 'parity' there, 'graph_isomorphism' here": {
        "scenario": "graph_isomorphism", "dataset": "test", "agents": {"verifier": lent("vanilla_ppo")}},
    "is a run without an agent 'prover0', but with prover, verifier": {
        "interaction_protocol": "debate", "agents": {"prover0": lent("vanilla_ppo")}},
    "channels it sees: ['main'] there, ['prover0_channel', 'prover1_channel'] here": {
        "interaction_protocol": "debate", "agents": {"verifier": lent("vanilla_ppo")}},
    "rounds of an episode: 2 there, 4 here; its turns: {'main': [0]} there, {'main': [0, 2]} here": {
        "interaction_protocol": "nip", "nip_protocol.max_message_rounds": 4, "rl.frames_per_batch": None},
    "being told its stance: False there, True here": {"protocol_common.randomize_prover_stance": True},
    "tensor 'policy_head.selector.mlp.0.weight' is not there in that run, and has shape (16, 32) in this one": {
        "agents.verifier.checkpoint_run_id": "solo_agent"},
    "tensor 'value_body.features.slots' is not there in that run": {"rl.use_shared_body": False},
}  # fmt: skip


@pytest.mark.parametrize("words", REFUSED)
def test_what_does_not_fit_is_refused(store, words):
    with pytest.raises(ParameterError) as error:
        prepare_experiment(mixed().replace(REFUSED[words]), run_store=store)
    assert words in str(error.value)
    assert error.value.path.startswith("agents.") and error.value.path.endswith(".checkpoint_run_id")


def test_an_agent_may_play_a_game_of_another_name(here):
    "Its part in `nip` with two rounds, the prover first, is its part in `adp`"
    result = run_experiment(mixed(interaction_protocol="nip"), run_store=here, **quiet)
    assert equal(weights(here.open("vanilla_ppo"), "verifier"), weights(result.run, "verifier"))


# Runs that are kept elsewhere


@pytest.fixture
def shelf(no_trackers, store, tmp_path, monkeypatch):
    "A tracker that keeps the earlier runs for the project `shelf`, and notes what it is asked for"
    monkeypatch.setenv("NIP_DATA", str(tmp_path / "data"))
    asked = []

    class Shelf(Tracker):
        @classmethod
        def fetch(cls, run_id, folder, project=None, entity=None, version="latest"):
            asked.append((run_id, project, entity, version))
            if project not in (None, "shelf") or run_id not in store:
                raise FileNotFoundError(f"no run {run_id!r} in {project}")
            return shutil.copytree(store.open(run_id).dir, folder)

    trackers.register("shelf", Shelf)
    return asked


@silent
def test_runs_come_from_a_tracker(shelf, store, tmp_path):
    base = {
        "base_run_type": "rerun_tests",
        "run_id": "vanilla_ppo",
        "wandb_project": "shelf",
        "wandb_entity": "me",
    }
    asked = HyperParameters("parity", "vanilla_ppo", "parity4", base_run=base, rl={"num_test_iterations": 2})
    metrics = run_experiment(asked, run_store=tmp_path / "runs", **quiet).metrics
    assert same(metrics, final_test(store.open("vanilla_ppo").read("result")["metrics"]))
    assert ("vanilla_ppo", "shelf", "me", "latest") in shelf
    there = {"checkpoint_project": "shelf", "checkpoint_entity": "me", "checkpoint_version": "v3"}
    hp = preset("parity_quick").replace(
        {"agents.verifier": lent("vanilla_ppo", **there), "agents.prover": lent("other")}
    )
    prepared = prepare_experiment(hp, run_store=tmp_path / "runs")
    assert prepared.scenario_instance.agents["prover"].params.d_hidden == 20
    assert ("vanilla_ppo", "shelf", "me", "v3") in shelf
    with pytest.raises(
        ParameterError, match=r"checkpoint_run_id: 'other' is not to be found .*no run 'other' in drawer"
    ):
        prepare_experiment(
            hp.replace({"agents.prover.checkpoint_project": "drawer"}), run_store=tmp_path / "runs"
        )


def test_a_tracker_without_an_account_does_not_hide_what_was_asked_for(shelf, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise ParameterError("use_wandb", True, "needs an account")

    monkeypatch.setattr(trackers["shelf"], "fetch", refuse)
    where = ExperimentSettings(run_store=tmp_path / "runs")
    with pytest.raises(
        ParameterError,
        match=r"base_run.run_id: 'nowhere' is not found \(no run 'nowhere' in .*use_wandb: needs",
    ):
        completed(asking("parameters", "nowhere"), where)
    with pytest.raises(ParameterError, match=r"agents.prover.checkpoint_run_id: 'other' is not to be found"):
        completed(mixed(), where)


# What older versions wrote


def saved(root, name: str) -> dict:
    text = (root / "tests" / "data" / name).read_text()
    return json.loads(text) if name.endswith("json") else yaml.safe_load(text)


def test_files_of_0_1(root):
    hp = HyperParameters.load(root / "tests" / "data" / "saved_0_1.yaml")
    assert (
        hp.interaction_protocol,
        hp.nip_protocol.max_message_rounds,
        hp.nip_protocol.min_message_rounds,
    ) == ("nip", 8, 3)
    assert hp.debate_protocol.min_message_rounds == 1
    assert (hp.spg.sos_scaling_factor, hp.spg.sos_threshold_factor) == (0.3, 0.2)
    assert hp.agents["prover"].update_schedule.stop == 8 and hp.agents["verifier"].num_gnn_layers == 2


def test_files_of_1_0(root):
    hp = HyperParameters.load(root / "tests" / "data" / "saved_1_0.json")
    mnip = hp.mnip_protocol
    assert (hp.interaction_protocol, mnip.max_message_rounds, mnip.min_message_rounds, mnip.sequential) == (
        "mnip",
        5,
        2,
        True,
    )
    assert hp.agents["prover1"].is_random and not hp.agents["prover0"].update_schedule.first_agent


def test_files_from_before_there_were_versions(root):
    with pytest.warns(UserWarning, match="have no version"):
        hp = HyperParameters.load(root / "tests" / "data" / "saved_before_versions.yaml")
    assert (hp.interaction_protocol, hp.nip_protocol.min_message_rounds) == ("adp", 3)


@pytest.mark.filterwarnings("ignore:hyper-parameters have no version")
@pytest.mark.parametrize("name", ["saved_0_1.yaml", "saved_1_0.json", "saved_before_versions.yaml"])
def test_old_files_become_new_ones(root, name):
    old = saved(root, name)
    before = json.dumps(old)
    hp = HyperParameters.from_dict(old)
    assert json.dumps(old) == before
    assert HyperParameters.from_yaml(hp.to_yaml()) == hp and hp.to_dict()["_package_version"] == "2.0.0"
    old["spg"]["sos_c_param"] = 0.5
    with pytest.raises(ParameterError, match="spg.sos_c_param: no such parameter"):
        HyperParameters.from_dict(old)


@silent
def test_a_run_of_an_older_version_is_a_base(here):
    file = here.open("vanilla_ppo").dir / "hyper_params.yaml"
    old = yaml.safe_load(file.read_text())
    del old["rl"]["critic_trains_body"]
    old["pvg_protocol"] = old.pop("nip_protocol") | {
        "min_message_rounds": 1,
        "_type": "PvgProtocolParameters",
    }
    for group in ("debate_protocol", "mnip_protocol"):
        old[group]["min_message_rounds"] = 0
    file.write_text(yaml.safe_dump(old | {"_package_version": "0.1"}))
    hp = completed(asking("parameters", "vanilla_ppo"), ExperimentSettings(run_store=here))
    assert hp.nip_protocol.min_message_rounds == 2 and hp.to_dict()["_package_version"] == "2.0.0"
