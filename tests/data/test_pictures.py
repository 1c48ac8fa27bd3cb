"""Pictures: any folder of them found and read, whatever they are; cut in evaluation, cut and mirrored by seed, epoch and image in
training; and broken ones."""

from __future__ import annotations

import json
import os
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from made_pictures import as_nobody, bomb, cut_short, noise, oriented, ramp, turned_at_its_end
from PIL import Image

from itm_lib.data import open_split
from itm_lib.data.dataset import collate
from itm_lib.data.pictures import BrokenPicture, PictureStore, Pixels, find_pictures, picture_size, read_picture
from itm_lib.files import InputError

PIXELS = Pixels(8, 0.6, True)


@pytest.fixture
def images(tmp_path):
    """Three pictures: upright, wide, and wide by its EXIF orientation alone."""
    folder = tmp_path / "images"
    folder.mkdir()
    ramp(8, 8).save(folder / "square.png")
    ramp(40, 20).save(folder / "wide.JPG", quality=95)
    ramp(20, 40).save(folder / "turned.png", exif=oriented(6))
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


def failing(make):
    """The one line that a user sees."""
    with pytest.raises(InputError) as error:
        make()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_missing_or_broken_picture_is_one_line(images):
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


def test_pictures_in_folders_of_folders_and_behind_a_link(images, tmp_path):
    (images / "cats" / "old").mkdir(parents=True)
    ramp(8, 8).save(images / "cats" / "old" / "001.webp", lossless=True)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "images").symlink_to(images)
    store = PictureStore(tmp_path / "data" / "images", ["cats/old/001", "square"], PIXELS)
    assert torch.equal(*store.tensors([0, 1])) and store.row("cats/old/001") == 0


# --- any folder of pictures -----------------------------------------------------------------------------------------------


def put(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def test_pictures_are_found_in_all_folders_and_sorted_by_id(tmp_path):
    put(tmp_path, "b.PNG", "a.jpeg", "cats/001.gif", "cats/2.tiff", "a b.webp", "c.d.bmp", "notes.txt", ".hidden.png", ".git/x.png", "Ä/é.tif")
    found = find_pictures(tmp_path)
    assert list(found) == sorted(found) == ["a", "a b", "b", "c.d", "cats/001", "cats/2", "Ä/é"]
    assert found["b"] == tmp_path / "b.PNG" and found["cats/2"] == tmp_path / "cats" / "2.tiff"
    assert list(find_pictures(str(tmp_path / "cats"))) == ["001", "2"]


def test_linked_folders_are_followed_and_circles_are_not(tmp_path):
    put(tmp_path / "elsewhere", "x.png")
    put(tmp_path / "pictures", "in/a.png")
    (tmp_path / "pictures" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "pictures" / "in" / "circle").symlink_to(tmp_path / "pictures")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "elsewhere")
    assert list(find_pictures(tmp_path / "pictures")) == ["in/a", "linked/x"]


def test_folders_that_will_not_do_are_one_line(tmp_path):
    put(tmp_path, "empty/notes.txt", "two/c/a.jpg", "two/c/a.png", "file.png", "two/b.png")
    assert failing(lambda: find_pictures(tmp_path / "none")) == f"no folder of pictures {tmp_path / 'none'}: check the path"
    assert failing(lambda: find_pictures(tmp_path / "file.png")).endswith("file.png is a file: give the folder that the pictures are in")
    assert "empty has no pictures (.png, .jpg, .jpeg, .webp, .bmp, .tif, .tiff, .gif): check the path" in failing(
        lambda: find_pictures(tmp_path / "empty"))
    assert failing(lambda: find_pictures(tmp_path / "two")) == (
        f"{tmp_path / 'two' / 'c' / 'a.jpg'} and a.png would both be image c/a: rename or remove one of them")
    os.close(os.open(os.fsencode(tmp_path / "empty") + b"/caf\xe9.png", os.O_CREAT))
    assert r"caf\udce9.png' is not UTF-8: rename it" in failing(lambda: find_pictures(tmp_path / "empty"))


def test_what_may_not_be_read_is_one_line():
    with tempfile.TemporaryDirectory() as temporary:
        folder = put(Path(temporary), "in/a.png", "b.png")
        os.chmod(folder, 0o755)
        os.chmod(folder / "in", 0)
        os.chmod(folder / "b.png", 0)
        assert as_nobody(lambda: failing(lambda: find_pictures(folder))) == (
            f"folder {folder / 'in'} cannot be read (Permission denied): change its permissions")
        assert as_nobody(lambda: failing(lambda: read_picture(folder / "b.png"))) == (
            f"{folder / 'b.png'} cannot be read as a picture (permission denied): check the path and its permissions")
        assert as_nobody(lambda: failing(lambda: find_pictures(folder / "in" / "deeper"))).startswith("no folder of pictures")
        os.chmod(folder / "in", 0o755)


# --- any kind of picture --------------------------------------------------------------------------------------------------

GREY = np.linspace(0, 65535, 12).reshape(3, 4)


def saved(path, picture, **options):
    """Saved, and read again; its header says the same size."""
    picture.save(path, **options)
    found = read_picture(path)
    assert found.mode == "RGB" and picture_size(path) == found.size
    return np.asarray(found).astype(int)


def test_one_pixel(tmp_path):
    assert (saved(tmp_path / "a.png", Image.new("RGB", (1, 1), (9, 8, 7))) == [9, 8, 7]).all()


def test_grey_of_16_and_32_bits_is_scaled_and_not_clipped(tmp_path):
    expected = (GREY.astype(int) >> 8)[..., None].repeat(3, 2)
    assert (saved(tmp_path / "a.png", Image.fromarray(GREY.astype(np.uint16))) == expected).all()
    assert (saved(tmp_path / "a.tif", Image.fromarray(GREY.astype(np.uint16))) == expected).all()
    by_extremes = np.rint(np.linspace(0, 255, 12).reshape(3, 4))[..., None].repeat(3, 2)
    assert (saved(tmp_path / "b.tif", Image.fromarray(GREY.astype(np.int32) * 1000)) == by_extremes).all()
    assert (saved(tmp_path / "c.tif", Image.fromarray((GREY / 65535 - 3).astype(np.float32))) == by_extremes).all()
    assert (saved(tmp_path / "d.tif", Image.fromarray(np.full((2, 2), 7, np.float32))) == 0).all()


def test_cmyk_bits_and_grey(tmp_path):
    picture = saved(tmp_path / "a.jpg", Image.new("CMYK", (8, 6), (0, 255, 255, 0)), quality=95)
    assert np.abs(picture - [255, 0, 0]).max() < 12
    assert (saved(tmp_path / "a.png", Image.new("1", (8, 6), 1)) == 255).all()
    assert (saved(tmp_path / "b.png", Image.new("L", (8, 6), 77)) == 77).all()


def test_what_is_transparent_is_white(tmp_path):
    clear = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    clear.putpixel((1, 0), (255, 0, 0, 255))
    assert (saved(tmp_path / "a.png", clear) == [[[255, 255, 255], [255, 0, 0]]]).all()
    assert (saved(tmp_path / "a.webp", clear, lossless=True) == [[[255, 255, 255], [255, 0, 0]]]).all()
    assert (saved(tmp_path / "b.png", Image.new("LA", (1, 1), (0, 127))) == 128).all()
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    assert (saved(tmp_path / "c.gif", palette, transparency=0) == [[[255, 255, 255], [0, 0, 255]]]).all()
    assert (saved(tmp_path / "c.png", palette) == [[[0, 0, 0], [0, 0, 255]]]).all()


def test_an_animation_is_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    for name in ("a.gif", "a.png", "a.tif"):
        assert (saved(tmp_path / name, frames[0], save_all=True, append_images=frames[1:]) == [255, 0, 0]).all()


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright(tmp_path, suffix, orientation):
    """Stored as cameras do it: the upright picture, turned by the inverse of what the orientation asks for."""
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :16] = 255  # white at the top left
    back = {1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1], 5: lambda a: a.transpose(1, 0, 2),
            6: lambda a: np.rot90(a), 7: lambda a: np.rot90(a[::-1, ::-1].transpose(1, 0, 2), 0), 8: lambda a: np.rot90(a, -1)}
    stored = Image.fromarray(np.ascontiguousarray(back[orientation](upright)))
    found = saved(tmp_path / f"a.{suffix}", stored, exif=oriented(orientation))
    assert found.shape == upright.shape and np.abs(found[4:12, 4:12] - 255).max() < 20 and found[20:].max() < 20 and found[:, 20:].max() < 20


def test_exif_that_is_damaged_turns_nothing(tmp_path):
    ramp(8, 4).save(tmp_path / "a.jpg", exif=b"Exif\0\0not exif at all")
    ramp(8, 4).save(tmp_path / "b.png", exif=b"MM\0*\0\0\0\x08\0\x09")
    for name in ("a.jpg", "b.png"):
        assert picture_size(tmp_path / name) == read_picture(tmp_path / name).size == (8, 4)


def test_a_png_that_says_at_its_end_how_it_lies(tmp_path):
    """Only reading all of it tells; the header gives the size as it is stored."""
    turned_at_its_end(tmp_path / "a.png", ramp(8, 4))
    assert picture_size(tmp_path / "a.png") == (8, 4) and read_picture(tmp_path / "a.png").size == (4, 8)


def broken(path, read=read_picture):
    with pytest.raises(BrokenPicture) as error:
        read(path)
    assert str(error.value).startswith(f"{path} cannot be read as a picture ({error.value.why}): ") and "\n" not in str(error.value)
    assert str(path) not in error.value.why and error.value.why
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)
    return str(error.value).removeprefix(f"{path} cannot be read as a picture ")


def test_what_is_broken_is_named_with_its_reason(tmp_path):
    cut, where = "it is damaged or cut short, fetch it again", "check the path and its permissions"
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "bomb.png").write_bytes(bomb())
    (tmp_path / "folder.png").mkdir()
    Image.fromarray(np.full((2, 2), np.nan, np.float32)).save(tmp_path / "nan.tif")
    for name, line in {"empty.jpg": f"(the file is empty): {cut}", "text.png": f"(no kind of picture that is known): {cut}",
                       "none.png": f"(no such file or directory): {where}", "folder.png": f"(is a directory): {where}"}.items():
        assert broken(tmp_path / name) == broken(tmp_path / name, picture_size) == line
    assert broken(tmp_path / "nan.tif") == f"(pixels are NaN or infinite): {cut}"
    assert broken(tmp_path / "bomb.png") == broken(tmp_path / "bomb.png", picture_size)
    assert broken(tmp_path / "bomb.png").startswith("(Image size (90000000000 pixels) exceeds limit of ")
    assert broken(tmp_path / "bomb.png").endswith("): make it smaller, or remove it")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif", "gif"])
def test_a_picture_that_is_cut_short_has_a_size_and_cannot_be_read(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    noise(60, 40).save(path)
    line = broken(cut_short(path))
    assert line.endswith("): it is damaged or cut short, fetch it again")
    if suffix not in ("webp", "tif"):  # whose headers say how long the file is
        assert picture_size(path) == (60, 40)


def test_memory_that_does_not_suffice_is_not_the_pictures_fault(images, monkeypatch):
    def no_memory(*_):
        raise MemoryError
    monkeypatch.setattr("itm_lib.data.pictures.as_rgb", no_memory)
    with pytest.raises(MemoryError):
        read_picture(images / "square.png")


def test_large_pictures_are_read_without_a_warning(images, monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    assert read_picture(images / "square.png").size == (8, 8) and not recwarn.list
