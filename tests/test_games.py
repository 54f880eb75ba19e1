"""A person can sit in every seat of every protocol, and sees and does what the protocol says."""

import json
import random
import re
from itertools import islice

import pytest
import torch

from nip import HyperParameters, run_experiment
from nip.analysis.episode_view import Episode, EpisodeView, Rules
from nip.analysis.human_player import HumanPlayer
from nip.builder.play import Play
from nip.builder.replay import EpisodeBrowser
from nip.core.display import picture
from nip.experiments.presets import preset
from nip.parameters.hyper_params import protocol_handlers, scenarios, trainers
from nip.parameters.settings import ExperimentSettings
from nip.protocols.handler import build_protocol_handler
from nip.scenarios.build import build_scenario_instance, build_stages
from nip.scenarios.text import TextScenario

QUICK = {"rl.num_iterations": 1, "rl.rollouts_per_iteration": 16, "rl.minibatch_size": 16}


def hyper_params(protocol: str, zero_knowledge: bool = False, **changes):
    return preset("parity_quick", interaction_protocol=protocol, **{"protocol_common.zero_knowledge": zero_knowledge}, **QUICK, **changes)  # fmt: skip


def table(hp):
    trainer = trainers[hp.trainer](build_scenario_instance(hp))
    trainer.prepare()
    return trainer


def play_at_random(person: HumanPlayer, rng: random.Random) -> list[str]:
    "Legal moves to the end; all that the person was shown on the way"
    shown = []
    while not person.over:
        shown.append(person.view())
        messages = {entry: rng.choice(choices)[1] for entry, choices in person.entries.items()}
        person.move(messages, rng.choice([None, *person.verdicts]))
    return shown


def tables():
    for name in protocol_handlers.names():
        yield pytest.param(name, False, id=name)
        if protocol_handlers[name].__module__.startswith("nip.") and name != "solo_verifier":
            yield pytest.param(name, True, id=f"{name}-zk")


@pytest.mark.parametrize("protocol, zero_knowledge", [*tables()])
def test_every_seat(protocol, zero_knowledge):
    try:
        hp = hyper_params(protocol, zero_knowledge)
    except ValueError as error:
        pytest.skip(str(error))
    trainer, rng = table(hp), random.Random(0)
    handler = trainer.protocol
    for seat in handler.agent_names:
        for seed in range(handler.num_variants):
            person = HumanPlayer(trainer, seat, seed, seed)
            shown = play_at_random(person, rng)
            game = person.episode
            assert game.is_over and len(person.place.frames) == game.num_rounds <= handler.max_message_rounds
            assert "Rewards:" in person.view() and not any("Rewards:" in v for v in shown)
            assert not any("label <b>" in v or "You know" in v for v in shown)
            for rounds in range(game.num_rounds + 1):
                seen = EpisodeView(game, seat, rounds)
                heard = {channel for turn in seen.turns for channel in turn.messages}
                assert heard <= {c for a, c in handler.agent_channel_visibility if a == seat}
                assert all(turn.round < rounds for turn in seen.turns)
                assert not (set(handler.message_channel_names) - set(game.channels(seat))) & set(
                    seen.channels
                )
                assert all(
                    t.decision is t.reward is None and not t.odds for t in seen.turns if t.agent != seat
                )
            turns = [r for r in range(game.num_rounds) if handler.active[seed % handler.num_variants, r, handler.agent_names.index(seat)].any()]  # fmt: skip
            assert len(shown) == len(turns)


def test_a_seat_plays_what_is_said():
    "What the person says is what the others hear, and what the person decides is the verdict"
    trainer = table(hyper_params("nip"))
    for seed in range(20):
        person = HumanPlayer(trainer, "verifier", seed, seed)
        while not person.over:
            entries = dict.fromkeys(person.entries, 3)
            channels = {entry.channel for entry in entries}
            last = len(person.place.frames) + 2 >= trainer.protocol.max_message_rounds
            verdict = ("reject", "accept")[seed % 2] if last and person.verdicts else None
            person.move(entries, verdict)
            mine = [t for t in person.episode.turns if t.agent == "verifier" and channels & set(t.channels)]
            assert mine and all(set(t.marks) == {3} for t in mine)
        assert person.episode.verdict == ("reject", "accept")[seed % 2]


def test_the_same_seed_is_the_same_game():
    trainer = table(hyper_params("debate"))
    rewards = []
    for _ in range(2):
        person = HumanPlayer(trainer, "verifier", 5, 7)
        play_at_random(person, random.Random(3))
        rewards.append((person.episode.rewards, [t.marks for t in person.episode.turns]))
    assert rewards[0] == rewards[1]


def test_hidden_blocks_stay_hidden():
    trainer = table(hyper_params("nip"))
    scenario, instance = trainer.instance.scenario, trainer.instance.test_dataset[0]
    assert (scenario.seen_by("prover", instance, [])["bits"] >= 0).all()
    seen = scenario.seen_by("verifier", instance, [2, 2])["bits"]
    assert (seen[2] == instance["bits"][2]).all() and (seen < 0).any(-1).tolist() == [True, True, False, True]


def test_more_than_one_thing_at_a_time():
    "Messages of two positions, and numbers beside them"
    changes = {"message_size": 2, "include_linear_message_space": True, "d_linear_message_space": 3}
    trainer = table(hyper_params("nip", **changes))
    person = HumanPlayer(trainer, "prover", 0, 0)
    assert len({entry.space for entry in person.entries}) == 2
    assert {entry.position for entry in person.entries} == {0, 1}
    play_at_random(person, random.Random(0))
    assert all(len(t.marks) == 2 for t in person.episode.turns)
    assert all(
        text.count(", ") == 2 and "; " in text for t in person.episode.turns for text in t.messages.values()
    )


def test_graphs(tmp_path):
    hp = preset(
        "graph_isomorphism_quick",
        **{"rl.num_iterations": 1, "rl.rollouts_per_iteration": 8, "dataset": "test"},
    )
    run = run_experiment(hp, run_store=tmp_path, run_id="graphs").run
    play = Play(tmp_path)
    for seat in build_protocol_handler(hp).agent_names:
        play.seat.value = seat
        play.start.click()
        assert play.notice.value == "" and "<svg" in play.picture.value
        while not play.person.over:
            assert all(
                text.startswith("graph ") for control in play.widgets.values() for text, _ in control.options
            )
            play.controls.children[-1].click()
            assert play.notice.value == ""
    kept = [json.loads(f.read_text())[0] for f in sorted((run.dir / "rollouts").glob("played-*.json"))]
    assert [k["person"] for k in kept] == build_protocol_handler(hp).agent_names
    browser = EpisodeBrowser(run)
    assert [v for _, v in browser.kept.options][:3] == ["test", "played-001", "played-002"]
    browser.kept.value = "played-002"
    assert "graph 1, node" in browser.picture.value or "graph 2, node" in browser.picture.value


@pytest.mark.parametrize("name", [n for n in scenarios.names() if not issubclass(scenarios[n], TextScenario)])
def test_drawings_have_no_ground_of_their_own(name):
    "So that they are legible on a dark page"
    hp = HyperParameters(name, "vanilla_ppo", scenarios[name].dataset_names()[-1])
    built = dict(islice(build_stages(hp, ExperimentSettings()), 4))
    scenario, instance = scenarios[name](hp, ExperimentSettings()), built["test data"][0]
    drawn = picture(lambda figure: scenario.draw(instance, [0, 1], figure))
    ground = re.search(r'-patch_1">.*?style="([^"]*)"', drawn, re.S)[1]
    assert "fill: none" in ground or "opacity: 0" in ground


def test_games_that_have_not_ended_are_shown():
    "Frames that stop before the end, as of a run that was killed"
    trainer = table(hyper_params("nip"))
    env = trainer.instance.test_environment
    frames = trainer.without_epilogue(trainer.play_out(env, torch.arange(4), torch.arange(4)))
    frames["done"] = torch.zeros_like(frames["done"])
    rules = Rules.of(trainer.hyper_params)
    browser = EpisodeBrowser([Episode.from_rollout(f, rules, n) for n, f in enumerate(frames)])
    assert "undecided" in browser.which.options[0][0] and "Rewards" not in browser.picture.value
    browser.ending.value = "right"
    assert "There is no such episode" in browser.picture.value
