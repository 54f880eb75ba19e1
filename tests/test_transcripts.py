"""Text episodes are read as each agent saw them, judged, played by persons, priced and tested again."""

import json
import random
from functools import partial

import pytest
from tqdm import tqdm

from nip import (
    HyperParameters,
    ParameterError,
    TranscriptBrowser,
    Transcripts,
    analyse,
    resume_experiment,
    run_experiment,
)
from nip.agents.prompts import ParsedReply, ReplyFormat
from nip.analysis.answer_trees import AnswerTree, node_positions
from nip.analysis.episode_view import Episode, Rules
from nip.analysis.human_player import HumanPlayer
from nip.analysis.transcript_judge import Analysis, queries, rollout_analysers
from nip.analysis.transcripts import ENDINGS, kept_episodes
from nip.builder.inspector import Inspector
from nip.builder.play import Play
from nip.cli import main
from nip.core.files import JsonLines
from nip.episodes.text_episodes import episode_specs, play_episodes
from nip.experiments.cost import episode_counts, price, prompts_of, texts_of
from nip.language_models.budget import SpendingLimitReached
from nip.language_models.chat import ScriptedModel
from nip.language_models.fine_tuning import JobStatus, ScriptedFineTuner
from nip.parameters.settings import ExperimentSettings
from nip.protocols.handler import verdict_scales
from nip.runs.store import RunStore
from nip.runs.trackers import Tracker, register_tracker, trackers
from nip.scenarios.build import build_scenario_instance
from nip.training.trainer import StopRequest

PROTOCOLS = ["nip", "adp", "debate", "mnip", "merlin_arthur", "solo_verifier", "multi_channel_test"]
MADE_UP = {"_default": {"use_dummy_api": True}}
quiet = partial(tqdm, disable=True)
QUIET = ExperimentSettings(tqdm_func=quiet)


def experiment(protocol="nip", trainer="pure_text_ei", **changes):
    rl = {"rollouts_per_iteration": 6, "num_iterations": 2, "num_test_iterations": 1}
    return HyperParameters("code_validation", trainer, "test", protocol, agents=MADE_UP, rl=rl).replace(
        changes
    )


def speak(form: ReplyFormat, seed: int) -> str:
    "A word of its own in each channel, and a verdict only when there must be one"
    if form.must_decide:
        return "Decision: accept"
    return form.write(ParsedReply({c: f"word{seed}in{i}." for i, (c, _) in enumerate(form.headers)}))


@pytest.fixture
def run(tmp_path):
    hp = experiment("debate", **{"text_rl.test_scheme": "all"})
    return run_experiment(hp, run_store=tmp_path, run_id="debate", tqdm_func=quiet).run


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_agent_is_shown_what_it_could_see_and_nothing_else(protocol, monkeypatch):
    monkeypatch.setattr(ReplyFormat, "random_reply", speak)
    hp = experiment(protocol)
    instance = build_scenario_instance(hp)
    env, sees = instance.train_environment, set(instance.protocol_handler.agent_channel_visibility)
    for record in play_episodes(instance, env, episode_specs(0, "train", 0, 2, 10)):
        game = Episode.from_record(record, Rules.of(hp), "000000")
        for agent in game.rewards:
            shown = game.view(agent), game.text(agent)
            for other in record["turns"]:
                for channel, text in other["said"].items():
                    assert all((text in s) == ((agent, channel) in sees) for s in shown)
                if other["agent"] != agent:
                    told = other["prompt"][0]["content"][:60]
                    assert agent == "verifier" or other["agent"] != "verifier" or told not in shown[0]
            assert "label <b>" not in shown[0] and "label" not in shown[1]
            has_spoken = any(t.agent == agent for t in game.turns)
            assert game.view(agent).count("prompt and reply") == has_spoken
        whole = game.view()
        assert all(text in whole for t in record["turns"] for text in t["said"].values())


def test_games_of_a_run_are_found_and_chosen(run):
    kept = Transcripts(run)
    assert list(kept.files) == ["test", "test-000000", "test-000001", "000001", "000000"]
    assert Transcripts("debate", run_store=run.dir.parent).name == "test"
    by_ending = {e: kept.select(ending=e) for e in ENDINGS}
    assert sum(map(len, by_ending.values())) == len(kept) == 10
    assert all(g.rewards["prover1"] >= 1 for g in kept.select(reward=["prover1>=1", "verifier<=1"]))
    word = kept[0].record["turns"][0]["reply"].split()[-1]
    assert kept[0].record in [g.record for g in kept.select(text=word.upper())]
    for wrong in ({"ending": "won"}, {"label": "2"}, {"reward": "judge>0"}, {"reward": "verifier"}):
        with pytest.raises(ParameterError):
            kept.select(**wrong)
    alone = run.dir.parent / "alone.jsonl"
    alone.write_bytes(kept.files["test"].read_bytes())
    bare = Transcripts(alone)
    assert bare.rules is None and bare[0].view() and bare[0].text()
    with pytest.raises(ParameterError, match="hyper-parameters of the episode are missing"):
        bare[0].view("verifier")
    assert TranscriptBrowser(bare).episodes[0].record == kept[0].record
    with pytest.raises(FileNotFoundError):
        Transcripts(run.dir.parent / "none.jsonl")


def test_hostile_text_is_shown_as_text(run):
    record = json.loads(json.dumps(Transcripts(run)[0].record))
    evil = "<script>alert(1)</script>\n```python\n</pre><b>x</b>\n```\n```<i>\n</i>"
    record["instance"] = {"question": evil, "solution": evil}
    turn = next(t for t in record["turns"])
    turn["said"] = dict.fromkeys(["prover0_channel"], evil)
    turn["prompt"] = [{"role": "user", "content": evil}]
    turn["reply"] = evil
    for rules in (Transcripts(run).rules, None):
        shown = Episode.from_record(record, rules, "<name>").view()
        assert "<script>" not in shown and "<b>x" not in shown and "<i>" not in shown


def test_lines_are_read_while_they_are_written(tmp_path):
    path, rng, written = tmp_path / "games.jsonl", random.Random(0), 0
    lines, whole = (
        JsonLines(path),
        b"".join(json.dumps({"game": i, "text": "ü\n" * i}).encode() + b"\n" for i in range(40)),
    )
    while written < len(whole):
        step = rng.randint(1, 60)
        with path.open("ab") as f:
            f.write(whole[written : written + step])
        written += step
        assert [r["game"] for r in lines.read()] == list(range(whole[:written].count(b"\n")))
    path.write_bytes(b'{"game": 7}\n')
    assert lines.read() == [{"game": 7}]


def test_trees_are_drawn_with_every_answer_once(tmp_path):
    hp = experiment(
        "debate", "pure_text_malt", **{"rl.num_iterations": 1, "debate_protocol.max_message_rounds": 6}
    )
    forest = Transcripts(run_experiment(hp, run_store=tmp_path, tqdm_func=quiet).run)
    for game in forest:
        nodes = game.record["nodes"]
        at = node_positions(nodes)
        tree = AnswerTree(game)
        assert len(set(at.values())) == len(at) == len(nodes) + 1
        assert tree.html().count("<details>") == len(nodes) + 1
        found = next(e for e in (tree.up_to(n["node"]) for n in nodes) if e.turns == game.turns)
        assert found.verdict == game.verdict and found.rewards == game.rewards
        assert found.num_rounds == game.num_rounds
    browser = TranscriptBrowser(forest)
    for value in [v for _, v in browser.node.options]:
        browser.node.value = value
        assert "<svg" in browser.tree.value
    browser.seen_as.value = "prover0"
    assert browser.tree.value == ""


def test_every_message_is_asked_about_however_long_the_game(monkeypatch, tmp_path):
    "More rounds than channels, in every protocol whose provers have names"
    monkeypatch.setattr(ReplyFormat, "random_reply", speak)
    for protocol in ("nip", "debate", "multi_channel_test", "solo_verifier"):
        run = run_experiment(experiment(protocol), run_store=tmp_path, run_id=protocol, tqdm_func=quiet).run
        game = Transcripts(run)[0]
        asked = list(queries(rollout_analysers["prover_role_conformance"], [game]))
        spoken = {
            (t["agent"], c) for t in game.record["turns"] for c in t["said"] if t["agent"] != "verifier"
        }
        assert {(q.agent, q.channel) for q in asked} == spoken
        for q in asked:
            said = [t["said"][q.channel] for t in game.record["turns"] if q.channel in t["said"]]
            assert all(text in q.text for text in said)
        for name in rollout_analysers:
            assert all(q.text.count("# Question") == 1 for q in queries(rollout_analysers[name], [game]))
        found = analyse(run, dry_run=True, settings=QUIET)
        assert not (run.dir / "analyses").exists()
        assert protocol == "solo_verifier" or found.plot() is not None


def test_an_analysis_that_was_stopped_goes_on(run):
    answers = {"left": 5}

    def reply(request):
        if answers["left"] == 0:
            raise KeyboardInterrupt
        answers["left"] -= 1
        return "No."

    class OneByOne(ScriptedModel):
        def answers(self, requests):
            for place, request in enumerate(requests):
                yield place, self.answer_all([request])[0]

    judge = OneByOne("judge", reply)
    with pytest.raises(KeyboardInterrupt):
        analyse(run, ["prover_direct_quotation"], judge, settings=QUIET)
    lines = [line for f in (run.dir / "analyses").rglob("*.jsonl") for line in f.read_text().splitlines()]
    assert len(lines) == 5
    answers["left"] = 10**6
    found = analyse(run, ["prover_direct_quotation"], judge, settings=QUIET)
    asked = sum(
        len(list(queries(rollout_analysers["prover_direct_quotation"], Transcripts(run, n))))
        for n in kept_episodes(run)
    )
    assert len(found.records) == asked == 10**6 - answers["left"] + 5
    assert found.summary["yes"].eq(0).all()


def test_a_judge_keeps_to_its_limit(run):
    class Dear(ScriptedModel):
        price = (1e6, 1e6)

        def answers(self, requests):
            for place, request in enumerate(requests):
                reply = self.answer_all([request])[0]
                reply.prompt_tokens = 1
                yield place, reply

    limited = ExperimentSettings(tqdm_func=quiet, spending_limit=3.0)
    with pytest.raises(SpendingLimitReached):
        analyse(run, ["follow_up"], Dear("dear", lambda r: "yes"), settings=limited)
    lines = [line for f in (run.dir / "analyses").rglob("*.jsonl") for line in f.read_text().splitlines()]
    assert (
        len(lines) == 3
        and json.loads((run.dir / "analyses" / "spending.json").read_text())["total"]["cost"] == 3
    )


def test_an_analysis_of_nothing_can_be_shown():
    nothing = Analysis([])
    assert nothing._repr_html_() and repr(nothing) and nothing.plot() is not None


def test_games_of_words_are_told_to_trackers(run):
    told = []

    @register_tracker("listener")
    class Listener(Tracker):
        def keep(self, kind, path):
            told.append((kind, path.name))

    try:
        run.push("listener")
    finally:
        trackers._entries.pop("listener")
    assert {("rollouts", "test.jsonl"), ("transcripts", "test.yaml")} <= set(told)


def test_from_a_terminal(run, monkeypatch, capsys):
    monkeypatch.setenv("NIP_RUNS", str(run.dir.parent))
    assert main(["transcripts", "debate", "--limit", "2", "--seen-by", "prover0"]) == 0
    assert "label" not in capsys.readouterr().out.split("episodes out of")[0]
    assert (
        main(["transcripts", "debate", "--games", "000001", "--ended", "right", "--reward", "verifier>0"])
        == 0
    )
    assert "(right)" in (out := capsys.readouterr().out) and "(wrong)" not in out
    assert main(["transcripts", "debate", "--ended", "won"]) == 2
    assert main(["analyse", "debate", "--dry-run", "--analysers", "follow_up"]) == 0
    assert "follow_up" in capsys.readouterr().out
    assert main(["analyse", "debate", "--dry-run", "--analysers", "follow"]) == 2
    assert "Valid: follow_up" in capsys.readouterr().err


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_person_in_every_seat(protocol):
    hp = experiment(protocol)
    instance, rng = build_scenario_instance(hp), random.Random(protocol)

    class Table:
        pass

    trainer = Table()
    trainer.instance = instance
    sees = set(instance.protocol_handler.agent_channel_visibility)
    for seat in instance.protocol_handler.agent_names:
        for seed in range(2):
            person = HumanPlayer(trainer, seat, seed, seed)
            while not person.over:
                view = person.view()
                for t in person.episode.turns:
                    for c, text in t.messages.items():
                        assert (seat, c) not in sees or text in view
                assert "label <b>" not in view
                verdict = rng.choice(person.verdicts) if person.verdicts and rng.random() < 0.5 else None
                if verdict is None and not person.entries:
                    with pytest.raises(ValueError, match="verdict: one is due in this round"):
                        person.move()
                    verdict = person.verdicts[0]
                person.move({} if verdict else {e: f"mine {rng.random()}" for e in person.entries}, verdict)
            mine = [t for t in person.episode.turns if t.agent == seat]
            assert all(t.source["is_valid"] and t.source["num_retries"] == 0 for t in mine)
            assert all(text.startswith("mine") for t in mine for text in t.messages.values())
            assert "label <b>" in person.view() and person.episode.ending in ENDINGS
            with pytest.raises(ValueError, match="the episode is over"):
                person.move({})


@pytest.mark.parametrize("scale", sorted(verdict_scales))
def test_a_person_decides_on_any_scale(scale):
    hp = experiment("solo_verifier", **{"protocol_common.verdict_scale": scale})

    class Table:
        instance = build_scenario_instance(hp)

    for word in [*verdict_scales[scale]][:: max(1, len(verdict_scales[scale]) // 5)]:
        person = HumanPlayer(Table, "verifier", 0)
        assert person.verdicts == list(verdict_scales[scale])
        person.move(verdict=word)
        assert person.over and person.episode.turns[0].decision is not None


def test_a_person_is_a_random_agent_s_stand_in_too(tmp_path):
    hp = experiment("nip", agents={"prover": {"is_random": True}, "verifier": {"use_dummy_api": True}})

    class Table:
        instance = build_scenario_instance(hp)

    person = HumanPlayer(Table, "prover", 0, 1)
    if not person.over:
        person.move({"main": "Believe me."})
        assert any(t.messages.get("main") == "Believe me." for t in person.episode.turns)


def test_what_was_played_is_kept_with_the_run(run):
    play = Play(run.dir.parent)
    play.seat.value = "verifier"
    for n in range(2):
        play.start.click()
        while not play.person.over:
            play.decision.value = "accept"
            play.controls.children[-1].click()
            assert play.notice.value == ""
        assert f"played.jsonl, episode {n}" in play.controls.children[0].value
    kept = Transcripts(run, "played")
    assert [g.record["game"] for g in kept] == [0, 1] and {g.record["person"] for g in kept} == {"verifier"}
    assert "A person was" in kept[0].view()
    assert len(Transcripts(run, "test")) == 10  # nothing else was changed


@pytest.mark.parametrize("trainer", ["pure_text_ei", "pure_text_malt"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_prompts_and_price_are_those_of_the_run(protocol, trainer, monkeypatch):
    "When everybody says what stands in for it, the prompts foretold are those sent, and calls are counted exactly"
    hp = experiment(
        protocol,
        trainer,
        **{"rl.num_iterations": 1, "rl.rollouts_per_iteration": 3, "rl.num_test_iterations": 1},
    )
    if protocol in ("nip", "debate", "mnip"):
        hp = hp.replace({f"{protocol}_protocol.max_message_rounds": 5})
    monkeypatch.setattr(ReplyFormat, "random_reply", speak)
    result = run_experiment(hp, run_store=None, test_run=True, tqdm_func=quiet)
    records = result.trainer.record_file("000000").in_order
    instance = result.scenario_instance
    for record in records:
        for agent in instance.protocol_handler.agent_names:
            mine = {t["round"]: t for t in record["turns"] if t["agent"] == agent}
            said = {
                (t["round"], t["agent"], c): text for t in record["turns"] for c, text in t["said"].items()
            }
            index = (instance.train_dataset.td["id"] == record["id"]).nonzero().item()
            texts = texts_of(instance.scenario, instance.train_dataset, index)
            speaker = instance.scenario.speaker(instance.protocol_handler, agent)
            found = prompts_of(
                speaker,
                texts,
                record["seed"],
                record["stance"],
                lambda p, t, said=said: said.get((t.round, t.agent, t.channel), ""),
            )
            assert {r: found[r] for r in mine} == {r: t["prompt"] for r, t in mine.items()}
    calls = sum(len(n["turns"]) for r in records for n in r.get("nodes", [{"turns": r["turns"]}]))
    foretold, played = price(hp).calls * len(records), calls * episode_counts(hp, 10, 10)[0]
    ends_sooner = (
        protocol == "multi_channel_test"
    )  # provers would have the last word, but the verifier has decided
    assert foretold > played if ends_sooner else foretold == played


@pytest.mark.parametrize(
    "protocol, trainer", [*((p, "pure_text_malt") for p in PROTOCOLS), ("nip", "pure_text_ei")]
)
def test_every_stage_can_be_inspected(protocol, trainer):
    hp = experiment(protocol, trainer)
    inspector = Inspector(lambda: hp, lambda: {"num_threads": 1})
    inspector.build_button.click()
    inspector.thread.join()
    assert "stages are built" in inspector.progress.value

    def on_page(widget) -> str:
        below = "".join(on_page(child) for child in getattr(widget, "children", ()))
        return str(getattr(widget, "value", "")) + below

    for section in inspector.sections.values():
        section.button.value = True
        assert on_page(section.body) and "nip-wrong" not in on_page(section.body)
    assert "made up" in on_page(inspector.sections["agent verifier"].body)
    assert inspector.instance._repr_html_()


@pytest.fixture
def renaming(monkeypatch):
    "Fine-tuning that gives a model another name"
    monkeypatch.setattr(
        ScriptedFineTuner, "poll", lambda self, job: JobStatus("succeeded", f"{job.partition(':')[2]}+")
    )


def learner(protocol="nip", **changes):
    scratch = {
        "agents": {"_default": {"use_dummy_api": True, "fine_tune_from_scratch": False, "model_name": "m"}}
    }
    learns = {"fine_tuning.min_examples": 1, "pure_text_ei.reward_threshold": -9.0, "rl.num_iterations": 3}
    return experiment(protocol).replace(learns | scratch | changes)


def test_tests_are_run_again_with_the_models_of_their_time(tmp_path, renaming, monkeypatch):
    import nip.text_training.trainer as text_rl

    whole = run_experiment(
        learner(**{"text_rl.test_scheme": "all"}), run_store=tmp_path, run_id="whole", tqdm_func=quiet
    )
    run_experiment(learner(), run_store=tmp_path, run_id="untested", tqdm_func=quiet)
    at, play = [], text_rl.play_episodes
    monkeypatch.setattr(
        text_rl,
        "play_episodes",
        lambda i, *args: (at.append(i.agents["verifier"].whole.model_name), play(i, *args))[1],
    )
    again = lambda scheme, **more: learner(
        **{
            "text_rl.test_scheme": scheme,
            "base_run": {"base_run_type": "rerun_tests", "run_id": "untested"} | more,
        }
    )
    result = run_experiment(again("all"), run_store=tmp_path, run_id="again", tqdm_func=quiet)
    assert at == ["m", "m+", "m++", "m+++"] and result.status == "finished"
    for name in ("test-000000", "test-000001", "test-000002", "test"):
        ours, theirs = ((r.run_dir / "rollouts" / f"{name}.jsonl").read_text() for r in (result, whole))
        assert sorted(ours.splitlines()) == sorted(theirs.splitlines())
    assert list(result.history.index) == [0, 1, 2, 3]
    at.clear()
    run_experiment(again("first_and_last"), run_store=tmp_path, tqdm_func=quiet)
    run_experiment(again("last"), run_store=tmp_path, tqdm_func=quiet)
    assert at == ["m", "m+++", "m+++"]


def test_where_a_run_had_stopped_is_tested_if_that_is_wanted(tmp_path, renaming, monkeypatch):
    import shutil

    from nip.text_training.trainer import TextRlTrainer

    statistics = TextRlTrainer.log_stats

    def stop_here(self):
        statistics(self)
        if self.iteration == 2:
            self.stop.stop()

    monkeypatch.setattr(TextRlTrainer, "log_stats", stop_here)
    run = run_experiment(learner(), run_store=tmp_path, run_id="stopped", tqdm_func=quiet).run
    shutil.rmtree(run.dir / "checkpoints" / "000001")  # so that only the one in the middle tells of its time
    assert run.checkpoints == [0, 2]
    for force, expected in ((True, [0, 1, 2]), (False, [0, 1])):
        base = {
            "base_run_type": "rerun_tests",
            "run_id": "stopped",
            "rerun_tests_force_test_during_training_state": force,
        }
        result = run_experiment(
            learner(**{"text_rl.test_scheme": "all", "base_run": base}), run_store=tmp_path, tqdm_func=quiet
        )
        assert list(result.history.index) == expected


def test_tests_that_were_stopped_go_on(tmp_path, renaming):
    run_experiment(learner(), run_store=tmp_path, run_id="first", tqdm_func=quiet)
    base = {"base_run_type": "rerun_tests", "run_id": "first"}
    hp, stop = learner(**{"text_rl.test_scheme": "all", "base_run": base}), StopRequest(say=lambda text: None)

    class Watch(tqdm):
        def update(self, n=1):
            if self.desc == "test episodes" and self.n == 5:
                stop.stop()
            return super().update(n)

    once = run_experiment(hp, run_store=tmp_path, run_id="once", tqdm_func=quiet)
    import io

    part = run_experiment(
        hp,
        run_store=tmp_path,
        run_id="again",
        stop_request=stop,
        tqdm_func=partial(Watch, file=io.StringIO()),
    )
    assert part.status == "interrupted"
    files = {f.name: f.read_bytes() for f in (part.run_dir / "rollouts").iterdir()}
    whole = resume_experiment("again", run_store=tmp_path, tqdm_func=quiet)
    assert whole.status == "finished" and whole.metrics == once.metrics
    assert all((whole.run_dir / "rollouts" / n).read_bytes().startswith(b) for n, b in files.items())


def test_an_agent_of_an_earlier_run_brings_its_model(tmp_path, renaming):
    run_experiment(learner(), run_store=tmp_path, run_id="teacher", tqdm_func=quiet)
    lent = {"load_checkpoint_and_parameters": True, "checkpoint_run_id": "teacher", "freeze_agent": True}
    meets = experiment().replace(
        {"agents.prover": lent, "rl.num_iterations": 1, "agents.verifier.model_name": "v"}
    )
    result = run_experiment(meets, run_store=tmp_path, tqdm_func=quiet)
    assert result.scenario_instance.agents["prover"].whole.model_name == "m+++"
    assert result.scenario_instance.agents["verifier"].whole.model_name != "m+++"
    assert HyperParameters.from_dict(result.run.hyper_params).agents["prover"].model_name == "m+++"
    first = meets.replace({"agents.prover.checkpoint_version": "0"})
    assert (
        run_experiment(first, run_store=tmp_path, tqdm_func=quiet)
        .scenario_instance.agents["prover"]
        .whole.model_name
        == "m+"
    )
    with pytest.raises(ParameterError, match="another role"):
        run_experiment(meets.replace({"interaction_protocol": "adp"}), run_store=tmp_path, tqdm_func=quiet)
    with pytest.raises(ParameterError, match="no checkpoint '77'"):
        run_experiment(
            meets.replace({"agents.prover.checkpoint_version": "77"}), run_store=tmp_path, tqdm_func=quiet
        )
    RunStore(tmp_path).create(learner(), run_id="empty").finish("finished", {})
    with pytest.raises(ParameterError, match="cannot be read"):
        run_experiment(
            meets.replace({"agents.prover.checkpoint_run_id": "empty"}), run_store=tmp_path, tqdm_func=quiet
        )
