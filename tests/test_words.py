"""Games of words: who is told what, under every protocol; runs that are killed; models and servers that are real."""

import os
import random
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
from tqdm import tqdm

from nip import HyperParameters, ParameterError, resume_experiment, run_experiment
from nip.agents.prompts import ParsedReply, ReplyFormat, headers, reply_format
from nip.episodes.text_episodes import episode_specs, play_episodes
from nip.protocols.handler import build_protocol_handler, verdict_scales
from nip.protocols.messages import Turn
from nip.scenarios.build import build_scenario_instance

PROTOCOLS = ["nip", "adp", "debate", "mnip", "merlin_arthur", "solo_verifier", "multi_channel_test"]
MADE_UP = {"_default": {"use_dummy_api": True}}
quiet = partial(tqdm, disable=True)


def experiment(protocol="nip", trainer="pure_text_ei", **changes):
    rl = {"rollouts_per_iteration": 6, "num_iterations": 2, "num_test_iterations": 1}
    return HyperParameters("code_validation", trainer, "test", protocol, agents=MADE_UP, rl=rl, **changes)


@pytest.mark.parametrize(
    "protocol, more",
    [(p, {}) for p in PROTOCOLS]
    + [
        ("debate", {"debate_protocol": {"sequential": True}}),
        ("nip", {"protocol_common": {"verifier_first": False}}),
    ],
)
def test_models_are_told_what_their_agents_may_see_and_nothing_else(protocol, more, monkeypatch):
    def speak(form: ReplyFormat, seed: int) -> str:
        "A word of its own in each channel, and a verdict only when there must be one"
        if form.must_decide:
            return "Decision: accept"
        return form.write(ParsedReply({c: f"word{seed}in{i}." for i, (c, _) in enumerate(form.headers)}))

    monkeypatch.setattr(ReplyFormat, "random_reply", speak)
    instance = build_scenario_instance(experiment(protocol, **more))
    handler, env = instance.protocol_handler, instance.train_environment
    sees = set(handler.agent_channel_visibility)
    for game in play_episodes(instance, env, episode_specs(0, "train", 0, 4, len(env.dataset))):
        for turn in game["turns"]:
            told = "\n".join(m["content"] for m in turn["prompt"])
            for other in game["turns"]:
                for channel, text in other["said"].items():
                    heard = other["round"] < turn["round"] and (turn["agent"], channel) in sees
                    assert (text in told) == heard, (turn["agent"], other["agent"], channel)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_is_written_in_any_format_is_read_again(protocol):
    handler, rng = build_protocol_handler(experiment(protocol)), random.Random(protocol)
    for agent in handler.agent_names:
        for r in range(handler.max_message_rounds):
            form = reply_format(handler, agent, r, seed := rng.randrange(1000))
            if form.headers:
                said = ParsedReply({c: f"Look at line {rng.randrange(9)}:\n  x = 1" for c, _ in form.headers})
                assert form.read(form.write(said)) == said
                assert form.read(form.random_reply(seed)) is not None
        assert set(headers(handler, agent)) <= {c for a, c in handler.agent_channel_visibility if a == agent}


@pytest.mark.parametrize("scale", sorted(verdict_scales))
def test_every_verdict_of_every_scale_is_read_and_paid(scale):
    handler = build_protocol_handler(experiment("solo_verifier", protocol_common={"verdict_scale": scale}))
    form = reply_format(handler, "verifier", 0, 0)
    for word, grade in verdict_scales[scale].items():
        said = form.read(f"Well. Decision: {word.upper()}.")
        assert form.read(form.write(said)) == said
        assert (said.decision == 1) == (grade > 0.5) and (said.decision == 0) == (grade < 0.5)


def test_a_grade_pays_in_proportion():
    hp = experiment("solo_verifier", protocol_common={"verdict_scale": "out_of_10"})
    instance = build_scenario_instance(hp)
    games = list(play_episodes(instance, instance.train_environment, episode_specs(0, "train", 0, 8, 10)))
    assert len({g["rewards"]["verifier"] for g in games}) > 2
    for game in games:
        share = game["turns"][-1]["grade"] if game["label"] == "accept" else 1 - game["turns"][-1]["grade"]
        assert game["rewards"]["verifier"] == pytest.approx(2 * share - 1)


@pytest.mark.parametrize("trainer", ["pure_text_ei", "pure_text_malt"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_under_every_trainer(protocol, trainer, tmp_path):
    hp = experiment(protocol, trainer, text_rl={"test_scheme": "all"}).replace({"rl.num_iterations": 1})
    result = run_experiment(hp, run_store=tmp_path, tqdm_func=quiet)
    assert result.status == "finished" and 0 <= result.metrics["test_mean_accuracy"] <= 1
    assert {p.name for p in (result.run_dir / "rollouts").iterdir()} == {
        "000000.jsonl",
        "test-000000.jsonl",
        "test.jsonl",
    }


def test_stances_are_told_and_paid(tmp_path):
    hp = experiment("nip", protocol_common={"randomize_prover_stance": True})
    instance = build_scenario_instance(hp)
    games = list(play_episodes(instance, instance.train_environment, episode_specs(0, "train", 0, 20, 10)))
    assert {g["stance"] for g in games} == {0, 1}
    for game in games:
        for turn in game["turns"]:
            wants = ("reject", "accept")[game["stance"]]
            if turn["agent"] == "prover":
                assert f"to convince Verifier to {wants}" in turn["prompt"][0]["content"]
        paid = game["rewards"]["prover"]
        assert paid == float(game["verdict"] == ("reject", "accept")[game["stance"]])


KILLED = """
import sys, time
from functools import partial
from tqdm import tqdm
sys.path.insert(0, {tests!r})
from test_words import experiment, quiet
from nip import run_experiment
import nip.episodes.text_episodes as text_episodes
import nip.text_training.malt as malt
record = text_episodes.episode_record
def slow_record(*args):
    time.sleep(0.02)
    return record(*args)
text_episodes.episode_record = slow_record
malt.episode_record = slow_record
run_experiment(experiment({protocol!r}, {trainer!r}, text_rl={{"test_scheme": "last"}}).replace({{"rl.num_iterations": 3}}), run_store={store!r}, run_id={run!r}, tqdm_func=quiet)
"""


@pytest.mark.parametrize("protocol, trainer", [("debate", "pure_text_ei"), ("nip", "pure_text_malt")])
def test_a_run_that_is_killed_goes_on_and_ends_as_if_it_had_not_been(protocol, trainer, tmp_path):
    script = partial(
        KILLED.format,
        tests=os.path.dirname(__file__),
        protocol=protocol,
        trainer=trainer,
        store=str(tmp_path),
    )
    whole = experiment(protocol, trainer, text_rl={"test_scheme": "last"}).replace({"rl.num_iterations": 3})
    expected = run_experiment(whole, run_store=tmp_path, run_id="whole", tqdm_func=quiet)
    process = subprocess.Popen([sys.executable, "-c", script(run="killed")], stderr=subprocess.DEVNULL)
    there, limit = tmp_path / "killed" / "rollouts" / "000001.jsonl", time.monotonic() + 120
    while not there.exists() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = there.read_bytes().rpartition(b"\n")[0].splitlines()
    result = resume_experiment("killed", run_store=tmp_path, tqdm_func=quiet)
    assert result.status == "finished" and result.metrics == expected.metrics
    assert there.read_bytes().splitlines()[: len(before)] == before
    for name in ("000000", "000001", "000002", "test"):
        ours, theirs = (
            sorted((r.run_dir / "rollouts" / f"{name}.jsonl").read_text().splitlines())
            for r in (result, expected)
        )
        assert ours == theirs


def test_what_words_cannot_do_is_refused():
    for changes, why in [
        ({"protocol_common.zero_knowledge": True}, "write text"),
        ({"trainer": "vanilla_ppo"}, "does not train agents"),
        ({"message_size": 2}, "write text"),
        ({"dataset": "humaneval"}, "dataset"),
        ({"agents": {"verifier": {"model_provider": "Opnai"}}}, "did you mean 'OpenAI'"),
    ]:
        with pytest.raises(ParameterError, match=why):
            experiment().replace(changes)
    with pytest.raises(ParameterError, match="verdict_scale"):
        HyperParameters("parity", "solo_agent", "test", "adp", protocol_common={"verdict_scale": "likert5"})


def test_speaker_names_are_shown_where_there_are_several(tmp_path):
    instance = build_scenario_instance(experiment("debate"))
    verifier = instance.agents["verifier"].whole.prompt_writer
    assert verifier.observation(Turn(1, "prover0", "prover0_channel", "No.")) == "Expert_1: No."
    prover = instance.agents["prover0"].whole.prompt_writer
    assert (
        prover.observation(Turn(0, "verifier", "prover0_channel", "Why?")) == "Verifier (for Expert_1): Why?"
    )
    assert (
        prover.observation(Turn(0, "verifier", "prover1_channel", "Why?")) == "Verifier (for Expert_2): Why?"
    )
    alone = build_scenario_instance(experiment("nip")).agents["verifier"].whole.prompt_writer
    assert alone.observation(Turn(1, "prover", "main", "Yes.")) == "Yes."
