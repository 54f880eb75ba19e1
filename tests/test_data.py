"What a notebook cannot show of the data: processes that race or are killed, equality across them, networkx's opinion."

import hashlib
import multiprocessing
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from tqdm import tqdm

from nip.data.dataset import DataCycler, cached
from nip.data.graphs import GraphRecipe, load_graph_pairs, make_graph_pairs

fork = multiprocessing.get_context("fork")


def silent(**kwargs) -> tqdm:
    return tqdm(disable=True, **kwargs)


def numbers() -> TensorDict:
    return TensorDict({"x": torch.arange(1000), "y": torch.zeros(1000, 1, dtype=torch.int64)}, [1000])


def ask(folder: Path, together, said, seconds: float):
    "In a process: get the numbers, which take `seconds` to make, and say what happened"
    warnings.simplefilter("error")

    def make() -> TensorDict:
        said.put("making")
        time.sleep(seconds)
        return numbers()

    together.wait()
    said.put(cached(folder, make)["x"].sum().item())


def test_of_processes_that_race_one_makes_the_data(tmp_path):
    together, said = fork.Barrier(4), fork.Queue()
    racers = [fork.Process(target=ask, args=(tmp_path / "data", together, said, 0.3)) for _ in range(4)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(60)
    assert [racer.exitcode for racer in racers] == [0] * 4
    assert [said.get(timeout=10) for _ in range(5)] == ["making", *[499500] * 4]


def test_who_waits_for_one_that_is_killed_goes_on(tmp_path):
    said = fork.Queue()
    killed = fork.Process(target=ask, args=(tmp_path / "data", fork.Barrier(1), said, 60))
    waiting = fork.Process(target=ask, args=(tmp_path / "data", fork.Barrier(1), said, 0))
    killed.start()
    assert said.get(timeout=10) == "making"
    waiting.start()
    waiting.join(0.5)
    assert waiting.is_alive()
    killed.kill()
    assert [said.get(timeout=10) for _ in range(2)] == ["making", 499500]


def load(name: str, cache: Path, split: str = "train") -> TensorDict:
    "A data set in a cache of its own"
    before = os.environ["NIP_DATA"]
    os.environ["NIP_DATA"] = str(cache)
    try:
        return load_graph_pairs(name, split, progress=silent).td
    finally:
        os.environ["NIP_DATA"] = before


def test_killed_at_any_time(tmp_path):
    "Data are whole, the same, and without remains, wherever between first random number and last byte a process dies"
    started = time.monotonic()
    expected = load("er60", tmp_path / "reference")
    duration = time.monotonic() - started
    for i in range(12):
        cache = tmp_path / str(i)
        process = fork.Process(target=load, args=("er60", cache))
        process.start()
        time.sleep(duration * i / 10)
        process.kill()
        process.join()
        assert (load("er60", cache) == expected).all()
        assert not list(cache.rglob("*.partial"))


HASH = """
import sys
from tests.test_data import digests
print(digests(sys.argv[1]))
"""


def digest(td: TensorDict) -> str:
    return hashlib.sha256(b"".join(td[key].numpy().tobytes() for key in sorted(td.keys()))).hexdigest()


def digests(cache) -> list[str]:
    unique = make_graph_pairs(GraphRecipe(60, unique=True), seed=3, progress=silent)
    return [digest(td) for td in (unique, load("er300", Path(cache)), load("test", Path(cache)))]


def test_another_process_makes_the_same_bits(tmp_path, root):
    here = digests(tmp_path / "here")
    env = os.environ | {"OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", HASH, str(tmp_path / "there")]
    there = subprocess.run(command, env=env, cwd=root, capture_output=True, text=True, check=True).stdout
    assert there == f"{here}\n"


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest", "no manifest"])
def test_damage_is_mended(tmp_path, damage):
    cached(tmp_path / "data", numbers)
    file, manifest = next(tmp_path.rglob("x.memmap")), tmp_path / "data" / "manifest.json"
    content = file.read_bytes()
    match damage:
        case "flip":
            file.write_bytes(content[:500] + b"\xff" + content[501:])
        case "truncate":
            file.write_bytes(content[:500])
        case "remove":
            file.unlink()
        case "manifest":
            manifest.write_bytes(b"\x80\x00")
        case "no manifest":
            manifest.unlink()
    with pytest.warns(UserWarning, match="^data in the data cache is"):
        assert (cached(tmp_path / "data", numbers) == numbers()).all()


def test_a_failure_leaves_nothing_behind(tmp_path):
    with pytest.raises(ZeroDivisionError):
        cached(tmp_path / "data", lambda: 1 / 0)
    assert [p.name for p in tmp_path.iterdir()] == ["data.lock"]
    assert (cached(tmp_path / "data", numbers) == numbers()).all()


def test_labels_agree_with_networkx():
    nx = pytest.importorskip("networkx")
    for name in ("er1000", "test"):
        for pair in load_graph_pairs(name, "test")[:300]:
            size = int(pair["node_mask"][0].sum())
            graphs = [nx.from_numpy_array(a[:size, :size].numpy()) for a in pair["adjacency"]]
            assert nx.is_isomorphic(*graphs) == pair["y"].item() == (pair["wl_score"] == -1)


def test_sets_share_no_random_stream():
    "Pairs of the largest size do not occur twice by chance"
    sets = [load_graph_pairs(name, split).td for name in ("er1000", "er500") for split in ("train", "test")]
    large = [td[td["node_mask"][:, 0].sum(-1) == 11]["adjacency"].flatten(1) for td in sets]
    pairs = [{bytes(row) for row in td.numpy()} for td in large]
    assert sum(map(len, pairs)) == len(set.union(*pairs))


def test_a_cycler_deals_each_instance_once_per_pass():
    cycler, dealt = DataCycler(7, seed=3), []
    for k in (0, 1, 7, 3, 20, 4):
        dealt += cycler.next(k).tolist()
        cycler.load_state_dict(cycler.state_dict())
    assert all(sorted(dealt[i : i + 7]) == list(range(7)) for i in range(0, 35, 7))
