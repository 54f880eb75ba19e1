"What a class can do depends on its class alone: no method comes from another module."

import ast
import subprocess
import sys
from pathlib import Path

import nip

ROOT = Path(nip.__file__).parent
TREES = {p.relative_to(ROOT).as_posix(): ast.parse(p.read_text(encoding="utf-8")) for p in ROOT.rglob("*.py")}
DISPLAYS = {"_repr_html_", "_repr_markdown_", "_repr_svg_", "__repr__", "__str__"}


def classes() -> list[tuple[str, ast.ClassDef]]:
    "Classes with their modules"
    return [(m, n) for m, tree in TREES.items() for n in tree.body if isinstance(n, ast.ClassDef)]


def patched() -> list[tuple[str, str, str]]:
    "(module, class, method) of each function under `@patch`"
    found = []
    for module, tree in TREES.items():
        for node in tree.body:
            if not isinstance(node, ast.FunctionDef):
                continue
            marks = [ast.unparse(mark).partition("(")[0] for mark in node.decorator_list]
            if marks and marks[-1].startswith("patch"):
                patched_on = ast.unparse(node.args.args[0].annotation).strip("'\"")
                found += [(module, name.strip(), node.name) for name in patched_on.split("|")]
    return found


def methods(node: ast.ClassDef) -> set[str]:
    return {n.name for n in node.body if isinstance(n, ast.FunctionDef)}


def relatives(name: str) -> set[str]:
    "Classes above and below a class, by name"
    bases = {n.name: {ast.unparse(b).partition("[")[0] for b in n.bases} for _, n in classes()}

    def above(of):
        return {b for base in bases.get(of, ()) for b in {base} | above(base)}

    return above(name) | {other for other in bases if name in above(other)}


def test_methods_are_patched_on_in_the_module_of_their_class_alone():
    home = {(module, node.name) for module, node in classes()}
    strangers = [f"{m}: {c}.{f}" for m, c, f in patched() if (m, c) not in home]
    assert not strangers


def test_no_patched_method_overrides_or_is_overridden():
    own = {}
    for _, node in classes():
        own.setdefault(node.name, set()).update(methods(node))
    for _, name, method in patched():
        own.setdefault(name, set()).add(method)
    clashes = [
        f"{m}: {c}.{f} and {other}.{f}"
        for m, c, f in patched()
        if f not in DISPLAYS
        for other in sorted(relatives(c))
        if f in own.get(other, ())
    ]
    assert not clashes


RUN = """
import sys
from nip import RunStore
store = RunStore(sys.argv[1])
run = store.create({"scenario": "parity"}, run_id="first")
run.log(1, {"mean_accuracy": 0.5})
run.finish("finished", {"mean_accuracy": 0.5})
run = store.open("first").label(add=["x"])
print(run.labels()["tags"], run.summary()["accuracy"], run.export(store.root / "first.zip").name)
print([r.id for r in store.select(tag="x")], store.import_run(store.root / "first.zip", "second").status)
"""


def test_a_store_alone_can_label_summarise_and_export(tmp_path):
    "In a fresh process, in which nothing else is imported"
    done = subprocess.run([sys.executable, "-c", RUN, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["['x'] 0.5 first.zip", "['first'] finished"], done.stderr
