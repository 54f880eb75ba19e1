"""README.md from index.ipynb, pictures beside it in images/: what `make readme` runs.

`--check` writes nothing and fails where the README is another one.
"""

import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent
IMAGES = "images"
HEADER = "<!-- Made from index.ipynb by `make readme`: edit that. -->\n\n"


def visible(notebook):
    "The cells that readers see, without nbdev's directives"
    shown = []
    for cell in notebook.cells:
        options = re.findall(r"^#\|\s*(.+?)\s*$", cell.source, flags=re.M)
        if cell.cell_type == "raw" or any(
            re.match(r"(hide|export|default_exp)\b|include:\s*false", o) for o in options
        ):
            continue
        cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M)
        if any(re.match(r"echo:\s*false|hide_input", o) for o in options):
            cell.source = ""
        for output in cell.get("outputs", []):
            html = output.get("data", {}).get("text/html")
            if html:  # style sheets are shown as text on a project's page
                output["data"]["text/html"] = re.sub(r"<style.*?</style>", "", html, flags=re.S)
        shown.append(cell)
    notebook.cells = shown
    return notebook


def convert() -> tuple[str, dict[str, bytes]]:
    "The text, and pictures by path"
    notebook = visible(nbformat.read(ROOT / "index.ipynb", as_version=4))
    notebook.metadata["language_info"] = {"name": "python"}  # so that blocks say what they are in
    text, resources = MarkdownExporter().from_notebook_node(
        notebook, {"unique_key": "index", "output_files_dir": IMAGES}
    )
    text = re.sub(r"```python\s*```\n", "", text)  # a cell of which only the output is shown
    text = re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
    return HEADER + text, dict(resources["outputs"])


def main() -> int:
    text, pictures = convert()
    files = {"README.md": text.encode(), **pictures}
    stale = [
        name
        for name, data in files.items()
        if not (ROOT / name).exists() or (ROOT / name).read_bytes() != data
    ]
    if "--check" in sys.argv:
        print(f"another one by now: {', '.join(stale)}; run make readme" if stale else "ok     README")
        return 1 if stale else 0
    for old in (ROOT / IMAGES).glob("index_*"):
        old.unlink()
    for name, data in files.items():
        (ROOT / name).parent.mkdir(exist_ok=True)
        (ROOT / name).write_bytes(data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
