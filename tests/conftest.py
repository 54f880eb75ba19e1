"""One thread, pictures without a window, and folders of the tests' own: data sets are kept between runs, runs are not."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # before torch is loaded
    os.environ[variable] = "1"
os.environ["MPLBACKEND"] = "agg"
os.environ["HF_HUB_OFFLINE"] = "1"  # a name that is not here is not looked for elsewhere
os.environ["NIP_DATA"] = str(ROOT / "build" / "test-data")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run what takes minutes, too")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes minutes; runs with --slow")
    if not config.getoption("--slow"):
        os.environ["NIP_SMALL"] = "1"  # experiments run a short version of themselves


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="slow: runs with --slow"))


@pytest.fixture(scope="session", autouse=True)
def folders(tmp_path_factory):
    "No test writes into the user's folders"
    os.environ["NIP_RUNS"] = str(tmp_path_factory.mktemp("runs"))


@pytest.fixture(autouse=True)
def one_thread():
    "Two threads on busy cores crawl; a test may have asked for more"
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def root() -> Path:
    "Where the project is"
    return ROOT
