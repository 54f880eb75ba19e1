"""Widgets, Python, YAML and commands say the same hyper-parameters, whichever way they were put together."""

import random
from types import NoneType

import pytest

from nip import HyperParameters, run_experiment
from nip.builder.app import LANGUAGES, Builder, hyper_params_from
from nip.builder.form import Form, choices_of, example, members
from nip.experiments.as_code import classes, command_line, python_call, short_yaml
from nip.experiments.presets import preset
from nip.parameters.hyper_params import protocol_handlers, scenarios, trainers
from nip.parameters.validation import ParameterError, convert
from nip.protocols.handler import register_protocol_handler

WORDS = [
    "",
    "a",
    "two words",
    "None",
    "1e3",
    "[x]",
    "'",
    '"quoted"',
    "Größe",
    "a, b",
    "#",
    "x=y",
    "${x}",
    "-",
]


WORDS_GAMES = [
    HyperParameters(
        "code_validation", trainer, "test", "debate", agents={"_default": {"use_dummy_api": True}}
    )
    for trainer in ("pure_text_ei", "pure_text_malt")
]


def some_value(rng: random.Random, spec):
    "A value of about the right kind, from what is easy to what is not"
    if kinds := classes(spec.hint):
        return example(rng.choice(kinds))
    if (choices := choices_of(spec)) is not None:
        return rng.choice(choices)
    low = max([spec.conditions.get("ge") or 0, (spec.conditions.get("gt") or -1) + 1])
    words = lambda: rng.choice(WORDS)
    makers = {
        bool: lambda: rng.random() < 0.5,
        int: lambda: low + rng.choice([0, 1, 2, 7, 100]),
        float: lambda: rng.choice([low, low + 0.1, 1e-5, 1 / 3, 1e10, float("inf")]),
        str: words,
        NoneType: lambda: None,
        tuple[str, ...]: lambda: tuple(words() for _ in range(rng.randint(0, 3))),
        tuple[int, ...]: lambda: tuple(rng.randint(1, 9) for _ in range(rng.randint(1, 3))),
    }
    return makers.get(rng.choice(members(spec.hint)), lambda: None)()


def typed(form: Form, path: str, value) -> None:
    "Let a person set a parameter"
    field = form.field(path)
    if isinstance(value, dict):  # parameters inside parameters: their class is chosen, their fields follow
        field.control.value = value["_type"]
    else:
        with form.showing():
            field.show_value(value)
        field.changed(None)


def some_form(seed: int, num_changes: int = 40) -> tuple[Form, list[str]]:
    "A form after random changes, and the addresses of those that were valid"
    rng = random.Random(seed)
    begin = [preset("parity_quick"), preset("graph_isomorphism_quick"), *WORDS_GAMES]
    form, kept = Form(rng.choice(begin)), []
    for registry, path in (
        (scenarios, "scenario"),
        (trainers, "trainer"),
        (protocol_handlers, "interaction_protocol"),
    ):
        typed(form, path, rng.choice(registry.names()))
        form.load(form.draft.accepted)
    form.section("agents").button.value = True
    for agent in form.agents.who.options:
        form.agents.who.value = agent[1]
        form.agents.mode.value = rng.choice([mode for _, mode in form.agents.mode.options])
        form.load(form.draft.accepted)
    for _ in range(num_changes):
        path = rng.choice(form.everything())
        value = some_value(rng, form.draft.spec(path))
        if isinstance(value, dict) and form.field(path).control.value == value["_type"]:
            continue  # chosen already: what is inside stays
        typed(form, path, value)
        if form.draft.errors:
            form.load(form.draft.accepted)
            continue
        kept.append(path)
        if path in form.fields and form.draft.spec(path):
            assert form.hyper_params.get(path) == convert(value, form.draft.spec(path).hint, path), path
    return form, kept


MORE = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(8, 100)]


@pytest.mark.parametrize("seed", [*range(8), *MORE])
def test_round_trips(seed):
    form, kept = some_form(seed)
    hp = form.hyper_params
    assert len(kept) >= 8
    assert eval(python_call(hp), {"HyperParameters": HyperParameters}) == hp
    for write in (python_call, short_yaml, command_line, HyperParameters.to_yaml):
        again = hyper_params_from(write(hp) + ("\n" if write is short_yaml else ""))
        assert again == hp and again.to_yaml() == hp.to_yaml(), write.__name__
    other = Form(preset("parity_quick"))
    other.load(hp)
    for path in other.everything():  # each control holds the value, and gives it again
        assert other.field(path).holds(hp.get(path)), path
    assert other.hyper_params.to_yaml() == hp.to_yaml()


@pytest.mark.parametrize("seed", range(100, 103))
def test_the_builder_takes_over_what_it_has_written(seed, tmp_path):
    form, _ = some_form(seed)
    hp = form.hyper_params
    builder = Builder(hp, run_store=tmp_path)
    for language in LANGUAGES:
        builder.written.language.value = language
        text = builder.written.text.value
        builder.load("parity_quick")
        builder.written.text.value = text
        builder.written.take.click()
        assert builder.hyper_params == hp and builder.hyper_params.to_yaml() == hp.to_yaml(), language
        assert eval(builder.code, {"HyperParameters": HyperParameters}) == hp


def test_what_is_half_typed_changes_nothing(tmp_path):
    builder = Builder("parity_quick", run_store=tmp_path)
    before, lr = builder.hyper_params, builder.form.field("rl.lr")
    for text in ("", "-", "1e", "1e-", "-1", "nan?"):
        lr.control.value = text
        with pytest.raises(ParameterError, match=r"rl\.lr"):
            builder.hyper_params
        assert "rl.lr" in lr.note.value and "not valid yet" in builder.form.status.value
        assert builder.form.draft.accepted == before
        builder.launch.button.click()
        assert "rl.lr" in builder.launch.notice.value and not builder.store.ids()
    lr.control.value = "1e-4"
    assert builder.hyper_params == before.replace({"rl.lr": 1e-4})


@pytest.fixture
def late_protocol():
    "Registers a protocol when it is called; afterwards it is forgotten"
    entries = dict(protocol_handlers._entries)

    def register():
        @register_protocol_handler("late")
        class Late(protocol_handlers["nip"]):
            "Registered when builders are there already"

        return "late"

    yield register
    protocol_handlers._entries.clear()
    protocol_handlers._entries.update(entries)


def test_what_is_registered_later_appears(tmp_path, late_protocol):
    builder = Builder("parity_quick", run_store=tmp_path)
    choice = builder.form.field("interaction_protocol").control
    builder.form.field("rl.lr").control.value = "fast"  # waits, and stays
    name = late_protocol()
    assert name not in choice.options
    builder.open("Launch")
    builder.open("Assemble")
    assert name in choice.options and choice.value == "adp"
    assert builder.form.field("rl.lr").control.value == "fast"
    builder.form.field("rl.lr").control.value = "0.001"
    choice.value = name
    assert builder.hyper_params.interaction_protocol == name


def test_runs_that_cannot_be_understood_hide_no_others(tmp_path, late_protocol):
    "One of a protocol that is registered elsewhere, and one whose files are damaged"
    tiny = preset("parity_quick", **{"rl.num_iterations": 1, "rl.rollouts_per_iteration": 16})
    entries = dict(protocol_handlers._entries)
    run_experiment(tiny, run_store=tmp_path, run_id="sound")
    for run_id in ("damaged", "elsewhere"):
        run_experiment(tiny.replace(interaction_protocol=late_protocol()), run_store=tmp_path, run_id=run_id)
    (tmp_path / "damaged" / "result.json").write_text("{")
    protocol_handlers._entries.clear()
    protocol_handlers._entries.update(entries)
    builder = Builder(tiny, run_store=tmp_path)
    builder.open("Runs")
    assert {run for _, run in builder.results.runs.options} == {"sound", "damaged", "elsewhere"}
    for run in ("damaged", "elsewhere"):
        builder.results.runs.value = (run,)
        for action in ("Curves", "Transcripts", "Episodes", "Compare", "Load"):
            builder.results.buttons[action].click()
    builder.open("Play")
    for run in ("damaged", "elsewhere", "sound"):
        builder.play.runs.value = run
        builder.play.start.click()
        assert ("is not a registered protocol" in builder.play.notice.value) == (run != "sound")
    assert builder.play.person.run.id == "sound"
