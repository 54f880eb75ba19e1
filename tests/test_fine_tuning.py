"""LoRA jobs on this machine: what they change, that they repeat to the bit, and how they end."""

import json
import math
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from nip.agents.shared_models import (
    FineTuningError,
    PureTextSharedModelGroup,
    await_jobs,
    build_shared_model_groups,
)
from nip.agents.text_agent import PureTextAgentParameters
from nip.language_models.chat import ChatRequest, Sampling
from nip.language_models.fine_tuning import (
    FineTuningJob,
    FineTuningParameters,
    JobStatus,
    OpenAIFineTuner,
    preference_line,
    supervised_line,
)
from nip.language_models.local import TransformersModel, even_answer, even_question, local_model
from nip.parameters.settings import ExperimentSettings
from nip.parameters.validation import ParameterError

pytest.importorskip("trl")
pytest.importorskip("peft")
from nip.language_models.local_fine_tuning import LocalFineTuner, _processes

OTHER = {True: "no", False: "yes"}


def imitations(count: int, seed: int = 1) -> tuple[dict, ...]:
    numbers = random.Random(seed).sample(range(10_000), count)
    return tuple(
        supervised_line([*even_question(n), {"role": "assistant", "content": even_answer(n)}])
        for n in numbers
    )


def preferences(count: int, seed: int = 2) -> tuple[dict, ...]:
    numbers = random.Random(seed).sample(range(10_000), count)
    return tuple(
        preference_line(even_question(n), even_answer(n), even_answer(n, OTHER[n % 2 == 0])) for n in numbers
    )


def replies(model: str, numbers, **sampling):
    requests = [ChatRequest(tuple(even_question(n)), Sampling(temperature=0, **sampling)) for n in numbers]
    return TransformersModel(model).answer_all(requests)


def accuracy(model: str, numbers=range(5000, 5064)) -> float:
    return sum(r.text == even_answer(n) for n, r in zip(numbers, replies(model, numbers))) / len(numbers)


def margin(name: str, numbers=range(5000, 5032)) -> float:
    "How much likelier the right answer is than the wrong one, as a mean log-ratio, by forward passes of our own"
    chat, total = TransformersModel(name), 0.0
    model = local_model(chat.base)
    for n in numbers:
        (line,) = model.drafts([ChatRequest(tuple(even_question(n)))], 1)
        for sign, verdict in ((1, None), (-1, OTHER[n % 2 == 0])):
            answer = model.tokenizer(even_answer(n, verdict))["input_ids"]
            with model.wearing(chat.adapters), torch.inference_mode():
                logits = model.model(input_ids=torch.tensor([line.prompt + answer])).logits[0]
            logprobs = logits[len(line.prompt) - 1 : -1].log_softmax(-1)
            total += sign * logprobs.gather(1, torch.tensor(answer)[:, None]).sum().item()
    return total / len(numbers)


@pytest.fixture
def tuner(tmp_path) -> LocalFineTuner:
    "Trains in this process: the libraries are loaded once for all tests"
    return LocalFineTuner(folder=tmp_path / "jobs", own_process=False)


def trained(tuner: LocalFineTuner, *job) -> str:
    status = tuner.poll(tuner.create(FineTuningJob(*job)))
    assert status.state == "succeeded", status.error
    return status.model


def adapter_bytes(model: str) -> bytes:
    return Path(model.rpartition("@")[2].rpartition("+")[2], "adapter_model.safetensors").read_bytes()


def quick(**options) -> FineTuningParameters:
    return FineTuningParameters(**{"num_epochs": 1, "learning_rate": 0.005} | options)


def test_preferences_raise_the_margin_of_what_is_preferred(tuner):
    before = margin("tiny")
    model = trained(tuner, "tiny", preferences(128), "dpo", "", 0, quick(num_epochs=3, learning_rate=0.003))
    margins = [
        event["rewards/margins"]
        for event in tuner.events(next(tuner.folder.glob("ftjob*")).name)
        if "rewards/margins" in event
    ]
    assert margins[-1] > margins[0]
    assert margin(model) > before + 1.0
    assert margin("tiny") == before, "the base model is as it was"


def test_a_job_repeats_to_the_bit(tuner, tmp_path):
    state = random.getstate()
    first = trained(tuner, "tiny", imitations(32), "supervised", "", 5, quick())
    assert random.getstate() == state
    again = LocalFineTuner(folder=tmp_path / "again", own_process=False)
    second = trained(again, "tiny", imitations(32), "supervised", "", 5, quick())
    other = trained(again, "tiny", imitations(32), "supervised", "", 6, quick())
    assert adapter_bytes(first) == adapter_bytes(second) != adapter_bytes(other)


def test_only_the_last_message_is_learned(tuner):
    "Lines that differ in what the assistant said before, and in nothing else that is long, have the same number of learned tokens"
    from nip.language_models.local_fine_tuning import trainer_of

    talk = [
        *even_question(3),
        {"role": "assistant", "content": "Let me think."},
        *even_question(4),
        {"role": "assistant", "content": "4: yes."},
    ]
    job_id = tuner.create(FineTuningJob("tiny", (supervised_line(talk),) * 2, parameters=quick()))
    folder = tuner.folder / job_id
    trainer = trainer_of(folder, json.loads((folder / "job.json").read_text()), "cpu")
    batch = next(iter(trainer.get_train_dataloader()))
    learned = batch["input_ids"][0][batch["labels"][0] != -100]
    assert trainer.processing_class.decode(learned).strip() == "4: yes.<|im_end|>"


@pytest.mark.parametrize("adapters", ["reuse", "stack"])
def test_going_on_from_a_fine_tuned_model(tuner, adapters):
    parameters = quick(lora={"adapters": adapters, "rank": 4}, learning_rate=0.003)
    first = trained(tuner, "tiny", imitations(64), "supervised", "", 0, parameters)
    second = trained(tuner, first, imitations(64, 7), "supervised", "", 0, parameters)
    assert second.count("+") == (1 if adapters == "stack" else 0)
    likely = lambda model: sum(
        math.exp(w["logprob"]) for r in replies(model, range(9), top_logprobs=1) for w in r.logprobs
    )
    swapped = [likely(model) for model in ("tiny", first, second, first, "tiny", second)]
    assert swapped[0] == swapped[4] and swapped[1] == swapped[3] and swapped[2] == swapped[5], (
        "adapters are swapped in place"
    )
    assert len(set(swapped)) == 3
    if adapters == "stack":
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        from nip.language_models.local import LocalModel, model_path

        merged = AutoModelForCausalLM.from_pretrained(model_path("tiny"), dtype="float32")
        for folder in TransformersModel(second).adapters:
            merged = PeftModel.from_pretrained(merged, folder).merge_and_unload()
        whole = LocalModel(model_path("tiny"))
        whole.model = merged.eval()
        ask = [
            ChatRequest(tuple(even_question(n)), Sampling(temperature=0, top_logprobs=1)) for n in range(4)
        ]
        for ours, theirs in zip(TransformersModel(second).answer_all(ask), whole.answer_all(ask)):
            assert ours.text == theirs.text
            assert ours.logprobs[0]["logprob"] == pytest.approx(theirs.logprobs[0]["logprob"], abs=1e-4)


def test_many_adapters_give_way(tuner, monkeypatch):
    monkeypatch.setattr("nip.language_models.local.RESIDENT", 2)
    models = [
        trained(tuner, "tiny", imitations(10, seed), "supervised", "", seed, quick()) for seed in range(3)
    ]
    first = [[r.logprobs for r in replies(model, range(3), top_logprobs=1)] for model in models]
    again = [[r.logprobs for r in replies(model, range(3), top_logprobs=1)] for model in models]
    assert first == again
    assert len(local_model("tiny").resident) == 2


def test_a_job_that_fails_says_why(tuner):
    group = PureTextSharedModelGroup(
        "provers", ["prover"], "tiny", tuner, quick(lora={"target_modules": ("nowhere",)})
    )
    group.create_job(imitations(10))
    with pytest.raises(FineTuningError, match="nowhere"):
        await_jobs([group])
    assert (group.status.state, group.model) == ("failed", "tiny")


def test_a_group_goes_on_in_another_process(tuner):
    group = PureTextSharedModelGroup("provers", ["prover"], "tiny", tuner, quick(), from_scratch=False)
    assert group.create_job(imitations(10), suffix="run 1: iteration 0")
    kept = json.loads(json.dumps(group.state()))
    other = PureTextSharedModelGroup("provers", ["prover"], "tiny", tuner, quick(), from_scratch=False)
    other.load_state(kept)
    assert other.active and await_jobs([other])
    assert other.model.startswith("tiny@") and "ftjob-run-1-iteration-0-" in other.model
    assert other.create_job(imitations(10, 2)) and await_jobs([other])
    assert len(other.models) == 2
    with pytest.raises(ParameterError, match="must be the group's base model"):
        PureTextSharedModelGroup("provers", ["prover"], "huge", tuner).load_state(kept)


def test_a_process_that_is_killed_is_told_of_and_a_job_that_was_left_goes_on(tmp_path):
    tuner = LocalFineTuner(folder=tmp_path)
    job = FineTuningJob("tiny", imitations(10), parameters=quick())
    job_id = tuner.create(job)
    process = _processes[tuner.folder / job_id]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    status = tuner.poll(job_id)
    assert status.state == "failed" and "exit code -9" in status.error
    here = LocalFineTuner(folder=tmp_path, own_process=False)
    assert here.create(job) == job_id and here.poll(job_id).state == "succeeded"


def test_a_cancelled_process_ends(tmp_path):
    tuner = LocalFineTuner(folder=tmp_path)
    group = PureTextSharedModelGroup("provers", ["prover"], "tiny", tuner, quick(num_epochs=1000))
    group.create_job(imitations(10))
    process = _processes[tuner.folder / group.job_id]
    group.cancel()
    assert process.poll() is not None and group.status.state == "cancelled"
    assert tuner.poll(group.job_id).state == "cancelled"


def test_waiting_ends_when_the_run_is_to_stop():
    class Slow:
        def poll(self, job_id):
            return JobStatus("running", progress=0.5)

        def create(self, job):
            return "slow"

    group = PureTextSharedModelGroup("provers", ["prover"], "tiny", Slow())
    group.create_job(imitations(10))
    start = time.monotonic()
    assert not await_jobs([group], ExperimentSettings(stop_request=True))
    assert time.monotonic() - start < 5 and group.active


def test_parameters_are_checked_first():
    agents = {"prover": PureTextAgentParameters(model_provider="transformers", model_name="tiny")}
    with pytest.raises(ParameterError, match="needs a CUDA device"):
        build_shared_model_groups(agents, FineTuningParameters(lora={"quantization": "8bit"}))
    with pytest.raises(ParameterError, match="has no fine-tuning"):
        build_shared_model_groups({"prover": PureTextAgentParameters(model_provider="Ollama")})
    frozen = {"prover": PureTextAgentParameters(model_provider="Ollama", freeze_agent=True)}
    assert build_shared_model_groups(frozen)["prover"].frozen


def test_openai_needs_a_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ParameterError, match="OPENAI_API_KEY"):
        OpenAIFineTuner().check(FineTuningParameters())


@pytest.mark.slow
def test_smollm2_learns_a_form_of_answer(tuner):
    try:
        local_model("smollm2-135m-instruct")
    except ParameterError as error:
        pytest.skip(str(error))
    words = [
        "fox",
        "river",
        "proof",
        "stone",
        "night",
        "paper",
        "green",
        "seven",
        "house",
        "winter",
        "salt",
        "lamp",
    ]
    ask = lambda word: [{"role": "user", "content": f"Is the word {word!r} short?"}]
    line = lambda word: supervised_line(
        [*ask(word), {"role": "assistant", "content": f"Decision: {'accept' if len(word) < 5 else 'reject'}"}]
    )
    parameters = quick(num_epochs=3, batch_size=4, learning_rate=0.001)
    model = trained(tuner, "smollm2-135m-instruct", tuple(map(line, words)), "supervised", "", 0, parameters)
    asked = [
        ChatRequest(tuple(ask(word)), Sampling(temperature=0, max_tokens=12))
        for word in ("cat", "elephant", "snow")
    ]
    before, after = (
        [r.text for r in TransformersModel(m).answer_all(asked)] for m in ("smollm2-135m-instruct", model)
    )
    assert not any(text.startswith("Decision: ") for text in before)
    assert all(text in ("Decision: accept", "Decision: reject") for text in after)
