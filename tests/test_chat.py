"""The real `openai` client against a server that fails in every way it can: all are answered once, in order, and nothing is lost."""

import asyncio
import json
import logging
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from chat_server import FAULTS, ChatServer
from hypothesis import given, settings
from hypothesis import strategies as st

from nip.language_models.budget import Chat, Ledger, SpendingLimitReached, build_chat, store_of
from nip.language_models.chat import ChatReply, ChatRequest, ReplyStore, Sampling, ScriptedModel
from nip.language_models.openai_client import (
    Backoff,
    OpenAIModel,
    RequestRefused,
    ServerFailed,
    chat_model,
    register_endpoint,
    retry_after,
)
from nip.parameters.hyper_params import chat_models
from nip.parameters.settings import ExperimentSettings
from nip.parameters.validation import ParameterError

SECRET = "sk-very-secret-0123456789"
REFUSED = {"400": "change the request", "401": "check the key in VLLM_API_KEY", "403": "may not use this model",
           "404": "check model_name and the address", "429 quota": "quota is used up", "429 long": "resume on another day"}  # fmt: skip
PASSING = [name for name in FAULTS if name not in REFUSED]
QUICK = Backoff(0.001, 0.01)
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def ask(text: str, **sampling) -> ChatRequest:
    return ChatRequest(({"role": "user", "content": text},), Sampling(**sampling))


def answer_to(text: str) -> str:
    return text.upper()


@pytest.fixture(autouse=True)
def nothing_from_outside(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.endswith(("_API_KEY", "_BASE_URL"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI", "VLLM"):  # taken back when the test ends
        monkeypatch.setenv(f"{name}_API_KEY", "")
        monkeypatch.delenv(f"{name}_API_KEY")


@pytest.fixture(scope="module", autouse=True)
def client_is_loaded():
    "It loads parts of itself when it is first used, for seconds"
    server = ChatServer()
    model_at(server, timeout=60).answer_all([ask("first")])
    server.close()


@pytest.fixture
def server():
    server = ChatServer()
    yield server
    server.close()


def model_at(server, timeout=5.0, backoff=QUICK, **changes) -> OpenAIModel:
    options = {"settings": ExperimentSettings(**changes), "timeout": timeout, "backoff": backoff}
    return chat_model("vllm", "m", base_url=server.url, **options)


@pytest.mark.parametrize("fault", PASSING)
def test_fault_passes(server, fault):
    model = model_at(server, timeout=0.3)
    requests = [ask(f"fail: {fault}, {fault}; a"), ask("b")]
    replies = model.answer_all(requests)
    assert [r.text for r in replies] == [answer_to(r.messages[0]["content"]) for r in requests]
    assert [r.retries for r in replies] == [2, 0]
    assert (replies[0].prompt_tokens, replies[0].completion_tokens) == (10, 5)


@pytest.mark.parametrize("fault", REFUSED)
def test_refused_is_not_asked_again_and_says_what_to_do(server, fault, tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", SECRET)
    chat = Chat(model_at(server), store=tmp_path / "r.jsonl")
    good, bad = [ask(f"good {i}") for i in range(5)], ask(f"fail: {fault}; a")
    with pytest.raises(RequestRefused, match=f"vLLM, model 'm': .*; .*{REFUSED[fault]}") as caught:
        chat.answer_all([*good[:2], bad, *good[2:]])
    assert server.times[bad.messages[0]["content"]] == 1
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    kept = {request.messages[0]["content"] for request, _ in chat.store}
    assert kept == set(server.answered)  # those on their way are waited for


@pytest.mark.parametrize(("fault", "budget"), [("500", "num_api_connection_errors"), ("hang", "num_api_generation_timeouts"),
                                               ("429", "num_api_generation_timeouts")])  # fmt: skip
def test_budget(server, fault, budget, tmp_path):
    chat = Chat(model_at(server, timeout=0.1, **{budget: 2}), store=tmp_path / "r.jsonl")
    with pytest.raises(
        ServerFailed, match=rf"gave up after 3 attempts \(limit {budget}=2\); is {server.url} reachable\?"
    ):
        chat.answer_all([ask("a"), ask(f"fail: {fault}...; b"), ask("c")])
    assert server.times[f"fail: {fault}...; b"] == 3
    assert sorted(reply.text for _, reply in chat.store) == ["A", "C"]


def test_interrupt_takes_what_has_come(server):
    replies = model_at(server).answers([*(ask(f"{i}") for i in range(5)), ask("fail: hang...; b")])
    texts = [next(replies)[1].text]
    while server.times["fail: hang...; b"] == 0 or len(server.answered) < 5:
        time.sleep(0.01)
    time.sleep(0.2)
    texts.append(replies.throw(KeyboardInterrupt)[1].text)
    with pytest.raises(KeyboardInterrupt):
        texts += (reply.text for _, reply in replies)
    assert sorted(texts) == list("01234")


def test_nobody_there(server, tmp_path):
    server.close()
    with pytest.raises(ServerFailed, match="no connection .* after 2 attempts"):
        model_at(server, num_api_connection_errors=1).answer_all([ask("a")] * 3)


def test_giving_up_does_not_wait_for_the_others_to_be_patient(server):
    model = model_at(server, backoff=Backoff(60.0, 60.0), num_api_connection_errors=0)
    start = time.monotonic()
    with pytest.raises(ServerFailed, match="after 1 attempts"):
        model.answer_all([*(ask(f"fail: 429 after...; {i}") for i in range(3)), ask("fail: 500; b")])
    assert time.monotonic() - start < 5


def test_all_are_answered_once_in_order_and_kept(server, tmp_path_factory):
    passing = st.sampled_from([fault for fault in PASSING if fault not in ("hang", "drip")])

    @settings(max_examples=20, deadline=None)
    @given(
        st.lists(st.lists(passing, max_size=4), max_size=12),
        st.lists(st.integers(0, 11), max_size=5),
        st.integers(1, 5),
    )
    def check(faults, again, limit):
        server.forget()
        texts = [f"fail: {', '.join(fs)}; {i}" if fs else f"{i}" for i, fs in enumerate(faults)]
        texts += [texts[i % len(texts)] for i in again if texts]
        path = tmp_path_factory.mktemp("store") / "r.jsonl"
        chat = Chat(model_at(server, max_concurrent_requests=limit), "prover", path)
        replies = chat.answer_all([ask(text) for text in texts])
        assert [r.text for r in replies] == [answer_to(text) for text in texts]
        assert Counter(server.answered) == Counter(dict.fromkeys(texts, 1))
        assert server.most <= limit
        assert {q.messages[0]["content"]: r.text for q, r in ReplyStore(path)} == {
            t: answer_to(t) for t in texts
        }
        total = chat.ledger.total
        assert total["calls"] == len(set(texts)) and total["cached"] == len(texts) - len(set(texts))
        assert total["retries"] == sum(map(len, faults)) == len(server.asked) - len(server.answered)

    check()


def test_limit_of_requests_at_a_time_holds_over_threads():
    server = ChatServer(delay=0.02)
    try:
        work = lambda name: model_at(server, max_concurrent_requests=4).answer_all(
            [ask(f"{name} {i}") for i in range(15)]
        )
        threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.most == 4 and len(server.answered) == 45
    finally:
        server.close()


def test_inside_a_running_event_loop(server):
    async def notebook():
        return model_at(server).answer_all([ask("a"), ask("b")])

    assert [r.text for r in asyncio.run(notebook())] == ["A", "B"]


@needs_fork
def test_in_a_forked_process(server):
    model = model_at(server)
    model.answer_all([ask("before")])
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=lambda: queue.put(model.answer_all([ask("after")])[0].text))
    process.start()
    assert queue.get(timeout=20) == "AFTER"
    process.join()


def test_how_long_a_server_asks_to_wait():
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 27 < retry_after({"retry-after": soon}) <= 30
    assert retry_after({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    odd = ["", "-3", "nan", "inf", "1e999", "soon", "Thu, 99 Foo"]
    assert [retry_after({"retry-after": said}) + retry_after({"retry-after-ms": said}) for said in odd] == [
        0
    ] * len(odd)


def test_server_says_how_long_to_wait(server):
    start = time.monotonic()
    model_at(server).answer_all([ask("fail: 429 after; a")])
    assert time.monotonic() - start >= 0.2


def test_wire(server):
    sampling = {
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 7,
        "seed": 2**62 + 3,
        "repetition_penalty": 1.2,
        "stop": ("x",),
        "top_logprobs": 2,
    }
    (reply,) = model_at(server).answer_all([ask("a", **sampling)])
    (body,) = server.asked
    assert body == {"model": "m", "messages": [{"role": "user", "content": "a"}], "temperature": 0.5, "top_p": 0.9, "max_tokens": 7, "seed": 3,
                    "repetition_penalty": 1.2, "stop": ["x"], "logprobs": True, "top_logprobs": 2}  # fmt: skip
    top = [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -1.5}]
    assert reply.logprobs == [top[0] | {"top_logprobs": top}]
    chat_model("llama.cpp", "m", base_url=server.url).answer_all([ask("b", repetition_penalty=1.2)])
    assert server.asked[-1]["repeat_penalty"] == 1.2
    with pytest.raises(ParameterError, match="repetition_penalty: must be None"):
        chat_model("Ollama", "m", base_url=server.url).answer_all([ask("c", repetition_penalty=1.2)])
    assert len(server.asked) == 2


def test_addresses_and_keys(server, monkeypatch, tmp_path):
    with pytest.raises(ParameterError, match="needs a key for https://api.openai.com/v1: set OPENAI_API_KEY"):
        build_chat("OpenAI", "gpt-4o-mini")
    with pytest.raises(
        ParameterError, match=r"needs a key for http://node7:8000/v1: .*VLLM_API_KEY.*any text"
    ):
        build_chat("vLLM", "m", base_url="http://node7:8000/v1")
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    there = chat_model("openai", "gpt-4o-mini")
    there.answer_all(
        [ask("a", max_tokens=3, repetition_penalty=1.1)]
    )  # another server, which has the common names
    assert server.asked[-1]["max_tokens"] == 3 and there.identity == f"OpenAI/gpt-4o-mini at {server.url}"
    monkeypatch.delenv("OPENAI_BASE_URL")
    (tmp_path / ".env").write_text(f"OPENAI_API_KEY={SECRET}\n")
    build_chat("OpenAI", "gpt-4o-mini").check()
    monkeypatch.delenv("OPENAI_API_KEY")


def test_provider_of_ones_own(server):
    try:
        register_endpoint("Lab", "https://lab.example.org/v1", "LAB_API_KEY")
        assert chat_model("lab", "m", base_url=server.url).answer_all([ask("a")])[0].text == "A"
    finally:
        chat_models._entries.pop("Lab")


def test_no_key_anywhere(server, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("VLLM_API_KEY", SECRET)
    chat = Chat(model_at(server), "prover", tmp_path / "r.jsonl", Ledger(tmp_path / "spending.json"))
    with pytest.raises(RequestRefused):
        chat.answer_all([ask("a"), ask("fail: 429, reset; b"), ask("fail: 500, 401; c")])
    assert "Bearer" not in caplog.text and SECRET not in caplog.text and "again in" in caplog.text
    assert SECRET not in f"{vars(chat.model)}" and SECRET.encode() not in pickle.dumps(chat.model)
    assert {f.name for f in tmp_path.glob("[!.]*")} == {"r.jsonl", "spending.json"}
    assert all(SECRET.encode() not in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


class Dear(OpenAIModel):
    "Each reply costs a dollar"

    price = (0.0, 2e5)


def test_spending_limit_stops_with_everything_saved(server, tmp_path):
    requests, path = [ask(f"{i}") for i in range(30)], tmp_path / "r.jsonl"

    def chat(limit):
        model = Dear(
            "m",
            chat_models.meta("vLLM")["endpoint"],
            server.url,
            ExperimentSettings(max_concurrent_requests=4),
        )
        return Chat(model, "prover", path, Ledger(tmp_path / "spending.json", spending_limit=limit))

    with pytest.raises(
        SpendingLimitReached, match=r"of spending_limit=10 is spent; \d+ of 30 requests were answered"
    ):
        chat(10.0).answer_all(requests)
    first = len(server.answered)
    assert 10 <= first <= 13  # those on their way when it was reached
    assert Ledger(tmp_path / "spending.json").total["cost"] == first == len(list(ReplyStore(path)))
    with pytest.raises(
        SpendingLimitReached, match=f"{first} of spending_limit=10 is spent; 0 of {30 - first}"
    ):
        chat(10.0).answer_all(requests)  # the run goes on: what is kept costs nothing, but there is no more
    assert len(server.asked) == first
    replies = chat(100.0).answer_all(requests)
    assert [r.text for r in replies] == [f"{i}" for i in range(30)] and len(server.asked) == 30
    assert [r.cost for r in replies] == [0.0 if r.cached else 1.0 for r in replies]
    assert Ledger(tmp_path / "spending.json").total["cost"] == 30


def test_token_limit(server, tmp_path):
    ledger = Ledger(token_limit=45)
    chat = Chat(model_at(server, max_concurrent_requests=1), ledger=ledger)
    with pytest.raises(SpendingLimitReached, match="45 tokens of token_limit=45 are used; 3 of 9"):
        chat.answer_all([ask(f"{i}") for i in range(9)])


def test_recorded_and_replayed_without_a_key(server, monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    chosen = ExperimentSettings(response_cache=tmp_path / "debate.jsonl")
    requests = [ask(f"fail: 500; {i}", seed=i, temperature=1.0, top_logprobs=1) for i in range(5)]
    options = {"settings": chosen, "base_url": server.url, "backoff": QUICK}
    first = build_chat("OpenAI", "gpt-4o-mini", **options).answer_all(requests)
    monkeypatch.delenv("OPENAI_API_KEY")
    server.close()
    again = build_chat("openai", "gpt-4o-mini", **options).answer_all(requests)
    script = ScriptedModel(replies=tmp_path / "debate.jsonl").answer_all(requests[::-1])[::-1]
    told = lambda replies: [(r.text, r.logprobs, r.prompt_tokens) for r in replies]
    assert told(first) == told(again) == told(script)
    assert all(r.cached and r.cost == 0 for r in again + script)


KILLED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # where the tests run in the background, it is ignored
sys.path.insert(0, {tests!r})
from test_chat import *
chat_at({url!r}, {path!r}).answer_all([ask(f"{{i}}") for i in range(60)])
"""


def chat_at(url: str, path) -> Chat:
    chosen = ExperimentSettings(response_cache=path, max_concurrent_requests=4)
    return build_chat("vllm", "m", chosen, "prover", base_url=url)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_killed_in_the_middle(number, tmp_path):
    server = ChatServer(delay=0.15)
    code = KILLED.format(tests=str(Path(__file__).parent), path=str(tmp_path / "r.jsonl"), url=server.url)
    begin = lambda: subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        process = begin()
        end = time.monotonic() + 60
        while len(server.answered) < 20 and time.monotonic() < end:
            time.sleep(0.005)
        process.send_signal(number)
        _, errors = process.communicate(timeout=20)
        assert process.returncode != 0 and ("KeyboardInterrupt" in errors) == (number == signal.SIGINT)
        time.sleep(0.1)
        answered, kept = (
            set(server.answered),
            {q.messages[0]["content"] for q, _ in ReplyStore(tmp_path / "r.jsonl")},
        )
        assert (
            kept <= answered and len(answered - kept) <= 4 and 15 <= len(kept) < 60
        )  # lost: those on their way
        replies = chat_at(server.url, tmp_path / "r.jsonl").answer_all([ask(f"{i}") for i in range(60)])
        assert [r.text for r in replies] == [f"{i}" for i in range(60)] and sum(
            r.cached for r in replies
        ) == len(kept)
        times = Counter(server.answered)
        assert all(times[text] == 1 for text in kept) and len(times) == 60
        assert len(server.answered) == 60 + len(answered - kept)
    finally:
        server.close()


def write_many(path: str, name: str):
    store = ReplyStore(path)
    for i in range(40):
        store.put("m", ask(f"{name} {i}"), ChatReply("x" * (i * 300)))


@needs_fork
def test_processes_share_a_store(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"key": "torn')  # a process was killed
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=write_many, args=(str(path), name)) for name in "abc"]
    for process in processes:
        process.start()
    reader, end = ReplyStore(path), time.monotonic() + 60
    wanted = [(ask(f"{name} {i}"), i * 300) for name in "abc" for i in range(40)]
    while any(reader.get("m", request) is None for request, _ in wanted) and time.monotonic() < end:
        time.sleep(0.01)  # reads while they write
    for process in processes:
        process.join()
    assert all(len(reader.get("m", request).text) == size for request, size in wanted)
    torn, *lines = path.read_text().splitlines()
    assert torn == '{"key": "torn' and len([json.loads(line) for line in lines]) == 120


def test_lines_that_are_no_record_are_passed_over(tmp_path):
    store = ReplyStore(tmp_path / "r.jsonl")
    store.put("m", ask("a"), ChatReply("A \ud800 ü"))
    with store.path.open("ab") as file:
        file.write(b'<<<<<<< merge\n[1]\n{"other": 1}\n\n')
    store.put("m", ask("b"), ChatReply("B"))
    os.truncate(store.path, store.path.stat().st_size - 1)  # an editor took the last line break away
    assert ReplyStore(store.path).get("m", ask("b")).text == "B"
    store.put("m", ask("c"), ChatReply("C"))
    fresh = ReplyStore(store.path)
    assert [fresh.get("m", ask(text)).text for text in "abc"] == ["A \ud800 ü", "B", "C"] and fresh.get(
        "n", ask("a")
    ) is None
    assert [reply.text for _, reply in fresh] == ["A \ud800 ü", "B", "C"]


def test_where_replies_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("NIP_DATA", str(tmp_path))
    where = lambda cache: store_of(
        chat_model("OpenAI", "gpt-4o-mini"), ExperimentSettings(response_cache=cache)
    )
    assert where(None).path == tmp_path / "replies" / "OpenAI_gpt-4o-mini.jsonl"
    assert where("off") is None and where(tmp_path / "x.jsonl").path == tmp_path / "x.jsonl"


MODEL = os.environ.get("NIP_TEST_OPENAI_MODEL")
KEY = os.environ.get("OPENAI_API_KEY")


@pytest.mark.skipif(
    not (MODEL and KEY), reason="set OPENAI_API_KEY and NIP_TEST_OPENAI_MODEL to ask a real model"
)
def test_real_model(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    chat = build_chat("OpenAI", MODEL, ExperimentSettings(response_cache=tmp_path), "prover")
    requests = [ask(f"What is {n} + {n}? Answer with the number alone.", max_tokens=16) for n in (2, 3)]
    assert [r.text.strip(" .") for r in chat.answer_all(requests)] == ["4", "6"]
    assert chat.ledger.total["prompt_tokens"] > 0
    assert all(r.cached for r in chat.answer_all(requests))
