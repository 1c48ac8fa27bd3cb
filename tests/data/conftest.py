import json

import pytest
from made_for_data import write_regions

from itm_lib.data import Vocabulary, scenes


@pytest.fixture
def dataset_folder(tmp_path):
    """A dataset folder of 4 + 2 + 2 images with one to three captions each, and 2 or 3 regions."""
    splits = {"train": [f"a{n}" for n in range(4)], "val": ["b0", "b1"], "test": ["c0", "c1"]}
    texts = ["A dog.", "A cat and a dog.", "Two red cars on a street."]
    rows = []
    for split, image_ids in splits.items():
        write_regions(tmp_path / "regions" / f"{split}.h5", image_ids, [2 + n % 2 for n in range(len(image_ids))])
        for number, image_id in enumerate(image_ids):
            rows += [
                {"caption_id": f"{image_id}#{k}", "image_id": image_id, "text": texts[k], "split": split}
                for k in range(1 + number % 3)
            ]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    Vocabulary.build(row["text"] for row in rows if row["split"] == "train").save(tmp_path / "vocabulary.json")
    return tmp_path


@pytest.fixture(scope="session")
def smoke_folders(tmp_path_factory):
    """The smoke size of both variants without the pictures, which take most of the time."""
    root = tmp_path_factory.mktemp("scenes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, "_write_pictures", lambda *_: None)
        return {variant: scenes.build(variant, "smoke", root=root, progress=False) for variant in scenes.VARIANTS}
