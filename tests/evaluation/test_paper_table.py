"""The papers' tables beside what was measured: which run belongs to which row, and what is said of it."""

import pytest
import yaml

from itm_lib.evaluation.report import (
    EMBEDDED_OF,
    NO_NUMBER,
    PROTOCOLS_OF,
    Result,
    paper_markdown,
    paper_table,
    read_paper_results,
    read_results,
)
from itm_lib.files import data_dir

SCAN = {"method": "scan", "direction": "t2i", "aggregation": "mean"}


def recipe(variant="t-i AVG", dataset="flickr30k", model=SCAN, settings="published", **train):
    return {"paper": {"dataset": dataset, "variant": variant, "settings": settings}, "data": {"folder": dataset}, "model": dict(model),
            "train": {"lr": 2e-4, "epochs": 30, "seed": 0, "num_workers": 4, **train}}


def result(*rsums, config=None, protocol="f30k_1k", split="test", seeds=None, **about):
    """Runs of one seed a value under ``protocol``; the six recalls are a sixth of it each."""
    runs = [{f"{protocol}_{name}": value if name == "rsum" else value / 6 for name in
             ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10", "rsum")} for value in rsums]
    about = {"model": "run", "dataset": "anywhere", "profile": "", "commit": "abc", "command": "", "seconds": 1, **about}
    return Result.from_runs(runs, seeds=seeds or range(len(runs)), split=split, config=recipe() if config is None else config, **about)


RECIPES = {"flickr30k/scan_ti_avg": recipe(), "coco/scan_ti_avg": recipe(dataset="coco"),
           "flickr30k/hrem_bigru": recipe(None, model={"method": "hrem", "mechanism": "fusion"}, settings="ours, chosen on val"),
           "flickr30k/hrem_standalone_bigru": recipe(None, model={"method": "hrem", "mechanism": "standalone"}, settings="ours, chosen on val")}


def row(table, model, protocol="f30k_1k"):
    return table.loc[(protocol, model)].to_dict()


def test_seeds_of_one_recipe_are_one_row_with_their_spread():
    first, second = result(444.0, 446.0), result(448.0, seeds=[7], config={**recipe(), "train": {**recipe()["train"], "seed": 7, "num_workers": 0}})
    found = row(paper_table([first, second, first], recipes=RECIPES), "SCAN t-i AVG")
    assert found == {
        "recipe": "flickr30k/scan_ti_avg", "settings": "published", "models": "single", "paper i2t R@1": "61.8", "paper t2i R@1": "45.8",
        "paper rSum": "446.2", "source": "SCAN, ECCV 2018, tables 1, 3", "read in": "the paper", "here i2t R@1": "74.3 ± 0.3",
        "here t2i R@1": "74.3 ± 0.3", "here rSum": "446.0 ± 2.0", "seeds": "3", "status": "reproduced", "embedded rSum": ""}


@pytest.mark.parametrize(("value", "status"), [(446.2, "reproduced"), (500.0, "reproduced"), (441.8, "reproduced"), (441.7, "below")])
def test_reproduced_is_at_most_one_percent_below(value, status):
    assert row(paper_table([result(value)], recipes=RECIPES), "SCAN t-i AVG")["status"] == status


def test_a_row_without_rsum_is_compared_by_the_recalls_it_has():
    released = "regions + BERT, fusion, released checkpoint"  # 84.4, 96.7, 62.4, 86.6: 330.1 in all
    for total, status in ((6 * 82.6, "reproduced"), (6 * 81.0, "below")):
        table = paper_table([result(total, config=recipe(released, model={"method": "hrem"}))])
        assert row(table, f"HREM {released}")["status"] == status


def test_only_test_splits_of_the_protocols_size_count():
    small = result(600.0, protocol="other")
    for results in ([small], [result(600.0, split="val")], [result(600.0, config={})], []):
        found = row(paper_table(results, recipes=RECIPES), "SCAN t-i AVG")
        assert (found["status"], found["here rSum"], found["seeds"]) == ("not run", "", "")


def test_coco_has_a_row_a_protocol():
    config = recipe(dataset="coco")
    table = paper_table([result(499.0, config=config, protocol="coco_1k"), result(400.0, config=config, protocol="coco_5k")], recipes=RECIPES)
    folds, whole = row(table, "SCAN t-i AVG", "coco_1k_fivefold"), row(table, "SCAN t-i AVG", "coco_5k")
    assert (folds["paper rSum"], folds["here rSum"], folds["status"]) == ("500.5", "499.0", "reproduced")
    assert (whole["paper rSum"], whole["source"], whole["here rSum"], whole["status"]) == ("", NO_NUMBER, "400.0", NO_NUMBER)
    assert row(table, "SCAN t-i AVG")["status"] == "not run"


def test_runs_with_other_settings_have_a_row_of_their_own():
    other = recipe(epochs=1)
    table = paper_table([result(300.0, config=other), result(310.0, config=other, seeds=[1]), result(446.0)], recipes=RECIPES)
    own, changed = row(table, "SCAN t-i AVG"), row(table, "SCAN t-i AVG (with other train.epochs)")
    assert (own["here rSum"], own["settings"], changed["here rSum"], changed["settings"]) == ("446.0", "published", "305.0 ± 7.1", "changed")
    many = recipe(epochs=1, lr=1, batch_size=2, clip=3)
    names = paper_table([result(300.0, config=many)], recipes=RECIPES).loc["f30k_1k"].index
    assert "SCAN t-i AVG (with other train.lr, train.epochs, train.batch_size, ...)" in names
    without = paper_table([result(446.0), result(300.0, config=other)])
    assert row(without, "SCAN t-i AVG")["here rSum"] == "446.0" and row(without, "SCAN t-i AVG (with other train.epochs)")["seeds"] == "1"


def test_recipes_without_a_published_row_are_told_apart_by_their_settings():
    config = {**RECIPES["flickr30k/hrem_standalone_bigru"], "train": {**recipe()["train"], "seed": 3}}
    table = paper_table([result(480.0, config=config)], recipes=RECIPES)
    standalone, fusion = row(table, "HREM standalone BiGRU"), row(table, "HREM BiGRU")
    assert (standalone["here rSum"], standalone["status"], standalone["settings"]) == ("480.0", NO_NUMBER, "ours, chosen on val")
    assert (fusion["here rSum"], fusion["status"], fusion["source"]) == ("", "not run", NO_NUMBER)
    assert row(paper_table([result(480.0, config=config)]), "HREM")["here rSum"] == "480.0"


def test_the_authors_own_weights_do_not_count_as_ours():
    config = {"official": {"method": "scan", "file": "model_best.pth.tar"}, "paper": recipe()["paper"]}
    table = paper_table([result(447.0, config=config)], recipes=RECIPES)
    assert row(table, "SCAN t-i AVG")["status"] == "not run"
    found = row(table, "SCAN t-i AVG (the authors' weights)")
    assert (found["here rSum"], found["status"], found["settings"]) == ("447.0", "reproduced", "the authors' weights")
    assert "SCAN t-i AVG (the authors' weights)" in paper_table([result(447.0, config=config)]).loc["f30k_1k"].index


@pytest.mark.parametrize(("method", "variants", "name"), [
    ("scan", ["t-i AVG", "i-t LSE"], "SCAN ensemble t-i AVG + i-t LSE"), ("scan", ["i-t LSE", "t-i AVG"], "SCAN ensemble t-i AVG + i-t LSE"),
    ("hrem", ["regions + BERT, single"] * 2, "HREM regions + BERT, ensemble")])
def test_an_ensemble_belongs_to_the_row_of_its_members(method, variants, name):
    members = [recipe(variant, model={"method": method}) for variant in variants]
    for config in ({"ensemble": members}, {"ensemble": dict(zip("ab", members))}):
        table = paper_table([result(466.0, config=config)], recipes=RECIPES)
        assert (row(table, name)["here rSum"], row(table, name)["models"]) == ("466.0", "ensemble")
    mixed = [members[0], recipe(variants[1], dataset="coco", model={"method": method})]
    for config in ({"ensemble": mixed}, {"ensemble": [members[0], {}]}, {"ensemble": [members[0], recipe(model={"method": "camp"})]}):
        assert row(paper_table([result(466.0, config=config)]), name)["here rSum"] == ""


def test_embedded_results_have_a_column_of_their_own():
    embedded = [Result.from_runs([{"rsum": 500.0}] * seeds, seeds=range(seeds), model="SCAN t-i AVG", dataset="openmoji_scenes", variant=variant,
                                 split=split, profile="course", commit="a", command="", seconds=1, config={"model": SCAN})
                for seeds, variant, split in ((1, "default-quick", "test"), (3, "default-quick", "test"), (5, "many_to_many-quick", "test"),
                                              (5, "default-quick", "val"))]
    table = paper_table(embedded, recipes=RECIPES)
    found = row(table, "SCAN t-i AVG")
    assert (found["status"], found["embedded rSum"], found["here rSum"]) == ("embedded only", "500.0 ± 0.0", "")
    assert row(paper_table([*embedded, result(430.0)], recipes=RECIPES), "SCAN t-i AVG")["status"] == "below"
    assert row(table, "SCAN t-i LSE")["status"] == "not run"


def test_every_published_row_is_there_once():
    table = paper_table([], recipes=RECIPES)
    published = [row for row in read_paper_results() if row.dataset != "flickr8k"]  # no row of the five papers there
    assert table.index.is_unique and len(table) == len(published) + 3  # two recipes without a row, one without COCO 5K's
    assert list(table.index.get_level_values(0).unique()) == [protocol for each in PROTOCOLS_OF.values() for protocol in each]
    assert set(table["paper rSum"]) >= {f"{each.rsum:.1f}" for each in published if each.rsum}
    assert table.loc[("f30k_1k", "DivE K = 3"), "read in"] == "somebody's notes"


def test_what_embedded_results_are_paired_with_exists():
    models = {each.model for each in read_results(data_dir() / "results")}
    variants = {(each.method, each.variant) for each in read_paper_results()}
    assert set(EMBEDDED_OF.values()) <= models
    assert {key for key in EMBEDDED_OF if key[1].partition("_")[0] != key[0]} <= variants


def test_the_recipes_that_come_along_have_rows():
    from itm_lib.training.recipe import paper_recipes

    recipes = paper_recipes()
    table = paper_table(read_results(data_dir() / "results"), recipes=recipes)
    assert set(table["recipe"]) - {""} == set(recipes)
    assert set(table["status"]) == {"embedded only", "not run"}


def test_as_markdown_it_says_what_the_words_mean(tmp_path):
    text = paper_markdown(paper_table([result(445.0, 447.0)], recipes=RECIPES))
    assert "Flickr30K, 1000 test pictures:\n\n| model |" in text and "COCO, 5000 test pictures:" in text
    assert ("| SCAN t-i AVG | single, flickr30k/scan_ti_avg, published | 61.8 / 45.8, 446.2 | SCAN, ECCV 2018, tables 1, 3 (the paper) | "
            "74.3 ± 0.2 / 74.3 ± 0.2, 446.0 ± 1.4 (2 seeds) | reproduced |  |") in text
    assert f"| HREM BiGRU | single, flickr30k/hrem_bigru, ours, chosen on val | {NO_NUMBER} |  |  | not run |  |" in text
    assert text.splitlines()[-1].startswith("reproduced: the mean rSum here is at most 1 % below")
    assert len({line.count(" | ") for line in text.splitlines() if line.startswith("| ")}) == 1


def test_the_papers_numbers_may_come_from_another_file(tmp_path):
    rows = [{"method": "scan", "variant": "t-i AVG", "dataset": "flickr30k", "protocol": "f30k_1k", "i2t": [1, 2, 3], "t2i": [4, 5, 6],
             "rsum": 21.0, "source": "somebody", "status": "paper"}]
    (tmp_path / "paper.yaml").write_text(yaml.safe_dump(rows))
    assert row(paper_table([], tmp_path / "paper.yaml"), "SCAN t-i AVG")["paper rSum"] == "21.0"
