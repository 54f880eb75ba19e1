"""A local model's replies against what the model itself says: PyTorch's forward pass, transformers' own generation."""

import json
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from nip.language_models.chat import ChatRequest, Sampling
from nip.language_models.local import LocalModel, TransformersModel, local_model, model_path
from nip.parameters.validation import ParameterError

transformers = pytest.importorskip("transformers")
TEXTS = ["Is 4 even?", "Is 1234 even?", "Tell me of foxes, of hens, and of the night.", "?"]


def ask(text, **sampling) -> ChatRequest:
    return ChatRequest(({"role": "user", "content": text},), Sampling(**sampling))


@pytest.fixture(scope="module")
def tiny() -> LocalModel:
    return local_model("tiny")


def generated(model: LocalModel, text: str, **options) -> tuple[list[int], str]:
    "What transformers itself writes, greedily"
    prompt = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with model.wearing(()):
        out = model.model.generate(**prompt, do_sample=False, **options)[0, prompt["input_ids"].shape[1] :]
    return out.tolist(), model.tokenizer.decode(out, skip_special_tokens=True)


@pytest.mark.parametrize("penalty", [None, 1.3])
def test_greedy_replies_are_those_of_transformers(tiny, penalty):
    options = {"repetition_penalty": penalty} if penalty else {}
    requests = [ask(text, temperature=0, max_tokens=24, repetition_penalty=penalty) for text in TEXTS]
    for text, reply in zip(TEXTS, tiny.answer_all(requests)):
        tokens, expected = generated(tiny, text, max_new_tokens=24, **options)
        assert reply.text == expected
        assert reply.finish_reason == ("stop" if tokens[-1] in tiny.ends else "length")
        assert reply.completion_tokens == len([t for t in tokens if t not in tiny.ends])


def test_logprobs_are_those_of_a_forward_pass(tiny):
    requests = [ask(text, seed=seed, top_logprobs=3, max_tokens=16) for seed, text in enumerate(TEXTS)]
    for request, reply in zip(requests, tiny.answer_all(requests)):
        (line,) = tiny.drafts([request], 16)
        written = tiny.tokenizer(reply.text)["input_ids"]
        if tiny.tokenizer.decode(written) != "".join(word["token"] for word in reply.logprobs):
            continue  # bytes that are no text
        with torch.inference_mode(), tiny.wearing(()):
            logits = tiny.model(input_ids=torch.tensor([line.prompt + written])).logits[0]
        expected = logits[len(line.prompt) - 1 : -1].log_softmax(-1)
        for word, token, row in zip(reply.logprobs, written, expected):
            assert word["logprob"] == pytest.approx(row[token].item(), abs=1e-4)
            best = [w["logprob"] for w in word["top_logprobs"]]
            assert best == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)


def test_a_reply_depends_on_its_request_alone(tiny):
    requests = [ask(text, seed=seed, top_p=0.95, max_tokens=20) for text in TEXTS for seed in range(3)]
    together = tiny.answer_all(requests)
    assert tiny.answer_all(requests) == together
    assert tiny.answer_all(requests[::-1])[::-1] == together
    assert [tiny.answer_all([request])[0].text for request in requests] == [reply.text for reply in together]
    assert tiny.answer_all(requests, batch_size=5) == together
    assert len({reply.text for reply in together}) > len(TEXTS)


def test_draws_have_the_model_s_probabilities(tiny):
    (told,) = tiny.answer_all([ask("Is 10 even?", temperature=0, top_logprobs=2)])
    probs = {w["token"]: math.exp(w["logprob"]) for w in told.logprobs[3]["top_logprobs"]}
    assert set(probs) == {"y", "n"} and sum(probs.values()) > 0.95
    requests = [ask("Is 10 even?", seed=seed, max_tokens=4) for seed in range(400)]
    draws = [reply.text for reply in tiny.answer_all(requests, batch_size=200) if reply.text[:3] == "0: "]
    for token, prob in probs.items():
        share = sum(text[3] == token for text in draws) / len(draws)
        assert abs(share - prob) < 4 * (prob * (1 - prob) / len(draws)) ** 0.5


def test_threads_share_one_model(tiny):
    requests = [ask(text, seed=7, max_tokens=12) for text in TEXTS]
    alone = [tiny.answer_all([request])[0].text for request in requests]
    with ThreadPoolExecutor(4) as pool:
        models = list(pool.map(lambda _: local_model("tiny"), range(4)))
        replies = list(pool.map(lambda request: tiny.answer_all([request])[0].text, requests * 3))
    assert all(model is tiny for model in models)
    assert replies == alone * 3


def test_a_model_loaded_again_gives_the_same_bits(tiny):
    requests = [ask(text, seed=1, max_tokens=12, top_logprobs=1) for text in TEXTS]
    assert LocalModel(model_path("tiny")).answer_all(requests) == tiny.answer_all(requests)


def test_stop_and_length(tiny):
    text = "Is 58 even?"
    whole, stopped, cut = tiny.answer_all(
        [
            ask(text, temperature=0),
            ask(text, temperature=0, stop=("x", ":")),
            ask(text, temperature=0, max_tokens=2),
        ]
    )
    assert (whole.text[:3], whole.text[-1], whole.finish_reason) == ("8: ", ".", "stop")
    assert (stopped.text, stopped.finish_reason, stopped.completion_tokens) == ("8", "stop", 2)
    assert (cut.text, cut.finish_reason, cut.completion_tokens) == ("8:", "length", 2)


def test_a_prompt_beyond_the_context_is_refused(tiny):
    with pytest.raises(ParameterError, match="fewer tokens than the model's context of 32768"):
        tiny.answer_all([ask("a" * 40_000)])


def test_the_name_of_a_model_that_is_not_there():
    with pytest.raises(ParameterError, match="is not a model that can be loaded"):
        TransformersModel("nobody/nothing").answer_all([ask("?")])


def test_users_with_names_are_told_apart(tiny):
    said = [{"role": "user", "name": name, "content": "Yes."} for name in ("Expert_1", "Expert_2")]
    lines = tiny.drafts([ChatRequest((message,)) for message in said], 1)
    assert "Expert_2: Yes." in tiny.tokenizer.decode(lines[1].prompt)
    assert lines[0].prompt != lines[1].prompt


@pytest.mark.slow
def test_smollm2_speaks():
    try:
        model = local_model("smollm2-135m-instruct")
    except ParameterError as error:
        pytest.skip(str(error))
    replies = model.answer_all([ask("What is the capital of France?", temperature=0, max_tokens=30)] * 2)
    assert "Paris" in replies[0].text
    assert replies[0].text == generated(model, "What is the capital of France?", max_new_tokens=30)[1]
    assert "quantization_config" not in json.loads(
        open(f"{model_path('smollm2-135m-instruct')}/config.json").read()
    )
