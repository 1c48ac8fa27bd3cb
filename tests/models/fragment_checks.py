"""What the tests of models that compare regions with words share: a batch, checks that hold for each, the largest tensor."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from itm_lib.data.dataset import Batch
from itm_lib.models import Encoding


def batch(images=5, captions=7, regions=6, words=9, ragged=True, dtype=torch.float64, seed=1):
    """Regions, their mask, tokens and their mask."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, regions + 1, (images,), generator=generator) if ragged else torch.full((images,), regions)
    lengths = torch.randint(1, words + 1, (captions,), generator=generator)
    counts[0], lengths[0], lengths[-1] = regions, words, 1
    token_mask = torch.arange(words) < lengths[:, None]
    tokens = torch.randint(4, 30, (captions, words), generator=generator) * token_mask
    features = torch.randn(images, regions, 10, generator=generator, dtype=torch.float64).to(dtype)
    return features, torch.arange(regions) < counts[:, None], tokens, token_mask


def encode(model, sides):
    return model.encode_images(*sides[:2]), model.encode_captions(*sides[2:])


def train_on(model, data, optimizer, steps):
    """The loss (a float) of each of ``steps`` training steps on one Batch."""
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model.train()(data)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def encode_batch(model, data):
    """Both sides of a Batch."""
    return encode(model, sides_of(data))


def widened(sides):
    """The same sides with more padding, and something in it."""
    regions, region_mask, tokens, token_mask = sides
    pad = torch.nn.functional.pad
    return (pad(regions, (0, 0, 0, 3), value=5.0), pad(region_mask, (0, 3)), pad(tokens, (0, 4), value=7), pad(token_mask, (0, 4)))


def widened_batch(data):
    return Batch(*widened(sides_of(data)), data.image_ids, data.caption_image_ids, data.caption_ids)


def sides_of(data):
    return data.regions, data.region_mask, data.tokens, data.token_mask


class LargestTensor(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation made."""

    size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.size = max([self.size, *(leaf.untyped_storage().nbytes() // leaf.element_size() for leaf in tree_leaves(result)
                                      if isinstance(leaf, torch.Tensor))])
        return result


def check_padding_and_company(model):
    sides = batch()
    scores = model.similarity(*encode(model, sides))
    torch.testing.assert_close(model.similarity(*encode(model, widened(sides))), scores, rtol=0, atol=1e-12)
    rows, columns = torch.tensor([3, 0, 4]), torch.tensor([5, 1, 0, 6])
    some = [side[rows] for side in sides[:2]] + [side[columns] for side in sides[2:]]
    torch.testing.assert_close(model.similarity(*encode(model, some)), scores[rows][:, columns], rtol=0, atol=1e-12)


def check_one_image_and_one_word(model, literally):
    images, captions = encode(model, batch(images=1, captions=1, regions=1, words=1))
    scores = model.similarity(images, captions)
    assert scores.shape == (1, 1)
    torch.testing.assert_close(scores, literally(model, images, captions), rtol=0, atol=1e-12)


def check_finite_gradients(model, value):
    regions = torch.full((3, 4, 12), value, requires_grad=True)
    words = torch.full((2, 5, 12), value, requires_grad=True)
    mask = torch.ones(3, 4, dtype=torch.bool), torch.ones(2, 5, dtype=torch.bool)
    scores = model.similarity(Encoding(regions, mask[0]), Encoding(words, mask[1]))
    scores.sum().backward()
    assert scores.isfinite().all() and regions.grad.isfinite().all() and words.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)
