"""Nearest neighbours: exact ones against a loop, approximate ones against exact ones, and pictures of several vectors."""

import sys

import faiss
import numpy as np
import pytest
import torch

from itm_lib.files import InputError
from itm_lib.search.vectors import FaissVectors, PictureVectors, TorchVectors, VectorSettings, make_vectors, top


def clustered(count, dim, seed=0, centres=40):
    generator = torch.Generator().manual_seed(seed)
    middle = torch.randn(centres, dim, generator=generator)
    values = middle[torch.randint(centres, (count,), generator=generator)] + 0.7 * torch.randn(count, dim, generator=generator)
    return torch.nn.functional.normalize(values, dim=1)


def literal_top(row, count):
    return sorted(range(len(row)), key=lambda column: (-row[column], column))[:count]


@pytest.mark.parametrize("count", [1, 3, 7, 20])
def test_top_takes_the_first_of_equal_ones(count):
    scores = torch.randint(0, 4, (30, 12), generator=torch.Generator().manual_seed(0)).float()
    values, columns = top(scores, count)
    expected = torch.tensor([literal_top(row, count) for row in scores.tolist()])
    assert torch.equal(columns, expected)
    assert torch.equal(values, scores.gather(1, expected))


@pytest.mark.parametrize("block_bytes", [1, 300, 2**20])
def test_torch_is_exact_for_any_block_size_and_equal_vectors_come_by_row(block_bytes):
    vectors = clustered(57, 6)
    vectors[20:40] = vectors[3]
    queries = clustered(5, 6, seed=1)
    queries[0] = vectors[3]
    scores, rows = TorchVectors(vectors, block_bytes).search(queries, 9)
    for query, found, values in zip(queries, rows.tolist(), scores):
        products = torch.round(vectors @ query, decimals=5).tolist()
        assert torch.allclose(values, torch.tensor(products)[found], atol=1e-5)
        assert [products[row] for row in found] == sorted(products, reverse=True)[:9]
    assert rows[0].tolist() == [3, *range(20, 28)]


@pytest.mark.parametrize(("kind", "settings", "least"), [
    ("flat", {}, 1.0), ("hnsw", {"M": 16}, 0.97), ("ivfpq", {"m": 16, "nbits": 5, "nlist": 16, "nprobe": 8}, 0.5)])
def test_faiss_finds_what_torch_finds(kind, settings, least, tmp_path):
    vectors, queries = clustered(3000, 32), clustered(50, 32, seed=1)
    exact = TorchVectors(vectors).search(queries, 10)[1]
    built = make_vectors(vectors, VectorSettings.checked(kind, **settings))
    scores, rows = built.search(queries, 10)
    assert (scores.diff(dim=1) <= 0).all()
    assert (rows[:, :, None] == exact[:, None, :]).any(2).float().mean() >= least
    built.save(tmp_path / "made.faiss")
    again = FaissVectors.load(tmp_path / "made.faiss", built.settings, 32, 3000)
    assert torch.equal(again.search(queries, 10)[1], rows)


@pytest.mark.parametrize("kind", ["hnsw", "ivfpq"])
def test_threads_and_repetition_change_nothing(kind):
    vectors = clustered(2000, 16)
    settings = VectorSettings.checked(kind, M=8, ef_construction=40, nlist=16, nbits=4)
    before = faiss.omp_get_max_threads()
    content = []
    try:
        for threads in (1, 2):
            faiss.omp_set_num_threads(threads)
            content.append(faiss.serialize_index(FaissVectors.build(vectors, settings).index).tobytes())
            assert faiss.omp_get_max_threads() == threads
    finally:
        faiss.omp_set_num_threads(before)
    assert content[0] == content[1]


def test_vectors_of_different_lengths_keep_their_products():
    """An approximate index of unit vectors would rank by the angle."""
    vectors = clustered(2000, 12) * torch.linspace(0.2, 3, 2000)[torch.randperm(2000, generator=torch.Generator().manual_seed(0))][:, None]
    queries = clustered(30, 12, seed=1)
    built = make_vectors(vectors, VectorSettings.checked("hnsw"))
    assert built.lifted
    scores, rows = built.search(queries, 5)
    exact_scores, exact = TorchVectors(vectors).search(queries, 5)
    assert (rows[:, :, None] == exact[:, None, :]).any(2).float().mean() > 0.95
    same = rows == exact
    assert torch.allclose(scores[same], exact_scores[same], atol=1e-4)


def test_settings_that_are_wrong_are_one_line():
    for kind, settings, line in [
        ("hsnw", {}, "no index is of kind 'hsnw'; did you mean 'hnsw'?"),
        ("hnsw", {"efsearch": 3}, "index of kind hnsw: unknown 'efsearch': did you mean 'ef_search'?"),
        ("hnsw", {"M": 0}, "index of kind hnsw: M = 0: input should be greater than 0"),
    ]:
        with pytest.raises(InputError, match=f"^{__import__('re').escape(line)}$"):
            VectorSettings.checked(kind, **settings)
    vectors = clustered(2000, 12)
    with pytest.raises(InputError, match="m = 5 codes do not divide 12 numbers evenly"):
        make_vectors(vectors, VectorSettings.checked("ivfpq", m=5))
    with pytest.raises(InputError, match="nlist = 600 cells need 23,400 vectors to learn from and there are 2,000: take at most 51"):
        make_vectors(vectors, VectorSettings.checked("ivfpq", nlist=600, m=4))


def test_without_faiss_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputError, match=r'^faiss is not installed: pip install -e "\.\[search\]", or take kind "torch"'):
        make_vectors(clustered(10, 4), VectorSettings.checked("flat"))
    assert len(make_vectors(clustered(10, 4), VectorSettings.checked("torch"))) == 10


def test_a_file_of_faiss_that_is_cut_short_or_of_other_vectors_is_one_line(tmp_path):
    settings = VectorSettings.checked("hnsw")
    path = tmp_path / "made.faiss"
    make_vectors(clustered(300, 8), settings).save(path)
    with pytest.raises(InputError, match="made.faiss holds 300 vectors of 8 numbers, not 299 of 8: index again"):
        FaissVectors.load(path, settings, 8, 299)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(InputError, match="made.faiss cannot be read .*: it is damaged or cut short, index again"):
        FaissVectors.load(path, settings, 8, 300)


# --- pictures of several vectors ---

def sets_of(counts, dim=6, seed=0):
    starts = torch.tensor([0, *np.cumsum(counts)])
    return clustered(int(starts[-1]), dim, seed), starts


def literal_means(vectors, starts, query):
    return [float(np.mean([max(float(v @ q) for v in vectors[a:b]) for q in query])) for a, b in zip(starts, starts[1:])]


@pytest.mark.parametrize("counts", [[1] * 25, [3] * 25, [1, 4, 2, 5, 3] * 5])
@pytest.mark.parametrize("block_bytes", [1, 2**20])
def test_a_picture_scores_the_mean_over_the_query_of_its_best_vector(counts, block_bytes):
    vectors, starts = sets_of(counts)
    pictures = PictureVectors(vectors, starts, TorchVectors(vectors, block_bytes))
    queries = [clustered(size, 6, seed=size) for size in (1, 4, 2)]
    for query, (scores, rows) in zip(queries, pictures.nearest(queries, 7)):
        expected = literal_means(vectors, starts.tolist(), query)
        assert rows.tolist() == literal_top(expected, 7)
        assert scores.tolist() == pytest.approx(sorted(expected, reverse=True)[:7], abs=1e-5)


@pytest.mark.parametrize("counts", [[3] * 60, [1, 4, 2, 5, 3] * 12])
def test_looking_up_each_vector_finds_the_best_pictures(counts):
    vectors, starts = sets_of(counts)
    queries = [clustered(size, 6, seed=size) for size in (1, 4, 2)]
    exact = PictureVectors(vectors, starts, TorchVectors(vectors)).nearest(queries, 3)
    found = PictureVectors(vectors, starts, make_vectors(vectors, VectorSettings.checked("flat"))).nearest(queries, 20)
    for (scores, rows), (near, places) in zip(exact, found):
        assert len(places) == 20 and len(set(places.tolist())) == 20
        assert places[:3].tolist() == rows.tolist()
        assert torch.allclose(near[:3], scores, atol=1e-5)
