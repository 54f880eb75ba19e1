"""OpenAI's own client against `nip serve` in a process of its own: chat, files, jobs, and a restart in the middle of one."""

import json
import os
import random
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from nip.language_models.fine_tuning import (
    FineTuningJob,
    FineTuningParameters,
    OpenAIFineTuner,
    preference_line,
    supervised_line,
)
from nip.language_models.local import even_answer, even_question, model_path

openai = pytest.importorskip("openai")
pytest.importorskip("fastapi")
pytest.importorskip("trl")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def served(folder, *options, key="secret", model="tiny"):
    "A server in a process of its own, and a client"
    model_path(model)  # made here, so that the server starts at once
    port = free_port()
    nip = str(Path(sys.executable).with_name("nip"))
    command = [nip, "serve", model, "--port", str(port), "--folder", str(folder), "--api-key", key]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, *options], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0, timeout=60)
    try:
        for _ in range(600):
            try:
                client.models.list()
                break
            except openai.APIConnectionError:
                assert process.poll() is None, process.stdout.read().decode()
                time.sleep(0.1)
        yield process, client
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with served(tmp_path_factory.mktemp("served"), "--set", "learning_rate=0.005") as found:
        yield found


@pytest.fixture(scope="module")
def client(server):
    return server[1]


def chat(client, number, model="tiny", **options):
    return client.chat.completions.create(model=model, messages=even_question(number), **options)


def examples(count: int, seed: int = 1) -> list[dict]:
    numbers = random.Random(seed).sample(range(10_000), count)
    return [
        supervised_line([*even_question(n), {"role": "assistant", "content": even_answer(n)}])
        for n in numbers
    ]


def await_job(client, job_id: str):
    for _ in range(600):
        job = client.fine_tuning.jobs.retrieve(job_id)
        if job.status in ("succeeded", "failed", "cancelled"):
            return job
        time.sleep(0.2)
    raise TimeoutError(job_id)


def accuracy(client, model: str, numbers=range(5000, 5040)) -> float:
    with ThreadPoolExecutor(20) as pool:
        replies = list(pool.map(lambda n: chat(client, n, model, temperature=0), numbers))
    return sum(r.choices[0].message.content == even_answer(n) for n, r in zip(numbers, replies)) / len(
        numbers
    )


def test_the_same_seed_gives_the_same_replies(client):
    texts = lambda seed: [c.message.content for c in chat(client, 38, n=8, seed=seed).choices]
    assert texts(1) == texts(1)
    assert len(set(texts(1))) > 1
    assert any(texts(1) != texts(seed) for seed in (2, 3))
    assert texts(4)[0] == chat(client, 38, seed=4).choices[0].message.content
    assert len({tuple(c.message.content for c in chat(client, 38, n=4).choices) for _ in range(6)}) > 1


def test_logprobs_and_usage(client):
    told = chat(client, 38, temperature=0, logprobs=True, top_logprobs=5)
    words = told.choices[0].logprobs.content
    assert "".join(word.token for word in words) == told.choices[0].message.content
    for word in words:
        best = [other.logprob for other in word.top_logprobs]
        assert len(best) == 5 and best == sorted(best, reverse=True)
        assert word.logprob == best[0] <= 0
    assert told.usage.completion_tokens == len(words)
    assert told.usage.total_tokens == told.usage.prompt_tokens + told.usage.completion_tokens
    assert chat(client, 38, logprobs=True).choices[0].logprobs.content[0].top_logprobs == []
    assert chat(client, 38).choices[0].logprobs is None


def test_stop_and_length(client):
    assert chat(client, 38, temperature=0, stop=":").choices[0].message.content == "8"
    for name in ("max_tokens", "max_completion_tokens"):
        cut = chat(client, 38, temperature=0, **{name: 2}).choices[0]
        assert (cut.message.content, cut.finish_reason) == ("8:", "length")


def test_concurrent_requests_are_answered_as_single_ones(client):
    alone = [chat(client, n, seed=n).choices[0].message.content for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda n: chat(client, n, seed=n).choices[0].message.content, range(8)))
    assert together == alone


def test_a_stream_tells_the_same(client):
    parts = list(chat(client, 38, seed=3, stream=True))
    text = "".join(choice.delta.content or "" for part in parts for choice in part.choices)
    assert text == chat(client, 38, seed=3).choices[0].message.content
    assert [c.finish_reason for p in parts for c in p.choices][-1] == "stop"


@pytest.mark.parametrize(
    "change, kind, said",
    [
        ({"model": "tinny"}, openai.NotFoundError, "Did you mean 'tiny'"),
        ({"temperature": 9}, openai.BadRequestError, "temperature: must be <= 2"),
        ({"messages": []}, openai.BadRequestError, "must not be empty"),
        ({"messages": [{"role": "king", "content": "?"}]}, openai.BadRequestError, r"messages\[0\]"),
        (
            {"messages": [{"role": "user", "content": "a" * 40_000}]},
            openai.BadRequestError,
            "context of 32768",
        ),
    ],
    ids=["model", "temperature", "none", "role", "context"],
)
def test_errors_have_openai_s_form(client, change, kind, said):
    with pytest.raises(kind, match=said) as found:
        client.chat.completions.create(**{"model": "tiny", "messages": even_question(1)} | change)
    assert set(found.value.body) == {"message", "type", "param", "code"}


def test_a_wrong_key_is_refused(client):
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="guess").models.list()
    with pytest.raises(openai.NotFoundError):
        client.with_options(base_url=f"{client.base_url}nowhere/").models.list()


def test_files(client):
    made = client.files.create(file=("lines.jsonl", b'{"a": "\xc3\xa9"}\n'), purpose="fine-tune")
    assert (made.filename, made.bytes, made.purpose) == ("lines.jsonl", 12, "fine-tune")
    assert made.id in [file.id for file in client.files.list()]
    assert client.files.retrieve(made.id) == made
    assert client.files.content(made.id).read() == b'{"a": "\xc3\xa9"}\n'
    assert client.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made.id)


def test_data_that_cannot_be_learned_is_refused(client):
    def begin(content: bytes, **options):
        file = client.files.create(file=("bad.jsonl", content), purpose="fine-tune")
        return client.fine_tuning.jobs.create(**{"model": "tiny", "training_file": file.id} | options)

    few = "".join(json.dumps(line) + "\n" for line in examples(9)).encode()
    with pytest.raises(openai.BadRequestError, match="9 examples, but must have at least 10"):
        begin(few)
    with pytest.raises(openai.BadRequestError, match="not JSONL"):
        begin(b"{")
    with pytest.raises(openai.BadRequestError, match=r"lines\[0\].input.messages"):
        begin(few, method={"type": "dpo"})
    with pytest.raises(openai.NotFoundError, match="No such File"):
        client.fine_tuning.jobs.create(model="tiny", training_file="file-none")
    with pytest.raises(openai.NotFoundError, match="'huge' does not exist"):
        begin(few, model="huge")


def test_a_job_is_cancelled(client):
    file = client.files.create(
        file=("lines.jsonl", "".join(json.dumps(x) + "\n" for x in examples(10)).encode()),
        purpose="fine-tune",
    )
    job = client.fine_tuning.jobs.create(
        model="tiny", training_file=file.id, hyperparameters={"n_epochs": 1000}
    )
    assert job.status == "queued" and job.hyperparameters.n_epochs == 1000
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    assert client.fine_tuning.jobs.retrieve(job.id).fine_tuned_model is None
    assert job.id in [other.id for other in client.fine_tuning.jobs.list(limit=5)]


def test_supervised_and_preference_jobs_change_the_answers(client):
    "By the fine-tuner that speaks to OpenAI: from a guess to the right answer by imitation, from there to the wrong one by preference"
    tuner = OpenAIFineTuner(base_url=str(client.base_url), api_key=client.api_key)
    first = FineTuningJob("tiny", tuple(examples(256)), suffix="Even 1", seed=3)
    job_id = tuner.create(first)
    assert tuner.create(first) == job_id, "the same job is found again"
    job = await_job(client, job_id)
    assert (job.status, tuner.poll(job_id).model) == ("succeeded", job.fine_tuned_model)
    assert job.fine_tuned_model.startswith("ft:tiny:nip:even-1:")
    assert job.fine_tuned_model in [model.id for model in client.models.list()]
    assert accuracy(client, "tiny") < 0.8 and accuracy(client, job.fine_tuned_model) > 0.9
    losses = [
        event.data["loss"] for event in client.fine_tuning.jobs.list_events(job_id) if "loss" in event.data
    ]
    assert losses[0] < losses[-1] / 3, "the newest event comes first"

    other = {True: "yes", False: "no"}
    numbers = random.Random(2).sample(range(10_000), 128)
    lines = [
        preference_line(even_question(n), even_answer(n, other[n % 2 == 1]), even_answer(n)) for n in numbers
    ]
    parameters = FineTuningParameters(num_epochs=3, dpo_beta=0.1, learning_rate_multiplier=2.0)
    second = FineTuningJob(job.fine_tuned_model, tuple(lines), "dpo", "contrary", 0, parameters)
    worse = await_job(client, tuner.create(second))
    assert worse.status == "succeeded", worse.error
    assert accuracy(client, worse.fine_tuned_model) < 0.5 < accuracy(client, job.fine_tuned_model)


def test_one_job_too_many_waits_and_an_empty_account_does_not(tmp_path):
    "A server in this process that refuses a while, as OpenAI does"
    from fastapi.responses import JSONResponse
    from fastapi.testclient import TestClient

    from nip.language_models.server import ApiError, ModelServer, make_app

    app, refusals = (
        make_app(ModelServer(["tiny"], tmp_path)),
        ["rate_limit_exceeded", "daily_rate_limit_exceeded"],
    )

    @app.middleware("http")
    async def refuse(request, call_next):
        if request.method == "POST" and request.url.path.endswith("/jobs") and refusals:
            return JSONResponse(ApiError(429, "Too many jobs today", refusals.pop()).json, 429)
        return await call_next(request)

    options = dict(base_url="http://testserver/v1", http_client=TestClient(app), max_retries=0)
    tuner = OpenAIFineTuner(rate_limit_wait=0.01, **options)
    job = FineTuningJob("tiny", tuple(examples(10)))
    job_id = tuner.create(job)
    assert refusals == [] and tuner.poll(job_id).state == "pending"
    tuner.cancel(job_id)
    assert tuner.poll(job_id).state == "cancelled"
    refusals.append("insufficient_quota")
    with pytest.raises(openai.RateLimitError, match="Too many jobs"):
        tuner.create(job)


def test_a_server_that_is_killed_goes_on_with_its_job(tmp_path):
    short = FineTuningJob("tiny", tuple(examples(16)), parameters=FineTuningParameters(num_epochs=1))
    with served(tmp_path) as (process, client):
        tuner = OpenAIFineTuner(base_url=str(client.base_url), api_key=client.api_key)
        job_id = tuner.create(short)
        assert tuner.poll(job_id).state == "pending"
        process.kill()
        process.wait()
    with served(tmp_path) as (_, client):
        tuner = OpenAIFineTuner(base_url=str(client.base_url), api_key=client.api_key)
        assert tuner.create(short) == job_id, "the job, found by its metadata, and not a second one"
        job = await_job(client, job_id)
        assert job.status == "succeeded", job.error
        assert chat(client, 38, job.fine_tuned_model, temperature=0).choices[0].message.content[:2] == "8:"
