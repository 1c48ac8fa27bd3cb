"""data/paper_results.yaml: every row has its keys, possible values and a source, and its recalls add up."""

from collections import Counter

import pytest
import yaml

from itm_lib.files import project_root

KEYS = {"method", "variant", "dataset", "protocol", "i2t", "t2i", "rsum", "table", "source", "status"}
METHODS = {"vse", "scan", "camp", "hrem", "dive", "sco", "vse_infinity", "devise", "sdt_rnn", "defrag", "dvsa", "m_rnn", "mnlm", "nic", "dcca", "m_cnn",
           "fisher", "two_way_net", "imram"}
PROTOCOLS = {"flickr8k_1k": "flickr8k", "f30k_1k": "flickr30k", "coco_1k_fivefold": "coco", "coco_5k": "coco"}
STATUSES = {"paper", "authors", "later_paper", "notes"}
ROUNDING = 0.11  # papers sum before they round: a printed rsum may be 0.1 off the six printed numbers

ROWS = yaml.safe_load((project_root() / "data" / "paper_results.yaml").read_text(encoding="utf-8"))


def problems(row: dict) -> list[str]:
    """What is wrong with ``row``; empty if nothing is."""
    if set(row) != KEYS:
        return [f"keys: {sorted(set(row) ^ KEYS)}"]
    found = [f"unknown {key} {row[key]!r}" for key, known in (("method", METHODS), ("protocol", PROTOCOLS), ("status", STATUSES))
             if row[key] not in known]
    if PROTOCOLS.get(row["protocol"]) != row["dataset"]:
        found.append(f"protocol {row['protocol']} is not one of {row['dataset']}")
    found += [f"{key} is empty" for key in ("variant", "table", "source") if not isinstance(row[key], str) or not row[key].strip()]
    recalls = row["i2t"] + row["t2i"]
    known = [value for value in recalls if value is not None]
    if len(row["i2t"]) != 3 or len(row["t2i"]) != 3 or not all(0 < value < 100 for value in known):
        found.append("i2t and t2i are three percentages each")
    for side in ("i2t", "t2i"):
        reported = [value for value in row[side] if value is not None]
        if reported != sorted(reported):
            found.append(f"{side} falls: recall at a larger k cannot be lower")
    if not known and row["rsum"] is None:
        found.append("no number at all")
    if len(known) == 6 and (row["rsum"] is None or abs(sum(known) - row["rsum"]) > ROUNDING):
        found.append(f"rsum {row['rsum']} but the recalls sum to {sum(known):.1f}")
    return found


def test_every_row_is_complete_and_adds_up():
    assert {f"{row.get('method')}, {row.get('variant')}, {row.get('protocol')}": problems(row)
            for row in ROWS if problems(row)} == {}


@pytest.mark.parametrize("change, expected", [
    ({"rsum": 447.2}, "rsum 447.2"),
    ({"i2t": [61.8, 57.5, 93.7], "rsum": 416.2}, "i2t falls"),
    ({"dataset": "coco"}, "not one of coco"),
    ({"method": "scna"}, "unknown method"),
    ({"source": " "}, "source is empty"),
])
def test_the_check_sees_a_wrong_row(change, expected):
    row = next(row for row in ROWS if row["method"] == "scan" and row["variant"] == "t-i AVG")
    assert any(expected in problem for problem in problems({**row, **change}))


def test_scan_and_camp_are_read_in_the_papers_themselves():
    originals = [row for row in ROWS if row["method"] in ("scan", "camp") and row["status"] == "paper"]
    assert Counter(row["method"] for row in originals) == {"scan": 19, "camp": 14}


def test_no_row_is_listed_twice():
    counts = Counter((row["method"], row["variant"], row["protocol"]) for row in ROWS)
    assert [name for name, count in counts.items() if count > 1] == []
