"""What a shortlist loses: candidates found by vectors, then scored by the model, against the model's scores of all pictures.

    python tests/benchmarks/bench_shortlist.py                     # trains the recipes that --runs lacks, minutes each
    python tests/benchmarks/bench_shortlist.py --model "SCAN t-i avg=runs/scan" --model CAMP=runs/camp --other VSE++=runs/vse

For every model and every kind of shortlist it has ("words", "mean" and the other model of SCAN and CAMP, the embeddings of the
rest): of each caption's best picture under full scoring, and of its ten best, the share that is among the candidates; and R@1, R@5
and R@10 of the candidates' ranking beside those of the full one. Captions are those of --split, the gallery its pictures
("split"), or those of all splits ("all": the models were trained on most of these, which then come up too often). The default of
itm_lib.search is chosen on val; test is for reporting.
"""

from __future__ import annotations

import argparse
import shlex
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from itm_lib.evaluation.scoring import encode_images, encode_tokens, open_for, similarity_matrix
from itm_lib.files import project_root, write_json
from itm_lib.models.base import Encoding
from itm_lib.search import SearchIndex, build_index
from itm_lib.search.vectors import KINDS

CANDIDATES = (10, 20, 50, 100)
RECIPES = {"VSE++": "vse", "HREM": "hrem", "DivE": "dive", "SCAN t-i AVG": "scan_ti_avg", "SCAN i-t LSE": "scan_it_lse", "CAMP": "camp"}


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", action="append", metavar="NAME=FOLDER", help="a trained model, in place of the recipes; may be repeated")
    parser.add_argument("--other", metavar="NAME=FOLDER", help="the embedding model that finds candidates for SCAN and CAMP")
    parser.add_argument("--runs", type=Path, default=project_root() / "runs" / "bench_shortlist", help="where the recipes' runs are, or will be")
    parser.add_argument("--data", type=Path, default=None, help="default: the embedded dataset, variant default, size quick")
    parser.add_argument("--split", default="val")
    parser.add_argument("--galleries", nargs="+", choices=("split", "all"), default=["split", "all"])
    parser.add_argument("--kind", choices=KINDS, default="torch")
    parser.add_argument("--out", type=Path, default=None, help="default: tests/benchmarks/results/shortlist_<split>.json")
    return parser.parse_args(arguments)


def trained(runs: Path, data: Path) -> list[str]:
    """NAME=FOLDER of every recipe; those that ``runs`` lacks are trained on ``data``."""
    from itm_lib.training import load_recipe, run_recipe

    for recipe in RECIPES.values():
        if not (runs / recipe / "model" / "config.json").is_file():
            run_recipe(load_recipe(recipe), runs / recipe, resume=True, data=data)
    return [f"{name}={runs / recipe}" for name, recipe in RECIPES.items()]


def measure(index: SearchIndex, scores: Tensor, own: Tensor, encoded: Encoding) -> list[dict[str, float]]:
    """A row a number of candidates, of captions whose pictures are ``own`` (C,), rows of the gallery; ``scores`` (N, C) are all."""
    full = metrics(scores, own)
    best = scores.topk(min(10, len(scores)), 0).indices
    rows = []
    for count in (each for each in CANDIDATES if each < len(index)):
        start = time.perf_counter()
        found = index.shortlists[0].pictures.nearest(index.shortlists[0].queries(encoded), count)
        seconds = time.perf_counter() - start
        kept = torch.zeros_like(scores, dtype=torch.bool)
        for column, (_, places) in enumerate(found):
            kept[places, column] = True
        among = kept.gather(0, best).float()
        rows.append({"candidates": count, "best_kept": 100 * float(among[0].mean()), "ten_best_kept": 100 * float(among.mean()),
                     **{f"t2i_{name}": value for name, value in metrics(scores.masked_fill(~kept, -torch.inf), own).items()},
                     **{f"full_t2i_{name}": value for name, value in full.items()}, "shortlist_ms": 1000 * seconds / len(own)})
    return rows


def metrics(scores: Tensor, own: Tensor) -> dict[str, float]:
    """R@1, R@5 and R@10; a picture that is no candidate is not found, ties count against it."""
    true = scores[own, torch.arange(len(own))]
    ahead = (scores >= true).sum(0) - 1
    return {f"r{k}": 100 * float(((ahead < k) & true.isfinite()).float().mean()) for k in (1, 5, 10)}


def one_model(name: str, folder: str, given: argparse.Namespace, data: Path) -> list[dict[str, Any]]:
    """The rows of one model: a gallery, a shortlist and a number of candidates each."""
    results = []
    for gallery in given.galleries:
        split = given.split if gallery == "split" else None
        first = build_index(folder, data, split=split, kind=given.kind, progress=False)
        captions = open_for(first.model, data, given.split)
        encoded = encode_tokens(first.model, captions.tokens)
        start = time.perf_counter()
        scores = similarity_matrix(first.model, encode_images(first.model, first.gallery), encoded)
        seconds = time.perf_counter() - start
        own = torch.tensor([first.gallery.row(captions.regions.image_ids[image]) for image in captions.caption_to_image.tolist()])
        indexes = {first.shortlist: (first, encoded)}
        if not first.keeps_encodings:
            indexes["mean"] = build_index(folder, data, split=split, kind=given.kind, shortlist="mean", progress=False), encoded
            if given.other:
                label, other = given.other.split("=", 1)
                index = build_index(folder, data, split=split, kind=given.kind, shortlist=other, progress=False)
                tokens = [index.other_vocabulary.encode(text) for text in captions.texts]
                indexes[label] = index, encode_tokens(index.shortlists[0].model, tokens)
        for shortlist, (index, queries) in indexes.items():
            for row in measure(index, scores, own, queries):
                results.append({"model": name, "gallery": gallery, "pictures": len(index), "captions": len(own), "shortlist": shortlist,
                                "full_ms": 1000 * seconds / len(own), **row})
                print_row(results[-1])
    return results


def print_row(row: dict[str, Any]) -> None:
    print(f"{row['model']:>14} {row['pictures']:6,} pictures {row['shortlist']:>10} {row['candidates']:4}: best kept {row['best_kept']:5.1f} %, ten best "
          f"{row['ten_best_kept']:5.1f} %, R@1/5/10 {row['t2i_r1']:.1f} {row['t2i_r5']:.1f} {row['t2i_r10']:.1f} "
          f"(full {row['full_t2i_r1']:.1f} {row['full_t2i_r5']:.1f} {row['full_t2i_r10']:.1f})", flush=True)


def main(arguments: list[str] | None = None) -> None:
    given = options(arguments)
    if given.data is None:
        from itm_lib.data import scenes

        data = scenes.prepare("default", "quick")
    else:
        data = given.data
    if not given.model:
        given.model = trained(given.runs, data)
        given.other = given.other or given.model[0]
    rows = [row for each in given.model for row in one_model(*each.split("=", 1), given, data)]
    out = given.out or project_root() / "tests" / "benchmarks" / "results" / f"shortlist_{given.split}.json"
    command = shlex.join(["python", "tests/benchmarks/bench_shortlist.py", "--split", given.split])
    write_json(out, {"command": command, "data": data.name, "split": given.split, "kind": given.kind, "rows": rows})
    print(f"written to {out}")


if __name__ == "__main__":
    main()
