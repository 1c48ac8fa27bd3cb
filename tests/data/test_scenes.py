import hashlib
import json
import os
import random
import re
import subprocess
import sys
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

from itm_lib.data import Vocabulary
from itm_lib.data import scenes as module
from itm_lib.data.scene_captions import Caption, Phrase, SceneIndex, holds, sample_caption, term_nouns
from itm_lib.data.scene_pictures import COLOURS, HYPERNYMS, NOUNS, OBJECT_SIZES, object_at
from itm_lib.data.scene_pictures import VARIANTS as VARIANT_SETTINGS
from itm_lib.data.scenes import Scene, SceneFolder, build, render, sample_scene
from itm_lib.files import InputError, read_json

VARIANTS = ("default", "many_to_many")
PINNED = {
    "default": "a76895e1999dd1fe",
    "many_to_many": "87105420ea197e23",
}
SIZE_OF_WORD = {"small": "small", "little": "small", "tiny": "small", "large": "large", "big": "large"}


@pytest.fixture(params=VARIANTS)
def folder(request, smoke_folders):
    return SceneFolder(smoke_folders[request.param])


@pytest.fixture
def tiny(monkeypatch):
    """A dataset that builds in a blink."""
    monkeypatch.setitem(module.SIZES_OF_DATASET, "smoke", (6, 3, 3))


# --- an evaluator of its own: facts against scenes, by trying every assignment ---------------------------------------


def slow_truth(facts, scene):
    things = facts["things"]
    slots = [thing for thing in things for _ in range(thing["count"])]
    if facts["background"] not in (None, scene["background"]):
        return False
    for objects in permutations(scene["objects"], len(slots)):
        if all(map(slow_match, slots, objects)) and slow_relation(facts["relation"], objects):
            return True
    return False


def slow_match(thing, item):
    noun = NOUNS[item["noun"]]
    words = {form[0].replace("|", "") for form in noun.forms} | set(noun.hypernyms)
    for wider in noun.hypernyms:  # a taxi is a car, a car is an automobile
        words |= {form[0] for form in NOUNS[wider].forms} if wider in NOUNS else set()
    colours = [item["colour"]] if item["colour"] else noun.looks
    return (
        thing["term"] in words
        and thing["size"] in (None, item["size"])
        and (thing["colour"] is None or thing["colour"] in colours)
    )


def slow_relation(relation, objects):
    if relation is None:
        return True
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = objects[0]["box"], objects[1]["box"]
    dx, dy = (bx0 + bx1 - ax0 - ax1) / 2, (by0 + by1 - ay0 - ay1) / 2
    gap = np.hypot(max(0, bx0 - ax1, ax0 - bx1), max(0, by0 - ay1, ay0 - by1))
    return {
        "left of": ax1 <= bx0 and abs(dx) >= abs(dy) / 2,
        "right of": bx1 <= ax0 and abs(dx) >= abs(dy) / 2,
        "above": ay1 <= by0 and abs(dy) >= abs(dx) / 2,
        "below": by1 <= ay0 and abs(dy) >= abs(dx) / 2,
        "next to": gap <= 0.09,
    }[relation]


def rows_of(folder, split):
    return {row["image_id"]: row for row in map(json.loads, (folder.folder / "scenes.jsonl").open()) if row["split"] == split}


@pytest.mark.parametrize("split", ["val", "test"])
def test_truth_is_what_a_slow_evaluator_finds(folder, split):
    scenes, truth = rows_of(folder, split), read_json(folder.folder / "truth" / f"{split}.json")
    assert len(truth) == 5 * len(scenes)
    for row in folder.captions(split):
        expected = [image_id for image_id, scene in scenes.items() if slow_truth(row["facts"], scene)]
        assert truth[row["caption_id"]] == expected, row["text"]
        assert row["image_id"] in expected, row["text"]


def test_truth_of_short_captions_and_relations():
    """Few things and no attributes: here the relation, the count and distinct objects decide."""
    scenes = [sample_scene(random.Random(seed), str(seed), "many_to_many") for seed in range(60)]
    index, rows = SceneIndex(scenes), [scene.to_json() for scene in scenes]
    settings = replace(VARIANT_SETTINGS["many_to_many"], things=(0.1, 1.0), relation=1.0, colour=0.0, size=0.0, hypernym=0.8)
    told = undecided = 0
    for seed in range(200):
        caption = sample_caption(random.Random(seed), scenes[seed % 60], settings)
        if caption is not None:
            expected = [number for number, scene in enumerate(rows) if slow_truth(caption.facts(), scene)]
            assert index.true_of(caption) == expected, caption.text
            told += 1
            undecided += expected != index.true_of(replace(caption, relation=None))
    assert told > 120 and undecided > 20


def test_things_named_apart_are_different_objects():
    car, red_car = (Phrase(("car", "cars"), 1, None, None, colour, (0,)) for colour in (None, "red"))
    caption = Caption((red_car, car), None, None, None, None, "list")
    one = object_at("car", "red", "small", 10, 10)
    alone, two = Scene("a", "snow", (one,)), Scene("b", "snow", (one, object_at("taxi", None, "small", 90, 90)))
    assert SceneIndex([alone, two]).true_of(caption) == [1]
    assert SceneIndex([alone, two]).true_of(replace(caption, phrases=(replace(car, count=2),))) == [1]
    assert SceneIndex([alone, two]).true_of(replace(caption, phrases=(red_car,))) == [0, 1]


def test_text_says_the_facts(folder):
    """Nouns, numbers, colours and sizes read from the sentence are those of the facts, in order."""
    for row in folder.captions("train"):
        things, start = row["facts"]["things"], 0
        assert len(row["mentions"]) == len(things)
        for thing, mention in zip(things, row["mentions"]):
            before, start = row["text"][start : mention["start"]], mention["end"]
            phrase = re.split(r", | and |^There (?:is|are) ", " " + before)[-1].lower().replace("green field", "").split()
            assert [w for w in phrase if w in COLOURS] == [thing["colour"]] * bool(thing["colour"]), row["text"]
            assert [SIZE_OF_WORD[w] for w in phrase if w in SIZE_OF_WORD] == [thing["size"]] * bool(thing["size"]), row["text"]
            assert ("two" in phrase, "three" in phrase) == (thing["count"] == 2, thing["count"] == 3), row["text"]


def test_mentions_spell_the_noun_of_their_objects(folder):
    for row in folder.captions("train") + folder.captions("val"):
        scene, count = folder.scene(row["image_id"]), [thing["count"] for thing in row["facts"]["things"]]
        assert [len(mention["objects"]) for mention in row["mentions"]] == count
        for mention, thing in zip(row["mentions"], row["facts"]["things"]):
            word = row["text"][mention["start"] : mention["end"]]
            nouns = {scene.objects[number].noun for number in mention["objects"]}
            plural = thing["count"] > 1
            forms = {form[plural].split("|")[-1] for noun in nouns for form in NOUNS[noun].forms}
            wider = {h for noun in nouns for h in NOUNS[noun].hypernyms if h in HYPERNYMS}
            assert word in forms | {HYPERNYMS[h] if plural else h for h in wider}, row["text"]


def test_grammar(folder):
    plurals = {form[1].split("|")[-1] for noun in NOUNS.values() for form in noun.forms} | set(HYPERNYMS.values())
    captions = folder.captions("train") + folder.captions("val")
    assert len(captions) > 1000
    for row in captions:
        text = row["text"]
        assert re.fullmatch(r"[A-Z][A-Za-z,' -]+\.", text) and "  " not in text and " ," not in text and "|" not in text, text
        assert not re.search(r"\b[Aa] [aeiouAEIO]", text) and not re.search(r"\b[Aa] hour", text), text
        assert not re.search(r"\b[Aa]n (?!hour)[^aeioAEIOu]", text), text
        assert not re.search(r"\b(\w+) \1\b", text), text
        for mention, thing in zip(row["mentions"], row["facts"]["things"]):
            if thing["count"] > 1:
                assert text[mention["start"] : mention["end"]] in plurals, text
        first = row["facts"]["things"][0]["count"]
        if match := re.search(r"\bthere (is|are)\b", text, re.IGNORECASE):
            assert match[1] == ("is" if first == 1 else "are"), text
        elif match := re.search(r" (is|are) (?:in|on|inside) an? |(?<=.) (is|are) (?:in|on) the \w+\.", text):
            verb = match[1] or match[2]
            alone = len(row["facts"]["things"]) == 1 or row["facts"]["relation"]
            assert verb == ("is" if first == 1 and alone else "are"), text


def test_five_different_captions_a_picture_and_few_true_of_many(folder):
    limit = {"default": 0.05, "many_to_many": 0.2}[folder.meta["variant"]]
    for split in module.SPLITS:
        ids = folder.image_ids(split)
        texts = {image_id: set() for image_id in ids}
        for row in folder.captions(split):
            texts[row["image_id"]].add(row["text"])
        assert all(len(five) == 5 for five in texts.values())
        most = max(map(len, read_json(folder.folder / "truth" / f"{split}.json").values()))
        assert most <= max(4, limit * len(ids))


def test_the_vocabulary_is_of_training_captions(folder):
    vocabulary = Vocabulary.load(folder.folder / "vocabulary.json")
    assert vocabulary == Vocabulary.build(row["text"] for row in folder.captions("train"))


# --- foils ------------------------------------------------------------------------------------------------------------


def test_foils_are_false_and_their_captions_true(folder):
    vocabulary = Vocabulary.load(folder.folder / "vocabulary.json")
    scenes, foil_scenes = rows_of(folder, "val"), rows_of(folder, "foils_val")
    own = {row["caption_id"]: row for row in folder.captions("val")}
    foils = folder.foils("val")
    for foil in foils:
        scene = scenes[foil["image_id"]]
        assert slow_truth(foil["facts"], scene), foil
        if foil["caption_id"] is not None:
            assert own[foil["caption_id"]]["text"] == foil["caption"] and own[foil["caption_id"]]["image_id"] == foil["image_id"]
        if foil["side"] == "picture":
            changed = foil_scenes[foil["foil_image_id"]]
            assert changed["background"] == scene["background"] and not slow_truth(foil["facts"], changed), foil
        else:
            assert not slow_truth(foil["foil_facts"], scene) and 3 not in vocabulary.encode(foil["foil_caption"]), foil
    assert len({foil["foil_id"] for foil in foils}) == len(foils)
    for kind in ("object", "attribute", "relation"):
        for side in ("caption", "picture"):
            share = sum(f["kind"] == kind and f["side"] == side for f in foils) / len(scenes)
            assert share > 0.85, (kind, side, share)


def test_foil_pictures_differ_in_one_thing(folder):
    for foil in folder.foils("val"):
        if foil["side"] == "picture":
            old, new = folder.scene(foil["image_id"]).objects, folder.scene(foil["foil_image_id"]).objects
            changed = [(a, b) for a, b in zip(old, new) if a != b]
            assert len(old) == len(new) and len(changed) == (len(changed) if foil["kind"] == "relation" else 1) <= 2
            for a, b in changed:
                assert (a.noun != b.noun) == (foil["kind"] == "object"), foil
                assert ((a.colour, a.size) != (b.colour, b.size)) == (foil["kind"] == "attribute") or foil["kind"] == "object"


def test_foil_captions_differ_in_one_thing(folder):
    for foil in folder.foils("val"):
        if foil["side"] == "caption":
            old, new = foil["facts"], foil["foil_facts"]
            things = [(a, b) for a, b in zip(old["things"], new["things"]) if a != b]
            keys = [key for a, b in things for key in a if a[key] != b[key]]
            assert len(old["things"]) == len(new["things"]) and old["background"] == new["background"]
            if foil["kind"] == "relation":
                assert keys == [] and {old["relation"], new["relation"]} in ({"left of", "right of"}, {"above", "below"})
            else:
                assert old["relation"] == new["relation"] and len(keys) == 1
                assert keys[0] in {"object": ("term",), "attribute": ("size", "colour")}[foil["kind"]]


# --- scenes and pictures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_scenes_never_overlap_and_stay_inside(variant):
    for seed in range(300):
        scene = sample_scene(random.Random(seed), "x", variant)
        assert 3 <= len(scene.objects) <= 6
        boxes = np.array([item.box for item in scene.objects])
        assert boxes.min() > 0 and boxes.max() < 1 and (boxes[:, 2:] > boxes[:, :2]).all()
        for first in range(len(boxes)):
            for second in range(first):
                a, b = boxes[first], boxes[second]
                assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        for item in scene.objects:
            assert (item.colour in COLOURS) == NOUNS[item.noun].colourable and item.size in OBJECT_SIZES


def test_a_scene_uses_random_numbers_that_python_guarantees():
    class OnlyRandom:
        def __init__(self, seed):
            self._source = random.Random(seed)

        def random(self):
            return self._source.random()

    assert sample_scene(OnlyRandom(3), "x") == sample_scene(random.Random(3), "x")


def test_what_is_drawn_fills_its_box():
    """Against the bare background, pixels change inside the boxes, up to their borders, and nowhere else."""
    for seed in range(12):
        scene = sample_scene(random.Random(seed), "x")
        changed = (render(scene) != render(Scene("x", scene.background, ()))).any(2)
        inside = np.zeros_like(changed)
        for item in scene.objects:
            x0, y0, x1, y1 = (round(224 * value) for value in item.box)
            inside[y0:y1, x0:x1] = True
            part = changed[y0:y1, x0:x1]
            rows, columns = np.flatnonzero(part.any(1)), np.flatnonzero(part.any(0))
            assert rows[0] <= 2 and columns[0] <= 2 and rows[-1] >= len(part) - 3 and columns[-1] >= part.shape[1] - 3, item
        assert not (changed & ~inside).any()
    assert render(scene, 112).shape == (112, 112, 3) and render(scene).dtype == np.uint8


def test_a_colour_is_seen_on_every_noun_that_takes_one():
    """The colour's own shades cover part of the drawing; under another colour they do not."""
    shades = {c: np.array([[int(code[k : k + 2], 16) for k in (1, 3, 5)] for code in codes]) for c, codes in COLOURS.items()}
    pairs = (("red", "blue"), ("yellow", "purple"), ("green", "pink"))
    for number, name in enumerate(name for name, noun in NOUNS.items() if noun.colourable):
        for colour, other in (pairs[number % 3], pairs[number % 3][::-1]):
            picture = render(Scene("x", "snow", (object_at(name, colour, "medium", 60, 60),))).astype(int)
            near = {c: (np.abs(picture[:, :, None] - shades[c]).sum(-1) < 12).any(-1).sum() for c in (colour, other)}
            assert near[colour] > 40 > near[other] or near[colour] > 3 * near[other], (name, near)


def test_the_table_of_words_is_sound():
    words = term_nouns()
    own = [form[0] for noun in NOUNS.values() for form in noun.forms]
    assert len(own) == len(set(own)), "a word has one meaning"
    for noun in NOUNS.values():
        assert set(noun.hypernyms) <= set(HYPERNYMS) | set(NOUNS)
        assert all(noun.noun in words[form[0]] for form in noun.forms)
    assert words["automobile"] == {"car", "taxi", "racing car"} and "shark" in words["fish"] and "dog" in words["animal"]
    assert not set(own) & set(HYPERNYMS)


def test_relations_are_plain_where_they_are_stated():
    dog = object_at("dog", None, "medium", 20, 80)
    near, far, upper = (object_at("cat", None, "medium", *xy) for xy in ((90, 84), (160, 84), (60, 6)))
    assert holds("left of", dog, near, plain=True) and holds("right of", near, dog, plain=True)
    assert holds("next to", dog, near, plain=True) and not holds("next to", dog, far)
    assert holds("above", upper, dog, plain=True) and not holds("left of", dog, upper)
    for seed in range(300):
        first, second, *_ = sample_scene(random.Random(seed), "x").objects
        for relation in ("left of", "right of", "above", "below", "next to"):
            assert holds(relation, first, second) == slow_relation(relation, [first.to_json(), second.to_json()])
            assert holds(relation, first, second) or not holds(relation, first, second, plain=True)


# --- the folder -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_smoke_size_is_the_same_everywhere(smoke_folders, variant):
    digest = hashlib.sha256()
    for name in ("scenes.jsonl", "captions.jsonl", "foils/val.jsonl", "foils/test.jsonl", "truth/test.json", "vocabulary.json"):
        digest.update((smoke_folders[variant] / name).read_bytes())
    assert digest.hexdigest()[:16] == PINNED[variant], "other scenes or captions: raise GENERATOR and pin the new value"


def test_no_hash_of_a_string_decides_what_a_dataset_holds():
    """Python hashes strings anew in every process: what a caption says must be told in an order that does not hang on it."""
    tell = (
        "import random; from itm_lib.data.scene_captions import sample_caption\n"
        "from itm_lib.data.scene_pictures import VARIANTS, sample_scene\n"
        "for n in range(200):\n"
        "    caption = sample_caption(random.Random(n), sample_scene(random.Random(n), 'x'), VARIANTS['default'])\n"
        "    print(caption and caption.key())"
    )
    told = {
        subprocess.run([sys.executable, "-c", tell], text=True, check=True,
                       stdout=subprocess.PIPE, env=os.environ | {"PYTHONHASHSEED": str(seed)}).stdout
        for seed in (1, 2)
    }
    assert len(told) == 1


def test_counts_and_licence(folder):
    assert [len(folder.image_ids(split)) for split in module.SPLITS] == [200, 50, 50]
    assert read_json(folder.folder / "splits.json")["val"] == folder.image_ids("val")
    assert folder.meta["licence"] == "CC BY-SA 4.0" and "OpenMoji" in folder.meta["attribution"]


def test_every_scene_has_its_picture(tiny, tmp_path):
    folder = SceneFolder(build("many_to_many", "smoke", 1, tmp_path, progress=False))
    for split in ("train", "val", "test", "foils_val", "foils_test"):
        for image_id in folder.image_ids(split):
            assert (np.asarray(folder.picture(image_id)) == render(folder.scene(image_id))).all()


def test_a_complete_folder_is_used_again(tiny, tmp_path, monkeypatch):
    folder = build("default", "smoke", 1, tmp_path, progress=False)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    monkeypatch.setattr(module, "_write_dataset", lambda *_: pytest.fail("built again"))
    assert build("default", "smoke", 1, tmp_path, progress=False) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_half_built_or_outdated_folder_is_built_again(tiny, tmp_path):
    folder = build("default", "smoke", 1, tmp_path, progress=False)
    captions = (folder / "captions.jsonl").read_bytes()
    (folder / "meta.json").unlink()
    (folder / "captions.jsonl").write_text("half")
    assert (build("default", "smoke", 1, tmp_path, progress=False) / "captions.jsonl").read_bytes() == captions
    meta = read_json(folder / "meta.json")
    (folder / "meta.json").write_text(json.dumps(meta | {"fingerprint": "older"}))
    (folder / "captions.jsonl").write_text("older")
    assert (build("default", "smoke", 1, tmp_path, progress=False) / "captions.jsonl").read_bytes() == captions


def test_an_interrupted_build_leaves_nothing(tiny, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_write_pictures", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build("default", "smoke", 1, tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_seeds_differ(tiny, tmp_path):
    texts = {(build("default", "smoke", seed, tmp_path, progress=False) / "captions.jsonl").read_text() for seed in (1, 2)}
    assert len(texts) == 2


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"variant": "hard"}, "unknown dataset variant 'hard': choose one of default, many_to_many"),
        ({"size": "huge"}, "unknown dataset size 'huge': choose one of smoke, quick, full"),
        ({"seed": -1}, "the dataset's seed is -1: give a whole number from 0"),
    ],
)
def test_unknown_settings_are_refused(tmp_path, settings, message):
    with pytest.raises(InputError) as error:
        build(**settings, root=tmp_path, progress=False)
    assert str(error.value) == message


def test_what_a_folder_lacks_is_named(folder, tmp_path):
    with pytest.raises(InputError, match="is no OpenMoji Scenes folder: make one with 'itm data'"):
        SceneFolder(tmp_path)
    with pytest.raises(InputError, match="has no split 'dev': it has train, val, test, foils_val, foils_test"):
        folder.captions("dev")
    with pytest.raises(InputError, match="has no picture 'cat': its ids look like train-0000"):
        folder.picture("cat")
    with pytest.raises(InputError, match="no foils of split 'train': there are foils of val and test"):
        folder.foils("train")


def test_a_damaged_picture_is_named(tiny, tmp_path):
    folder = SceneFolder(build("default", "smoke", 1, tmp_path, progress=False))
    (folder.folder / "images" / "val-0000.png").write_bytes(b"\x89PNG cut")
    with pytest.raises(InputError, match="val-0000.png cannot be read .*: remove .* and build it again"):
        folder.picture("val-0000")
