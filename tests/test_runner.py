"""The runner of the notebooks, on notebooks of two or three cells, and the pages that it writes."""

import signal
import subprocess
import sys
import time

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from itm_lib import cli, runner
from itm_lib.files import InputError, read_json, write_json
from itm_lib.pages import mathml

PARAMETERS = 'profile: str = "course"  # profile\nseed: int = 0  # seed\nout_dir: str = ""  # folder\nepochs: int = 3  # epochs'
WRITES = ("import json, pathlib\n"
          "path = pathlib.Path(out_dir) / 'metrics.json'\n"
          "path.write_text(json.dumps({'model': 'noise', 'metrics': {'rsum': {'mean': 100.0 * epochs + seed}}}))")


def write_notebook(folder, name, *sources, parameters=PARAMETERS):
    cells = [new_markdown_cell(r"# A title with $\frac{a}{b}$"), new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    notebook = new_notebook(cells=cells + [new_code_cell(source) for source in sources])
    notebook.metadata.update(kernelspec={"name": "python3", "display_name": "Python 3"}, language_info={"name": "python"})
    folder.mkdir(exist_ok=True)
    nbformat.write(notebook, folder / f"{name}.ipynb")


@pytest.fixture
def course(tmp_path, monkeypatch, capsys):
    """``course(*arguments)`` runs ``itm course`` on the notebooks of tmp_path/notebooks: (exit code, stdout, stderr)."""
    monkeypatch.setattr(cli, "_prepare_scenes", lambda *_: tmp_path)

    def run(*arguments, profile="smoke"):
        with pytest.raises(SystemExit) as end:
            cli.main(["course", "--source", str(tmp_path / "notebooks"), "--runs", str(tmp_path / "runs"), "--profile", profile, *arguments])
        return end.value.code, *capsys.readouterr()

    return run


def test_course_runs_all_keeps_what_is_complete_and_goes_on_after_a_failure(course, tmp_path):
    write_notebook(tmp_path / "notebooks", "00_good", WRITES)
    write_notebook(tmp_path / "notebooks", "01_bad", "raise ValueError('two\\nlines')", "1 + 1")
    write_notebook(tmp_path / "notebooks", "02_leaves", "import sys\nsys.exit(0)", "1 + 1")
    code, out, err = course()
    assert code == 1
    assert "01_bad: cell [3] failed: ValueError: two lines; see " in err
    assert "02_leaves: cell [3] failed: SystemExit: 0; see " in err
    assert out.startswith("1 of 3 notebooks complete; open ")
    assert read_json(tmp_path / "runs" / "smoke" / "00_good" / "metrics.json")["metrics"]["rsum"]["mean"] == 300
    executed = (tmp_path / "runs" / "smoke" / "00_good" / "00_good.ipynb")
    assert "input_path" not in executed.read_text(encoding="utf-8")
    index = (tmp_path / "runs" / "smoke" / "index.html").read_text(encoding="utf-8")
    assert "noise: rsum 300.0" in index and "ValueError: two lines" in index and 'href="00_good/00_good.html"' in index
    page = executed.with_suffix(".html").read_text(encoding="utf-8")
    assert "<mfrac>" in page and "<script" not in page

    write_notebook(tmp_path / "notebooks", "01_bad", "1 + 1")
    code, out, err = course("--notebook", "00", "--notebook", "01_bad.ipynb")
    assert code == 0
    assert "00_good: kept, nothing changed since it ran" in err and "01_bad: kept" not in err
    assert out.startswith("2 of 2 notebooks complete; open ")


def test_other_parameters_have_a_folder_of_their_own(course, tmp_path):
    write_notebook(tmp_path / "notebooks", "00_good", WRITES)
    assert course("--param", "epochs=5", "--param", "seed=1")[0] == 0
    assert [path.name for path in (tmp_path / "runs" / "smoke").glob("*/")] == ["00_good+epochs=5+seed=1"]
    metrics = read_json(tmp_path / "runs" / "smoke" / "00_good+epochs=5+seed=1" / "metrics.json")
    assert metrics["metrics"]["rsum"]["mean"] == 501


@pytest.mark.parametrize("arguments, line", [
    (["--param", "epohcs=5"], "itm: 00_good has no parameter 'epohcs': did you mean 'epochs'?"),
    (["--param", "epochs"], "itm: parameter 'epochs' is not name=value: write for example epochs=5"),
    (["--param", "out_dir=x"], "itm: parameter out_dir is set by the runner: use --runs"),
    (["--notebook", "00_god"], "itm: no notebook '00_god': did you mean '00_good'?"),
    (["--profile", "cours"], "itm: unknown profile 'cours': did you mean 'course'?"),
])
def test_wrong_argument_is_one_line(arguments, line, course, tmp_path):
    write_notebook(tmp_path / "notebooks", "00_good", WRITES)
    assert course(*arguments) == (2, "", f"{line}\n")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("parameters, line", [
    ("epochs: int = int(3)", "the parameters cell must hold lines 'name: type = literal' only"),
    ("if True: epochs = 3", "the parameters cell must hold lines 'name: type = literal' only"),
])
def test_parameters_cell_holds_literals_only(parameters, line, course, tmp_path):
    write_notebook(tmp_path / "notebooks", "00_good", WRITES, parameters=parameters)
    assert course() == (2, "", f"itm: 00_good.ipynb: {line}\n")


def test_damaged_notebook_is_one_line(course, tmp_path):
    write_notebook(tmp_path / "notebooks", "00_good", WRITES)
    path = tmp_path / "notebooks" / "00_good.ipynb"
    path.write_text(path.read_text(encoding="utf-8")[:200], encoding="utf-8")
    code, _, err = course()
    assert code == 2 and err.startswith("itm: 00_good.ipynb is not a notebook (") and err.count("\n") == 1


def test_folder_without_notebooks_is_one_line(course, tmp_path):
    code, _, err = course()
    assert code == 2 and err == f"itm: no notebooks in {tmp_path / 'notebooks'}: run this from the course's checkout\n"


def planned(tmp_path, parameters=()):
    notebooks = runner.find_notebooks(tmp_path / "notebooks")
    return runner.plan(notebooks, "smoke", dict(parameters), tmp_path / "runs")[0]


def executed_by_hand(run):
    """A complete run without a kernel: what execute would leave."""
    notebook = runner.read_notebook(run.notebook)
    for number, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), 1):
        cell.execution_count = number
    run.folder.mkdir(parents=True)
    nbformat.write(notebook, run.executed)
    write_json(run.record, {"status": "ok", "fingerprint": runner.fingerprint(run)})
    return run


def complete(run):
    return runner.is_complete(run, runner.fingerprint(run))


def test_run_is_kept_until_something_changes(tmp_path):
    write_notebook(tmp_path / "notebooks", "00_good", "1 + 1")
    run = executed_by_hand(planned(tmp_path))
    assert complete(run)
    assert not complete(planned(tmp_path, {"epochs": 4}))
    write_notebook(tmp_path / "notebooks", "00_good", "1 + 2")
    assert not complete(run)


@pytest.mark.parametrize("damage", [
    lambda run: run.executed.unlink(),
    lambda run: run.executed.write_text("{", encoding="utf-8"),
    lambda run: run.record.write_text("{", encoding="utf-8"),
    lambda run: write_json(run.record, {"status": "ok"}),
    lambda run: write_json(run.record, {"status": "failed", "fingerprint": runner.fingerprint(run)}),
    lambda run: run.executed.write_text(run.executed.read_text(encoding="utf-8").replace('"execution_count": 2', '"execution_count": null')),
])
def test_incomplete_run_is_made_again(damage, tmp_path):
    write_notebook(tmp_path / "notebooks", "00_good", "1 + 1")
    run = executed_by_hand(planned(tmp_path))
    damage(run)
    assert not complete(run)


def test_change_of_the_library_is_seen(tmp_path, monkeypatch):
    write_notebook(tmp_path / "notebooks", "00_good", "1 + 1")
    (tmp_path / "itm_lib").mkdir()
    monkeypatch.setattr(runner, "__file__", str(tmp_path / "itm_lib" / "runner.py"))
    (tmp_path / "itm_lib" / "losses.py").write_text("margin = 0.2")
    run = executed_by_hand(planned(tmp_path))
    assert complete(run)
    (tmp_path / "itm_lib" / "losses.py").write_text("margin = 0.3")
    assert not complete(run)


def test_kernel_that_dies_is_named(course, tmp_path):
    write_notebook(tmp_path / "notebooks", "00_dies", "import os\nos._exit(1)")
    code, _, err = course()
    assert code == 1 and "00_dies: the kernel died, most often for lack of memory; see " in err


def test_second_runner_on_the_same_folder_is_refused(tmp_path):
    write_notebook(tmp_path / "notebooks", "00_slow", "import time\ntime.sleep(60)")
    script = ("import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job starts deaf to Ctrl-C
              "from itm_lib import cli\ncli._prepare_scenes = lambda *_: None\ncli.main()")
    command = [sys.executable, "-c", script, "course", "--source", str(tmp_path / "notebooks"), "--runs", str(tmp_path / "runs")]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    lock = tmp_path / "runs" / "course" / "00_slow" / "00_slow.ipynb"
    until = time.monotonic() + 60
    while not lock.exists() and time.monotonic() < until:
        time.sleep(0.1)
    second = subprocess.run(command, capture_output=True, text=True)
    first.send_signal(signal.SIGINT)
    _, err = first.communicate(timeout=60)
    assert second.returncode == 1
    assert "00_slow: the folder 00_slow is in use, another 'itm course' is running this notebook" in second.stderr
    assert first.returncode == 130
    assert err.rstrip().endswith("itm: stopped; the same command goes on where it was")
    assert not (tmp_path / "runs" / "course" / "00_slow" / "run.json").exists()


def test_unknown_name_in_a_run_of_several_is_refused_before_any_runs(tmp_path):
    write_notebook(tmp_path / "notebooks", "00_good", WRITES)
    write_notebook(tmp_path / "notebooks", "01_other", "1", parameters='profile: str = "course"\nout_dir: str = ""')
    with pytest.raises(InputError, match="^01_other has no parameter 'epochs'"):
        runner.plan(runner.find_notebooks(tmp_path / "notebooks"), "smoke", {"epochs": 1}, tmp_path / "runs")


@pytest.mark.parametrize("tex, part", [
    (r"\frac{a}{b}", "<mfrac>"), (r"\begin{aligned} a &= b \\ c &= d \end{aligned}", "<mtable"),
    (r"\operatorname*{argmax}_k", "argmax"), (r"a^b^c", "<code>a^b^c</code>"), (r"a < b", "&#x0003C;"),
])
def test_formulas_become_mathml(tex, part):
    assert part in mathml(tex, "block")
