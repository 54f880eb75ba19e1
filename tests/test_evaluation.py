"""Every protocol can be evaluated, with and without zero knowledge, from a run as from a result."""

from functools import partial

import pytest
import torch
from tqdm import tqdm

from nip.analysis.attack import Attack, attack_parameters, only_wrong
from nip.analysis.comparison import compare
from nip.analysis.evaluation import Evaluation, attacked, evaluate
from nip.analysis.playback import player, trained
from nip.episodes.statistics import Measure
from nip.experiments.run import run_experiment
from nip.parameters.hyper_params import HyperParameters, protocol_handlers, trainers
from nip.parameters.validation import ParameterError
from nip.runs.store import find_run

QUIET = partial(tqdm, disable=True)
LEAST = {"passes": 1, "attack_iterations": 1, "attack_frames": 32, "progress": QUIET}
DECEIVED = {"nip": {1}, "adp": {1}, "mnip": {1}, "debate": {0, 1}, "merlin_arthur": {0, 1},
            "multi_channel_test": {0, 1}, "solo_verifier": set()}  # fmt: skip


def train(folder, run_id, protocol="adp", trainer="vanilla_ppo", **changes):
    "A run of one small iteration"
    hp = HyperParameters.construct_test_params("parity", trainer, "parity4", interaction_protocol=protocol)
    rl = {"rl.frames_per_batch": None, "rl.rollouts_per_iteration": 8, "rl.num_iterations": 1, "rl.num_test_iterations": 1,
          "rl.num_normalization_steps": 8}  # fmt: skip
    return run_experiment(hp.replace(rl | changes), run_store=folder, run_id=run_id, tqdm_func=QUIET)


@pytest.mark.parametrize("protocol", sorted(DECEIVED))
@pytest.mark.parametrize("zero_knowledge", [False, True])
def test_each_protocol_is_evaluated(tmp_path, protocol, zero_knowledge):
    result = train(tmp_path, "one", protocol, **{"protocol_common.zero_knowledge": zero_knowledge})
    found = evaluate(result, **LEAST)
    assert {a.verdict for a in found.attacks} == DECEIVED[protocol]
    names = {v: n for v, n in ((1, "soundness_attacked"), (0, "completeness_attacked"))}
    assert {k for k in found.measures if k.endswith("attacked")} == {names[v] for v in DECEIVED[protocol]}
    assert ("oracle_accuracy" in found.measures) == bool(DECEIVED[protocol])
    assert any(k.startswith("simulator") for k in found.measures) == zero_knowledge
    for name, m in found.measures.items():
        low, high = (-1, 1) if name.endswith("cosine") else (0, 8 if name == "mean_episode_length" else 1)
        assert not m.n or low - 1e-9 <= m.value <= high + 1e-9, name
        assert not m.low > m.value + 1e-9 and not m.high < m.value - 1e-9, name
    assert Evaluation.load(result.run) == found
    assert (result.run_dir / "evaluation.png").stat().st_size > 1000
    assert compare(result).frame["protocol"].item() == ("zk-" * zero_knowledge) + protocol


@pytest.mark.parametrize("trainer", sorted(name for name, t in trainers.items() if hasattr(t, "play_out")))
def test_whoever_trained_it(tmp_path, trainer):
    found = evaluate(train(tmp_path, "one", trainer=trainer), **LEAST)
    assert {"soundness_attacked", "random_accuracy", "oracle_accuracy"} <= set(found.measures)


def test_no_protocol_is_forgotten():
    assert set(DECEIVED) <= set(protocol_handlers.names())


def test_a_run_and_its_result_give_the_same(tmp_path):
    result = train(tmp_path, "one")
    found = evaluate(result, **LEAST)
    weights = {k: v.clone() for k, v in result.scenario_instance.state_dict().items()}
    state = torch.get_rng_state()
    for again in (result, "one"):
        assert evaluate(again, run_store=tmp_path, **LEAST) == found
    assert all(torch.equal(v, weights[k]) for k, v in result.scenario_instance.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert evaluate(result, seed=1, **LEAST).datapoints != found.datapoints


def test_what_is_not_kept_is_evaluated_too(tmp_path):
    hp = HyperParameters.construct_test_params("parity", "vanilla_ppo", "parity4", interaction_protocol="adp")
    result = run_experiment(
        hp.replace({"rl.frames_per_batch": 16}), test_run=True, run_store=tmp_path, tqdm_func=QUIET
    )
    assert evaluate(result, **LEAST).name == "not kept"
    assert not list(tmp_path.iterdir())
    assert compare(result).frame["run"].item() == "not kept"


PROVERS = {
    "random": {"agents.prover": {"is_random": True}},
    "by hand": {"agents.prover.use_manual_architecture": True},
    "frozen": {"agents.prover.freeze_agent": True},
    "slow": {"agents.prover.agent_lr_factor": {"actor": 0.0, "critic": 0.0}},
    "on the verifier's side": {"protocol_common.shared_reward": True},
    "of two minds": {"protocol_common.randomize_prover_stance": True},
}


@pytest.mark.parametrize("kind", PROVERS)
def test_attackers_learn_whatever_the_prover_was(tmp_path, kind):
    t = trained(train(tmp_path, "one", **PROVERS[kind]), tqdm_func=QUIET)
    data = tuple(only_wrong(d, 1) for d in t.datasets)
    trainer = player(t, attack_parameters(t.hyper_params, ["prover"], 512, seed=0), data, ["verifier"])
    state = trainer.episodes_in_play
    assert set(state["y"].flatten().tolist()) == {0} and set(state["stance"].tolist()) == {1}
    before = {k: v.clone() for k, v in trainer.instance.state_dict().items()}
    games = trainer.collect()
    over, paid = games["done"], games["agents", "reward"][..., trainer.agent_names.index("prover")]
    assert paid[over].tolist() == (games["outcome"][over] == 1).float().tolist()
    trainer.iterate()
    moved = {k for k, v in trainer.instance.state_dict().items() if not torch.equal(v, before[k])}
    assert {k.split(".")[0] for k in moved} == {"prover"}


def test_several_attacks_or_none(tmp_path):
    result = train(tmp_path, "one")
    none = evaluate(result, **LEAST | {"attack_iterations": 0})
    assert none.attacks == [] and "soundness_attacked" not in none.measures
    assert [a.start for a in evaluate(result, attacks=2, **LEAST).attacks] == [0, 1]


def test_the_best_attack_is_chosen_where_it_learned():
    weak = Attack(1, 0, [0, 1], [0.1, 0.2], 1, Measure(0.9, 0.8, 0.95, 10))
    strong = Attack(1, 1, [0, 1], [0.3, 0.6], 1, Measure(0.5, 0.4, 0.6, 10))
    for order in ([weak, strong], [strong, weak]):
        assert attacked(order) == {"soundness_attacked": Measure(0.5, 0.4, 0.6, 10)}


def test_what_cannot_be_evaluated_is_told(tmp_path):
    hp = HyperParameters.construct_test_params("parity", "solo_agent", "parity4")
    solo = run_experiment(
        hp.replace({"solo_agent.num_epochs": 1}), run_store=tmp_path, run_id="solo", tqdm_func=QUIET
    )
    with pytest.raises(ParameterError, match="plays no episodes"):
        evaluate(solo)
    assert 0 <= compare("solo", run_store=tmp_path).frame["accuracy"].item() <= 1
    with pytest.raises(FileNotFoundError, match="no run 'none' in"):
        find_run("none", tmp_path)
    with pytest.raises(FileNotFoundError, match="no finished runs"):
        compare(run_store=tmp_path / "empty")
