import json

import numpy as np
import pytest
import torch
from made_for_data import write_regions

from itm_lib.data import ImageCaptionDataset, RegionStore, Vocabulary, open_split
from itm_lib.data.dataset import BatchSampler, collate
from itm_lib.files import InputError


@pytest.fixture
def train(dataset_folder):
    return open_split(dataset_folder, "train")


def edit_captions(folder, change):
    path = folder / "captions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(change(row)) + "\n" for row in rows))


def test_a_batch_has_one_image_row_a_caption(train):
    batch = train[[1, 2, 0]]  # captions of images a1, a1, a0
    assert batch.image_ids.tolist() == [1, 1, 0] == batch.caption_image_ids.tolist()
    assert batch.caption_ids.tolist() == [1, 2, 0]
    assert batch.regions.shape == (3, 3, 4) and batch.regions.dtype == torch.float32
    assert batch.region_mask.tolist() == [[True] * 3, [True] * 3, [True, True, False]]
    words = [train.vocabulary.decode(row.tolist()) for row in batch.tokens]
    assert words[1] == ["<start>", "a", "cat", "and", "a", "dog", "<end>"]
    assert batch.token_mask.sum(1).tolist() == [4, 7, 4] and (batch.tokens[~batch.token_mask] == 0).all()
    assert torch.equal(batch.regions[0], batch.regions[1])
    assert torch.equal(batch.regions[2], torch.from_numpy(train.regions.features([0])[0]))


def test_padding_is_cut_to_the_batch(train):
    assert train[[0]].regions.shape == (1, 2, 4), "a0 has 2 regions, the file has room for 3"
    assert train[0].tokens.shape == (1, 4)


def test_images_and_captions_can_be_chosen_apart(train):
    batch = train.batch([0, 3], images=[2])
    assert batch.image_ids.tolist() == [2] and batch.caption_image_ids.tolist() == [0, 2]


def test_a_batch_moves_as_a_whole(train):
    assert train[[0, 1]].to("cpu").tokens.device.type == "cpu"


def test_set_layout_has_each_image_once(train):
    batch = collate(train, [1, 2, 3, 0], "set")
    assert batch.image_ids.tolist() == [1, 2, 0] and batch.caption_image_ids.tolist() == [1, 1, 2, 0]
    assert collate(train, [1, 2], "caption").image_ids.tolist() == [1, 1]


def test_caption_sampler_gives_every_caption_once(train):
    batches = list(BatchSampler(train, 4, "caption", seed=1))
    assert sorted(c for batch in batches for c in batch) == list(range(train.num_captions))
    assert [len(batch) for batch in batches] == [4, 3] and len(BatchSampler(train, 4)) == 2


def test_image_sampler_gives_every_image_once(train):
    sampler = BatchSampler(train, 2, "image", seed=0)
    seen = set()
    for epoch in range(20):
        sampler.set_epoch(epoch)
        captions = [c for batch in sampler for c in batch]
        assert sorted(train.caption_to_image[captions].tolist()) == [0, 1, 2, 3]
        seen |= set(captions)
    assert seen == set(range(train.num_captions)), "every caption has its turn"


def test_set_sampler_keeps_captions_of_an_image_together(train):
    for batch in BatchSampler(train, 2, "set", seed=3):
        images = set(train.caption_to_image[batch].tolist())
        assert len(images) == 2
        assert sorted(batch) == sorted(c for image in images for c in train.captions_of_image[image])


@pytest.mark.parametrize("layout", ["caption", "image", "set"])
def test_order_depends_on_seed_and_epoch_alone(train, layout):
    def order(seed, epoch):
        sampler = BatchSampler(train, 2, layout, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(5, 2) == order(5, 2)
    assert len({str(order(5, epoch)) for epoch in range(8)}) > 1 and len({str(order(seed, 0)) for seed in range(8)}) > 1


def test_a_rest_of_one_is_dropped_because_it_has_no_negatives(train):
    sizes = [len(batch) for batch in BatchSampler(train, 3, "set", shuffle=False)]
    assert len(sizes) == 1 == len(BatchSampler(train, 3, "set"))
    assert len(BatchSampler(train, 4, "caption", drop_last=True)) == train.num_captions // 4


@pytest.fixture
def many():
    """90 pictures of three kinds (0, 1, 2 in turn) with two captions each."""
    class Rows:
        num_images, num_captions = 90, 180
        caption_to_image = torch.arange(180) // 2
        captions_of_image = [[2 * row, 2 * row + 1] for row in range(90)]

    return Rows()


@pytest.mark.parametrize("layout", ["caption", "image", "set"])
def test_grouped_batches_are_runs_of_one_label_and_every_caption_comes_once(many, layout):
    labels = np.arange(90) % 3
    sampler = BatchSampler(many, 12, layout, seed=2)
    expected = sorted(c for batch in sampler for c in batch)
    sampler.group(labels, 4)
    batches = list(sampler)
    if layout != "image":
        assert sorted(c for batch in batches for c in batch) == expected == list(range(180))
    size = 8 if layout == "set" else 4
    whole = 90 // 3 * (2 if layout == "caption" else 1) // 4 * 3  # runs
    for run in range(whole):
        batch, place = batches[run // 3], run % 3 * size
        images = many.caption_to_image[batch[place : place + size]]
        assert len(set(labels[images].tolist())) == 1 and len(images.unique()) == 4
    mixed = [tuple(sorted(set(labels[many.caption_to_image[batch]].tolist()))) for batch in batches]
    assert len(set(mixed)) > 1, "runs of different labels meet in a batch"


def test_grouped_batches_depend_on_seed_and_epoch_alone_and_can_be_undone(many):
    def batches(seed, epoch, group=True):
        sampler = BatchSampler(many, 12, "caption", seed)
        sampler.set_epoch(epoch)
        sampler.group(np.arange(90) // 30, 6)
        if not group:
            sampler.group(None)
        return list(sampler)

    assert batches(0, 1) == batches(0, 1) != batches(0, 2) and batches(0, 1) != batches(1, 1)
    plain = BatchSampler(many, 12, "caption", 0)
    plain.set_epoch(1)
    assert batches(0, 1, group=False) == list(plain)


def test_a_label_with_few_pictures_repeats_them_and_rests_come_last(many):
    labels = np.r_[np.zeros(3, dtype=int), np.ones(87, dtype=int)]
    sampler = BatchSampler(many, 12, "caption")
    sampler.group(labels, 4)
    batches = list(sampler)
    kinds = labels[many.caption_to_image[[c for batch in batches for c in batch]]]
    assert (kinds[:172].reshape(-1, 4) == kinds[:172:4, None]).all()  # 6 captions of kind 0: one whole run; 174 of kind 1: 43 runs
    assert sorted(kinds[-4:].tolist()) == [0, 0, 1, 1]


def test_bad_groups_are_refused(many):
    with pytest.raises(InputError, match="7 labels for 90 images: give one an image"):
        BatchSampler(many, 12).group(np.zeros(7), 4)
    with pytest.raises(InputError, match="batch_size 12 is no multiple of 5"):
        BatchSampler(many, 12).group(np.zeros(90), 5)


def test_bad_sampler_settings_are_refused(train):
    with pytest.raises(InputError, match="unknown batch layout 'pairs': choose one of caption, image, set"):
        BatchSampler(train, 2, "pairs")
    with pytest.raises(InputError, match="batch_size is 1: a batch of fewer than 2 has no negatives"):
        BatchSampler(train, 1)


def test_the_test_split_does_not_open_here(dataset_folder):
    with pytest.raises(InputError) as error:
        open_split(dataset_folder, "test")
    assert str(error.value) == (
        "the test split is for the final evaluation: open it with itm_lib.evaluation.open_split"
    )


def test_a_missing_folder_split_or_truth_is_named(dataset_folder):
    with pytest.raises(InputError, match="no dataset folder .*nowhere: make it first"):
        open_split(dataset_folder / "nowhere", "val")
    with pytest.raises(InputError, match="has no split 'dev': it has train, val, test"):
        open_split(dataset_folder, "dev")
    (dataset_folder / "truth").mkdir()
    (dataset_folder / "truth" / "val.json").write_text('{"b0#0": ["b0", "b1"]}')
    with pytest.raises(InputError, match="no entry for caption b1#0; build the dataset again"):
        open_split(dataset_folder, "val")


def test_truth_is_read_as_images_by_captions(dataset_folder):
    assert open_split(dataset_folder, "val").truth is None
    (dataset_folder / "truth").mkdir()
    truth = {"b0#0": ["b0", "b1"], "b1#0": ["b1"], "b1#1": ["b1"]}
    (dataset_folder / "truth" / "val.json").write_text(json.dumps(truth))
    assert open_split(dataset_folder, "val").truth.tolist() == [[True, False, False], [True, True, True]]


def test_an_empty_caption_names_its_id(dataset_folder):
    edit_captions(dataset_folder, lambda row: row | {"text": " "} if row["caption_id"] == "a1#1" else row)
    with pytest.raises(InputError, match="caption a1#1 of split train: the caption ' ' has no word in it: remove it or write one"):
        open_split(dataset_folder, "train")


def test_a_caption_without_a_key_names_its_line(dataset_folder):
    edit_captions(dataset_folder, lambda row: {k: v for k, v in row.items() if k != "text" or row["caption_id"] != "a1#0"})
    with pytest.raises(InputError, match="captions.jsonl line 2 lacks text"):
        open_split(dataset_folder, "train")


def test_captions_of_other_pictures_are_refused(dataset_folder):
    edit_captions(dataset_folder, lambda row: row | {"image_id": "elsewhere"} if row["caption_id"] == "a2#0" else row)
    with pytest.raises(InputError, match="train.h5 has no image elsewhere: captions and regions are of different datasets"):
        open_split(dataset_folder, "train")


def test_regions_of_other_pictures_are_refused(dataset_folder):
    write_regions(dataset_folder / "regions" / "val.h5", ["b0", "b7"])
    with pytest.raises(InputError, match="val.h5 and splits.json list different images for val; extract the features again"):
        open_split(dataset_folder, "val")


def test_constructor_refuses_what_does_not_match(tmp_path):
    store, words = RegionStore(write_regions(tmp_path / "r.h5", ["x", "y"])), Vocabulary.build(["a dog"])
    with pytest.raises(InputError, match="2 captions but 1 image references; they must match"):
        ImageCaptionDataset(store, ["a dog", "a dog"], [0], words, "train")
    with pytest.raises(InputError, match="a caption of train points at image row 2 of 2"):
        ImageCaptionDataset(store, ["a dog"], [2], words, "train")
    with pytest.raises(InputError, match="the val split of x has no captions"):
        ImageCaptionDataset(store, [], [], words, "val", name="x")
