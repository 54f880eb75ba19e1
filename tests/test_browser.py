"""The builder in a real browser: JupyterLab and the app, light and dark, by mouse and by keyboard.

Screenshots are left in `build/screenshots`; those of the documentation are made by `make pictures`, which is the last test here.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCREENSHOTS = Path(os.environ.get("NIP_SCREENSHOTS") or ROOT / "build" / "screenshots")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")  # fmt: skip
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 30_000  # Milliseconds; a busy machine is slow
QUICK = {"rl.num_iterations": 12, "rl.rollouts_per_iteration": 64}
CELL = f"""\
from nip.builder import Builder
from nip.experiments import preset

builder = Builder(preset("parity_quick", **{QUICK}))
builder"""

pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome"),
    pytest.mark.timeout(400),
]


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with playwright.sync_playwright() as p:
        started = p.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield started
        started.close()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    "A server of pages, in a folder of its own"

    def __init__(self, folder: Path, command: list[str], port: int):
        self.folder, self.log = folder, folder / "server.log"
        environment = os.environ | {"PYTHONPATH": str(ROOT), "NIP_RUNS": str(folder / "runs"), "JUPYTER_CONFIG_DIR": str(folder / "config"),
                                    "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings")}  # fmt: skip
        with self.log.open("w") as log:
            self.process = subprocess.Popen([sys.executable, *command], cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)  # fmt: skip
        for _ in range(600):
            try:
                return socket.create_connection(("127.0.0.1", port)).close()
            except OSError:
                assert self.process.poll() is None, self.log.read_text()
                time.sleep(0.2)
        raise TimeoutError(self.log.read_text())

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "JupyterLab: a function from a theme to the address of a notebook with the builder"
    folder, port = tmp_path_factory.mktemp("lab"), free_port()
    cell = {
        "cell_type": "code",
        "id": "builder",
        "metadata": {},
        "source": CELL,
        "outputs": [],
        "execution_count": None,
    }
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    notebook = {"cells": [cell], "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    server = Server(folder, ["-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
                             "--IdentityProvider.token=t0k", f"--ServerApp.root_dir={folder}"], port)  # fmt: skip

    def address(theme: str, source: str = CELL) -> str:
        for plugin, values in {"themes": {"theme": f"JupyterLab {theme}"}, "notification": {"fetchNews": "false", "checkForUpdates": False}}.items():  # fmt: skip
            file = (
                folder / "settings" / "@jupyterlab" / "apputils-extension" / f"{plugin}.jupyterlab-settings"
            )
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(values))
        cell["source"] = source
        (folder / f"{theme}.ipynb").write_text(json.dumps(notebook))
        return f"http://127.0.0.1:{port}/doc/tree/{theme}.ipynb?token=t0k&reset"

    yield address
    server.stop()


@contextmanager
def a_page(browser, width: int):
    "A page; where something goes wrong, a screenshot tells what was there"
    page = browser.new_page(viewport={"width": width, "height": 1500})
    page.set_default_timeout(PATIENCE)
    try:
        yield page
    except BaseException:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SCREENSHOTS / "failed.png")
        raise
    finally:
        page.close()


@contextmanager
def in_lab(browser, lab, theme: str = "Light", source: str = CELL, width: int = 1150):
    "A page with the builder, in JupyterLab"
    with a_page(browser, width) as page:
        begin(page, lab(theme, source))
        yield page


def begin(page, address: str) -> None:
    "Open the notebook, and run its cell"
    page.goto(address)
    page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for(state="attached")
    ask = page.locator(".jp-Dialog .jp-mod-accept")  # which kernel, where none is there yet
    for _ in range(10):  # a kernel that has just started may miss the key
        with suppress(page_timeout()):
            if ask.count():
                ask.click(timeout=3000)
            page.locator(".jp-CodeCell .cm-content").first.click(timeout=3000)
            page.keyboard.press("Control+Enter")
            page.wait_for_function(
                "/[*\\d]/.test(document.querySelector('.jp-InputPrompt').textContent)", timeout=3000
            )
            break
    button(page, "Assemble").wait_for()


def page_timeout() -> type[Exception]:
    from playwright.sync_api import TimeoutError

    return TimeoutError


def button(page, name: str):
    "The first visible button of the builder whose text begins so"
    begins = re.compile(rf"^\W*{re.escape(name)}")
    return page.locator("button.jupyter-button").filter(has_text=begins).locator("visible=true").first


def keep(page, name: str) -> None:
    "A screenshot of the builder"
    size = page.viewport_size
    page.set_viewport_size(size | {"height": 2600})
    page.wait_for_timeout(500)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.locator(".widget-vbox").locator("visible=true").first.screenshot(
        path=SCREENSHOTS / f"builder-{name}.png"
    )
    page.set_viewport_size(size)


CUT_OFF = """() => {
  const seen = e => e.offsetParent !== null && e.getClientRects().length;
  const cut = e => e.scrollWidth > e.clientWidth + 2 || e.scrollHeight > e.clientHeight + 4;
  const area = document.querySelector('.jp-OutputArea-output .widget-vbox') || document.querySelector('.widget-vbox');
  const right = area.getBoundingClientRect().right + 2;
  const labels = [...area.querySelectorAll('.widget-label, .widget-label-basic, button')].filter(e => seen(e) && e.textContent.trim() && cut(e));
  const ink = document.createElement('canvas').getContext('2d');
  const wide = (e, text, room) => { ink.font = getComputedStyle(e).font; return ink.measureText(text).width > e.clientWidth - room; };
  const fields = [...area.querySelectorAll('input[placeholder]')].filter(e => seen(e) && wide(e, e.placeholder, 14));
  const lists = [...area.querySelectorAll('select:not([multiple])')].filter(e => seen(e) && e.selectedOptions.length && wide(e, e.selectedOptions[0].text, 24));
  const out = [...area.querySelectorAll('button, input, select, textarea')].filter(e => seen(e) && e.getBoundingClientRect().right > right);
  return [...labels, ...fields, ...lists, ...out].map(e => e.outerHTML.slice(0, 120));
}"""
NAMELESS = """() => {
  const seen = e => e.offsetParent !== null && e.getClientRects().length && e.type !== 'file';
  const name = e => e.getAttribute('aria-label') || [...(e.labels || [])].map(l => l.textContent).join('') || e.textContent || e.title;
  const area = document.querySelector('.jp-OutputArea-output .widget-vbox') || document.querySelector('.widget-vbox');
  const controls = [...area.querySelectorAll('button, input, select, textarea')].filter(seen);
  const help = e => e.title || [...(e.labels || [])].map(l => l.title || (l.querySelector('[title]') || {title: ''}).title).join('') || e.closest('[title]') || (e.parentElement && e.parentElement.closest('[title]'));
  return {count: controls.length, nameless: controls.filter(e => !name(e).trim()).map(e => e.outerHTML.slice(0, 160)),
          helpless: controls.filter(e => !help(e)).map(e => e.outerHTML.slice(0, 160))};
}"""
FAINT = """() => {
  const parse = c => { const m = c.match(/[\\d.]+/g) || [0, 0, 0, 0]; return [+m[0], +m[1], +m[2], m[3] === undefined ? 1 : +m[3]]; };
  const light = c => { const f = v => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; }; return .2126 * f(c[0]) + .7152 * f(c[1]) + .0722 * f(c[2]); };
  const ground = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c[3] > .5) return c; } return [255, 255, 255, 1]; };
  const area = document.querySelector('.jp-OutputArea-output .widget-vbox') || document.querySelector('.widget-vbox');
  const texts = [...area.querySelectorAll('*')].filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) && e.getClientRects().length && !e.closest('svg, [aria-hidden]') && !e.closest('[disabled]') && e.tagName !== 'STYLE');
  const contrast = e => { const a = light(parse(getComputedStyle(e).color)), b = light(ground(e)); return (Math.max(a, b) + .05) / (Math.min(a, b) + .05); };
  return {count: texts.length, faint: texts.filter(e => contrast(e) < 3).map(e => [e.outerHTML.slice(0, 120), contrast(e).toFixed(1)])};
}"""


def check_looks(page) -> None:
    "Nothing is cut off, everything has a name and help, text can be told from its ground"
    assert page.evaluate(CUT_OFF) == []
    named = page.evaluate(NAMELESS)
    assert named["count"] > 4 and named["nameless"] == []
    assert named["helpless"] == []
    told = page.evaluate(FAINT)
    assert told["count"] > 4 and told["faint"] == []


def open_fold(page, title: str) -> None:
    button(page, f"▸ {title}").click()
    button(page, f"▾ {title}").wait_for()


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_from_a_form_to_a_curve(browser, lab, theme):
    with in_lab(browser, lab, theme) as page:
        assemble(page, tag := "" if theme == "Light" else "-dark")
        inspect(page, tag)
        launch(page, tag)
        look_at_runs(page, tag)
        play(page, tag)


def assemble(page, tag: str) -> None:
    "Type something wrong, then something right"
    open_fold(page, "agents")
    page.get_by_text("Parameters of every agent").first.wait_for()
    open_fold(page, "rl")
    check_looks(page)
    button(page, "▾ agents").click()
    lr = page.get_by_label("lr", exact=True)
    lr.fill("fast")
    page.get_by_text("rl.lr: must be a number, got 'fast'").first.wait_for()
    keep(page, f"error{tag}")
    lr.fill("0.004")
    page.get_by_text("✓ valid").wait_for()
    page.wait_for_function(
        "[...document.querySelectorAll('textarea')].some(t => t.value.includes('\"lr\": 0.004'))"
    )
    button(page, "▾ rl").click()
    keep(page, f"assemble{tag}")


def inspect(page, tag: str) -> None:
    "Build, and look inside"
    button(page, "Inspect").click()
    button(page, "Build").click()
    page.get_by_text("stages are built").wait_for()
    open_fold(page, "1. protocol")
    open_fold(page, "2. training data")
    check_looks(page)
    keep(page, f"inspect{tag}")
    for title in ("1. protocol", "2. training data"):
        button(page, f"▾ {title}").click()
    page.get_by_role("button", name="agent verifier").click()
    page.get_by_text("instance_repr").first.wait_for()
    page.get_by_role("button", name="environments").click()
    button(page, "Play an episode").click()
    page.get_by_text("Rewards:").first.wait_for()
    page.get_by_role("button", name="trainer").click()
    button(page, "Estimate time and memory").click()
    page.get_by_text("moments of the optimiser").wait_for()
    check_looks(page)
    keep(page, f"inspect-agent{tag}")


def launch(page, tag: str) -> None:
    "Train, and see the curve"
    button(page, "Launch").click()
    page.get_by_label("run_id", exact=True).fill(f"in-the-browser{tag}")
    button(page, "Train").click()
    page.get_by_text(f"training in-the-browser{tag} · done").wait_for()
    page.locator("svg").locator("visible=true").first.wait_for()
    page.get_by_text("test_mean_accuracy").first.wait_for()
    check_looks(page)
    keep(page, f"launch{tag}")


def look_at_runs(page, tag: str) -> None:
    "Replay and evaluate"
    button(page, "Runs").click()
    page.locator("option", has_text=f"in-the-browser{tag} ").first.click()
    button(page, "Episodes").click()
    page.get_by_text("Rewards:").locator("visible=true").first.wait_for()
    check_looks(page)
    keep(page, f"runs{tag}")
    open_fold(page, "options of evaluation")
    page.get_by_label("attack_iterations").fill("2")
    button(page, "Evaluate").click()
    page.get_by_text("soundness, under attack").first.wait_for()
    keep(page, f"evaluation{tag}")


def play(page, tag: str) -> None:
    "Take the verifier's seat"
    button(page, "Play").click()
    button(page, "Start").click()
    button(page, "Send").wait_for()
    check_looks(page)
    keep(page, f"play{tag}")
    button(page, "accept").click()
    button(page, "Send").click()
    page.get_by_text("Your reward:").wait_for()


WORDS = """\
from nip import HyperParameters
from nip.builder import Builder

nobody = {"_default": {"use_dummy_api": True}}
rl = {"rollouts_per_iteration": 6, "num_iterations": 2, "num_test_iterations": 1}
builder = Builder(HyperParameters("code_validation", "pure_text_malt", "test", "debate", agents=nobody, rl=rl,
                                  debate_protocol={"max_message_rounds": 4}, text_rl={"test_scheme": "last"}))
builder"""


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_a_run_of_words(browser, lab, theme):
    tag = "" if theme == "Light" else "-dark"
    with in_lab(browser, lab, theme, WORDS) as page:
        button(page, "Inspect").click()
        button(page, "Build").click()
        page.get_by_text("stages are built").wait_for()
        open_fold(page, "2. training data")
        page.get_by_role("button", name="agent verifier").click()
        page.get_by_text("You can question Expert_1 and Expert_2").first.wait_for()
        page.get_by_role("button", name="shared models").click()
        page.get_by_role("button", name="environments").click()
        button(page, "Play an episode").click()
        page.get_by_text("Rewards:").first.wait_for()
        page.get_by_role("button", name="trainer").click()
        button(page, "Estimate the price").click()
        page.get_by_text("US dollars").first.wait_for()
        check_looks(page)
        keep(page, f"words-inspect{tag}")
        button(page, "Launch").click()
        page.get_by_text("US dollars").locator("visible=true").first.wait_for()
        page.get_by_label("run_id", exact=True).fill(f"words{tag}")
        button(page, "Train").click()
        page.get_by_text("episodes so far (final test)").wait_for()
        page.get_by_text("test_mean_accuracy").first.wait_for()
        check_looks(page)
        keep(page, f"words-launch{tag}")
        button(page, "Runs").click()
        page.locator("option", has_text=f"words{tag} ").first.click()
        button(page, "Transcripts").click()
        page.get_by_label("kept", exact=True).select_option("iteration 1")
        page.get_by_text("a tree of").first.wait_for()
        page.get_by_label("seen by").locator("visible=true").select_option("prover0")
        page.get_by_text("Reward of").first.wait_for()
        check_looks(page)
        page.get_by_label("seen by").locator("visible=true").select_option("everything")
        page.get_by_text("a tree of").first.click()
        check_looks(page)
        keep(page, f"words-transcripts{tag}")
        button(page, "Play").click()
        button(page, "Start").click()
        page.get_by_label("prover0_channel", exact=True).fill("Which input would it fail on?")
        button(page, "Send").click()
        page.get_by_text("a message is due in each of").wait_for()
        page.get_by_label("prover1_channel", exact=True).fill("Why should it be right?")
        check_looks(page)
        button(page, "Send").click()
        page.get_by_text("Which input would it fail on?").first.wait_for()
        keep(page, f"words-play{tag}")
        button(page, "accept").click()
        button(page, "Send").click()
        page.get_by_text("Your reward:").wait_for()


def test_by_keyboard_alone(browser, lab):
    with in_lab(browser, lab) as page:
        by_keyboard(page)


def by_keyboard(page) -> None:
    focused = lambda: page.evaluate("document.activeElement.textContent || document.activeElement.type")
    button(page, "Assemble").focus()
    for name in ("Inspect", "Launch"):
        page.keyboard.press("Tab")
        assert focused() == name
    page.keyboard.press("Space")
    name = page.get_by_label("run_id", exact=True)
    name.wait_for()
    for _ in range(30):  # Runs, Play, what can be gone on with, and the fields
        page.keyboard.press("Tab")
        if name.evaluate("field => field === document.activeElement"):
            break
    page.keyboard.type("typed")
    assert name.input_value() == "typed"
    for _ in range(30):
        page.keyboard.press("Tab")
        if focused().strip() == "Train":
            break
    page.keyboard.press("Enter")
    page.get_by_text("training typed · done").wait_for(timeout=60_000)
    button(page, "Assemble").focus()
    page.keyboard.press("Space")
    page.get_by_label("scenario").wait_for()
    for _ in range(40):
        page.keyboard.press("Tab")
        if "agents: who plays" in focused():
            break
    page.keyboard.press("Space")
    button(page, "▾ agents").wait_for()
    page.get_by_text("all that are not named").wait_for()


def test_in_a_narrow_window(browser, lab):
    with in_lab(browser, lab, width=640) as page:
        open_fold(page, "rl")
        check_looks(page)
        for name in ("Inspect", "Launch", "Runs", "Play"):
            button(page, name).click()
            check_looks(page)


@pytest.mark.parametrize("theme", [pytest.param("light", marks=pytest.mark.slow), "dark"])
def test_app(browser, tmp_path, theme):
    port = free_port()
    command = [
        "-c",
        "from nip.cli import main; main()",
        "app",
        "parity_quick",
        f"--port={port}",
        "--no-browser",
        f"--theme={theme}",
    ]
    server = Server(tmp_path, command, port)
    try:
        with a_page(browser, 1050) as page:
            page.goto(f"http://127.0.0.1:{port}/")
            button(page, "Assemble").wait_for()
            check_looks(page)
            open_fold(page, "rl")
            page.get_by_label("num_iterations", exact=True).fill("12")
            button(page, "Launch").click()
            button(page, "Train").click()
            page.get_by_text("test_mean_accuracy").first.wait_for()
            page.locator("svg").locator("visible=true").first.wait_for()
            check_looks(page)
            keep(page, f"app-{theme}")
        (run,) = (tmp_path / "runs").glob("parity-*")
        assert json.loads((run / "result.json").read_text())["status"] == "finished"
    finally:
        server.stop()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_pictures_of_the_documentation(browser, lab):
    "The cell that the README opens with, on graphs; `make pictures` keeps what is seen here in `images/`"
    source = "from nip.builder import Builder\n\nBuilder()"
    with in_lab(browser, lab, source=source) as page:
        page.get_by_label("interaction_protocol", exact=True).wait_for()
        open_fold(page, "nip_protocol")
        page.get_by_label("max_message_rounds").fill("3.5")
        page.get_by_text("must be an integer").first.wait_for()
        keep(page, "assemble")
        page.get_by_label("max_message_rounds").fill("5")
        page.get_by_text("✓ valid").wait_for()
        button(page, "Inspect").click()
        button(page, "Build").click()
        page.get_by_text("stages are built").wait_for(timeout=120_000)
        open_fold(page, "1. protocol")
        open_fold(page, "2. training data")
        keep(page, "inspect")
        button(page, "Launch").click()
        page.get_by_label("run_id", exact=True).fill("two-questions")
        button(page, "Train").click()
        page.get_by_text(re.compile(r"training (7\d|8\d)/120")).wait_for(timeout=400_000)
        keep(page, "launch")
        page.get_by_text("test_mean_accuracy").first.wait_for(timeout=400_000)
        button(page, "Runs").click()
        page.locator("option", has_text="two-questions").first.click()
        button(page, "Evaluate").click()
        page.get_by_text("soundness, under attack").first.wait_for(timeout=400_000)
        keep(page, "runs")
    with in_lab(browser, lab, "Dark", source) as page:
        button(page, "Play").click()
        button(page, "Start").click()
        button(page, "Send").click()
        page.get_by_text(re.compile(r"graph \d, node \d")).locator("visible=true").nth(1).wait_for()
        check_looks(page)
        keep(page, "play-dark")
