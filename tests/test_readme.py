"""What the README says of results is what data/results holds."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from typer.testing import CliRunner

from itm_lib.cli import app

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_results_are_those_on_disk():
    section = re.search(r"<!-- results: itm (report .*?) -->\n(.*?)<!-- end of results -->", README, re.S)
    printed = CliRunner().invoke(app, shlex.split(section[1]))
    assert printed.exit_code == 0, printed.output
    rows = [line for line in printed.output.splitlines() if line.startswith("|")]
    assert len(rows) > 5 and rows == [line for line in section[2].splitlines() if line.startswith("|")]
