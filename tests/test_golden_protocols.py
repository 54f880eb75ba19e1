"""Turn tables, done signals and rewards of every protocol, worked out by hand.

In a table a row is an agent in a channel, a column a round: ● speaks, ◆ speaks and may decide, ○ reads, · cannot see.
"""

import pytest
import torch
from tensordict import TensorDict

from nip import HyperParameters
from nip.protocols.handler import build_protocol_handler

FIVE = {"max_message_rounds": 5, "min_message_rounds": 3}
IN_TURN = {"max_message_rounds": 6, "sequential": True}


def handler(protocol: str, **groups):
    return build_protocol_handler(
        HyperParameters(
            "parity",
            "vanilla_ppo",
            "parity3",
            protocol,
            rl={"frames_per_batch": None, "rollouts_per_iteration": 4},
            **groups,
        )
    )


TABLES = {
    ("nip", ()): ["prover main ○●○●○", "verifier main ●○◆○◆"],
    ("nip", (("verifier_first", False),)): ["prover main ●○●○●", "verifier main ○●○◆○"],
    ("adp", ()): ["prover main ●○", "verifier main ○◆"],
    ("solo_verifier", ()): ["verifier main ◆"],
    ("merlin_arthur", ()): ["prover0 main ●○", "prover1 main ○○", "verifier main ○◆"],
    ("debate", ()): [
        "prover0 prover0_channel ○●○●○", "prover0 prover1_channel ○○○○○", "prover1 prover0_channel ○○○○○",
        "prover1 prover1_channel ○●○●○", "verifier prover0_channel ●○◆○◆", "verifier prover1_channel ●○◆○◆",
    ],
    ("mnip", ()): [
        "prover0 prover0_channel ○●○●○", "prover0 prover1_channel ·····", "prover1 prover0_channel ·····",
        "prover1 prover1_channel ○●○●○", "verifier prover0_channel ●○◆○◆", "verifier prover1_channel ●○◆○◆",
    ],
    ("debate in turn", ()): [
        "prover0 prover0_channel ○●○○●○", "prover0 prover1_channel ○○○○○○", "prover1 prover0_channel ○○○○○○",
        "prover1 prover1_channel ○○●○○●", "verifier prover0_channel ◆○○◆○○", "verifier prover1_channel ◆○○◆○○",
    ],
    ("debate in turn", (("verifier_first", False),)): [
        "prover0 prover0_channel ●○○●○○", "prover0 prover1_channel ○○○○○○", "prover1 prover0_channel ○○○○○○",
        "prover1 prover1_channel ○●○○●○", "verifier prover0_channel ○○◆○○◆", "verifier prover1_channel ○○◆○○◆",
    ],
    ("multi_channel_test", ()): [
        "prover0 main ○○○○○○○○", "prover0 prover0_verifier ○●○○●○○●", "prover0 prover_chat ●○○●○○●○",
        "prover1 main ●○○●○○●○", "prover1 prover0_verifier ········", "prover1 prover_chat ○●○○●○○●",
        "prover2 main ○●○○●○○●", "prover2 prover0_verifier ········", "prover2 prover_chat ○○●○○●○○",
        "verifier main ○○◆○○◆○○", "verifier prover0_verifier ○○◆○○◆○○", "verifier prover_chat ········",
    ],
    ("zk-adp", ()): [
        "prover main_standard ●○", "prover main_adversarial ●○", "prover main_simulator ··", "verifier main_standard ○◆",
        "verifier main_adversarial ··", "verifier main_simulator ··", "adversarial_verifier main_standard ··",
        "adversarial_verifier main_adversarial ○◆", "adversarial_verifier main_simulator ··", "simulator main_standard ··",
        "simulator main_adversarial ··", "simulator main_simulator ○◆",
    ],
}  # fmt: skip


@pytest.mark.parametrize("case", TABLES, ids=lambda case: f"{case[0]}{dict(case[1]) or ''}")
def test_turn_table(case):
    name, common = case[0].removeprefix("zk-"), dict(case[1]) | {"zero_knowledge": case[0].startswith("zk-")}
    rounds = IN_TURN if "in turn" in name else FIVE
    protocol = handler(
        name.removesuffix(" in turn"),
        protocol_common=common,
        nip_protocol=FIVE,
        debate_protocol=rounds,
        mnip_protocol=rounds,
    )
    assert [
        f"{a} {c} {''.join(s or '·' for s in signs)}" for a, c, *signs in protocol.turn_table()
    ] == TABLES[case]


def test_merlin_arthur_draws_its_speaker():
    "An odd seed has prover1 speak"
    table = handler("merlin_arthur").turn_table(variant=1)
    assert ["".join(signs) for _, _, *signs in table] == ["○○", "●○", "○◆"]


REJECT, ACCEPT, NONE = 0, 1, 2
# protocol, round, the verifier's decision, label → done, terminated, rewards in the order of agents
STEPS = [
    ("nip", 0, ACCEPT, 1, False, False, [0, 0.1]),  # too early: it counts from round 2 on
    ("nip", 1, ACCEPT, 1, False, False, [0, 0]),  # not the verifier's turn
    ("nip", 2, ACCEPT, 1, True, False, [3, 2]),
    ("nip", 2, ACCEPT, 0, True, False, [3, -4]),
    ("nip", 2, REJECT, 0, True, False, [0, 2]),
    ("nip", 2, NONE, 0, False, False, [0, 0.1]),
    ("nip", 4, NONE, 0, False, True, [0, -5]),
    ("adp", 0, ACCEPT, 1, False, False, [0, 0]),
    ("adp", 1, ACCEPT, 1, True, False, [3, 2]),
    ("adp", 1, NONE, 1, False, True, [0, -5]),
    ("solo_verifier", 0, REJECT, 1, True, False, [-4]),
    ("solo_verifier", 0, NONE, 1, False, True, [-5]),
    ("debate", 1, REJECT, 0, False, False, [0, 0, 0]),
    ("debate", 2, REJECT, 0, True, False, [3, 0, 2]),
    ("debate", 2, ACCEPT, 0, True, False, [0, 3, -4]),
    ("debate", 4, NONE, 0, False, True, [0, 0, -5]),
    ("mnip", 2, REJECT, 0, True, False, [0, 0, 2]),
    ("mnip", 2, ACCEPT, 0, True, False, [3, 3, -4]),
    ("mnip", 0, ACCEPT, 1, False, False, [0, 0, 0.1]),
    ("merlin_arthur", 0, ACCEPT, 1, False, False, [0, 0, 0]),
    ("merlin_arthur", 1, ACCEPT, 1, True, False, [0, 3, 2]),
    ("merlin_arthur", 1, REJECT, 1, True, False, [3, 0, -4]),
    ("merlin_arthur", 1, NONE, 1, False, True, [0, 0, -5]),
    ("multi_channel_test", 1, ACCEPT, 1, False, False, [0, 0, 0, 0]),
    ("multi_channel_test", 2, ACCEPT, 1, True, False, [0, 3, 0, 2]),
    ("multi_channel_test", 5, REJECT, 1, True, False, [3, 0, 3, -4]),
    ("multi_channel_test", 7, REJECT, 1, False, True, [0, 0, 0, -5]),
]
PAY = {"prover_reward": 3.0, "verifier_reward": 2.0, "verifier_incorrect_penalty": -4.0, "verifier_terminated_penalty": -5.0,
       "verifier_no_guess_reward": 0.1}  # fmt: skip


def step(protocol, round: int, decision: int, y: int, seed: int = 0):
    td = TensorDict(
        {"y": torch.tensor([[y]]), "round": torch.tensor([round]), "seed": torch.tensor([seed])}, [1]
    )
    td["agents", "decision"] = torch.full((1, protocol.num_agents), NONE)
    td["agents", "decision"][:, protocol.agent_names.index("verifier")] = decision
    td["agents", "done"] = torch.zeros(1, protocol.num_agents, dtype=torch.bool)
    return [x[0].tolist() for x in protocol.step_interaction_protocol(td)]


@pytest.mark.parametrize("case", STEPS, ids=lambda c: f"{c[0]} round {c[1]} decision {c[2]} label {c[3]}")
@pytest.mark.parametrize("seed", [0, 1])
def test_step(case, seed):
    name, round, decision, y, done, terminated, rewards = case
    protocol = handler(name, protocol_common=PAY, nip_protocol=FIVE, debate_protocol=FIVE, mnip_protocol=FIVE)
    assert step(protocol, round, decision, y, seed) == [
        done,
        [done] * len(rewards),
        terminated,
        pytest.approx(rewards),
    ]


SHARED = [("debate", ACCEPT, 0, [-4, -4, -4]), ("mnip", REJECT, 0, [2, 2, 2]), ("nip", ACCEPT, 1, [2, 2])]


@pytest.mark.parametrize("name, decision, y, rewards", SHARED)
def test_shared_reward(name, decision, y, rewards):
    protocol = handler(
        name,
        protocol_common=PAY | {"shared_reward": True},
        nip_protocol=FIVE,
        debate_protocol=FIVE,
        mnip_protocol=FIVE,
    )
    assert step(protocol, 2, decision, y)[3] == pytest.approx(rewards)


@pytest.mark.parametrize("force, rewards", [("zero", [3, 0, -4]), ("one", [0, 3, 2]), ("y", [0, 3, 2])])
def test_forced_guess(force, rewards):
    "Whatever the verifier says, in debate on an instance of label 1"
    protocol = handler("debate", protocol_common=PAY | {"force_guess": force}, debate_protocol=FIVE)
    for decision in (REJECT, ACCEPT, NONE):
        done, _, terminated, reward = step(protocol, 2, decision, 1)
        assert (done, terminated, reward) == (True, False, pytest.approx(rewards))


def test_zero_knowledge_waits_for_both():
    "adp: the verifier decides rightly, the adversarial verifier does not decide; without logits nothing is imitated"
    protocol = handler("adp", protocol_common=PAY | {"zero_knowledge": True})
    assert step(protocol, 1, ACCEPT, 1) == [
        False,
        [False, True, False, False],
        True,
        pytest.approx([3, 2, 0, 0]),
    ]
