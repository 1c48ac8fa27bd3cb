"""Queries: words that are not known, sizes, pictures as queries, and what is looked at."""

import json
import re

import numpy as np
import pytest
import torch
from made_for_search import PICTURES, SETTINGS, SMALL, TEXTS, make_ensemble, make_model, write_store
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from itm_lib.data.captions import WordPieces
from itm_lib.data.regions import RegionStore, RegionWriter
from itm_lib.evaluation.scoring import encode_images, encode_tokens
from itm_lib.features.backbones import open_backbone
from itm_lib.features.extract import extract
from itm_lib.files import InputError
from itm_lib.models import Ensemble, build_model
from itm_lib.search import Result, build_index
from itm_lib.search.attended import cell_boxes
from itm_lib.search.query import TextQuery


@pytest.fixture(scope="module")
def index(dataset):
    return build_index(make_model("vse"), dataset, progress=False)


@pytest.mark.parametrize(("text", "line"), [
    ("", 'the query is empty: write a caption, for example "a dog left of a red car"'),
    ("  ", "the query is empty"),
    ("...!", "the query '...!' has no word in it: write a caption"),
    ("Zebras, quaggas", "no word of the query 'Zebras, quaggas' is in the model's vocabulary: use words of the captions it was trained on"),
])
def test_queries_without_a_known_word_are_one_line(index, text, line):
    with pytest.raises(InputError, match=f"^{re.escape(line)}"):
        index.query(text)


def test_unknown_words_are_told_and_the_others_asked(index):
    result = index.query("A dog, a Zebra and another zebra")
    assert result.unknown == ("zebra", "and", "another")
    assert result.notes == ("not in the vocabulary: zebra, and, another",)
    assert result.words == ("A", "dog", "a", "Zebra", "and", "another", "zebra")
    assert index.query("a dog").notes == ()


def test_word_pieces_have_words_and_unknowns_too():
    cut = Tokenizer(models.WordPiece({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "dog": 4, "##s": 5, "run": 6}, unk_token="[UNK]"))
    cut.pre_tokenizer, cut.post_processor = pre_tokenizers.BertPreTokenizer(), processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    query = TextQuery.read("dogs run, zebra", WordPieces(cut.to_str(), "[UNK]", "[PAD]"))
    assert query.words == ("dog", "s", "run", ",", "zebra") and query.unknown == (",", "zebra")


def test_sizes_and_kinds_of_questions_are_checked(index, tmp_path):
    for line, arguments in [
        ("top is 0 and candidates 100: both must be 1 at least", {"text": "a dog", "top": 0}),
        ("5 candidates are fewer than the 10 pictures that are asked for: take more candidates", {"text": "a dog", "candidates": 5}),
        ("ask with words or with a picture, one of the two", {}),
        ("ask with words or with a picture, one of the two", {"text": "a dog", "image": "photo.jpg"}),
        (f"{tmp_path / 'none.jpg'} ", {"image": tmp_path / "none.jpg"}),
    ]:
        with pytest.raises(InputError, match=f"^{re.escape(line)}"):
            index.query(**arguments)
    with pytest.raises(InputError, match="give a list of queries"):
        index.query_many("a dog")
    assert len(index.query("a dog", top=100).hits) == 3 * PICTURES


def test_a_result_is_json(index):
    result = index.query("a dog", top=2)
    content = json.loads(json.dumps(result.to_dict()))
    assert content["query"] == "a dog" and content["scored"] == content["pictures"] == 27 and content["exact"] is True
    assert content["hits"][0]["image_id"] == result.hits[0].image_id and content["hits"][0]["path"] == str(result.hits[0].path)
    assert content["hits"][0]["regions"][0]["box"] == list(result.hits[0].regions[0].box)
    assert isinstance(result, Result)


def test_equal_scores_come_in_the_order_of_the_pictures(tmp_path):
    rng = np.random.default_rng(0)
    path = write_store(tmp_path / "made.h5", [f"p{number}" for number in range(6)], rng)
    model = make_model("vse")
    with torch.no_grad():
        model.image.fc.weight.zero_()
        model.image.fc.bias.zero_()  # products of 0 are equal on every CPU, in whatever order they are added up
    hits = build_index(model, path, progress=False).query("a dog", candidates=4, top=4).hits
    assert [hit.image_id for hit in hits] == ["p0", "p1", "p2", "p3"]


# --- what is looked at ---

def explained(name, dataset, text=TEXTS[0]):
    """The index, a result with all pictures, and for each hit its row, real boxes, and the model's encodings."""
    index = build_index(make_model(name), dataset, progress=False)
    result = index.query(text, top=27, candidates=27)
    images = encode_images(index.model, index.gallery)
    caption = encode_tokens(index.model, [index.vocabulary.encode(text)])
    return index, result, images, caption


def in_order(index, hit):
    """The hit's regions in the order of the file."""
    boxes = [tuple(box) for box in index.gallery.boxes(index.gallery.row(hit.image_id)).tolist()]
    assert sorted(region.box for region in hit.regions) == sorted(boxes)
    weights = [region.weight for region in hit.regions]
    assert weights == sorted(weights, reverse=True)
    return sorted(hit.regions, key=lambda region: boxes.index(region.box))


@pytest.mark.parametrize("name", ["vse", "vse_max"])
def test_parts_of_a_pooled_score_add_up_to_it(name, dataset):
    index, result, _, caption = explained(name, dataset)
    assert result.weights == "a region's part of the score"
    for hit in result.hits:
        assert sum(region.weight for region in hit.regions) == pytest.approx(hit.score, abs=1e-6)
    hit = result.hits[4]  # one of them by a loop
    regions, mask = index.gallery.image_tensors([index.gallery.row(hit.image_id)])
    x, t = index.model.image(regions)[0][mask[0]].detach(), caption.embedding[0]
    pooled = x.mean(0) if name == "vse" else x.amax(0)
    for number, region in enumerate(in_order(index, hit)):
        own = x[number] / len(x) if name == "vse" else torch.where(x.argmax(0) == number, x.amax(0), 0.0)
        assert region.weight == pytest.approx(float(own @ t / pooled.norm()), abs=1e-6)


@pytest.mark.parametrize("name", ["scan", "camp"])
def test_attention_is_averaged_over_the_querys_words(name, dataset):
    index, result, images, caption = explained(name, dataset)
    attention = index.model.explain(images, caption)["attention"][:, 0].detach()
    assert result.weights == "attention of the query's words, averaged" and len(result.words) == 8
    for hit in result.hits:
        own = attention[index.gallery.row(hit.image_id), 1:-1]  # <start> and <end> are not the query's
        for number, region in enumerate(in_order(index, hit)):
            assert region.words == pytest.approx(own[:, number].tolist(), abs=1e-5)
            assert region.weight == pytest.approx(float(own[:, number].mean()), abs=1e-5)
        assert sum(region.weight for region in hit.regions) == pytest.approx(1, abs=1e-5)


def test_regions_that_ask_words_weigh_what_they_find(dataset):
    index, result, images, caption = explained("scan_it", dataset)
    relevance = index.model.explain(images, caption)["relevance"][:, 0].detach()
    hit = result.hits[0]
    own = relevance[index.gallery.row(hit.image_id)].clamp(min=0)
    for number, region in enumerate(in_order(index, hit)):
        assert region.weight == pytest.approx(float(own[number] / own.sum()), abs=1e-5)


def test_the_slot_of_the_nearest_element_is_shown(dataset):
    index, result, images, caption = explained("dive", dataset)
    for hit in result.hits:
        row = index.gallery.row(hit.image_id)
        element = int((images.embedding[row] @ caption.embedding[0].T).amax(1).argmax())
        for number, region in enumerate(in_order(index, hit)):
            assert region.weight == pytest.approx(float(images.fragments[row, number, element]), abs=1e-5)


def test_no_regions_where_there_are_none_to_show(dataset, tmp_path):
    assert all(not hit.regions for hit in explained("hrem", dataset)[1].hits)
    path = write_store(tmp_path / "bare.h5", ["a", "b"], np.random.default_rng(0), boxes=False)
    assert all(not hit.regions for hit in build_index(make_model("scan"), path, progress=False).query("a dog").hits)
    ensemble = build_index(make_ensemble("hrem", "scan"), dataset, progress=False).query("a dog")
    assert ensemble.weights == "attention of the query's words, averaged" and all(hit.regions for hit in ensemble.hits)
    many = build_index(make_model("scan"), dataset, progress=False).query_many(["a dog"])
    assert not many[0].hits[0].regions


def test_cells_lie_in_the_square_in_the_middle():
    boxes = cell_boxes((40, 20), 2)
    assert boxes.tolist() == [[0.25, 0, 0.5, 0.5], [0.5, 0, 0.75, 0.5], [0.25, 0.5, 0.5, 1], [0.5, 0.5, 0.75, 1]]


# --- a picture as the query ---

@pytest.fixture(scope="module")
def own_pictures(tmp_path_factory):
    """Four pictures, their regions by the region encoder, and a fifth that lies on its side."""
    home = tmp_path_factory.mktemp("own")
    rng = np.random.default_rng(0)
    for name in "abc":
        picture = Image.new("RGB", (64, 48), tuple(rng.integers(0, 255, 3).tolist()))
        picture.paste(tuple(rng.integers(0, 255, 3).tolist()), (10, 10, 40, 30))
        (home / "pictures").mkdir(exist_ok=True)
        picture.save(home / "pictures" / f"{name}.png")
    turned = Image.open(home / "pictures" / "b.png").transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # what was turned a quarter to the left is shown a quarter to the right
    turned.save(home / "turned.png", exif=exif)
    extract(home / "pictures", open_backbone("region-encoder", regions=4, size=24), home / "store.h5", progress=False)
    return home


def region_model(name):
    """A model of the region encoder's features."""
    vocabulary = make_model("vse").vocabulary
    model = build_model(name, {**SMALL, **SETTINGS[name]}, 134, len(vocabulary)).eval()
    model.vocabulary = vocabulary
    return model


@pytest.mark.parametrize("name", ["vse", "dive", "scan"])
def test_a_picture_finds_itself_upright(name, own_pictures):
    index = build_index(region_model(name), own_pictures / "store.h5", images=own_pictures / "pictures", progress=False)
    for path in [own_pictures / "turned.png", *[own_pictures / "pictures" / "b.png"] * (name == "vse")]:
        result = index.query(image=path, top=3)
        assert result.hits[0].image_id == "b" and result.picture == path and result.query == path.name
    if name == "vse":
        assert result.hits[0].score == pytest.approx(1, abs=1e-5)
        assert sum(region.weight for region in result.hits[1].regions) == pytest.approx(result.hits[1].score, abs=1e-5)
    if name == "dive":
        row = index.gallery.row("b")
        own = index.candidate_images(torch.arange(3))
        expected = index.model.similarity(own, own.select([row]))[:, 0]
        assert [hit.score for hit in result.hits] == pytest.approx(sorted(expected.tolist(), reverse=True), abs=1e-5)
    if name == "scan":
        assert result.notes == ("compared by the mean of their encoded regions: scan itself compares pictures with words alone",)
        assert result.hits[0].score == pytest.approx(1, abs=1e-5) and result.exact
    else:
        assert result.notes == ()


def test_a_picture_is_compared_by_the_model_that_finds_candidates(own_pictures, tmp_path):
    region_model("vse").save_pretrained(tmp_path / "vse")
    index = build_index(region_model("scan"), own_pictures / "store.h5", shortlist=tmp_path / "vse", progress=False)
    result = index.query(image=own_pictures / "turned.png", top=2)
    assert result.hits[0].image_id == "b" and result.hits[0].score == pytest.approx(1, abs=1e-5)
    assert result.notes == ("compared by vse, whose embeddings the candidates come from",)


def test_pictures_that_cannot_be_asked_with_are_one_line(dataset, own_pictures):
    path = own_pictures / "turned.png"
    with pytest.raises(InputError, match="^these regions were made by 'made', not by a backbone that can be opened again"):
        build_index(make_model("vse"), dataset, progress=False).query(image=path)
    with pytest.raises(InputError, match="^this ensemble has a member that compares regions with words and cannot compare pictures"):
        ensemble = Ensemble([region_model("vse"), region_model("scan")]).eval()
        build_index(ensemble, own_pictures / "store.h5", progress=False).query(image=path)


def test_an_indexed_picture_is_asked_with_by_its_own_regions(dataset):
    """No backbone is needed for it, as for features that came without one."""
    index = build_index(make_model("dive"), dataset, progress=False)
    result = index.query(image=dataset / "images" / "val" / "4.png", top=27)
    own = index.candidate_images(torch.arange(27))
    scores = index.model.similarity(own, own.select([index.gallery.row("val/4")]))[:, 0]
    assert [hit.score for hit in result.hits] == pytest.approx(scores.sort(descending=True).values.tolist(), abs=1e-5)
    assert result.hits[0].image_id == "val/4" and result.notes == ()


def test_the_embedded_datasets_regions_are_searched_for_in_windows(own_pictures, tmp_path):
    """Its stores come from scenes, whose objects are known; a new picture's are not."""
    path, store = tmp_path / "scenes.h5", RegionStore(own_pictures / "store.h5")
    with RegionWriter(path, store.image_ids, store.max_regions, store.dim, "region_encoder") as writer:
        for row, count in enumerate(store.num_regions):
            writer.write(row, store.features([row])[0, :count], store.boxes([row])[0, :count])
    result = build_index(region_model("vse"), path, progress=False).query(image=own_pictures / "pictures" / "b.png")
    assert result.hits[0].image_id == "b"
    assert result.notes == ("the indexed regions lie where the scenes' objects are; those of this picture were searched for in windows",)
