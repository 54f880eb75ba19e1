"""Whatever is valid survives every way of writing it down; whatever is wrong is refused, and named."""

import copy
import math
import pickle
from dataclasses import dataclass
from types import NoneType, SimpleNamespace, UnionType
from typing import Union, get_args, get_origin

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from nip.core.registry import Registry
from nip.parameters.hyper_params import (
    AgentsParameters,
    HyperParameters,
    agent_parameters,
    parameter_groups,
    protocol_handlers,
    scenarios,
    trainers,
)
from nip.parameters.validation import ParameterError, Parameters, UnknownParameter, family, param

settings.register_profile("nip", deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
settings.load_profile("nip")


# A world without rules of its own, so that any valid group goes with any other


@dataclass
class LeftHand(Parameters):
    strength: float = param(1.0, ge=0)


@dataclass
class RightHand(Parameters):
    skill: int = param(ge=1)


@dataclass
class ToyAgentParameters(Parameters):
    depth: int = param(3, ge=1, le=9)
    style: str = param("calm", choices=("calm", "bold"))
    hand: LeftHand | RightHand = param(default_factory=LeftHand)
    other_hand: RightHand | None = None
    weights: tuple[float, ...] | None = param(None, gt=0)
    notes: dict[str, str] = param(default_factory=dict)
    limit: float = param(math.inf, finite=False, gt=0)


@dataclass
class ToyRandomAgentParameters(Parameters):
    pass


TOY = ("toy_world", "toy_trainer", "toy_dataset", "toy_protocol")


@pytest.fixture(scope="module", autouse=True)
def toy_world():
    parameter_groups.names()  # everything else is registered first
    world = SimpleNamespace(agent_parameters_class=ToyAgentParameters)
    toys = [(scenarios, TOY[0], world), (trainers, TOY[1], object()), (protocol_handlers, TOY[3], object())]
    if "RandomAgentParameters" not in agent_parameters:
        ToyRandomAgentParameters.__name__ = "RandomAgentParameters"
        toys.append((agent_parameters, "RandomAgentParameters", ToyRandomAgentParameters))
    for registry, name, toy in toys:
        registry.register(name, toy)
    yield
    for registry, name, _ in toys:
        del registry._entries[name]


# Valid values, drawn by what a parameter says about itself


def is_group(hint) -> bool:
    return hasattr(hint, "_specs")


def values(hint, conditions=None):
    "A strategy for the valid values of a parameter"
    conditions, kind, args = conditions or {}, get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return st.one_of([values(member, conditions) for member in args])
    if kind in (tuple, list):
        return st.lists(values(args[0], conditions), max_size=3).map(kind)
    if kind is dict:
        return st.dictionaries(st.text(), values(args[1]), max_size=3)
    if is_group(kind):
        return st.one_of([groups(cls) for cls in family(kind).values()])
    if conditions.get("choices") is not None and kind is not NoneType:
        return st.sampled_from([choice for choice in conditions["choices"] if choice is not None])
    return {NoneType: lambda _: st.none(), bool: lambda _: st.booleans(), str: lambda _: st.text()}.get(
        kind, integers if kind is int else floats
    )(conditions)


def integers(conditions):
    low = conditions.get("ge") if conditions.get("gt") is None else math.floor(conditions["gt"]) + 1
    high = conditions.get("le") if conditions.get("lt") is None else math.ceil(conditions["lt"]) - 1
    return st.integers(low, high)


def floats(conditions):
    low, high = (conditions.get("ge"), conditions.get("gt")), (conditions.get("le"), conditions.get("lt"))
    bound = lambda pair: next((float(x) for x in pair if x is not None), None)
    return st.floats(
        bound(low),
        bound(high),
        exclude_min=low[1] is not None,
        exclude_max=high[1] is not None,
        allow_nan=False,
        allow_infinity=not conditions.get("finite", True),
    )


@st.composite
def groups(draw, cls):
    "A strategy for the objects of a parameters class"
    specs = cls._specs()
    required = {name for name, spec in specs.items() if not callable(spec.default)}
    chosen = required | draw(st.sets(st.sampled_from(sorted(specs)))) if specs else set()
    try:
        return cls(
            **{name: draw(values(specs[name].hint, specs[name].conditions)) for name in sorted(chosen)}
        )
    except ParameterError:
        assume(False)  # values that do not go together


def configurations():
    "A strategy for hyper-parameters: some parameters, some groups, some agents"
    plain = {
        "seed": st.integers(0),
        "dataset": st.text(),
        "test_size": st.floats(0, 1, exclude_max=True),
        "d_representation": st.integers(1),
        "pretrain_agents": st.booleans(),
    }
    agents = st.dictionaries(
        st.sampled_from(["prover", "verifier", "_default", "some one"]),
        groups(ToyAgentParameters) | st.just({"is_random": True}),
    )
    drawn = {name: groups(cls) for name, cls in parameter_groups.items()}
    return st.fixed_dictionaries({}, optional={**plain, **drawn, "agents": agents}).map(toy)


def toy(parameters=None) -> HyperParameters:
    scenario, trainer, dataset, protocol = TOY
    given = {"scenario": scenario, "trainer": trainer, "dataset": dataset, "interaction_protocol": protocol}
    return HyperParameters(**{**given, **(parameters or {})})


# Round trips


@given(st.data())
def test_round_trips(data):
    hp = data.draw(configurations())
    as_dict = hp.to_dict()
    before = copy.deepcopy(as_dict)
    names = {cls.__name__: cls for cls in [HyperParameters, AgentsParameters, *classes()]}
    ways = {
        "dict": HyperParameters.from_dict(as_dict),
        "yaml": HyperParameters.from_yaml(hp.to_yaml()),
        "json": HyperParameters.from_json(hp.to_json()),
        "repr": eval(repr(hp), names),
        "pickle": pickle.loads(pickle.dumps(hp)),
        "copy": copy.deepcopy(hp),
    }
    for way, back in ways.items():
        assert back == hp, way
        assert not hp.diff(back), way
        assert repr(back) == repr(hp), way  # types as well: 1 is not 1.0
    assert as_dict == before


def classes():
    found = [*parameter_groups.items(), *agent_parameters.items()]
    return [c for _, cls in found for c in family(cls).values()] + list(family(Parameters).values())


@given(st.data())
def test_replace_and_diff_are_inverse(data):
    mine, theirs = data.draw(configurations()), data.draw(configurations())
    back = mine.replace({path: value for path, (_, value) in mine.diff(theirs).items() if value is not None})
    for path, (_, wanted) in mine.diff(theirs).items():
        if wanted is not None:
            assert back.get(path) == wanted


# Single corruptions


def addresses():
    "All parameters: (group or agent, class, name)"
    found = [(name, cls) for name, cls in parameter_groups.items()] + [("agents.prover", ToyAgentParameters)]
    return [(at, cls, name) for at, cls in found for name in cls._specs()]


def wrong_values(spec):
    "Values that a parameter must refuse"
    members = get_args(spec.hint) if get_origin(spec.hint) in (Union, UnionType) else (spec.hint,)
    kinds = {get_origin(member) or member for member in members}
    wrong = [object(), b"bytes", complex(1)]
    wrong += [None] if NoneType not in kinds else []
    wrong += ["no such choice"] if str not in kinds or spec.conditions.get("choices") is not None else []
    wrong += [True] if bool not in kinds else []
    wrong += [1, -1.5] if not kinds & {int, float} else []
    wrong += [1.5] if kinds & {int, bool} and float not in kinds else []
    wrong += [math.nan] if float in kinds and spec.conditions.get("finite", True) else []
    if kinds & {int, float}:
        steps = {"ge": -1, "gt": 0, "le": 1, "lt": 0}
        wrong += [spec.conditions[b] + s for b, s in steps.items() if spec.conditions.get(b) is not None]
    return wrong


def nested(at, parameters):
    for part in reversed(at.split(".")):
        parameters = {part: parameters}
    return parameters


@given(st.data())
def test_wrong_values_are_refused(data):
    at, cls, name = data.draw(st.sampled_from(addresses()))
    wrong = data.draw(st.sampled_from(wrong_values(cls._specs()[name])))
    argument = nested(at, {name: wrong})
    before = repr(argument)
    with pytest.raises(ParameterError) as caught:
        toy(argument)
    assert caught.value.path == f"{at}.{name}"
    assert str(caught.value).startswith(f"{at}.{name}: ")
    if caught.value.choices is not None:
        assert all(str(choice) in str(caught.value) for choice in caught.value.choices)
    assert repr(argument) == before


@given(st.data())
def test_misspelt_names_are_refused(data):
    at, cls, name = data.draw(st.sampled_from(addresses()))
    place = data.draw(st.integers(0, len(name)))
    misspelt = name[:place] + "q" + name[place:]
    argument = nested(at, {misspelt: 1})
    before = copy.deepcopy(argument)
    with pytest.raises(UnknownParameter) as caught:
        toy(argument)
    assert caught.value.path == f"{at}.{misspelt}"
    assert caught.value.match in cls._specs() or len(name) <= 2
    assert argument == before


@given(st.data())
def test_corrupted_files_are_refused(data):
    hp = data.draw(configurations())
    at, _, name = data.draw(st.sampled_from([a for a in addresses() if not a[0].startswith("agents")]))
    d = hp.to_dict()
    d[at][f"{name}_"] = d[at][name]
    before = copy.deepcopy(d)
    with pytest.raises(UnknownParameter, match=rf"{at}\.{name}_: no such parameter"):
        HyperParameters.from_dict(d)
    assert d == before
    HyperParameters.from_dict(d, ignore_extra_keys=True)
    assert d == before


@given(st.data())
def test_refused_assignments_change_nothing(data):
    hp = data.draw(configurations())
    before = copy.deepcopy(hp)
    at, cls, name = data.draw(st.sampled_from([a for a in addresses() if not a[0].startswith("agents")]))
    with pytest.raises(ParameterError, match=rf"^{at}\.{name}: "):
        setattr(getattr(hp, at), name, data.draw(st.sampled_from(wrong_values(cls._specs()[name]))))
    with pytest.raises(ParameterError):
        setattr(hp, at, {f"{name}_": 1})
    assert hp == before


@pytest.mark.parametrize("field", ["scenario", "trainer", "interaction_protocol"])
def test_unregistered_components_are_refused(field):
    with pytest.raises(
        ParameterError, match=rf"^{field}: '.*' is not a registered .*; did you mean 'toy_.*'\? Valid: "
    ):
        toy({field: getattr(toy(), field)[:-1]})


def test_every_parameter_is_documented():
    from nip.parameters.validation import field_docs

    for cls in [HyperParameters, *dict(parameter_groups.items()).values()]:
        if cls.__module__.startswith("nip."):
            own = [f for f in cls.__dataclass_fields__ if not f.startswith("_")]
            assert [f for f in own if f not in field_docs(cls)] == [], cls


def test_registry_choices_are_open():
    kinds = Registry("kind")
    kinds.register("a", object())

    @dataclass
    class Open(Parameters):
        kind: str = param(choices=kinds)

    with pytest.raises(ParameterError, match="Open.kind: 'b' is not a registered kind"):
        Open("b")
    kinds.register("b", object())
    assert Open("b").kind == "b"


# Combinations, which the components themselves refuse


@given(
    st.sampled_from(["nip", "adp", "solo_verifier"]),
    st.sampled_from(["prove", "prover2", "judge", "Verifier"]),
)
def test_agents_that_the_protocol_lacks(protocol, agent):
    with pytest.raises(ParameterError) as caught:
        toy({"interaction_protocol": protocol, "agents": {agent: {"depth": 1}}})
    assert caught.value.path == f"agents.{agent}" and "verifier" in caught.value.choices
    assert toy({"interaction_protocol": protocol, "agents": {"verifier": {"depth": 1}}}).agents.named == [
        "verifier"
    ]


@given(st.integers(1, 20), st.integers(1, 20))
def test_round_limits(low, high):
    parameters = {
        "interaction_protocol": "nip",
        "nip_protocol": {"min_message_rounds": low, "max_message_rounds": high},
    }
    if low <= high:
        assert toy(parameters).get("nip_protocol.min_message_rounds") == low
    else:
        with pytest.raises(ParameterError, match="min_message_rounds"):
            toy(parameters)


def real(**parameters):
    return HyperParameters("graph_isomorphism", "vanilla_ppo", "test", **parameters)


@given(st.integers(1, 2000), st.integers(1, 12))
def test_frames_divide_into_rounds(frames, rounds):
    parameters = {"rl": {"frames_per_batch": frames}, "nip_protocol": {"max_message_rounds": rounds}}
    if frames % rounds == 0:
        assert real(**parameters).rl.frames_per_batch == frames
    else:
        with pytest.raises(ParameterError) as caught:
            real(**parameters)
        assert caught.value.path == "rl.frames_per_batch"


def test_assignments_are_held_against_the_components():
    hp = real()
    with pytest.raises(ParameterError, match=r"^rl\.frames_per_batch: .* got 1001"):
        hp.rl = {"frames_per_batch": 1001}
    hp.rl.frames_per_batch = 1001  # further inside: found out by whoever builds
    with pytest.raises(ParameterError, match=r"^rl\.frames_per_batch: .* got 1001"):
        hp.validate()


def test_random_agents_cannot_be_supervised():
    agents = {"prover": {"is_random": True}}
    assert HyperParameters("graph_isomorphism", "vanilla_ppo", "test", agents=agents).agents.named == [
        "prover"
    ]
    with pytest.raises(ParameterError, match=r"^agents\.prover"):
        HyperParameters("graph_isomorphism", "solo_agent", "test", agents=agents)


@given(st.data())
def test_real_experiments_round_trip(data):
    agents = {
        name: data.draw(groups(scenarios["graph_isomorphism"].agent_parameters_class)) for name in ("prover",)
    }
    try:
        hp = real(agents=agents, ppo=data.draw(groups(parameter_groups["ppo"])))
    except ParameterError:
        assume(False)
    assert hp == HyperParameters.from_dict(hp.to_dict()) == HyperParameters.from_yaml(hp.to_yaml())
