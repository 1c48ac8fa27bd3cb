"""Encoding a split and scoring all pairs in blocks."""

import pytest
import torch
from made_for_evaluation import WordRegionModel

from itm_lib.evaluation import encode_dataset, open_split, similarity_matrix
from itm_lib.evaluation.scoring import pair_scores
from itm_lib.files import InputError


def test_open_split_opens_every_split(folder):
    assert [open_split(folder, split).split for split in ("train", "val", "test")] == ["train", "val", "test"]
    with pytest.raises(InputError, match="has no split 'dev': it has train, val, test"):
        open_split(folder, "dev")
    (folder / "regions" / "test.h5").write_bytes((folder / "regions" / "test.h5").read_bytes()[:900])
    with pytest.raises(InputError, match="test.h5 cannot be read as HDF5, perhaps cut short"):
        open_split(folder, "test")


def one_by_one(model, dataset):
    """Scores of every pair alone, from the model's own two functions."""
    model.eval()
    with torch.no_grad():
        images = [model.encode_images(*dataset.image_tensors([row])) for row in range(dataset.num_images)]
        batches = [dataset.batch([caption]) for caption in range(dataset.num_captions)]
        captions = [model.encode_captions(batch.tokens, batch.token_mask) for batch in batches]
        return torch.stack([torch.cat([model.similarity(i, c)[0] for c in captions]) for i in images])


@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_scores_are_those_of_each_pair_alone(folder, model, batch_size):
    dataset = open_split(folder, "test")
    scores = similarity_matrix(model, *encode_dataset(model, dataset, batch_size))
    assert scores.shape == (dataset.num_images, dataset.num_captions) and scores.dtype == torch.float32
    torch.testing.assert_close(scores, one_by_one(model, dataset), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("block_bytes", [1, 300, 1000, 4000, 2**28])
def test_scores_do_not_depend_on_the_block_size(folder, block_bytes):
    dataset = open_split(folder, "val")
    model = WordRegionModel(len(dataset.vocabulary)).double()
    images, captions = encode_dataset(model.float(), dataset)
    pair = model.pair_bytes(images, captions)
    expected = similarity_matrix(model, images, captions)
    model.blocks.clear()
    scores = similarity_matrix(model, images, captions, block_bytes=block_bytes)
    torch.testing.assert_close(scores, expected, rtol=1e-6, atol=1e-6)
    assert max(i * c for i, c, _ in model.blocks) <= max(1, block_bytes // pair)
    if block_bytes == 300:
        assert len({width for _, _, width in model.blocks}) > 1  # short captions were not padded to the longest


def test_every_image_row_is_encoded_once_and_modes_come_back(folder, model):
    model.train()
    model.dropout.eval()  # a part that a recipe froze
    dataset = open_split(folder, "test")
    first = similarity_matrix(model, *encode_dataset(model, dataset))
    assert model.image_rows_encoded == dataset.num_images
    assert model.training and not model.dropout.training
    model.dropout.train()
    assert torch.equal(first, similarity_matrix(model, *encode_dataset(model, dataset)))  # no dropout while evaluating
    assert model.dropout.training


def test_modes_come_back_after_an_error(folder, model):
    model.train()
    with pytest.raises(InputError, match="^batch_size is 0: at least 1 is needed$"):
        encode_dataset(model, open_split(folder, "test"), batch_size=0)
    assert model.training and torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_encodings_can_be_differentiated_through(folder, model):
    images, captions = encode_dataset(model, open_split(folder, "test"))
    similarity_matrix(model, images, captions).requires_grad_().mul(2).sum().backward()
    images.fragments.requires_grad_()
    model.similarity(images, captions).sum().backward()
    assert images.fragments.grad.abs().sum() > 0


def test_pair_scores_are_entries_of_the_matrix(folder, model):
    dataset = open_split(folder, "test")
    images, captions = encode_dataset(model, dataset)
    rows, columns = [0, 3, 3, 6] * 10, list(range(10)) * 4
    torch.testing.assert_close(pair_scores(model, images, captions, rows, columns),
                               similarity_matrix(model, images, captions)[rows, columns])


def test_progress_goes_to_stderr_and_only_when_asked(folder, model, capsys):
    dataset = open_split(folder, "test")
    similarity_matrix(model, *encode_dataset(model, dataset))
    assert capsys.readouterr() == ("", "")
    similarity_matrix(model, *encode_dataset(model, dataset, progress=True), progress=True)
    out, err = capsys.readouterr()
    assert out == "" and all(text in err for text in ("encode images", "encode captions", "score pairs"))


def test_a_similarity_of_another_shape_is_named(folder, model, monkeypatch):
    images, captions = encode_dataset(model, open_split(folder, "test"))
    monkeypatch.setattr(WordRegionModel, "similarity", lambda self, i, c: torch.zeros(len(i)))
    with pytest.raises(InputError, match="^WordRegionModel.similarity gave the shape"):
        similarity_matrix(model, images, captions)
    with pytest.raises(InputError, match="^0 images and 13 captions: at least one of each is needed$"):
        similarity_matrix(model, images.select(slice(0, 0)), captions)
