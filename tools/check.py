"""Notebooks and modules agree, and both are clean: what `make check` runs.

Export and clean run on a copy, so a tree with uncommitted work is checked as it stands and stays as it is.
"""

import difflib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = Path(sysconfig.get_path("scripts"))
COPIED = ["settings.ini", "setup.py", "pyproject.toml", "README.md", "index.ipynb", "nbs", "nip"]
LINTED = ["nbs", "index.ipynb", "tests", "tools", "setup.py"]


def run(command: str, *args: str, cwd: Path = ROOT) -> bool:
    "Run one of the environment's commands; True where it succeeds"
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
    return subprocess.run([str(SCRIPTS / command), *args], cwd=cwd, env=env).returncode == 0


def copy_tree(to: Path):
    "The files that export and clean read and write"
    skip = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, to / name, symlinks=True, ignore=skip)
        elif source.exists():
            shutil.copy2(source, to / name)


def changed(copy: Path, *patterns: str) -> list[str]:
    "A short difference for each file that is another one in the copy"
    found = {p.relative_to(base) for base in (ROOT, copy) for pattern in patterns for p in base.glob(pattern)}
    report = []
    for path in sorted(p for p in found if not any(part.startswith(".") for part in p.parts)):
        if (ROOT / path).is_symlink():
            continue
        ours, theirs = (
            (base / path).read_text("utf-8") if (base / path).exists() else "" for base in (ROOT, copy)
        )
        if ours != theirs:
            diff = difflib.unified_diff(
                ours.splitlines(), theirs.splitlines(), "now", "should be", n=0, lineterm=""
            )
            report.append("\n    ".join([f"  {path}", *(line[:160] for line in list(diff)[:8])]))
    return report


def check(command: str, *patterns: str) -> bool:
    "`command` leaves the files that match `patterns` as they are"
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        copy_tree(copy)
        if not run(command, cwd=copy):
            return False
        report = changed(copy, *patterns)
    if report:
        print(f"{command} changes {len(report)} file(s); run .venv/bin/{command} and commit the result:")
        print("\n".join(report))
    return not report


def main() -> int:
    "Every check runs, so that one call shows all that is wrong"
    results = {
        "notebooks and modules agree": check("nbdev_export", "nip/**/*.py", "pyproject.toml"),
        "notebooks are clean": check("nbdev_clean", "index.ipynb", "nbs/**/*.ipynb"),
        "format": run("ruff", "format", "--check", *LINTED),
        "lint": run("ruff", "check", "--output-format", "concise", *LINTED),
    }
    for name, good in results.items():
        print(f"{'ok    ' if good else 'FAILED'} {name}")
    return 0 if all(results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
