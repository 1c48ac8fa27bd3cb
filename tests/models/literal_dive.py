"""DivE's sets and similarities written out from their equations: loops over samples, iterations, heads, slots and pairs of sets.

Slow on purpose. The tests hold the batched code against it. Weights are those of the model that is tested.
"""

import math

import torch
from torch import Tensor, nn


def literal_position(place: int, length: int, dim: int) -> Tensor:
    """The position code (dim,) of the word at ``place`` 1, 2, ... of a caption of ``length`` words."""
    angles = [2 * math.pi * place / (length + 1e-6) / 10000 ** (2 * (channel // 2) / dim) for channel in range(dim)]
    return torch.tensor([math.cos(angle) if channel % 2 else math.sin(angle) for channel, angle in enumerate(angles)],
                        dtype=torch.float64)


def literal_set(prediction: nn.Module, local: Tensor, whole: Tensor, position: Tensor | None,
                real: int | None = None) -> tuple[Tensor, Tensor]:
    """The set (K, d) and E (K, d) of one sample, of fragments (F, e), their position code (F, e) and the global feature (d,).

    ``real``: the fragments after the first ``real`` ones are padding that takes part as in the released code; None: there is
    none.
    """
    block = prediction.aggregation
    elements = literal_pie(block, local) if hasattr(block, "first") else literal_decoder(block, local, position, real)
    found = [prediction.global_norm(whole) + element for element in elements]
    return torch.stack([element / element.norm() for element in found]), elements


def literal_pie(block: nn.Module, local: Tensor) -> Tensor:
    found = []
    for slot in range(block.second.out_features):
        logits = torch.stack([block.second.weight[slot] @ torch.tanh(block.first.weight @ x) for x in local])
        weights = logits.exp() / logits.exp().sum()
        found.append(torch.sigmoid(block.out(sum(weight * x for weight, x in zip(weights, local)))))
    return torch.stack(found)


def literal_decoder(block: nn.Module, local: Tensor, position: Tensor | None, real: int | None) -> Tensor:
    slots = block.slots
    for number in range(block.iterations):
        step = block.steps[0] if len(block.steps) == 1 else block.steps[number]
        norms = block.norms[0] if len(block.norms) == 1 else block.norms[number]
        slots = literal_iteration(step, norms, block.post, slots, local, position, real)
    return block.last_norm(slots)


def literal_iteration(step: nn.Module, norms: nn.ModuleDict, post: bool, slots: Tensor, local: Tensor, position: Tensor | None,
                      real: int | None) -> Tensor:
    context = step.input_norm(local)
    placed = context if position is None else context + position
    changes = {
        "own": lambda x: literal_attention(step.own, x, x, x, None),
        "attention": lambda x: literal_attention(step.attention, x, placed, context, real),
        "feed": lambda x: step.second(step.activation(step.first(x))),
    }
    for name, change in changes.items():
        if name in norms:
            slots = norms[name](slots + change(slots)) if post else slots + change(norms[name](slots))
    return slots


def literal_attention(attention: nn.Module, slots: Tensor, placed: Tensor, inputs: Tensor, real: int | None) -> Tensor:
    """One head after the other; ``placed``: the inputs of the keys, with their position."""
    size, heads = attention.query.out_features // attention.heads, []
    for head in range(attention.heads):
        rows = slice(head * size, (head + 1) * size)
        query, key, value = (layer.weight[rows] for layer in (attention.query, attention.key, attention.value))
        logits = (slots @ query.T) @ (placed @ key.T).T / math.sqrt(size)
        if attention.competing:
            shares = logits.exp() / logits.exp().sum(0, keepdim=True)
            if real is not None:
                shares = torch.cat([shares[:, :real], torch.full_like(shares[:, real:], 1 / len(slots))], dim=1)
            weights = torch.stack([row / (row.sum() + 1e-7) for row in shares])
        else:
            weights = torch.stack([row.exp() / row.exp().sum() for row in logits])
        heads.append(weights @ (inputs @ value.T))
    return attention.out(torch.cat(heads, dim=1))


def literal_similarity(x: Tensor, y: Tensor, kind: str, alpha: float, match: tuple[float, float] = (1.0, 0.0)) -> Tensor:
    """The score of one pair of sets (K, d) and (K', d) of unit vectors."""
    cosine = [[a @ b for b in y] for a in x]
    if kind == "mil":
        return max((value for row in cosine for value in row), key=Tensor.item)
    if kind == "match_probability":
        return sum(torch.sigmoid(match[0] * value + match[1]) for row in cosine for value in row) / (len(x) * len(y))
    if kind == "chamfer":
        rows, columns = ([max(line, key=Tensor.item) for line in lines] for lines in (cosine, zip(*cosine)))
        return sum(rows) / len(x) / 2 + sum(columns) / len(y) / 2
    near = cosine if kind == "smooth_chamfer" else [[-(a - b).norm() for b in y] for a in x]
    smooth = lambda values: torch.log(sum(torch.exp(alpha * value) for value in values)) / alpha  # noqa: E731
    return sum(map(smooth, near)) / len(x) / 2 + sum(map(smooth, zip(*near))) / len(y) / 2


def literal_triplet(scores: Tensor, image_of: list[int], margin: float) -> tuple[Tensor, Tensor]:
    """i2t and t2i over hardest negatives, every caption a positive of its image: the mean over captions."""
    i2t, t2i, zero = [], [], scores.new_zeros(())
    for caption, image in enumerate(image_of):
        own = scores[image, caption]
        foreign = [scores[image, other] for other, of in enumerate(image_of) if of != image]
        others = [scores[other, caption] for other in range(len(scores)) if other != image]
        i2t.append(max([zero, *(margin + score - own for score in foreign)], key=Tensor.item))
        t2i.append(max([zero, *(margin + score - own for score in others)], key=Tensor.item))
    return sum(i2t) / len(i2t), sum(t2i) / len(t2i)


def literal_mmd(x: Tensor, y: Tensor) -> Tensor:
    kernel = lambda p, q: sum(torch.exp(-(a - b).norm() / 2) for a in p for b in q) / (len(p) * len(q))  # noqa: E731
    return kernel(x, x) - 2 * kernel(x, y) + kernel(y, y)


def literal_diversity(slots: Tensor) -> Tensor:
    """Of one sample's E (K, d)."""
    units = [slot / slot.norm() for slot in slots]
    pairs = [(a, b) for number, a in enumerate(units) for b in units[:number]]
    return sum(torch.exp(-2 * ((a - b) ** 2).sum()) for a, b in pairs) / len(pairs)
