"""The documentation site from the notebooks, in _docs/: what `make docs` runs. Nothing is installed or downloaded.

nbdev processes the notebooks (reference entries, links, hidden cells), smalldocs renders what comes out.
"""

import ast
import inspect
import json
import os
import re
import shutil
import sys
import warnings
from dataclasses import is_dataclass
from functools import cached_property
from importlib import import_module
from io import StringIO
from pathlib import Path
from textwrap import dedent
from tokenize import COMMENT, generate_tokens

import fastcore.docments as docments
import nbdev.doclinks
import nbdev.processors as processors
import yaml
from execnb.nbio import mk_cell
from nbdev.config import get_config
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs
from smalldocs.cli import main as smalldocs

ROOT = Path(__file__).resolve().parent.parent
PROC, DOCS = ROOT / "_proc", ROOT / "_docs"
SHOW_DOC = re.compile(r"^show_doc\(([\w.]+)", re.M)


def signature(symbol, eval_str: bool = True):
    "Types that only a type checker imports, or that are names of a parent's module, are shown as they are written"
    try:
        return inspect.signature(symbol, eval_str=eval_str)
    except NameError:
        return inspect.signature(symbol)


def fields_source(found: type) -> str:
    "A dataclass with each field on one line, its comment behind it, wherever a formatter has put that"
    source = dedent(inspect.getsource(found))
    comments = {t.start[0]: t.string for t in generate_tokens(StringIO(source).readline) if t.type == COMMENT}
    lines = [f"class {found.__name__}:"]
    for node in ast.parse(source).body[0].body:
        if isinstance(node, ast.AnnAssign):
            comment = next(
                (comments[n] for n in range(node.end_lineno, node.lineno - 1, -1) if n in comments), ""
            )
            lines.append(f"    {ast.unparse(node)}  {comment}")
    return "\n".join([*lines, "    pass"])


def get_source(symbol, original=docments.get_source) -> str:
    "The parameters of a dataclass's generated `__init__`, which functions delegate to, are documented in its class"
    if is_dataclass(symbol):
        return fields_source(symbol)
    try:
        return original(symbol)
    except OSError:
        name = symbol.__qualname__.removesuffix(".__init__")
        owners = (
            vars(module).get(name) for key, module in list(sys.modules.items()) if key.startswith("nip.")
        )
        return next((fields_source(owner) for owner in owners if is_dataclass(owner)), "")


class KeepStage(processors.FrontmatterProc):
    "Title and tagline become front matter; what follows them in the same cell stays"

    def begin(self):
        for number, cell in enumerate(self.nb.cells[:3]):
            head = (
                re.match(r"# .+\n+(> .+\n+)?(?=[^\s>-])", cell.source)
                if cell.cell_type == "markdown"
                else None
            )
            if head:
                self.nb.cells.insert(number + 1, mk_cell(cell.source[head.end() :], "markdown"))
                cell.source = head[0]
                break
        super().begin()


class ShowDocs(processors.exec_show_docs):
    "Reference entries from the module, not from running the notebook's cells: fields of dataclasses keep their comments"

    def begin(self):
        self.k = processors.CaptureShell()
        self.k.run_cell("from nbdev.showdoc import show_doc")
        exported = next(
            (c.directives_["default_exp"] for c in self.nb.cells if "default_exp" in c.directives_), None
        )
        if exported:
            module = import_module(f"nip.{exported[0]}")  # what it patches may be another module's
            self.k.user_ns |= {name: value for name, value in vars(module).items() if name[:1] != "_"}

        self.nb.cells = [entry for cell in self.nb.cells for entry in (cell, *self.methods(cell))]

    def methods(self, cell) -> list:
        "Entries for what a class defines itself, after its own"
        shown = SHOW_DOC.search(cell.source or "") if cell.cell_type == "code" else None
        found = self.k.user_ns.get(shown[1]) if shown else None
        if not isinstance(found, type):
            return []
        own = {
            name: getattr(value, "__func__", value) for name, value in vars(found).items() if name[0] != "_"
        }
        told = [
            name
            for name, value in own.items()
            if inspect.isroutine(value) or isinstance(value, property | cached_property)
        ]
        return [
            mk_cell(f"show_doc({shown[1]}.{name})", has_sd=True) for name in told if inspect.getdoc(own[name])
        ]

    def __call__(self, cell):
        shown = SHOW_DOC.search(cell.source or "") if cell.cell_type == "code" else None
        if shown:
            if any(part.startswith("_") for part in shown[1].split(".")):
                del cell["source"]  # private, or a display
                return
            symbol = eval(shown[1], self.k.user_ns)
            if not (isinstance(symbol, type) or inspect.getdoc(getattr(symbol, "func", symbol))):
                del cell["source"]  # the name says it all
                return
            self.k.cell(cell)
            if self.k.exc:
                raise RuntimeError(f"no reference entry from {cell.source!r}") from self.k.exc

    def end(self):
        "No widget state"


def stem_of(notebook: dict, path: Path) -> str:
    "The name of the page: the module's, as nbdev has it"
    for cell in notebook["cells"][:2]:
        found = re.search(r"^output-file:\s*(\S+)\.html", "".join(cell["source"]), re.M)
        if found:
            return found[1]
    return path.stem


def write_sidebar():
    "A section for each folder: guides first, then the packages in the order of the build"
    nbs = get_config().nbs_path
    folders = sorted(p for p in nbs.iterdir() if p.is_dir() and p.name[0] not in "._")
    contents = ["index.ipynb"]
    for folder in sorted(folders, key=lambda f: f.name[0].isdigit()):
        package = re.fullmatch(r"\d+_(\w+)", folder.name)
        pages = [str(p.relative_to(nbs)) for p in sorted(folder.glob("*.ipynb"))]
        contents.append(
            {"section": f"nip.{package[1]}" if package else folder.name.title(), "contents": pages}
        )
    sidebar = {"website": {"sidebar": {"contents": contents}}}
    (nbs / "sidebar.yml").write_text(yaml.safe_dump(sidebar, sort_keys=False, width=200), encoding="utf-8")


def page_of(path: Path, notebook: dict) -> Path:
    "Where a page goes: nbs/00_core/02_registry.ipynb becomes reference/core/registry.ipynb; folders without a number stay"
    inside = path.relative_to(PROC)
    package = re.fullmatch(r"\d+_(\w+)", inside.parts[0])
    folder = PROC / "reference" / package[1] if package else path.parent
    return folder / f"{stem_of(notebook, path)}.ipynb"


def rename_pages() -> dict[str, str]:
    "Move pages to where readers look for them, in the sidebar too; old names and new ones"
    names = {}
    for path in sorted(PROC.rglob("*.ipynb")):
        target = page_of(path, json.loads(path.read_text(encoding="utf-8")))
        target.parent.mkdir(parents=True, exist_ok=True)
        names[str(path.relative_to(PROC))] = str(target.relative_to(PROC))
        path.rename(target)

    sidebar = PROC / "sidebar.yml"
    text = sidebar.read_text(encoding="utf-8")
    sidebar.write_text(
        re.sub(r"(?<=- )\S+\.ipynb", lambda found: names.get(found[0], found[0]), text), encoding="utf-8"
    )
    return names


def relative_links(names: dict[str, str]):
    "Links between pages hold wherever the site is put"
    config = get_config()
    site = re.escape(config.doc_host.rstrip("/") + config.doc_baseurl.rstrip("/")) + "/"
    for path in PROC.rglob("*.ipynb"):
        here = path.relative_to(PROC)
        up = "../" * (len(here.parts) - 1)
        came_from = next(Path(old) for old, new in names.items() if new == str(here))

        def linked(found, up=up, came_from=came_from):
            "A link to a notebook, as it is written in the notebooks' folders, as a link to its page"
            target = os.path.normpath(came_from.parent / found[1]).removeprefix("nbs/")
            return f"]({up}{names[target]}" if target in names else found[0]

        text = path.read_text(encoding="utf-8")
        text = re.sub(
            r'^\s*"output-file: [^"]*",?\n', "", text, flags=re.M
        )  # which the page's name says by now
        text = re.sub(r"\]\(((?!\w+:)[\w./-]+\.ipynb)", linked, text)
        text = re.sub(r"\]\((?:\.\./)*(images/)", rf"]({up}\1", text)
        text = re.sub(rf"{site}\d+_(\w+)/(?=[\w.-]+\.html)", rf"{up}reference/\1/", text)
        path.write_text(re.sub(rf"{site}(?=[\w/.#-]+\.html)", up, text), encoding="utf-8")


def main() -> int:
    os.chdir(ROOT)
    shutil.rmtree(PROC, ignore_errors=True)
    shutil.rmtree(DOCS, ignore_errors=True)
    processors.FrontmatterProc = KeepStage
    processors.exec_show_docs, docments.signature, docments.get_source = ShowDocs, signature, get_source
    warnings.filterwarnings("ignore", category=UserWarning, module="nbdev")
    refresh_quarto_yml()
    nbdev.doclinks._build_modidx()
    write_sidebar()
    proc_nbs(n_workers=0, force=True)
    for linked in ("nbs/styles.css", "CHANGELOG.md", "CONTRIBUTING.md"):
        shutil.copy2(ROOT / linked, PROC)
    if (ROOT / "images").exists():
        shutil.copytree(ROOT / "images", PROC / "images")
    relative_links(rename_pages())
    if code := smalldocs(["render", "--quiet", str(PROC)]):
        return code
    shutil.move(PROC / "_docs", DOCS)
    shutil.rmtree(PROC)
    print(f"{len(list(DOCS.rglob('*.html')))} pages, begin at _docs/index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
