"""Models of words that are trained for good: in this process, in processes of their own, and behind a server that speaks as OpenAI's does."""

from functools import partial

import pytest
from test_serve import served
from tqdm import tqdm

from nip import HyperParameters, preset, resume_experiment, run_experiment
from nip.language_models.fine_tuning import FineTuner, JobStatus
from nip.language_models.local import model_path
from nip.language_models.local_fine_tuning import LocalFineTuner

quiet = partial(tqdm, disable=True)
run = partial(run_experiment, tqdm_func=quiet)


def games(result, name: str) -> list[dict]:
    return result.trainer.record_file(name).in_order


def made(result) -> dict[str, int]:
    "Models that each group has made"
    return {name: len(group.models) for name, group in result.trainer.model_groups.items()}


# What is learned


@pytest.fixture
def at_once(monkeypatch):
    "Jobs in this process, which has imported what they need"
    tuners = {"transformers": partial(LocalFineTuner, own_process=False)}
    monkeypatch.setattr("nip.agents.shared_models.fine_tuners", tuners)


def test_expert_iteration_teaches_a_verifier_to_judge(at_once, tmp_path):
    hp = preset("even_numbers_quick").replace({"rl.num_iterations": 1, "agents.prover.freeze_agent": True})
    result = run(hp, run_store=tmp_path)
    before, after = result.history["test_mean_accuracy"][0], result.metrics["test_mean_accuracy"]
    assert 0.3 < before < 0.7 and after > 0.85, (before, after)
    assert made(result) == {"prover": 0, "verifier": 1}
    assert result.scenario_instance.agents["prover"].whole.model_name == "tiny-even-numbers"
    assert "@" in result.scenario_instance.agents["verifier"].whole.model_name


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", ["even_numbers_quick", "even_numbers_malt"])
def test_presets_of_words_learn(name, seed, at_once, tmp_path):
    result = run(preset(name, seed=seed), run_store=tmp_path)
    before, after = result.history["test_mean_accuracy"][0], result.metrics["test_mean_accuracy"]
    assert before < 0.7 and after > before + 0.2, (before, after)


@pytest.mark.slow
def test_agents_that_share_a_model_learn_as_one(at_once, tmp_path):
    shared = {"agents._default.shared_model_group": "all", "rl.num_iterations": 1}
    result = run(preset("even_numbers_quick").replace(shared), run_store=tmp_path)
    agents = result.scenario_instance.agents
    assert made(result) == {"all": 1}
    assert agents["prover"].whole.model_name == agents["verifier"].whole.model_name
    assert result.metrics["test_mean_accuracy"] > 0.8


# Which jobs there are, with a fine-tuner that only takes them down


class Clerk(FineTuner):
    "Takes jobs down; a new model is a name"

    jobs: list = []

    def create(self, job):
        if job not in self.jobs:
            self.jobs.append(job)
        return f"job {self.jobs.index(job)}"

    def poll(self, job_id):
        if self.settings.notes == "stop while it learns" and len(self.jobs) == 2:
            self.settings.stop_request.stop()
            return JobStatus("running", progress=0.5)
        return JobStatus("succeeded", f"model {job_id.split()[1]}")


@pytest.fixture
def jobs(monkeypatch):
    monkeypatch.setattr(Clerk, "jobs", [])
    monkeypatch.setattr("nip.agents.shared_models.fine_tuners", {"scripted": Clerk})
    return Clerk.jobs


def random_reply(trainer="pure_text_ei", **changes) -> HyperParameters:
    hp = HyperParameters(
        "even_numbers", trainer, "test", "adp", agents={"prover": {"use_dummy_api": True}, "verifier": {"use_dummy_api": True}},
        rl={"rollouts_per_iteration": 24, "num_iterations": 3, "num_test_iterations": 1}, fine_tuning={"min_examples": 1})  # fmt: skip
    return hp.replace(changes)


def of(jobs, name: str) -> list:
    return [job for job in jobs if job.suffix.endswith(name)]


@pytest.mark.parametrize("from_scratch", [True, False])
def test_jobs_begin_from_the_base_model_or_from_the_last(from_scratch, jobs, tmp_path):
    run(random_reply(**{"agents.verifier.fine_tune_from_scratch": from_scratch}), run_store=tmp_path)
    begun = [job.model for job in of(jobs, "verifier")]
    base = begun[0]
    last = [f"model {jobs.index(job)}" for job in of(jobs, "verifier")]
    assert begun == ([base] * 3 if from_scratch else [base, *last[:2]])
    assert all(job.model == base for job in of(jobs, "prover"))


def test_frozen_agents_have_no_jobs(jobs, tmp_path):
    run(random_reply(**{"agents.prover.freeze_agent": True}), run_store=tmp_path)
    assert len(of(jobs, "verifier")) == 3 and not of(jobs, "prover")


def test_lines_are_of_this_iteration_or_of_all(jobs, tmp_path):
    once = run(random_reply(), run_store=tmp_path)
    right = [sum(g["verdict"] == g["label"] for g in games(once, f"{i:06d}")) for i in range(3)]
    assert [len(job.lines) for job in of(jobs, "verifier")] == right
    jobs.clear()
    run(random_reply(**{"text_rl.fine_tune_on_all_previous_rollouts": True}), run_store=tmp_path)
    assert [len(job.lines) for job in of(jobs, "verifier")] == [sum(right[: i + 1]) for i in range(3)]


@pytest.mark.parametrize("how, shares", [("none", [1, 1, 1]), ("linear", [1, 0.5, 0])])
def test_verdicts_are_set_right_in_a_share_of_games_that_declines(how, shares, jobs, tmp_path):
    changes = {"verifier_guess_replacement_proportion": 1.0, "verifier_guess_replacement_annealing": how,
               "verifier_guess_replacement_annealing_rate": 0.5}  # fmt: skip
    result = run(random_reply(**{f"text_rl.{k}": v for k, v in changes.items()}), run_store=tmp_path)
    for i, (job, share) in enumerate(zip(of(jobs, "verifier"), shares)):
        right = sum(g["verdict"] == g["label"] for g in games(result, f"{i:06d}"))
        assert (
            len(job.lines) == 24
            if share == 1
            else len(job.lines) == right
            if share == 0
            else right < len(job.lines) < 24
        )
        for line in job.lines:  # a reply that was set right is the verdict alone
            number = int(line["messages"][-2 if share else 1]["content"].split()[1]) if share == 0 else None
            assert line["messages"][-1]["content"].startswith("Decision: "), number


def test_preferences_are_pairs_of_a_right_and_a_wrong_verdict(jobs, tmp_path):
    run(random_reply("pure_text_malt"), run_store=tmp_path)
    assert {job.method for job in jobs} == {"dpo"} and len(of(jobs, "verifier")) == 3
    for line in of(jobs, "verifier")[0].lines:
        even = int(line["input"]["messages"][1]["content"].split()[1]) % 2 == 0
        said = [line[f"{kind}_output"][0]["content"] for kind in ("preferred", "non_preferred")]
        assert said == [f"Decision: {'accept' if right == even else 'reject'}" for right in (True, False)]


@pytest.mark.parametrize(
    "scheme, tests",
    [("none", []), ("last", ["test"]), ("first_and_last", ["test", "test-000000"]),
     ("all", ["test", "test-000000", "test-000001", "test-000002"])],
)  # fmt: skip
def test_tests_are_played_when_the_scheme_says_so(scheme, tests, jobs, tmp_path):
    result = run(random_reply(**{"text_rl.test_scheme": scheme}), run_store=tmp_path)
    played = {path.stem for path in (result.run_dir / "rollouts").glob("test*.jsonl")}
    assert played == set(tests)
    assert ("test_mean_accuracy" in result.metrics) == (scheme != "none")


def test_a_run_that_is_stopped_while_models_learn_finds_its_jobs_again(jobs, tmp_path):
    hp = random_reply(**{"text_rl.test_scheme": "last"})
    whole = run(hp, run_store=tmp_path, run_id="whole")
    expected, _ = list(jobs), jobs.clear()
    stopped = run(hp, run_store=tmp_path, run_id="stopped", notes="stop while it learns")
    assert (stopped.status, len(jobs)) == ("interrupted", 2)
    resumed = resume_experiment(stopped.run, notes="", tqdm_func=quiet)
    assert resumed.status == "finished" and resumed.metrics == whole.metrics
    assert [job.lines for job in jobs] == [job.lines for job in expected]
    assert made(resumed) == made(whole)


@pytest.mark.slow
def test_a_run_that_is_stopped_in_a_real_job_ends_with_the_same_metrics(tmp_path, monkeypatch):
    hp = preset("even_numbers_quick").replace(
        {"rl.rollouts_per_iteration": 48, "rl.num_iterations": 1, "agents.prover.freeze_agent": True}
    )
    whole = run(hp, run_store=tmp_path, run_id="whole")
    poll = LocalFineTuner.poll

    def stop_when_it_runs(self, job_id):
        status = poll(self, job_id)
        if status.state == "running":
            self.settings.stop_request.stop()
        return status

    monkeypatch.setattr(LocalFineTuner, "poll", stop_when_it_runs)
    stopped = run(hp, run_store=tmp_path, run_id="stopped")
    assert stopped.status == "interrupted"
    monkeypatch.setattr(LocalFineTuner, "poll", poll)
    resumed = resume_experiment(stopped.run, tqdm_func=quiet)
    same = lambda result: {k: v for k, v in result.metrics.items() if not k.startswith("spent")}
    assert resumed.status == "finished" and same(resumed) == same(whole)


# Behind a server


@pytest.mark.slow
@pytest.mark.parametrize("name", ["even_numbers_quick", "even_numbers_malt"])
def test_models_behind_a_server_learn_by_the_client_of_openai(name, tmp_path, monkeypatch):
    model_path("tiny-even-numbers")  # made before the server starts
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    small = {
        "rl.num_iterations": 1,
        "rl.rollouts_per_iteration": 64,
        "fine_tuning.learning_rate": None,
        "fine_tuning.learning_rate_multiplier": None,
    }
    hp = preset(name).replace(small | {"agents.prover.freeze_agent": True})
    if name == "even_numbers_malt":
        hp = hp.replace({"pure_text_malt.num_warm_up_iterations": 0})
    rate = {"even_numbers_quick": 1e-2, "even_numbers_malt": 1e-3}[name]
    with served(tmp_path / "served", "--set", f"learning_rate={rate}", model="tiny-even-numbers") as (
        _,
        client,
    ):
        there = {"model_provider": "OpenAI", "base_url": str(client.base_url)}
        hp = hp.replace({f"agents.{a}.{k}": v for a in ("prover", "verifier") for k, v in there.items()})
        result = run(hp, run_store=tmp_path, response_cache="off")
        known = [model.id for model in client.models.list().data]
    model = result.trainer.model_groups["verifier"].model
    assert result.status == "finished" and model in known and model != "tiny-even-numbers"
    assert result.scenario_instance.scenario.ledger.total["calls"] > 0
    if name == "even_numbers_quick":
        assert result.metrics["test_mean_accuracy"] > 0.7
