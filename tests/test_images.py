"""Pictures: every kind of source, damage and absence, every protocol and trainer, embeddings of real models."""

import os
import subprocess
import sys
from functools import partial

import datasets
import numpy as np
import pytest
import torch
from tqdm import tqdm

from nip import (
    HyperParameters,
    ParameterError,
    build_scenario_instance,
    evaluate,
    resume_experiment,
    run_experiment,
)
from nip.agents.pretrained import PretrainedModel, embedding_key, pretrained_models, register_pretrained_model
from nip.data.dataset import DatasetParameters
from nip.data.images import image_sources, load_pictures
from nip.parameters.hyper_params import protocol_handlers, trainers
from nip.parameters.settings import ExperimentSettings
from nip.text_training.trainer import TextRlTrainer

quiet = partial(tqdm, disable=True)
COLOURS = {"blue": (0, 0, 255), "red": (255, 0, 0), "yellow": (255, 255, 0)}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    "Each test has a cache of its own, and no network"
    monkeypatch.setenv("NIP_DATA", str(tmp_path / "cache"))
    datasets.disable_progress_bars()


def picture(colour: str, i: int, size: tuple[int, int] = (12, 10)):
    from PIL import Image

    image = Image.new("RGB", size, COLOURS[colour])
    image.putpixel((i, 0), (0, 0, 0))
    return image


def image_folder(root, splits=("train", "test"), n: int = 6, **options):
    "Folders of PNG files, one for each colour"
    for split in splits:
        for colour in COLOURS:
            folder = root / split / colour
            folder.mkdir(parents=True)
            for i in range(n):
                picture(colour, i, **options).save(folder / f"{i}.png")
    return root


def table(n: int = 12, classes: bool = True) -> datasets.Dataset:
    "The same as a table, with names as classes"
    names = [list(COLOURS)[i % 3] for i in range(n)]
    label = datasets.ClassLabel(names=list(COLOURS)) if classes else datasets.Value("string")
    columns = {"id": list(range(n)), "img": [picture(c, i) for i, c in enumerate(names)], "label": names}
    features = datasets.Features({"id": datasets.Value("int32"), "img": datasets.Image(), "label": label})
    return datasets.Dataset.from_dict(columns, features=features)


def parquet_of_bytes(path):
    "As other tools write it: bytes in a column, with nothing that says that they are pictures"
    plain = table(classes=False).cast_column("img", datasets.Image(decode=False))
    plain.to_pandas().to_parquet(path)
    return path


def saved(path):
    found = datasets.DatasetDict({"train": table(9), "validation": table(6)})
    found.save_to_disk(path)
    return path


def one_table(path):
    table(10).save_to_disk(path)
    return path


def parquet_folder(path):
    path.mkdir()
    table(9).to_parquet(path / "train-0.parquet")
    table(6).to_parquet(path / "test-0.parquet")
    return path


SOURCES = {"image folder": image_folder, "bare image folder": partial(image_folder, splits=("",)), "parquet": parquet_of_bytes, "parquet folder": parquet_folder,
           "dict on disk": saved, "table on disk": one_table}  # fmt: skip


@pytest.mark.parametrize("kind", SOURCES)
def test_pictures_on_this_machine(tmp_path, kind):
    path = SOURCES[kind](tmp_path / f"data{'.parquet' * (kind == 'parquet')}")
    pictures = load_pictures(f"local:{path}", progress=quiet)
    assert pictures.classes == ["blue", "red", "yellow"]
    train, test = (
        pictures.task(s, DatasetParameters("select_two", (1, 2)), test_size=0.4) for s in ("train", "test")
    )
    for data in (train, test):
        assert data.td["image"].shape[1:] == (3, 10, 12) and data.td["image"].dtype == torch.uint8
        red = data.td["image"][:, 1, 5, 5] == 0  # red or yellow: no green, or all of it
        assert torch.equal(red, data.td["y"][:, 0] == 0) and 0 < red.float().mean() < 1
        assert red.float().mean() == 0.5
    if pictures.split_name("train") == pictures.split_name("test"):
        assert not set(train.td["id"].tolist()) & set(test.td["id"].tolist())


def test_sizes_differ(tmp_path):
    root = image_folder(tmp_path / "data", n=2)
    picture("red", 0, (20, 20)).save(root / "train" / "red" / "large.png")
    with pytest.raises(
        ParameterError, match="image_classification.image_size: must be given.*10 × 12, 20 × 20"
    ):
        load_pictures(f"local:{root}", progress=quiet)
    pictures = load_pictures(f"local:{root}", 8, progress=quiet)
    assert pictures.td["train"]["image"].shape == (7, 3, 8, 8)


def test_a_ground_of_ones_own(tmp_path):
    "Each picture whole, at its own place, and the same place every time"
    small, large = (
        load_pictures("test", 8, canvas, progress=quiet).td["train"]["image"] for canvas in (None, 20)
    )
    assert large.shape == (80, 1, 20, 20) and torch.equal(large.sum((1, 2, 3)), small.sum((1, 2, 3)))
    corners = (large[:, 0] > 0).any(-1).int().argmax(-1)
    assert len(corners.unique()) > 8
    again = load_pictures("test", 8, 20, ignore_cache=True, progress=quiet).td["train"]["image"]
    assert torch.equal(large, again)
    with pytest.raises(
        ParameterError, match="canvas_size: must be at least the size of the pictures, 16 × 16"
    ):
        load_pictures("test", None, 12, progress=quiet)


def test_grey_pictures_have_one_channel_and_mixed_ones_three(tmp_path):
    root = tmp_path / "data"
    for name in ("dark", "light"):
        (root / name).mkdir(parents=True)
        for i in range(3):
            picture("red", i).convert("L").save(root / name / f"{i}.png")
    assert load_pictures(f"local:{root}", progress=quiet).td["train"]["image"].shape[1] == 1
    picture("blue", 1).save(root / "dark" / "blue.png")
    with pytest.warns(UserWarning, match="was made by another recipe"):
        assert load_pictures(f"local:{root}", progress=quiet).td["train"]["image"].shape == (7, 3, 10, 12)


def test_a_split_without_classes_is_left_out(tmp_path):
    unlabelled = table(6).map(lambda row: row | {"label": -1}, load_from_cache_file=False)
    datasets.DatasetDict({"train": table(9), "test": unlabelled}).save_to_disk(tmp_path / "data")
    assert load_pictures(f"local:{tmp_path / 'data'}", progress=quiet).split_name("test") == "train"


@pytest.mark.parametrize("missing", ["img", "label"])
def test_a_table_of_something_else(tmp_path, missing):
    table().remove_columns([missing]).save_to_disk(tmp_path / "data")
    with pytest.raises(ParameterError, match="must have a column of"):
        load_pictures(f"local:{tmp_path / 'data'}", progress=quiet)


def test_a_folder_without_pictures(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(ParameterError, match="dataset: cannot be read .EmptyDatasetError"):
        load_pictures(f"local:{tmp_path / 'data'}", progress=quiet)


OFFLINE = """
from nip.data.images import load_pictures
try:
    load_pictures("mnist")
except ConnectionError as error:
    print("said:", error)
"""


def test_a_hub_out_of_reach(tmp_path):
    "The real client, told that there is no network"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run([sys.executable, "-c", OFFLINE], capture_output=True, text=True, env=environment)
    assert "said: dataset 'mnist' is not in the cache, and the hub cannot be reached" in done.stdout, (
        done.stderr
    )
    assert "local:<folder>, or take dataset='digits'" in done.stdout


def test_what_is_not_on_the_hub(monkeypatch):
    def nothing(path, *args, **kwargs):
        raise datasets.exceptions.DatasetNotFoundError(
            f"Dataset '{path}' doesn't exist on the Hub or cannot be accessed."
        )

    monkeypatch.setattr(datasets, "load_dataset", nothing)
    with pytest.raises(ParameterError, match="'hub:me/nothing' is not on the hub, or not open to you"):
        load_pictures("hub:me/nothing")


def test_the_hub_is_asked_for_what_was_named(monkeypatch):
    asked = []
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda *a, **k: asked.append((a, k)) or {"train": table(9), "test": table(6)},
    )
    assert len(load_pictures("hub:me/pictures@v2:small", progress=quiet).task("test")) == 4
    assert asked == [(("me/pictures", "small"), {"revision": "v2"})]


@pytest.mark.parametrize("name", ["cifar", "hub:", "hub:a b", "local:nowhere", "digits:2", ""])
def test_names_that_mean_nothing(name):
    with pytest.raises(ParameterError, match="dataset: "):
        HyperParameters("image_classification", "vanilla_ppo", name)


def test_the_defaults_of_the_known_sets():
    assert image_sources["cifar10"].pair == (3, 5) and image_sources["svhn"].seed == 2
    known = {"mnist", "fashion_mnist", "kmnist", "cifar10", "cifar100", "svhn", "digits", "test"}
    assert known <= set(image_sources.names())


def test_a_damaged_cache_is_mended(tmp_path):
    pictures = load_pictures("test", progress=quiet)
    file = next((pictures.folder / "data" / "train").glob("image*"))
    file.write_bytes(b"\xff" + file.read_bytes()[1:])
    with pytest.warns(UserWarning, match="is damaged: it is made again"):
        again = load_pictures("test", progress=quiet)
    assert torch.equal(again.td["train"]["image"], torch.from_numpy(np.stack([i for i, _ in image_sources["test"].read()["train"]]))[:, None])  # fmt: skip


def test_one_cache_for_all_tasks(tmp_path):
    reads = []

    def progress(things, **_):
        reads.append(things)
        return things

    for changes in ({}, {"message_size": 3}, {"dataset_options.binarification_method": "random"}, {"dataset_options.max_train_size": 10}):  # fmt: skip
        hp = HyperParameters.construct_test_params("image_classification", "vanilla_ppo").replace(changes)
        instance = build_scenario_instance(hp, ExperimentSettings(tqdm_func=progress))
        assert instance.train_dataset.td["y"].float().mean() == 0.5
    assert len(reads) == 2 and len(instance.train_dataset) == 10  # two splits, once
    load_pictures("test", 8, progress=progress)
    assert len(reads) == 4  # another size


PROTOCOLS, ALL_TRAINERS = (
    sorted(name for name, cls in registry.items() if cls.__module__.startswith("nip."))
    for registry in (protocol_handlers, trainers)
)
TRAINERS = [name for name in ALL_TRAINERS if not issubclass(trainers[name], TextRlTrainer)]


def tiny(trainer="vanilla_ppo", **changes) -> HyperParameters:
    short = {f"{group}_protocol.max_message_rounds": 4 for group in ("nip", "debate", "mnip")}
    return HyperParameters.construct_test_params("image_classification", trainer).replace(
        {"rl.num_iterations": 1, "rl.num_test_iterations": 1, "rl.frames_per_batch": None, "rl.rollouts_per_iteration": 8,
         "rl.num_normalization_steps": 16, "solo_agent.num_epochs": 1, "agents.verifier.glimpse": 1} | short | changes)  # fmt: skip


def play(hyper_params, **settings) -> dict[str, float]:
    metrics = run_experiment(hyper_params, test_run=True, tqdm_func=quiet, **settings).metrics
    values = [v for k, v in metrics.items() if k.endswith(("mean_accuracy", "test_accuracy"))]
    assert values and all(0 <= v <= 1 for v in values)
    return metrics


@pytest.mark.parametrize("zero_knowledge", [False, True], ids=["plain", "zk"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol(protocol, zero_knowledge):
    play(tiny(interaction_protocol=protocol).replace({"protocol_common.zero_knowledge": zero_knowledge}))


@pytest.mark.parametrize("trainer", TRAINERS)
def test_every_trainer(trainer):
    play(tiny(trainer))


@pytest.mark.slow
@pytest.mark.parametrize("zero_knowledge", [False, True], ids=["plain", "zk"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("trainer", TRAINERS)
def test_every_trainer_with_every_protocol(trainer, protocol, zero_knowledge):
    play(
        tiny(trainer, interaction_protocol=protocol).replace(
            {"protocol_common.zero_knowledge": zero_knowledge}
        )
    )


VARIANTS = {
    "residual blocks": {"agents._default.building_block_type": "residual_basic"},
    "strides": {"agents._default.stride": 2, "agents.verifier.stride": 3},
    "large kernels": {"agents._default.kernel_size": 5},
    "the whole map": {"agents._default.image_readout": "map", "agents._default.learn_positions": True},
    "exchanges": {"agents._default.message_features": "exchange"},
    "pointing by likeness": {"agents._default.latent_pixel_selector": "likeness"},
    "longer messages": {"message_size": 2},
    "numbers": {"include_linear_message_space": True, "message_size": 2},
    "raw observations": {"rl.normalize_observations": False},
    "pretrained bodies": {"pretrain_agents": True},
    "separate bodies": {"rl.use_shared_body": False},
    "four halvings": {"image_classification.num_block_groups": 4},
    "odd sizes": {"image_classification.image_size": 13},
    "a larger ground": {"image_classification.canvas_size": 24, "agents._default.image_readout": "max"},
    "random prover": {"agents.prover": {"is_random": True}},
    "message regression": {"message_regression.enabled": True},
    "random labels": {"dataset_options.binarification_method": "random"},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_variants(changes):
    play(tiny().replace(changes))


REFUSED = {
    "agents.prover.kernel_size": {"agents.prover.kernel_size": 2},
    "agents.prover.building_block_type": {"agents.prover.building_block_type": "conv3d"},
    "agents.prover.pretrained_embeddings_model": {"agents.prover.pretrained_embeddings_model": "resnet19"},
    "agents.verifier.glimpse": {"agents.verifier.pretrained_embeddings_model": "resnet18"},
    "dataset_options.binarification_method": {"dataset_options.binarification_method": "select_too"},
}


@pytest.mark.parametrize("path", REFUSED)
def test_what_cannot_work_is_refused(path):
    with pytest.raises(ParameterError) as error:
        tiny().replace(REFUSED[path])
    assert path in str(error.value)


@pytest.mark.parametrize("changes, why", {
    "image_classification.num_block_groups": ({"image_classification.num_block_groups": 5}, "must be at most 4"),
    "dataset_options.selected_classes": ({"dataset_options.binarification_method": "select_two", "dataset_options.selected_classes": (0, 9)}, "must be two different classes of 0 to 3"),
}.values(), ids=str)  # fmt: skip
def test_what_the_data_do_not_allow(changes, why):
    with pytest.raises(ParameterError, match=why):
        build_scenario_instance(tiny().replace(changes), ExperimentSettings(tqdm_func=quiet))


def test_a_run_goes_on_where_it_stopped(tmp_path):
    hyper_params = tiny(**{"rl.num_iterations": 3})
    whole = run_experiment(hyper_params, run_store=tmp_path, run_id="whole", tqdm_func=quiet)
    run_experiment(hyper_params, run_store=tmp_path, run_id="parts", stop_after=1, tqdm_func=quiet)
    parts = resume_experiment("parts", run_store=tmp_path, tqdm_func=quiet)
    assert parts.metrics == pytest.approx(whole.metrics, nan_ok=True)
    weights = [r.scenario_instance.state_dict() for r in (whole, parts)]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


@pytest.fixture
def saved_model(tmp_path):
    "A convolutional network of transformers, in a folder"
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        num_channels=3, embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1], layer_type="basic"
    )
    transformers.ResNetModel(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def counting(monkeypatch) -> list[int]:
    "How many pictures the models of transformers are shown, call by call"
    from nip.agents.pretrained import TransformersModel

    shown, embed = [], TransformersModel.embed
    monkeypatch.setattr(
        TransformersModel, "embed", lambda self, images: shown.append(len(images)) or embed(self, images)
    )
    return shown


def test_embeddings_are_made_once(saved_model, monkeypatch):
    "By a real model: saved, loaded, run through the data, kept, and joined to the body of the one who has it"
    name, shown = f"transformers:{saved_model}", counting(monkeypatch)
    hyper_params = tiny(
        **{
            "agents.prover.pretrained_embeddings_model": name,
            "agents.prover.pretrained_embedding_channels": 3,
        }
    )
    settings = ExperimentSettings(tqdm_func=quiet, pretrained_embeddings_batch_size=32)
    instance = build_scenario_instance(hyper_params, settings)
    assert shown == [32, 32, 16, 32, 8]  # 80 pictures to train on, 40 to test on
    key = embedding_key(name)
    assert (
        key in instance.agents["prover"].body.in_keys and key not in instance.agents["verifier"].body.in_keys
    )
    assert instance.train_dataset.td[key].shape[1] == 6
    from transformers import AutoModel

    images = instance.test_dataset.td["image"][3:5].float().expand(-1, 3, -1, -1) / 255
    expected = AutoModel.from_pretrained(saved_model).eval()((images - 0.5) / 0.5).last_hidden_state
    assert torch.allclose(instance.test_dataset.td[key][3:5], expected, atol=1e-5)
    play(hyper_params)
    build_scenario_instance(hyper_params.replace({"dataset_options.max_train_size": 10}), settings)
    assert len(shown) == 5


def test_a_run_with_embeddings_is_evaluated_from_its_folder(saved_model, tmp_path):
    hyper_params = tiny(**{"agents.prover.pretrained_embeddings_model": f"transformers:{saved_model}"})
    run_experiment(hyper_params, run_store=tmp_path, run_id="seen", tqdm_func=quiet)
    found = evaluate(
        "seen", run_store=tmp_path, passes=1, attack_iterations=1, attack_frames=16, progress=quiet
    )
    assert 0 <= found["soundness_attacked"].value <= 1 and found["accuracy"].n == 40


def test_embeddings_matter(saved_model):
    hyper_params = tiny(**{"agents.prover.pretrained_embeddings_model": f"transformers:{saved_model}"})
    instance = build_scenario_instance(hyper_params, ExperimentSettings(tqdm_func=quiet))
    body, td = (
        instance.agents["prover"].body,
        instance.train_environment.start(torch.arange(4), torch.zeros(4, dtype=torch.long)),
    )
    inputs = {k: td[k] for k in body.in_keys}
    changed = inputs | {body.in_keys[-1]: inputs[body.in_keys[-1]] + 1}
    assert not torch.allclose(body(inputs)["instance_repr"], body(changed)["instance_repr"])


def test_only_what_lacks_embeddings_gets_them(saved_model, monkeypatch):
    from nip.data.dataset import Dataset

    name, shown = f"transformers:{saved_model}", counting(monkeypatch)
    hyper_params = tiny(**{"agents.prover.pretrained_embeddings_model": name})
    settings = ExperimentSettings(tqdm_func=quiet)
    bare = build_scenario_instance(tiny(), settings)
    td = bare.train_dataset.td.copy()
    td[embedding_key(name)] = torch.ones(len(td), 6, 2, 2)
    instance = build_scenario_instance(hyper_params, settings, (Dataset(td), bare.test_dataset))
    assert shown == [40] and bool((instance.train_dataset.td[embedding_key(name)] == 1).all())


def test_another_model_in_the_same_folder(saved_model, monkeypatch):
    "What is kept belongs to the weights, not to the name"
    from transformers import ResNetModel

    shown = counting(monkeypatch)
    hyper_params = tiny(**{"agents.prover.pretrained_embeddings_model": f"transformers:{saved_model}"})
    build = lambda: build_scenario_instance(hyper_params, ExperimentSettings(tqdm_func=quiet))
    build()
    model = ResNetModel.from_pretrained(saved_model)
    next(model.parameters()).data += 1
    model.save_pretrained(saved_model)
    build()
    build()
    assert shown == [80, 40, 80, 40]


def test_pretrained_bodies_know_whose_embeddings_they_saw(saved_model):
    from nip.training.pretraining import body_recipe

    hyper_params = tiny(**{"agents.prover.pretrained_embeddings_model": f"transformers:{saved_model}"})
    recipes = []
    for name in ("config.json", "other.json"):
        (saved_model / name).touch()
        recipes.append(
            body_recipe(build_scenario_instance(hyper_params, ExperimentSettings(tqdm_func=quiet)), "prover")
        )
    assert recipes[0]["embeddings"] != recipes[1]["embeddings"]
    play(hyper_params.replace({"pretrain_agents": True}))


def test_damaged_embeddings_are_made_again(saved_model, tmp_path):
    hyper_params = tiny(**{"agents.prover.pretrained_embeddings_model": f"transformers:{saved_model}"})
    build = lambda: build_scenario_instance(hyper_params, ExperimentSettings(tqdm_func=quiet)).train_dataset
    before = build()
    file = next((tmp_path / "cache").rglob("*-embeddings/train-*/data/embedding*.memmap"))
    key = next(k for k in before.keys() if k.startswith("embedding"))
    kept = before.td[key].clone()
    file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:])
    with pytest.warns(UserWarning, match="is damaged: it is made again"):
        assert torch.equal(build().td[key], kept)


def test_a_folder_with_no_model(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ParameterError, match="cannot be loaded"):
        build_scenario_instance(tiny(**{"agents.prover.pretrained_embeddings_model": f"transformers:{tmp_path / 'empty'}"}), ExperimentSettings(tqdm_func=quiet))  # fmt: skip
    with pytest.raises(
        ParameterError,
        match="agents.prover.pretrained_embeddings_model: must name a model on the hub, or a folder",
    ):
        tiny(**{"agents.prover.pretrained_embeddings_model": f"transformers:{tmp_path / 'nothing'}"})


def test_a_model_of_ones_own():
    @register_pretrained_model("bright")
    class Bright(PretrainedModel):
        "How bright the quarters are"

        num_channels = 1

        def embed(self, images):
            return torch.nn.functional.adaptive_avg_pool2d(images.mean(1, keepdim=True), 2)

    hyper_params = tiny(
        **{"agents._default.pretrained_embeddings_model": "bright", "agents.verifier.glimpse": None}
    )
    assert "bright" in pretrained_models
    play(hyper_params)
    Bright.num_channels = 2
    with pytest.raises(
        ParameterError, match=r"must give \[80, 2, h, w\] for 80 pictures, and not \[80, 1, 2, 2\]"
    ):
        play(hyper_params, ignore_cache=True)


def test_timm(monkeypatch):
    pytest.importorskip(
        "timm", reason="timm cannot be imported: it needs torchvision, which has no build for this machine"
    )
    import timm

    create = timm.create_model  # with random weights, for want of a hub
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: create(*a, **(k | {"pretrained": False})))
    hyper_params = tiny(**{"agents.prover.pretrained_embeddings_model": "resnet18"})
    instance = build_scenario_instance(hyper_params, ExperimentSettings(tqdm_func=quiet))
    assert instance.train_dataset.td["embedding_resnet18"].shape[1] == 512
