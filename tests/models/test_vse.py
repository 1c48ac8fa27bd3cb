"""VSE++: its equations by hand, padding, company, the warm-up."""

import itertools

import pytest
import torch

from itm_lib.models import build_model

SETTINGS = [{"image_pooling": image, "text_pooling": text, "bidirectional": both, "gru_layers": layers}
            for image, text, both, layers in itertools.product(("max", "mean"), ("last", "mean"), (True, False), (1, 2))]
each_setting = pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: "-".join(map(str, setting.values())))


def make(**setting):
    torch.manual_seed(0)
    config = {"embed_dim": 12, "word_dim": 8, **setting}
    return build_model("vse", config, region_dim=10, vocabulary_size=30).double()


def sides(images=4, captions=5, regions=6, words=7):
    generator = torch.Generator().manual_seed(1)
    counts = torch.randint(1, regions + 1, (images,), generator=generator)
    lengths = torch.randint(1, words + 1, (captions,), generator=generator)
    token_mask = torch.arange(words) < lengths[:, None]
    tokens = torch.randint(4, 30, (captions, words), generator=generator) * token_mask
    return (torch.randn(images, regions, 10, generator=generator, dtype=torch.float64),
            torch.arange(regions) < counts[:, None], tokens, token_mask)


def scores(model, regions, region_mask, tokens, token_mask):
    return model.similarity(model.encode_images(regions, region_mask), model.encode_captions(tokens, token_mask))


def by_hand(model, regions, region_mask, tokens, token_mask):
    """One image and one caption at a time, without padding."""
    config, rows = model.config, []
    for features, mask in zip(regions, region_mask):
        mapped = features[mask] @ model.image.fc.weight.T + model.image.fc.bias
        v = mapped.max(0).values if config.image_pooling == "max" else mapped.mean(0)
        row = []
        for ids, real in zip(tokens, token_mask):
            states, final = model.text.rnn(model.text.embed(ids[real])[None])
            parts = states[0].chunk(2, 1) if config.bidirectional else (states[0],)
            ends = final[-len(parts):, 0]
            t = ends.mean(0) if config.text_pooling == "last" else (sum(parts) / len(parts)).mean(0)
            row.append((v / (v.norm() + 1e-8)) @ (t / (t.norm() + 1e-8)))
        rows.append(torch.stack(row))
    return torch.stack(rows)


@each_setting
def test_scores_are_the_equations(setting):
    model = make(**setting)
    torch.testing.assert_close(scores(model, *sides()), by_hand(model, *sides()), rtol=0, atol=1e-12)


@each_setting
def test_padding_and_company_change_nothing(setting):
    model = make(**setting)
    regions, region_mask, tokens, token_mask = sides()
    expected = scores(model, regions, region_mask, tokens, token_mask)
    pad = torch.nn.functional.pad
    wide = (pad(regions, (0, 0, 0, 2), value=9.0), pad(region_mask, (0, 2)),
            pad(tokens, (0, 3), value=5), pad(token_mask, (0, 3)))
    torch.testing.assert_close(scores(model, *wide), expected, rtol=0, atol=1e-12)
    alone = scores(model, regions[2:3], region_mask[2:3], tokens[3:4], token_mask[3:4])
    torch.testing.assert_close(alone, expected[2:3, 3:4], rtol=0, atol=1e-12)


def test_encodings_are_unit_vectors_and_gradients_are_finite():
    model = make()
    regions, region_mask, tokens, token_mask = sides(captions=4)
    images, captions = model.encode_images(regions, region_mask), model.encode_captions(tokens, token_mask)
    for side in (images, captions):
        torch.testing.assert_close(side.embedding.norm(dim=1), torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-6)
    ids = torch.arange(4)
    model.loss(images, captions, ids, ids)["loss"].backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_the_first_epoch_is_the_warm_up():
    model = make(margin=0.3)
    regions, region_mask, tokens, token_mask = sides(captions=4)
    images, captions = model.encode_images(regions, region_mask), model.encode_captions(tokens, token_mask)
    ids = torch.arange(4)
    s = model.similarity(images, captions).detach()
    costs = torch.relu(0.3 + s - s.diagonal()[:, None]).masked_fill(torch.eye(4, dtype=torch.bool), 0)
    model.start_epoch(0)
    assert model.loss(images, captions, ids, ids)["i2t"].item() == pytest.approx(costs.sum().item() / 12)
    assert model.collapsed_loss(4, 4) == pytest.approx(0.6)
    model.start_epoch(1)
    assert model.loss(images, captions, ids, ids)["i2t"].item() == pytest.approx(costs.amax(1).mean().item())


def test_a_gru_cell_by_hand():
    model = make(bidirectional=False)
    tokens = torch.tensor([[5, 9]])
    states, final = model.text(tokens, torch.ones(1, 2, dtype=torch.bool))
    rnn, h = model.text.rnn, torch.zeros(12, dtype=torch.float64)
    for step, token in enumerate((5, 9)):
        x = model.text.embed.weight[token]
        from_x = (rnn.weight_ih_l0 @ x + rnn.bias_ih_l0).chunk(3)
        from_h = (rnn.weight_hh_l0 @ h + rnn.bias_hh_l0).chunk(3)
        r, z = torch.sigmoid(from_x[0] + from_h[0]), torch.sigmoid(from_x[1] + from_h[1])
        h = (1 - z) * torch.tanh(from_x[2] + r * from_h[2]) + z * h
        torch.testing.assert_close(states[0, step], h, rtol=0, atol=1e-12)
    torch.testing.assert_close(final[0], h, rtol=0, atol=1e-12)


def test_initial_weights_lie_in_their_ranges():
    torch.manual_seed(0)
    model = build_model("vse", {"embed_dim": 64, "word_dim": 32}, region_dim=134, vocabulary_size=500)
    for weight, bound in ((model.image.fc.weight, (6 / (134 + 64)) ** 0.5), (model.text.embed.weight, 0.1),
                          (model.text.rnn.weight_hh_l0, 64**-0.5)):
        assert 0.98 * bound < weight.abs().max() <= bound
    assert model.image.fc.bias.abs().max() == 0


def test_weight_norm_divides_by_the_norm_of_the_whole_matrix():
    model = make(image_projection="weight_norm")
    v = model.image.fc.parametrizations.weight.original1
    g = model.image.fc.parametrizations.weight.original0
    assert g.shape == ()
    with torch.no_grad():
        g.fill_(3.0)
    torch.testing.assert_close(model.image.fc.weight, 3.0 * v / v.pow(2).sum().sqrt(), rtol=0, atol=1e-12)
