"""Runs that are killed at random moments and started again: do they all end with the same files, and what does a kill cost?

    python tests/benchmarks/bench_kill.py --kills 20 --seed 0

A run of two stages is killed with SIGKILL: in a step, within the write of a checkpoint or of another file, in an evaluation. What it
leaves behind is compared with that of an uninterrupted run, byte by byte. Prints a line a kind of moment; the exit code is 1 if
anything differs.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training"))

from killing import CHECKPOINT, EVALUATION, FILES, STEP, Killer, attempt, killed_run, outcome, recipe, same_outcome  # noqa: E402
from made_for_training import write_dataset  # noqa: E402

from itm_lib.training import run_recipe  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    kinds = {"in a step": STEP, "in a checkpoint's write": CHECKPOINT, "in another file's write": FILES, "in an evaluation": EVALUATION}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        chosen = recipe(write_dataset(home / "world", {"train": 31, "val": 12, "test": 3}))
        run_recipe(chosen, home / "warm", progress=False)
        begin = time.perf_counter()
        attempt(chosen, home / "whole", Killer())
        alone, expected = time.perf_counter() - begin, outcome(home / "whole")
        different = 0
        for number, (kind, moments) in enumerate(kinds.items()):
            kills = options.kills // len(kinds) + (number < options.kills % len(kinds))
            begin = time.perf_counter()
            told = Counter(killed_run(chosen, home / kind, kills, rng, moments))
            seconds = time.perf_counter() - begin
            wrong = [name for out in (home / kind).iterdir() for name in same_outcome(outcome(out), expected)]
            different += len(wrong)
            print(f"{kind:24} {kills:3} kills, {len(list((home / kind).iterdir()))} runs, {seconds:5.1f} s: "
                  f"{'the same files' if not wrong else 'DIFFERENT: ' + ', '.join(sorted(set(wrong)))} ({dict(told)})")
        print(f"an uninterrupted run takes {alone:.1f} s")
    return int(different > 0)


if __name__ == "__main__":
    raise SystemExit(main())
