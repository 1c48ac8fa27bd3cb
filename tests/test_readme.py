"""What the README says of results is what data/results holds."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from itm_lib.cli import app

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


MARKED = re.findall(r"<!-- results: itm (report .*?) -->\n(.*?)<!-- end of results -->", README, re.S)


def test_every_table_of_results_is_marked():
    assert len(MARKED) == README.count("<!-- results:") == README.count("<!-- end of results -->") > 0
    unmarked = re.sub(r"<!-- results: .*?<!-- end of results -->", "", README, flags=re.S)
    assert "±" not in "".join(line for line in unmarked.splitlines() if line.startswith("|"))


@pytest.mark.parametrize("command, section", MARKED, ids=[command for command, _ in MARKED])
def test_the_results_are_those_on_disk(command, section):
    printed = CliRunner().invoke(app, shlex.split(command))
    assert printed.exit_code == 0, printed.output
    rows = [line for line in printed.output.splitlines() if line.startswith("|")]
    assert len(rows) > 5 and rows == [line for line in section.splitlines() if line.startswith("|")]
