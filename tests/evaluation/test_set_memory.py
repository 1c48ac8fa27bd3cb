"""All pairs of sets are scored in the memory that was asked for, with the same numbers whatever that was."""

import json
import subprocess
import sys

import pytest
import torch

from itm_lib.evaluation import similarity_matrix
from itm_lib.models import DivE, DiveConfig, Encoding

BUDGETS = {"small": 2**22, "unbounded": 2**40}
GROWTH = """
import json, pathlib, re, sys
import torch
from itm_lib.evaluation import similarity_matrix
from itm_lib.models import DivE, DiveConfig, Encoding

def resident(field):
    return int(re.search(field + r":\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) * 1024

torch.set_num_threads(1)
model = DivE(DiveConfig(region_dim=4, vocab_size=4, embed_dim=64, head_dim=4))
sides = [Encoding(embedding=torch.randn(count, 4, 64).div_(8)) for count in (600, 3000)]
similarity_matrix(model, *(side.select(slice(0, 9)) for side in sides))
grown = {}
for name, block_bytes in json.loads(sys.argv[1]).items():
    model.block_bytes, before = block_bytes, resident("VmRSS")
    scores = similarity_matrix(model, *sides, block_bytes=block_bytes)
    grown[name] = resident("VmHWM") - before
print(json.dumps(grown | {"scores": scores.nbytes}))
"""


def test_the_peak_stays_within_the_budget():
    """600 x 3000 sets of 4: the products alone are 115 MB. 16 MB are left for copies of a block's sets and the allocator's own."""
    done = subprocess.run([sys.executable, "-c", GROWTH, json.dumps(BUDGETS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    grown = json.loads(done.stdout)
    assert grown["small"] <= BUDGETS["small"] + grown["scores"] + 2**24 < 600 * 3000 * 16 * 4 < grown["unbounded"]


@pytest.mark.parametrize("kind", ["smooth_chamfer", "mil"])
def test_scores_do_not_depend_on_the_budget(kind):
    model = DivE(DiveConfig(region_dim=4, vocab_size=4, embed_dim=16, head_dim=4, similarity=kind))
    generator = torch.Generator().manual_seed(0)
    sides = [Encoding(embedding=torch.nn.functional.normalize(torch.randn(count, size, 16, generator=generator), dim=-1))
             for count, size in ((11, 4), (17, 3))]
    whole = similarity_matrix(model, *sides, block_bytes=2**40)
    for block_bytes in (1, 2000, 10**4):
        model.block_bytes = block_bytes // 2
        torch.testing.assert_close(similarity_matrix(model, *sides, block_bytes=block_bytes), whole, rtol=0, atol=1e-6)
