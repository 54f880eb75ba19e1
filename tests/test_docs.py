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
    pages = {path.stem for path in (ROOT / "_docs").glob("*.html")}
    assert {"index", "protocol", "parameters", "graph_isomorphism", "run"} <= pages
    assert "turn_table" in (ROOT / "_docs" / "protocol.html").read_text(encoding="utf-8")
    for page in ("index", "builder"):
        text = (ROOT / "_docs" / f"{page}.html").read_text(encoding="utf-8")
        linked = re.findall(r'(?:href="([\w./-]+\.html)|src="(images/[\w.-]+))', text)
        assert len(linked) > 5 and all((ROOT / "_docs" / (a or b)).exists() for a, b in linked), page
