"""Pictures: cut in evaluation, cut and mirrored by seed, epoch and image in training, turned the right way up, and broken ones."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from itm_lib.data import open_split
from itm_lib.data.dataset import collate
from itm_lib.data.pictures import PictureStore, Pixels
from itm_lib.files import InputError

PIXELS = Pixels(8, 0.6, True)


def ramp(width, height):
    """Red grows to the right and green downwards."""
    picture = np.zeros((height, width, 3), dtype=np.uint8)
    picture[..., 0], picture[..., 1] = np.linspace(0, 255, width)[None], np.linspace(0, 255, height)[:, None]
    return Image.fromarray(picture)


@pytest.fixture
def images(tmp_path):
    """Three pictures: upright, wide, and wide by its EXIF orientation alone."""
    folder = tmp_path / "images"
    folder.mkdir()
    ramp(8, 8).save(folder / "square.png")
    ramp(40, 20).save(folder / "wide.JPG", quality=95)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    ramp(20, 40).save(folder / "turned.png", exif=exif)
    return folder


def test_evaluation_takes_the_square_in_the_middle(images):
    store = PictureStore(images, ["square", "wide", "turned"], PIXELS)
    found = store.tensors([0, 1, 2])
    assert found.shape == (3, 3, 8, 8) and found.dtype == torch.float32 and len(store) == 3 and store.row("wide") == 1
    assert torch.equal(found[0], torch.from_numpy(np.array(ramp(8, 8))).permute(2, 0, 1) / 255)  # nothing is resized or cut
    red = found[1, 0].mean(0)  # the middle half of a ramp from 0 to 1
    assert 0.25 < red[0] < 0.32 and 0.68 < red[-1] < 0.75 and found[1, 1].mean(1)[0] < 0.1
    assert store.picture(2).size == (40, 20)
    assert found[2, 0].mean(1)[0] < 0.1 < 0.9 < found[2, 0].mean(1)[-1]  # what ran to the right runs down
    assert torch.equal(store.tensors([1]), found[1:2]) and torch.equal(store.tensors([1, 1])[0], found[1])


def test_training_draws_by_seed_epoch_and_image_alone(images):
    store = PictureStore(images, ["square", "wide", "turned"], PIXELS)
    other = PictureStore(images, ["wide"], PIXELS)
    first = store.tensors([0, 1, 2], (3, 5))
    torch.manual_seed(9)
    assert torch.equal(store.tensors([1], (3, 5)), first[1:2]) and torch.equal(other.tensors([0], (3, 5)), first[1:2])
    assert torch.equal(pickle.loads(pickle.dumps(store)).tensors([0, 1, 2], (3, 5)), first)
    for different in ((3, 6), (4, 5)):
        assert not torch.equal(store.tensors([1], different), first[1:2])


def test_cuts_are_as_large_as_asked_and_half_are_mirrored(images):
    def slopes(pixels):
        store = PictureStore(images, ["square"], pixels)
        red = torch.stack([store.tensors([0], (0, epoch))[0, 0].mean(0) for epoch in range(200)])
        return red[:, -1] - red[:, 0]
    both = slopes(Pixels(32, 0.5, True))
    assert 0.35 < (both < 0).float().mean() < 0.65 and both.abs().min() > 0.35 and both.abs().max() > 0.9
    assert (slopes(Pixels(32, 0.5, False)) > 0).all()
    assert torch.equal(slopes(Pixels(32, 1.0, False)).std(), torch.tensor(0.0))


def test_a_split_of_pixels_needs_no_regions(dataset_folder):
    (dataset_folder / "images").mkdir()
    for split in json.loads((dataset_folder / "splits.json").read_text()).values():
        for number, image_id in enumerate(split):
            ramp(10 + number, 12).save(dataset_folder / "images" / f"{image_id}.png")
    regions = open_split(dataset_folder, "train")
    for path in (dataset_folder / "regions").iterdir():
        path.unlink()
    train = open_split(dataset_folder, "train", pixels=PIXELS)
    assert train.pixels == PIXELS and regions.pixels is None and train.tokens == regions.tokens
    assert torch.equal(train.caption_to_image, regions.caption_to_image)
    batch = collate(train, [1, 2, 3, 0], "set", (0, 1)).to("cpu")
    assert batch.regions.shape == (len(batch.image_ids), 3, 8, 8) and batch.region_mask is None
    plain = collate(train, [1, 2, 3, 0], "set")
    assert torch.equal(plain.tokens, batch.tokens) and not torch.equal(plain.regions, batch.regions)


def test_a_missing_or_broken_picture_is_one_line(images):
    def failing(make):
        with pytest.raises(InputError) as error:
            make()
        assert "\n" not in str(error.value)
        return str(error.value)
    line = failing(lambda: PictureStore(images, ["square", "gone", "lost"], PIXELS))
    assert "images lacks 2 of 3 pictures, gone.png or .jpg among them: put them there" in line
    assert "no folder of pictures " in failing(lambda: PictureStore(images / "none", ["square"], PIXELS))
    store = PictureStore(images, ["square", "wide"], PIXELS)
    assert "has no image other of this split" in failing(lambda: store.row("other"))
    (images / "wide.JPG").write_bytes((images / "wide.JPG").read_bytes()[:200])
    (images / "square.png").write_text("no picture")
    for row, name in enumerate(("square.png", "wide.JPG")):
        line = failing(lambda row=row: store.tensors([row]))
        assert f"{name} cannot be read as a picture (" in line and line.endswith("it is damaged or cut short, fetch it again")
