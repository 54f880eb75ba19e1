"""The site is built from the notebooks as they are."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_site_has_a_page_for_each_notebook():
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "build_docs.py"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "broken link" not in done.stdout + done.stderr
    pages = {
        str(path.relative_to(ROOT / "_docs").with_suffix("")) for path in (ROOT / "_docs").rglob("*.html")
    }
    modules = {
        ".".join(p.relative_to(ROOT / "nip").with_suffix("").parts) for p in (ROOT / "nip").rglob("[a-z]*.py")
    }
    reference = {
        f"reference/{module.replace('.', '/')}" if "." in module else f"reference/{module}/{module}"
        for module in modules
    }
    assert {"index", "tutorials/own_protocol", "experiments/first_experiment"} | reference <= pages
    assert "turn_table" in (ROOT / "_docs" / "reference" / "protocols" / "drawing.html").read_text(
        encoding="utf-8"
    )
    for page in sorted(pages):
        path = ROOT / "_docs" / f"{page}.html"
        linked = re.findall(
            r'(?:href="([\w./-]+\.html)|src="([\w./-]*images/[\w.-]+))', path.read_text(encoding="utf-8")
        )
        assert len(linked) > 5
        missing = {a or b for a, b in linked if not (path.parent / (a or b)).exists()}
        assert not missing, page
