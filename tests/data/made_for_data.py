import numpy as np

from itm_lib.data.regions import RegionWriter


def write_regions(path, image_ids, counts=None, dim=4, seed=0):
    """A region file with ``counts`` regions an image (default 3), features standard normal."""
    counts = counts or [3] * len(image_ids)
    rng = np.random.default_rng(seed)
    with RegionWriter(path, image_ids, max(counts), dim, "made up", note="for tests") as writer:
        for row, count in enumerate(counts):
            low = rng.uniform(0, 0.5, (count, 2))
            writer.write(row, rng.standard_normal((count, dim)), np.concatenate([low, low + 0.4], 1))
    return path
