"""Every notebook runs from top to bottom, each in a process of its own, so that no lesson can upset another."""

import json
import multiprocessing
from pathlib import Path

import pytest

from nip.data.sandbox import sandbox_fault

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(
    p for p in (ROOT / "nbs").rglob("*.ipynb") if not any(part.startswith((".", "_")) for part in p.parts)
)

fresh = multiprocessing.get_context(
    "forkserver"
)  # forks a process that has the slow imports behind it, nothing else
fresh.set_forkserver_preload(["torchrl.envs", "tensordict.nn", "torch.utils.data", "pandas", "nbdev.test"])


def cells(path: Path) -> list[str]:
    "The sources of a notebook's code cells"
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == "code"]


def is_slow(path: Path) -> bool:
    "A notebook whose first cell says so; slow cells in other notebooks are passed over one by one"
    return any("#| slow" in source for source in cells(path)[:1])


def marks(path: Path) -> list:
    "Why a notebook may be skipped"
    found = [pytest.mark.slow] if is_slow(path) else []
    if any("nip.sandbox" in source or "default_exp sandbox" in source for source in cells(path)):
        fault = sandbox_fault()
        found.append(
            pytest.mark.skipif(bool(fault), reason=f"runs programs, and there is no sandbox: {fault}")
        )
    return found


def play(path: Path, slow: bool, answer):
    "In the fresh process: run the notebook, and answer whether all of it held"
    from nbdev.test import test_nb

    flags = ["slow"]
    good, _ = test_nb(path, skip_flags=flags, force_flags=flags if slow else [], basepath=ROOT)
    answer.send(good)


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, id=str(p.relative_to(ROOT / "nbs").with_suffix("")), marks=marks(p)) for p in NOTEBOOKS],
)
def test_notebook(path, request):
    ours, theirs = fresh.Pipe(duplex=False)
    process = fresh.Process(target=play, args=(path, request.config.getoption("--slow"), theirs))
    process.start()
    theirs.close()
    try:
        good = ours.recv()
    except EOFError:
        process.join()
        pytest.fail(f"the process that ran {path.name} died with exit code {process.exitcode}")
    finally:
        if process.is_alive():
            process.join(timeout=5)
            process.kill()
    assert good, f"{path.name} failed; its traceback is among the captured output"
