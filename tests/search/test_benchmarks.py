"""The benchmarks of search at a tiny size: what they print and write, and that recall means what it says."""

import json
import sys

import numpy as np
import pytest
import torch
from made_for_search import make_model

from itm_lib.files import project_root

sys.path.insert(0, str(project_root() / "tests" / "benchmarks"))
import bench_search  # noqa: E402
import bench_shortlist  # noqa: E402


@pytest.mark.parametrize("elements", [1, 2])
def test_search_at_a_tiny_size(elements, tmp_path, capsys):
    given = bench_search.options(["--count", "400", "--dim", "16", "--elements", str(elements), "--queries", "30", "--seconds", "0.01", "--kinds", "torch",
                                  "flat", "hnsw", "--rerank-sizes", "5", "4", "8", "16", "6"])
    result = json.loads(json.dumps(bench_search.run(given, apart=False)))
    assert [row["kind"] for row in result["kinds"]] == ["torch", "flat", "hnsw"]
    for row in result["kinds"][:2]:
        assert row["search"][0]["recall_at_10_rescored"] == 100 and row["vectors_bytes"] == 400 * elements * 16 * 4
    assert result["kinds"][0]["search"][0]["recall_at_10"] == 100
    graph = result["kinds"][2]
    assert [each["ef_search"] for each in graph["search"]] == list(bench_search.EF_SEARCH) and graph["search"][-1]["recall_at_10"] > 95
    assert graph["index_bytes"] > graph["vectors_bytes"] and graph["peak_bytes"] > 10**7
    assert [row["model"] for row in result["rerank"]] == ["scan", "camp"] and all(row["total_ms"] > 0 for row in result["rerank"])
    out = capsys.readouterr().out
    assert "hnsw: built in" in out and "re-rank 5 by scan" in out


def test_what_a_kinds_own_process_prints(tmp_path, capsys):
    given = bench_search.options(["--count", "300", "--dim", "8", "--queries", "10"])
    for name, values in zip(("vectors", "queries"), bench_search.generate(given)):
        np.save(tmp_path / f"{name}.npy", values)
    for kind in ("exact", "torch"):
        bench_search.main(["--child", kind, str(tmp_path), "--seconds", "0"])
    row = json.loads(capsys.readouterr().out)
    assert row["kind"] == "torch" and row["search"][0]["recall_at_10"] == 100 and row["peak_bytes_asked"] >= row["loaded_bytes"]


def test_recall_counts_what_of_the_first_ten_was_found():
    exact = torch.arange(10)[None]
    assert bench_search.recall([torch.tensor([9, 3, 77])], exact) == 20
    assert bench_search.recall([torch.tensor([50, 51, *range(9, -1, -1)])], exact) == 80  # the first ten found count, not all


def test_shortlists_at_a_tiny_size(dataset, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench_shortlist, "CANDIDATES", (3, 8, 500))
    for name in ("scan", "vse"):
        make_model(name).save_pretrained(tmp_path / name / "model")
    out = tmp_path / "rows.json"
    bench_shortlist.main(["--model", f"SCAN={tmp_path / 'scan'}", "--model", f"VSE++={tmp_path / 'vse'}", "--other", f"VSE++={tmp_path / 'vse'}",
                          "--data", str(dataset), "--out", str(out)])
    content = json.loads(out.read_text())
    assert content["command"] == "python tests/benchmarks/bench_shortlist.py --split val"
    rows = content["rows"]
    assert {(row["model"], row["shortlist"]) for row in rows} == {("SCAN", "words"), ("SCAN", "mean"), ("SCAN", "VSE++"), ("VSE++", "embedding")}
    assert {(row["pictures"], row["candidates"]) for row in rows} == {(9, 3), (9, 8), (27, 3), (27, 8)}
    own = [row for row in rows if row["model"] == "VSE++"]
    assert all(row["best_kept"] == 100 and row["t2i_r1"] == row["full_t2i_r1"] for row in own)
    assert all(row["t2i_r10"] <= 100 * row["candidates"] for row in rows) and "best kept" in capsys.readouterr().out
