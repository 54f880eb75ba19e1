"""What the README and the contributing guide tell people to type exists, and the README is the one of index.ipynb."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from nip.cli import commands as nip_commands

ROOT = Path(__file__).resolve().parent.parent
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))


def blocks(document: str, *languages: str) -> list[str]:
    "Fenced blocks of a document in one of the languages"
    text = (ROOT / document).read_text(encoding="utf-8")
    return [
        body
        for language, body in re.findall(r"^```(\w+)\n(.*?)^```", text, re.M | re.S)
        if language in languages
    ]


def commands() -> list[list[str]]:
    "Lines of shell blocks, and inline code that begins with one of our commands; `...` stands for what is left out"
    found = []
    for document in ("README.md", "CONTRIBUTING.md"):
        lines = [
            line
            for block in blocks(document, "bash", "sh", "shell", "console")
            for line in block.splitlines()
        ]
        lines += re.findall(
            r"`((?:make|nip|\.venv/bin/nip) [^`\n]+)`", (ROOT / document).read_text(encoding="utf-8")
        )
        for line in lines:
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words and words[0].split("/")[-1] in ("make", "nip"):
                found.append([words[0].split("/")[-1], *words[1:]])
    return sorted({tuple(words) for words in found})


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_command_exists(words, capsys):
    if words[0] == "make":
        assert {word for word in words[1:] if "=" not in word} <= TARGETS
        return
    if {"...", "…"} & set(words):  # the command alone
        words = (*words[:2], "--help")
    tree = typer.main.get_command(nip_commands)
    do_nothing(tree)
    tree.main(list(words[1:]), prog_name="nip", standalone_mode=False)  # raises what it cannot parse


def do_nothing(command) -> None:
    "Commands are parsed, and not run"
    command.callback = lambda **_: 0
    for inner in getattr(command, "commands", {}).values():
        do_nothing(inner)


@pytest.mark.parametrize(
    "source", blocks("README.md", "python", "py"), ids=lambda s: s.strip().splitlines()[0][:50]
)
def test_python_compiles(source):
    compile(re.sub(r"^[%!].*$", "", source, flags=re.M), "README.md", "exec")


def test_readme_is_made_from_index():
    "Its Python is run by the test of that notebook"
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "build_readme.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
