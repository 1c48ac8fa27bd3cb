"""Parameters and folders of notebooks."""

import json
import re
import subprocess
import sys

import pytest
from pydantic import Field, ValidationError, create_model

from itm_lib import course
from itm_lib.course import NotebookParameters, choose, run_name, write_metrics
from itm_lib.evaluation.report import Result, read_results
from itm_lib.files import InputError, validation_line


class Parameters(NotebookParameters):
    epochs: int = Field(0, ge=0)
    lr: float = Field(0.0, ge=0)


@pytest.mark.parametrize("values, line", [
    ({"epohcs": 3}, "notebook parameters: unknown 'epohcs': did you mean 'epochs'?"),
    ({"epochs": -1}, "notebook parameters: epochs = -1: input should be greater than or equal to 0"),
    ({"profile": "papers"}, "notebook parameters: profile = 'papers': input should be 'smoke', 'course' or 'paper'"),
    ({"seed": "one"}, "notebook parameters: seed = 'one': input should be a valid integer, unable to parse string as an integer"),
])
def test_wrong_parameter_is_one_line(values, line):
    with pytest.raises(InputError) as error:
        Parameters(**values)
    assert str(error.value) == line
    assert error.value._render_traceback_() == [f"InputError: {line}"]


def test_missing_value_is_named():
    with pytest.raises(ValidationError) as error:
        create_model("Model", size=(int, ...))()
    assert validation_line(error.value) == "size is missing"


@pytest.mark.parametrize("profile, epochs", [("smoke", 1), ("course", 20), ("paper", 30)])
def test_profile_chooses(profile, epochs):
    assert choose(profile, smoke=1, course=20, paper=30) == epochs
    assert Parameters(profile=profile).choose(smoke=1, course=20, paper=30) == epochs


def test_unknown_profile_is_refused():
    with pytest.raises(InputError, match="^unknown profile 'cours': did you mean 'course'\\?$"):
        choose("cours", smoke=1, course=2, paper=3)


def test_changed_parameters_are_those_that_differ_from_the_defaults():
    assert Parameters(profile="smoke", out_dir="x", epochs=0, lr=0.1).changed() == {"lr": 0.1}


def test_default_folder_depends_on_profile_and_parameters(tmp_path, monkeypatch):
    monkeypatch.setattr(course, "runs_dir", lambda: tmp_path)
    assert Parameters().folder("02_scan") == tmp_path / "course" / "02_scan"
    assert Parameters(profile="smoke", seed=1, epochs=5).folder("02_scan") == tmp_path / "smoke" / "02_scan+epochs=5+seed=1"
    assert (tmp_path / "course" / "02_scan").is_dir()


def test_run_name_is_safe_short_and_its_own():
    names = [run_name("02_scan", {"data": text}) for text in ("a/b", "a:b", "a b", "x" * 300)]
    assert len(set(names)) == 4
    assert all(re.fullmatch(r"[A-Za-z0-9_.=+-]{1,100}", name) for name in names)


def test_two_processes_never_share_a_folder(tmp_path):
    parameters = Parameters(out_dir=str(tmp_path / "out"))
    assert parameters.folder("02_scan") == parameters.folder("02_scan")  # the setup cell may run twice
    script = ("import sys; from itm_lib.course import NotebookParameters as P\n"
              "try: P(out_dir=sys.argv[1]).folder('02_scan')\nexcept ValueError as error: print(error)")
    other = lambda: subprocess.run([sys.executable, "-c", script, str(tmp_path / "out")], capture_output=True, text=True).stdout
    assert other() == "the folder out is in use, another kernel is writing to it: shut that kernel down, or give another out_dir\n"
    course._locks.pop((tmp_path / "out" / ".notebook.lock").resolve()).release()
    assert other() == ""


def test_metrics_are_written_as_results(tmp_path):
    result = Result.from_runs([{"rsum": 400.0}], seeds=[0], model="SCAN", dataset="openmoji_scenes", split="test",
                              profile="smoke", command="itm course", seconds=1, commit="abc")
    path = write_metrics(tmp_path, [result, result])
    assert path == tmp_path / "metrics.json"
    assert [row["metrics"]["rsum"]["mean"] for row in json.loads(path.read_text())] == [400.0, 400.0]
    assert read_results(path) == [result, result]
