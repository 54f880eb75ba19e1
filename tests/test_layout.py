"""The house stands: notebooks and modules belong together, imports run in one direction, `import nip` is light."""

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

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ["core", "parameters", "runs", "protocols", "language_models", "data", "agents", "episodes", "scenarios", "training",
            "text_training", "analysis", "experiments", "builder", "cli"]  # fmt: skip
NUMBERED = sorted((ROOT / "nbs").glob("[0-9]*/[0-9]*.ipynb"))
ALL = [ROOT / "index.ipynb", *NUMBERED, *sorted((ROOT / "nbs").glob("[a-z]*/**/[!.]*.ipynb"))]
FILES = sorted(p for p in (ROOT / "nip").rglob("[a-z]*.py"))
HEAVY = [
    "torch",
    "wandb",
    "datasets",
    "openai",
    "transformers",
    "ipywidgets",
    "matplotlib",
    "pandas",
    "genai_prices",
    "typer",
]
DISTRIBUTIONS = {"pyyaml": "yaml", "python-dotenv": "dotenv"}
THROUGH = {"tokenizers", "starlette", "click", "rich"}  # required by transformers, fastapi and typer

every_notebook = pytest.mark.parametrize("path", ALL, ids=lambda p: f"{p.parent.name}/{p.stem}")
numbered_notebook = pytest.mark.parametrize("path", NUMBERED, ids=lambda p: f"{p.parent.name}/{p.stem}")


def cells(path: Path, kind: str = "code") -> list[str]:
    "The sources of one kind of cell"
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == kind]


def module_of(path: Path) -> str | None:
    "The module that a notebook exports, without `nip.`"
    found = re.search(r"^#\|\s*default_exp\s+(\S+)", "\n".join(cells(path)), re.M)
    return found and found[1]


def module_at(path: Path) -> str:
    "The dotted name of a file of the package, without `nip.`"
    return ".".join(path.relative_to(ROOT / "nip").with_suffix("").parts)


def exports(package: str) -> dict[str, str]:
    "Name that a package hands out → the module it lives in, by the package's stub; a package's own as well as all of `nip`"
    stub = ROOT / "nip" / package.replace(".", "/") / "__init__.pyi"
    prefix = f"{package}." if package else ""
    found = {}
    for node in ast.parse(stub.read_text(encoding="utf-8")).body if stub.exists() else []:
        found |= {alias.asname or alias.name: prefix + node.module for alias in node.names}
    return found


MODULES = [module_at(path) for path in FILES]
STAGE = {module_of(path): number for number, path in enumerate(NUMBERED)}
EXPORTS = {package: exports(package) for package in ["", *PACKAGES]}


def imported(source: str) -> set[str]:
    "Modules that code imports when it runs; a name that a package hands out counts as the module it lives in"
    tree = ast.parse(re.sub(r"^\s*[%!].*$", "", source, flags=re.M))
    checked = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    ]
    for_types = {inner for node in checked for inner in ast.walk(node)}
    names = set()
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            package = (node.module + ".").removeprefix("nip.").removesuffix(".")
            homes = EXPORTS.get(package, {}) if node.module.split(".")[0] == "nip" else {}
            for alias in node.names:
                home = homes.get(alias.name)
                names.add(f"nip.{home}" if home else node.module)
    return names


def ours(source: str) -> set[str]:
    "Modules of the package that code imports, without `nip.`"
    return {name.removeprefix("nip.") for name in imported(source) if name.startswith("nip.")}


def test_each_module_has_one_notebook():
    exported = [module for path in ALL if (module := module_of(path))]
    assert sorted(exported) == sorted(MODULES)
    for path in FILES:
        source = re.search(r"File to edit: (\S+\.ipynb)", path.read_text(encoding="utf-8"))[1]
        assert module_of(path.parent / source) == module_at(path)


def test_rooms_stand_in_the_order_of_the_build():
    folders = [path.name.split("_", 1)[1] for path in sorted((ROOT / "nbs").glob("[0-9]*"))]
    assert folders == PACKAGES
    assert {module.split(".")[0] for module in MODULES} == set(PACKAGES)
    for path in NUMBERED:
        assert module_of(path).split(".")[0] == path.parent.name.split("_", 1)[1]


@numbered_notebook
def test_imports_run_down_the_stages(path):
    "A module imports only modules before it; so do its lessons"
    here = STAGE[module_of(path)]
    modules = {module for source in cells(path) for module in ours(source)}
    assert not {m for m in modules if m in STAGE and STAGE[m] > here}
    assert not {m for m in modules if m in PACKAGES[PACKAGES.index(path.parent.name.split("_", 1)[1]) + 1 :]}


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
    known = {DISTRIBUTIONS.get(name, name.replace("-", "_")) for name in listed} | {"nip"}
    installed = (
        packages_distributions()
    )  # a package that is not there is an optional one, imported where it is used
    for path in FILES:
        used = {name.split(".")[0] for name in imported(path.read_text(encoding="utf-8"))}
        assert {u for u in used if u in installed} <= known | THROUGH | {"IPython"}, path.name


@pytest.mark.parametrize("package", EXPORTS)
def test_names_that_a_package_hands_out(package):
    found = import_module(f"nip.{package}".rstrip("."))
    assert found.__doc__ or package == "cli"
    for name in EXPORTS[package]:
        assert getattr(found, name) is not None
        assert name in dir(found)


def documented(name: str, thing) -> bool:
    "Whether a class or function says in its own words what it is"
    own = vars(thing).get("__doc__") if isinstance(thing, type) else getattr(thing, "__doc__", None)
    return bool(own) and not own.startswith(f"{name}(")  # what `dataclass` writes by itself does not count


def test_names_that_are_handed_out_have_docstrings():
    silent = []
    for package, homes in EXPORTS.items():
        for name in homes:
            thing = getattr(import_module(f"nip.{package}".rstrip(".")), name)
            if callable(thing) and hasattr(thing, "__qualname__") and not documented(name, thing):
                silent.append(f"{package}.{name}")
    assert not silent


@pytest.mark.parametrize("module", MODULES)
def test_names_of_module(module):
    found = import_module(f"nip.{module}")
    assert found.__doc__, "the tagline of its notebook"
    assert all(hasattr(found, name) for name in found.__all__)


@numbered_notebook
def test_head(path):
    code, text = cells(path), cells(path, "markdown")
    assert re.fullmatch(r"#\|\s*default_exp [\w.]+", code[0].strip())
    assert re.match(r"# [^\n]+\n+> [^\n]+\n+Stage \d of 9: [^\n]*\*\*[\w ,-]+\*\*", text[0]), text[0][:300]
    allowed = ast.Import | ast.ImportFrom | ast.Assign | ast.If  # `_all_ = [...]`; `if TYPE_CHECKING:`
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
