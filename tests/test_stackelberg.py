"""Surrogates with right second derivatives, on games too long for the notebook; every response where agents rest or are frozen."""

from functools import partial
from itertools import product

import pytest
import torch
from tqdm import tqdm

from nip import ExperimentSettings, HyperParameters, ParameterError
from nip.parameters.hyper_params import trainers
from nip.scenarios.build import build_scenario_instance
from nip.training.stackelberg import SpgTrainer, magic_box, returns_to_go, twice_differentiable

QUIET = ExperimentSettings(tqdm_func=partial(tqdm, disable=True))


def tiny(scenario="parity", dataset="parity3", **changes) -> HyperParameters:
    rl = {
        "frames_per_batch": None,
        "rollouts_per_iteration": 16,
        "num_epochs": 2,
        "minibatch_size": 24,
        "num_normalization_steps": 16,
    }
    return HyperParameters.construct_test_params(scenario, "spg", dataset, rl=rl).replace(changes)


def prepared(hyper_params) -> SpgTrainer:
    trainer = trainers["spg"](build_scenario_instance(hyper_params, QUIET))
    trainer.prepare()
    return trainer


def test_longer_games_with_moves_at_the_same_time():
    "One moves, two answers, then both move at once; some games end after two moves; the pay comes in between, too"
    rng = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64)
    params = [draw(2).requires_grad_(), draw(2, 2, 2).requires_grad_()]  # `one` has the same policy twice
    params += [draw(2, 2).requires_grad_(), draw(2, 2, 2).requires_grad_()]
    pay = draw(2, 3, 2, 2, 2, 2)  # [agent time first second third fourth]
    early, late = draw(3, 2), draw(3, 2, 2, 2)  # baselines know the past only
    goes_on = lambda a, b: (a, b) != (0, 0)

    def score(t, a, b, c, d):
        one, two = (params[0], params[1]), (params[2], params[3])
        if t == 0:
            return one[0].log_softmax(0)[a]
        if t == 1:
            return two[0].log_softmax(1)[a, b]
        return one[1].log_softmax(2)[a, b, c] + two[1].log_softmax(2)[a, b, d]

    outcomes = [o for o in product(range(2), repeat=4) if goes_on(*o[:2]) or o[2:] == (0, 0)]
    length = lambda o: 3 if goes_on(*o[:2]) else 2
    exact, losses = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for o in outcomes:
        a, b, c, d = o
        scores = torch.stack([score(t, *o) for t in range(length(o))])
        paid = torch.stack([pay[:, 0, a, 0, 0, 0], pay[:, 1, a, b, 0, 0], pay[:, 2, a, b, c, d]])[
            : length(o)
        ]  # [time agent]
        exact = exact - scores.sum().exp() * paid.sum(0)
        before = torch.stack([early[0], late[1, a, 0], late[2, a, b]])[: length(o)]
        advantage = paid.flip(0).cumsum(0).flip(0) - before
        frames = twice_differentiable(
            magic_box(scores)[:, None] * advantage, scores, torch.zeros(length(o), dtype=torch.long)
        )
        losses = losses + scores.sum().exp().detach() * frames.sum(0)

    def derivatives(loss):
        flat = torch.cat([g.flatten() for g in torch.autograd.grad(loss, params, create_graph=True)])
        rows = [
            torch.autograd.grad(g, params, retain_graph=True, allow_unused=True, materialize_grads=True)
            for g in flat
        ]
        return flat.detach(), torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])

    for mine, theirs in zip(losses, exact):
        for found, right in zip(derivatives(mine), derivatives(theirs)):
            torch.testing.assert_close(found, right)


def test_returns_by_brute_force():
    rng, gamma = torch.Generator().manual_seed(1), 0.8
    B, T = 20, 9
    reward, value, target = (torch.randn(B, T, 2, generator=rng) for _ in range(3))
    turns, done = torch.rand(B, T, 2, generator=rng) < 0.3, torch.rand(B, T, generator=rng) < 0.2
    togo, known = returns_to_go(reward, value, target, turns, done, gamma)
    for b, t, i in product(range(B), range(T), range(2)):
        total, discount, u = 0.0, 1.0, t
        settled = lambda s: done[b, s:].any() or turns[b, s + 1 :, i].any()
        assert known[b, t, i] == settled(t)
        while u < T and not turns[b, u, i]:
            total, discount, u = total + discount * reward[b, u, i], discount * gamma, u + 1
            if done[b, u - 1]:
                break
        if (u == t or not done[b, u - 1]) and u < T:
            total = total + discount * (target if settled(u) else value)[b, u, i]
        if known[b, t, i] or turns[b, t, i]:
            torch.testing.assert_close(togo[b, t, i], torch.as_tensor(total))


@pytest.mark.parametrize(
    "sequence", [(("verifier",),), (("verifier", "prover"), ("prover",)), (("verifier",), ("prover0",))]
)
def test_a_sequence_names_everyone_once(sequence):
    with pytest.raises(
        ParameterError,
        match="spg.stackelberg_sequence: must name each agent of the protocol once: prover, verifier",
    ):
        tiny(**{"spg.stackelberg_sequence": sequence}).validate()


RESTING = {"_type": "ContiguousPeriodicUpdateSchedule", "period": 10, "start": 5, "stop": 6}
ALONE = {
    "random": {"agents.prover": {"is_random": True}},
    "frozen": {"agents.prover.freeze_agent": True},
    "resting": {"agents.prover.update_schedule": RESTING},
}


@pytest.mark.parametrize("changes", ALONE.values(), ids=ALONE)
def test_who_does_not_learn_is_not_foreseen(changes):
    trainer = prepared(tiny().replace(changes))
    before = {k: v.clone() for k, v in trainer.instance.state_dict().items()}
    metrics = trainer.iterate()
    moved = {
        k.split(".")[0]
        for k, v in trainer.instance.state_dict().items()
        if "norm" not in k and not torch.equal(v, before[k])
    }
    assert moved == {"verifier"} and metrics["verifier.foresight"] == 0


CASES = {
    "follower first": {"spg.stackelberg_sequence": (("prover",), ("verifier",))},
    "all at once": {"spg.stackelberg_sequence": (("prover", "verifier"),)},
    "three levels": {
        "interaction_protocol": "debate",
        "spg.stackelberg_sequence": (("verifier",), ("prover0",), ("prover1",)),
    },
    "zero knowledge": {"protocol_common.zero_knowledge": True},
    "uniform questions": {"agents": {"verifier": {"block_selector": "uniform"}}},
    "separate bodies": {"rl.use_shared_body": False},
    "critic apart": {"rl.critic_trains_body": False},
    "half a game": {"nip_protocol.max_message_rounds": 4, "rl.steps_per_env_per_iteration": 3},
    "kl penalty": {"ppo.loss_type": "kl_penalty"},
    "one at a time": {"rl.minibatch_size": 1},
    "solo": {"interaction_protocol": "solo_verifier"},
}


@pytest.mark.parametrize("variant", ["psos", "spg"])
@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_it_trains(changes, variant):
    trainer = prepared(tiny(**{"spg.variant": variant}).replace(changes))
    metrics = trainer.iterate()
    assert metrics["verifier.gradient_norm"] > 0
    groups = trainer.protocol.stackelberg_sequence
    assert all(metrics[f"{a}.foresight"] == 0 for a in groups[-1])


def test_the_same_twice():
    first, second = (prepared(tiny(**{"spg.variant": "spg", "spg.ihvp_rank": 3})).iterate() for _ in range(2))
    assert repr(first) == repr(second)
