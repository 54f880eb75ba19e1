"Labels are proved again, sets are read in every form, and what was interrupted goes on."

import ast
import json
import multiprocessing
import random
import time
from pathlib import Path

import pytest
from tqdm import tqdm

from nip.core.files import JsonLines
from nip.data.bug_injection import (
    BugInjectionParameters,
    apps_problems,
    choose_problems,
    edit_distance,
    inject_bugs,
    read_reply,
    testable_problems,
)
from nip.data.code import (
    CodeValidationParameters,
    check_code_data,
    code_sources,
    find_mistakes,
    human_eval_mistakes,
    instances,
    load_code_data,
    source_rows,
)
from nip.data.dataset import DatasetParameters
from nip.data.mutations import Edit, Problem, edits, human_eval_problems, prove
from nip.data.sandbox import Limits, run_programs, sandbox_fault
from nip.language_models.chat import ScriptedModel
from nip.parameters.validation import ParameterError

testable_problems.__test__ = False  # no test, whatever pytest makes of its name
walls = pytest.mark.skipif(bool(sandbox_fault()), reason=f"there is no sandbox: {sandbox_fault()}")
fork = multiprocessing.get_context("fork")
PROBLEMS = human_eval_problems()
RECORD = human_eval_mistakes()


def silent(found=None, **kwargs):
    return tqdm(found, **kwargs | {"disable": True})


class Asked:
    "The hyper-parameters that matter"

    def __init__(self, dataset, test_dataset_split="test", test_size=0.2, options=None, **params):
        self.dataset, self.test_dataset_split, self.test_size = str(dataset), test_dataset_split, test_size
        self.dataset_options, self.code_validation = (
            DatasetParameters(**(options or {})),
            CodeValidationParameters(**params),
        )


def sources(problem: Problem) -> list[str]:
    "The solution and its recorded mistakes"
    made = [Edit(*(e[name] for name in Edit._fields)) for e in RECORD[problem.name]["wrong"]]
    return [problem.solution, *(edit.apply(problem.solution) for edit in made)]


def prove_again(problems: list[Problem]):
    "Every label is true: as many asserts fail as the record says"
    programs = [problem.program(source) for problem in problems for source in sources(problem)]
    found = iter(run_programs(programs, Limits(), progress=silent))
    for problem in problems:
        record = RECORD[problem.name]
        for failed in (0, *(e["failed"] for e in record["wrong"])):
            outcome = next(found)
            assert (outcome.passed, outcome.failed) == (record["asserts"] - failed, failed), (
                problem.name,
                outcome,
            )
            assert not {"time", "memory"} & set(outcome.kinds)


@walls
@pytest.mark.parametrize("problem", random.Random(0).sample(PROBLEMS, 12), ids=lambda p: p.name)
def test_labels_are_true(problem):
    prove_again([problem])


@walls
@pytest.mark.slow
def test_all_labels_are_true():
    prove_again(PROBLEMS)


def test_the_record_covers_every_problem():
    assert list(RECORD) == [problem.name for problem in PROBLEMS]
    assert all(1 <= len(row["wrong"]) <= 5 and row["asserts"] > 0 for row in RECORD.values())
    assert all(0 < e["failed"] <= row["asserts"] for row in RECORD.values() for e in row["wrong"])
    shares = [row["wrong"][0]["failed"] / row["asserts"] for row in RECORD.values()]
    assert sum(shares) / len(shares) < 0.45 and sorted(shares)[len(shares) // 2] <= 0.34


def test_mistakes_are_one_small_edit():
    for problem in PROBLEMS[::16]:
        for edit in edits(problem.solution, problem.entry):
            wrong = edit.apply(problem.solution)
            assert ast.dump(ast.parse(wrong)) != ast.dump(ast.parse(problem.solution))
            start = problem.solution.index(f"def {problem.entry}")
            assert wrong[:start] == problem.solution[:start], "what the question shows is left alone"
            if edit.kind not in ("case", "bound", "order"):
                assert edit_distance(problem.solution, wrong) <= 16
                assert wrong.count("\n") == problem.solution.count("\n")


def test_edits_of_text_in_other_scripts():
    source = "def f(π):  # größer\n    return 'ä' if π > 3 else 'ö'\n"
    found = {edit.apply(source) for edit in edits(source)}
    assert "def f(π):  # größer\n    return 'ö' if π > 3 else 'ä'\n" in found
    assert "def f(π):  # größer\n    return 'ä' if π >= 3 else 'ö'\n" in found


KINDS = {
    "comparison": ("def f(x, y):\n    return x not in y", "def f(x, y):\n    return x in y"),
    "logic": ("def f(x, y):\n    return x and y", "def f(x, y):\n    return x or y"),
    "arithmetic": ("def f(x):\n    x += 2\n    return x", "def f(x):\n    x -= 2\n    return x"),
    "constant": ("def f():\n    return True", "def f():\n    return False"),
    "bound": ("def f(x):\n    return x[1:]", "def f(x):\n    return x[2:]"),
    "index": ("def f(x, i):\n    return x[i]", "def f(x, i):\n    return x[i - 1]"),
    "confusion": ("def f(x):\n    return min(x)", "def f(x):\n    return max(x)"),
    "order": ("def f(x, y):\n    return x - y", "def f(x, y):\n    return y - x"),
    "sorting": ("def f(x):\n    return sorted(x)", "def f(x):\n    return sorted(x, reverse=True)"),
    "forgotten call": ("def f(x, y):\n    return 2 * abs(x - y)", "def f(x, y):\n    return 2 * (x - y)"),
    "negation": ("def f(x):\n    return not x", "def f(x):\n    return x"),
    "case": ("def f(x):\n    if x < 1:\n        return 0\n    return x", "def f(x):\n    return x"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kind_of_mistake(kind):
    before, after = KINDS[kind]
    made = {edit.apply(before): edit.kind for edit in edits(before)}
    expected = "constant" if kind == "bound" else kind
    assert made[after] == expected
    assert kind in made.values()


def test_no_kind_of_mistake_was_forgotten():
    from nip.data.mutations import mutators

    assert sorted(KINDS) == mutators.names()


@walls
def test_equivalent_and_slow_mutants_do_not_count():
    tests = "for n in range(5):\n    assert f(n) == max(n, 2)"
    problem = Problem("p", "?", "def f(n):\n    while n < 2:\n        n += 1\n    return n + 0\n", tests)
    found = prove(problem, 99, limits=Limits(seconds=2, seconds_per_assert=0.2), progress=silent)
    made = [Edit(e["kind"], e["start"], e["end"], e["text"]).apply(problem.solution) for e in found["wrong"]]
    assert found["asserts"] == 5 and made
    assert not any("n -= 1" in source or "n - 0" in source for source in made)
    assert found["wrong"] == sorted(found["wrong"], key=lambda e: e["failed"])


@walls
def test_a_solution_that_fails_has_no_mistakes():
    problem = Problem("p", "?", "def f(n):\n    return n + 1\n", "assert f(1) == 3")
    found = prove(problem, progress=silent)
    assert (found["asserts"], found["wrong"]) == (0, [])


def prove_all(path: str):
    find_mistakes(PROBLEMS[:6], path, progress=silent)


@walls
def test_proving_that_was_killed_goes_on(tmp_path):
    path = tmp_path / "mistakes.jsonl"
    process = fork.Process(target=prove_all, args=(str(path),))
    process.start()
    while len(JsonLines(path).read()) < 2:
        time.sleep(0.02)
    process.kill()
    process.join()
    kept = JsonLines(path).read()
    with path.open("a") as file:
        file.write('{"problem": "torn')
    assert find_mistakes(PROBLEMS[:6], path, progress=silent) == [RECORD[p.name] for p in PROBLEMS[:6]]
    assert JsonLines(path).read()[: len(kept)] == kept


def solved(dataset) -> set[str]:
    return set(dataset.td["problem"])


def test_no_problem_is_in_two_splits():
    whole = {s: load_code_data(Asked("human_eval"), s) for s in ("train", "test")}
    parts = {s: load_code_data(Asked("human_eval", "validation"), s) for s in ("train", "validation", "test")}
    assert {s: len(solved(d)) for s, d in whole.items()} == {"train": 131, "test": 33}
    assert {s: len(solved(d)) for s, d in parts.items()} == {"train": 98, "validation": 33, "test": 33}
    assert solved(parts["test"]) == solved(whole["test"])
    assert solved(parts["train"]) | solved(parts["validation"]) == solved(whole["train"])
    assert not solved(parts["train"]) & solved(parts["validation"])
    assert not solved(whole["train"]) & solved(whole["test"])


def test_options_are_honoured():
    small = load_code_data(Asked("human_eval", options={"max_train_size": 11}), "train")
    assert (len(small), int(small.td["y"].sum())) == (11, 6)
    assert len(load_code_data(Asked("human_eval", options={"max_train_size": 11}), "test")) == 66
    assert len(load_code_data(Asked("human_eval", options={"max_test_size": 7}), "test")) == 7
    many = Asked("human_eval", mistakes_per_problem=3, options={"make_balanced": False})
    td = load_code_data(many, "train").td
    assert (int((td["y"] == 1).sum()), int((td["y"] == 0).sum())) == (
        131,
        sum(len(RECORD[p]["wrong"][:3]) for p in set(td["problem"])),
    )
    td = load_code_data(Asked("human_eval", mistakes_per_problem=3), "train").td
    assert int((td["y"] == 1).sum()) == int((td["y"] == 0).sum()) == 131


def test_a_dataset_shows_itself():
    dataset = load_code_data(Asked("test"), "train")
    assert len(dataset) == len(load_code_data(Asked("test"), "test")) == 10
    assert "10 instances" in repr(dataset) and "<code>solution</code>" in dataset._repr_html_()
    batch = dataset[[0, 3]]
    assert batch["question"] == [dataset.td["question"][i] for i in (0, 3)]
    assert isinstance(dataset[1]["solution"], str)


def row(n: int, right: int = 2, wrong: int = 1, **more) -> dict:
    solutions = [{"solution": f"print({n}){' ' * i}"} for i in range(right)]
    buggy = [{"solution": f"print({n + 1 + i})"} for i in range(wrong)]
    return {
        "question": f"Print {n}.",
        "difficulty": "interview",
        "flags": [],
        "solutions": solutions,
        "buggy_solutions": buggy,
    } | more


ROWS = [
    row(0),
    row(1, right=1, wrong=3),
    row(2, difficulty="introductory"),
    row(3, flags=["bad tests"]),
    row(4, wrong=0),
]


def forms(folder: Path) -> dict[str, Path]:
    "The same rows in every form in which they are read"
    import datasets

    hub, again = datasets.Dataset.from_list(ROWS), folder / "parquet"
    again.mkdir()
    hub.to_parquet(again / "train-00000-of-00001.parquet")
    hub.save_to_disk(folder / "saved")
    datasets.DatasetDict({"train": hub, "test": hub}).save_to_disk(folder / "saved_dict")
    (folder / "lines").mkdir()
    JsonLines(folder / "lines" / "train.jsonl").write(ROWS)
    JsonLines(folder / "lines" / "hopeless.jsonl").write([{"problem_id": 1}])
    JsonLines(folder / "one.jsonl").write(ROWS)
    columns = lambda r: (
        r | {c: {"solution": [s["solution"] for s in r[c]]} for c in ("solutions", "buggy_solutions") if r[c]}
    )
    JsonLines(folder / "columns.jsonl").write(map(columns, ROWS))
    texts = lambda r: (
        r
        | {c: json.dumps([s["solution"] for s in r[c]]) for c in ("solutions", "buggy_solutions")}
        | {"flags": "[]" if not r["flags"] else "x"}
    )
    JsonLines(folder / "texts.jsonl").write(map(texts, ROWS))
    return {p.name: p for p in folder.iterdir()}


def test_sets_are_read_in_every_form(tmp_path):
    params = CodeValidationParameters()
    expected = [(p["question"], p["solution"], p["y"]) for p in instances(ROWS, params)]
    assert [y for *_, y in expected] == [1, 1, 0, 1, 0, 0, 0, 1, 1]
    found = forms(tmp_path)
    assert len(found) == 7
    for name, path in found.items():
        rows = source_rows(str(path), params)
        assert list(rows) == (["train", "test"] if name == "saved_dict" else ["train"])
        assert [
            (p["question"], p["solution"], p["y"]) for p in instances(rows["train"], params)
        ] == expected, name


def test_filters():
    count = lambda **params: [
        sum(p["y"] == y for p in instances(ROWS, CodeValidationParameters(**params))) for y in (0, 1)
    ]
    assert count() == [4, 5]
    assert count(apps_exclude_flagged=False) == [5, 7]
    assert count(apps_difficulty="introductory") == [1, 2]
    assert count(apps_solution_number=1) == [2, 2], (
        "right and wrong ones are passed over by their own numbers"
    )
    assert count(apps_solution_number=3) == [0, 0]


def test_sets_of_right_programs_only(tmp_path):
    JsonLines(tmp_path / "apps.jsonl").write(
        [
            {
                "problem_id": n,
                "question": f"{n}?",
                "solutions": json.dumps([f"print({n})"]),
                "difficulty": "interview",
            }
            for n in range(10)
        ],
    )
    train = load_code_data(Asked(tmp_path / "apps.jsonl"), "train")
    assert len(train) == 8 and train.td["y"].all()


def test_test_data_of_a_set_are_taken(tmp_path):
    JsonLines(tmp_path / "train.jsonl").write([row(n) for n in range(10)])
    JsonLines(tmp_path / "test.jsonl").write([row(n) for n in range(20, 23)])
    counts = [
        len(solved(load_code_data(Asked(tmp_path, "validation"), s))) for s in ("train", "validation", "test")
    ]
    assert counts == [8, 2, 3]
    assert len(solved(load_code_data(Asked(tmp_path), "train"))) == 10


def test_a_hub_that_is_not_there_is_told(monkeypatch):
    import datasets

    def offline(*_, **__):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(
        ParameterError,
        match="(?s)dataset: cannot be had.*ConnectionError.*HF_TOKEN.*folder.*lrhammond/buggy-apps.*human_eval",
    ):
        load_code_data(Asked("lrhammond/buggy-apps"), "train")


def test_a_hub_set_is_asked_for_by_its_name(monkeypatch):
    import datasets

    asked = []
    hub = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])}
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda name, **kwargs: asked.append((name, kwargs)) or hub)
    assert len(load_code_data(Asked("lrhammond/buggy-apps"), "test")) == 2
    load_code_data(Asked("codeparrot/apps"), "train")
    assert asked == [
        ("lrhammond/buggy-apps", {"revision": None}),
        ("codeparrot/apps", {"revision": "refs/convert/parquet"}),
    ]


@pytest.mark.parametrize(
    "name, message",
    [
        ("human_evil", "did you mean 'human_eval'"),
        ("no such folder", "no set of programs"),
        ("a/b/c", "no set of programs"),
    ],
)
def test_names_that_mean_nothing(name, message):
    with pytest.raises(ParameterError, match=message):
        check_code_data(name)


def test_bad_folders_and_splits(tmp_path):
    with pytest.raises(ParameterError, match="has no JSONL or parquet file"):
        load_code_data(Asked(tmp_path), "train")
    JsonLines(tmp_path / "train.jsonl").write(ROWS)
    with pytest.raises(ParameterError, match="split: .*train, test"):
        load_code_data(Asked(tmp_path), "validation")
    with pytest.raises(ParameterError, match="code_validation.apps_difficulty: leaves nothing"):
        load_code_data(Asked(tmp_path, apps_difficulty="competition"), "train")


def test_another_human_eval_is_refused(monkeypatch):
    from nip.data import code

    other = [p._replace(solution=p.solution + "\n# other\n") for p in PROBLEMS]
    monkeypatch.setattr(code, "human_eval_problems", lambda: other)
    with pytest.raises(ParameterError, match="install human-eval 1.0.3"):
        load_code_data(Asked("human_eval"), "train")


def test_a_source_of_ones_own():
    name = "test_own_source"
    try:
        code_sources.register(name)(lambda params: {"train": [row(n) for n in range(10)]})
        assert len(load_code_data(Asked(name), "test")) == 4
    finally:
        code_sources._entries.pop(name)


# Bug injection


def script_problem(n: int, **more) -> Problem:
    tests = json.dumps(
        {"inputs": [f"{i}\n" for i in range(10)], "outputs": [f"{max(i, n)}\n" for i in range(10)]}
    )
    rows = [
        {
            "problem_id": f"p{n}",
            "question": f"The larger of {n} and the input.",
            "solutions": json.dumps([f"x = int(input())\nprint(max(x, {n}))"]),
            "input_output": tests,
        }
        | more
    ]
    return apps_problems(rows)[0]


def fenced(source: str) -> str:
    return f"Here:\n```python\n{source}\n```\n"


def wrong_answer(request) -> str:
    n = int(request.messages[1]["content"].split("larger of ")[1].split()[0])
    return fenced(f"x = int(input())\nprint(max(x, {n}) + (x == 9))")


@walls
@pytest.mark.parametrize(
    "reply, why",
    [
        ("no block", "no program"),
        (fenced("x = ("), "does not compile"),
        (fenced("x = int(input())\nprint(max(x, 3))"), "is the same program"),
        (fenced("x = int(input())\nprint(max(x, 3) + (x == 9))  # oops"), "has new comments"),
        (fenced("x = int(input())\nprint(max(3, x))"), "passes all tests"),
        (fenced("x = int(input())\nprint(max(x, 3) + 1)"), "fails too many tests"),
        (fenced("while True: pass"), "timed_out"),
        (fenced("import os\nos._exit(0)"), "crashed"),
        (fenced("x = bytearray(1 << 40)"), "out_of_memory"),
    ],
    ids=lambda value: value if len(value) < 25 and "`" not in value else "",
)
def test_replies_of_no_use(reply, why, tmp_path):
    model, limits = ScriptedModel(replies=lambda request: reply), Limits(seconds=2, seconds_per_assert=0.1)
    file = inject_bugs(
        model,
        [script_problem(3)],
        tmp_path,
        BugInjectionParameters(max_attempts=2),
        limits=limits,
        progress=silent,
    )
    assert JsonLines(file).read() == []
    assert JsonLines(tmp_path / "hopeless.jsonl").read() == [
        {"problem_id": "p3", "why": {why: 2}, "attempts": 2}
    ]


@walls
def test_a_set_is_made_and_read(tmp_path):
    problems = [script_problem(n, difficulty="interview") for n in range(6)]
    problems.append(
        Problem("broken", "?", "print(1)", "assert run('') == '2'", script=True, difficulty="interview")
    )
    inject_bugs(
        ScriptedModel("m", replies=wrong_answer),
        problems,
        tmp_path,
        BugInjectionParameters(batch_size=4),
        progress=silent,
    )
    made = JsonLines(tmp_path / "train.jsonl").read()
    assert sorted(r["problem_id"] for r in made) == [f"p{n}" for n in range(6)]
    (bug,) = made[0]["buggy_solutions"]
    assert {k: bug[k] for k in ("passed", "failed", "errors", "attempts", "kind")} == {
        "passed": 9,
        "failed": 1,
        "errors": 0,
        "attempts": 1,
        "kind": "by m",
    }
    assert bug["distance"] == edit_distance(made[0]["solutions"][0]["solution"], bug["solution"]) > 0
    assert JsonLines(tmp_path / "hopeless.jsonl").read()[0]["why"].startswith("the solution failed")
    train = load_code_data(Asked(tmp_path, test_size=0.5), "train")
    assert len(train) == 6 and train.td["y"].double().mean() == 0.5


@walls
def test_several_wrong_programs_and_a_share_of_problems(tmp_path):
    replies = [fenced(f"x = int(input())\nprint(max(x, 1) + (x == {k}))") for k in (9, 9, 8, 7)]
    params = BugInjectionParameters(max_modifications=3)
    file = inject_bugs(
        ScriptedModel(replies=replies), [script_problem(1)], tmp_path / "a", params, progress=silent
    )
    assert [bug["attempts"] for bug in JsonLines(file).read()[0]["buggy_solutions"]] == [1, 2, 1]
    params = BugInjectionParameters(fraction_to_modify=0.5)
    file = inject_bugs(
        ScriptedModel(replies=wrong_answer),
        [script_problem(n) for n in range(4)],
        tmp_path / "b",
        params,
        progress=silent,
    )
    assert sorted(len(r["buggy_solutions"]) for r in JsonLines(file).read()) == [0, 0, 1, 1]


def make_set(folder: str, calls):
    def answer(request):
        calls.put(1)
        time.sleep(0.05)
        return wrong_answer(request)

    problems = [script_problem(n) for n in range(8)]
    inject_bugs(
        ScriptedModel("m", replies=answer),
        problems,
        folder,
        BugInjectionParameters(batch_size=1),
        progress=silent,
    )


@walls
def test_a_set_whose_making_was_killed_goes_on(tmp_path):
    calls = fork.Queue()
    process = fork.Process(target=make_set, args=(str(tmp_path), calls))
    process.start()
    while len(JsonLines(tmp_path / "train.jsonl").read()) < 3:
        time.sleep(0.02)
    process.kill()
    process.join()
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('{"torn": ')
    kept = JsonLines(tmp_path / "train.jsonl").read()
    again = []
    problems = [script_problem(n) for n in range(8)]
    model = ScriptedModel("m", replies=lambda request: again.append(1) or wrong_answer(request))
    inject_bugs(model, problems, tmp_path, BugInjectionParameters(batch_size=1), progress=silent)
    made = JsonLines(tmp_path / "train.jsonl").read()
    assert made[: len(kept)] == kept and len(again) == 8 - len(kept)
    assert sorted(r["problem_id"] for r in made) == [f"p{n}" for n in range(8)]


def test_problems_are_chosen_by_difficulty_and_number():
    problems = [script_problem(n, difficulty=d) for n, d in enumerate(["interview", "competition", ""] * 4)]
    chosen = choose_problems(
        problems, BugInjectionParameters(difficulties=("interview",), num_problems=2, fraction_to_modify=0.5)
    )
    assert [p.difficulty for p, _ in chosen].count("interview") == 2 and "competition" not in [
        p.difficulty for p, _ in chosen
    ]
    assert [change for _, change in chosen] == [True, False] * 2


def test_the_last_block_of_a_reply_counts():
    text = "```\nfirst = 1\n```\nor rather\n```py\nx = 2\n```"
    assert read_reply(text, "x = 1") == ("x = 2\n", "")


def test_sets_without_tests_are_refused(tmp_path):
    JsonLines(tmp_path / "train.jsonl").write(ROWS)
    with pytest.raises(ParameterError, match="has no tests"):
        testable_problems(str(tmp_path))
    with pytest.raises(ParameterError, match="split"):
        testable_problems(str(tmp_path), "test")
    assert len(testable_problems("human_eval")) == 164


@walls
def test_by_command(tmp_path, capsys):
    from nip.cli import main
    from nip.language_models.chat import register_chat_model
    from nip.parameters.hyper_params import chat_models

    @register_chat_model("test_bugs")
    class Bugs(ScriptedModel):
        def __init__(self, name):
            super().__init__(name, replies=wrong_answer)

    solution = "x = int(input())\nprint(max(x, 2))"
    tests = json.dumps(
        {"inputs": [f"{i}\n" for i in range(10)], "outputs": [f"{max(i, 2)}\n" for i in range(10)]}
    )
    JsonLines(tmp_path / "problems.jsonl").write(
        [
            {
                "problem_id": 2,
                "question": "The larger of 2 and the input.",
                "solutions": json.dumps([solution]),
                "input_output": tests,
                "difficulty": "interview",
            }
        ],
    )
    command = [
        "data",
        "inject",
        str(tmp_path / "problems.jsonl"),
        str(tmp_path / "made"),
        "--provider",
        "test_bugs",
        "--model",
        "m",
        "--set",
    ]
    try:
        assert main([*command, "max_attempts=2"]) == 0
        assert len(JsonLines(tmp_path / "made" / "train.jsonl").read()) == 1
        assert "dataset=" in capsys.readouterr().out
        assert main([*command, "max_attempts=0"]) == 2
        assert "max_attempts" in capsys.readouterr().err
    finally:
        chat_models._entries.pop("test_bugs")
