"""What holds for every protocol, whatever its parameters: played with random actions on the parity scenario."""

from functools import partial
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nip import HyperParameters, build_scenario_instance
from nip.agents.combined import CombinedPolicyHead
from nip.experiments.run import run_experiment
from nip.parameters.hyper_params import protocol_handlers
from nip.parameters.validation import ParameterError
from nip.protocols.handler import ACCEPT, NO_DECISION, build_protocol_handler

PROTOCOLS = sorted(name for name, cls in protocol_handlers.items() if cls.__module__.startswith("nip."))

common = st.fixed_dictionaries(
    {
        "verifier_first": st.booleans(),
        "shared_reward": st.booleans(),
        "zero_knowledge": st.booleans(),
        "randomize_prover_stance": st.booleans(),
        "force_guess": st.sampled_from([None, None, "zero", "one", "y"]),
        "prover_reward": st.sampled_from([1.0, 0.3, -1.0]),
        "verifier_no_guess_reward": st.sampled_from([0.0, 0.05, -0.2]),
        "verifier_terminated_penalty": st.sampled_from([-1.0, -2.0, 0.5]),
    }
)
lengths = st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))
two_provers = st.fixed_dictionaries({"sequential": st.booleans(), "prover0_first": st.booleans()})


@st.composite
def experiments(draw) -> HyperParameters:
    "Hyper-parameters of a small experiment with a random protocol"
    most, least = draw(lengths)
    rounds = {"max_message_rounds": most, "min_message_rounds": least}
    two = draw(two_provers) | rounds
    return HyperParameters(
        "parity", "vanilla_ppo", "parity3", draw(st.sampled_from(PROTOCOLS)), protocol_common=draw(common), nip_protocol=rounds,
        debate_protocol=two, mnip_protocol=two, rl={"frames_per_batch": None, "rollouts_per_iteration": 16},
        include_linear_message_space=draw(st.booleans()), message_size=draw(st.integers(1, 2)))  # fmt: skip


few = settings(max_examples=40, deadline=None, derandomize=True)


@few
@given(experiments())
def test_the_table_is_sound(hyper_params):
    "Nobody speaks where it cannot see, and in a channel there is one speaker at a time"
    protocol = build_protocol_handler(hyper_params)
    assert not (protocol.active.any(0).any(0) & ~protocol.agent_channel_visibility_mask).any()
    assert protocol.active.sum(2).max() <= 1
    assert 1 <= protocol.min_message_rounds <= protocol.max_message_rounds


@few
@given(experiments(), st.integers(0, 10))
def test_games_end_and_pay_what_they_promise(hyper_params, seed):
    "With random actions: ends, rewards, verdicts and per-agent endings are as declared"
    instance = build_scenario_instance(hyper_params)
    protocol, env = instance.protocol_handler, instance.train_environment
    torch.manual_seed(seed)
    td, over = env.start(torch.arange(16), torch.arange(16)), torch.zeros(16, dtype=torch.bool)
    low, high = torch.tensor([protocol.reward_range(a) for a in protocol.agent_names]).unbind(-1)
    verifier = protocol.agent_names.index("verifier")
    for _ in range(protocol.max_message_rounds):
        before = td
        assert not (td["agents", "active"] & td["agents", "done"].unsqueeze(-1)).any(), (
            "who is done is silent"
        )
        for space in instance.message_spaces:
            td["agents", space.name] = torch.randint(
                space.size, (16, protocol.num_agents, protocol.num_message_channels, env.message_size)
            )
            td["agents", space.logits_key] = torch.randn(*td["agents", space.name].shape, space.size)
        td["agents", "decision"] = torch.randint(3, (16, protocol.num_agents))
        td["agents", "decision_logits"] = torch.randn(16, protocol.num_agents, 3)
        td = env.play(td)
        reward = td["agents", "reward"]
        assert (reward >= low - 1e-5).all() and (reward <= high + 1e-5).all()
        decides = td["agents", "done"][:, verifier] & ~before["agents", "done"][:, verifier]
        counts = protocol.decision_counts(before["round"], before["seed"])
        assert not (decides & ~counts).any(), (
            "a verdict counts in the verifier's turns, from min_message_rounds on"
        )
        assert ((td["verdict"] != NO_DECISION) == td["agents", "done"][:, verifier]).all()
        done = td["done"].squeeze(-1)
        if not hyper_params.protocol_common.zero_knowledge:
            assert (decides == (td["agents", "done"].all(-1) & ~before["agents", "done"].all(-1))).all()
        over = over | done
    assert over.all(), "every game ends"


@few
@given(experiments())
def test_no_part_sees_what_its_agent_cannot(hyper_params):
    "Whatever is written into channels that an agent cannot see, its inputs stay the same"
    instance = build_scenario_instance(hyper_params)
    protocol, head = instance.protocol_handler, instance.combined["policy_head"]
    assert isinstance(head, CombinedPolicyHead)
    td, rows = instance.train_environment.start(torch.arange(4), torch.arange(4)), torch.arange(4)
    for i, agent in enumerate(protocol.agent_names):
        other = td.clone()
        for space in instance.message_spaces:
            hidden = ~protocol.agent_channel_visibility_mask[i]
            other[space.history_key][:, :, hidden] += 1
            other[space.latest_key][:, hidden] += 1
        body = instance.combined["body"]
        seen, same = (body.seen_by(agent, t, rows) for t in (td, other))
        assert all(torch.equal(seen[k], same[k]) for k in seen)


GAME = {
    "dataset": "parity3",
    "rl.frames_per_batch": None,
    "rl.rollouts_per_iteration": 8,
    "rl.num_normalization_steps": 8,
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("zero_knowledge", [False, True])
def test_environment_meets_its_specs(protocol, zero_knowledge):
    from torchrl.envs.utils import check_env_specs

    for linear, scenario in product([False, True], ["parity", "graph_isomorphism"]):
        hyper_params = HyperParameters.construct_test_params(scenario, "vanilla_ppo", interaction_protocol=protocol).replace(
            {"protocol_common.zero_knowledge": zero_knowledge, "include_linear_message_space": linear, "rl.frames_per_batch": None,
             "rl.rollouts_per_iteration": 4})  # fmt: skip
        check_env_specs(build_scenario_instance(hyper_params).train_environment)


def test_forced_guesses_are_paid():
    "In every protocol with provers, a forced right verdict ends the game in the verifier's first turn that counts, and pays for it"
    from tqdm import tqdm

    for protocol in PROTOCOLS:
        hyper_params = HyperParameters("parity", "vanilla_ppo", "parity3", protocol, protocol_common={"force_guess": "y"}).replace(
            {**GAME, "rl.num_iterations": 1, "rl.num_test_iterations": 1})  # fmt: skip
        metrics = run_experiment(hyper_params, test_run=True, tqdm_func=partial(tqdm, disable=True)).metrics
        assert metrics["test_mean_accuracy"] == 1, protocol
        assert metrics["test_verifier.mean_episode_reward"] == 1, protocol
        handler = build_protocol_handler(hyper_params)
        for prover, verdict in handler.prover_verdicts.items():
            share = 0.5  # of instances whose label is the verdict that the prover argues for
            assert metrics[f"test_{prover}.mean_episode_reward"] == pytest.approx(share, abs=0.02), (
                protocol,
                verdict == ACCEPT,
            )


def test_a_zero_knowledge_game_names_all_its_agents():
    "Parameters for the two additional players are accepted with zero knowledge, and refused without"
    agents = {"simulator": {}, "adversarial_verifier": {"is_random": True}}
    HyperParameters(
        "parity", "vanilla_ppo", "parity3", "nip", protocol_common={"zero_knowledge": True}, agents=agents
    )
    with pytest.raises(ParameterError, match="agents.*no such agent"):
        HyperParameters("parity", "vanilla_ppo", "parity3", "nip", agents=agents)
