"""How torch's threads wait, and what freed memory costs: a training step of every model, on an idle machine and beside busy programs.

    python tests/benchmarks/bench_threads.py [--threads 1 2] [--busy 0 1] [--models vse scan ...] [--steps 15] [--rounds 3] [--quick]

Every measurement is a process of its own, because torch's threads are made when it is loaded. Three ways:

* "plain": torch as it comes (ITM_THREADS=plain)
* "sleeping": OMP_WAIT_POLICY=PASSIVE and GOMP_SPINCOUNT=0, threads that always sleep while they wait
* "itm": what ``import itm_lib`` does

The ways run in turn, each ``--rounds`` times; the median of a process's steps is taken, and of its rounds the best. The table has milliseconds,
and as a ratio how the ways compare to "plain" with as many threads on an idle machine. The exit status is 1 if "itm" is more than 5 % slower
than "plain" with all threads on an idle machine, for any model, or slower than 1.5 times one thread beside a busy program.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time

import itm_lib  # noqa: F401  before torch, as every way in has it

WAYS = {"plain": {"ITM_THREADS": "plain"}, "sleeping": {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}, "itm": {}}
MODELS = {
    "vse": {"method": "vse", "embed_dim": 64, "word_dim": 64}, "scan": {"method": "scan", "embed_dim": 64, "word_dim": 64},
    "camp": {"method": "camp", "embed_dim": 64, "word_dim": 64}, "hrem": {"method": "hrem", "embed_dim": 64, "word_dim": 64, "num_heads": 4},
    "dive": {"method": "dive", "embed_dim": 64, "word_dim": 64, "head_dim": 16},
    "scan_256": {"method": "scan", "embed_dim": 256, "word_dim": 256},
}
BATCH = {"vse": 64, "scan": 64, "camp": 32, "hrem": 64, "dive": 16, "scan_256": 128}
REGIONS, DIM, WORDS = 49, 1280, 13
IDLE_LOSS, BUSY_LOSS = 1.05, 1.5


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1], help="how many busy programs run beside")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round of few steps; nothing is required")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.child:
        print(json.dumps(measure(given.child[0], int(given.child[1]), given.steps)))
        return 0
    if given.quick:
        given.steps, given.rounds = 4, 1
    rows = run(given)
    print_table(rows)
    return 0 if given.quick else check(rows)


def run(given: argparse.Namespace) -> list[dict]:
    """A row a model, number of busy programs, number of threads and way: the milliseconds of a step."""
    best: dict[tuple, float] = {}
    for busy in given.busy:
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
        try:
            for _ in range(given.rounds):
                for model in given.models:
                    for threads in given.threads:
                        for way in WAYS:
                            key = model, busy, threads, way
                            best[key] = min(best.get(key, float("inf")), in_a_process(model, threads, way, given.steps))
        finally:
            for other in others:
                other.kill()
                other.wait()
    return [dict(zip(("model", "busy", "threads", "way"), key), ms=value) for key, value in best.items()]


def in_a_process(model: str, threads: int, way: str, steps: int) -> float:
    own = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS", "ITM_THREADS")}
    done = subprocess.run([sys.executable, __file__, "--child", model, str(threads), "--steps", str(steps)], env={**own, **WAYS[way]}, check=True,
                          capture_output=True, text=True)
    return json.loads(done.stdout)


def measure(model_name: str, threads: int, steps: int) -> float:
    """Median milliseconds of a training step: forward, backward, clipping and Adam, on generated data."""
    import torch

    from itm_lib.data.dataset import Batch
    from itm_lib.models import build_model

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    settings = dict(MODELS[model_name])
    model, size = build_model(settings.pop("method"), settings, DIM, 3000), BATCH[model_name]
    captions = 5 * size if model.batch_layout == "set" else size
    lengths = torch.randint(WORDS - 5, WORDS + 6, (captions,))
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    tokens = torch.randint(4, 3000, mask.shape) * mask
    batch = Batch(torch.randn(size, REGIONS, DIM).relu(), torch.ones(size, REGIONS, dtype=torch.bool), tokens, mask, torch.arange(size),
                  torch.arange(captions) // (captions // size), torch.arange(captions))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    model.train()
    model.start_epoch(9)  # after the warm-up
    time.sleep(1.2)  # what the machine is doing has been seen by then
    found = []
    for _ in range(steps + 2):
        start = time.perf_counter()
        model(batch)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
        optimizer.zero_grad()
        found.append(1000 * (time.perf_counter() - start))
    return sorted(found[2:])[steps // 2]


def print_table(rows: list[dict]) -> None:
    value = {(row["model"], row["busy"], row["threads"], row["way"]): row["ms"] for row in rows}
    columns = [(busy, threads, way) for busy in sorted({row["busy"] for row in rows}) for threads in sorted({row["threads"] for row in rows}) for way in WAYS]
    print("milliseconds of a training step, and in brackets its ratio to plain with as many threads on an idle machine")
    for model in dict.fromkeys(row["model"] for row in rows):
        print(model)
        for busy, threads, way in columns:
            ms, base = value[model, busy, threads, way], value.get((model, 0, threads, "plain"))
            ratio = f"  ({ms / base:.2f})" if base else ""
            print(f"  {f'{busy} busy' if busy else 'idle':7} {threads} thread{'s' if threads > 1 else ' '}  {way:9} {ms:8.1f}{ratio}")


def check(rows: list[dict]) -> int:
    value = {(row["model"], row["busy"], row["threads"], row["way"]): row["ms"] for row in rows}
    most, wrong = max(row["threads"] for row in rows), 0
    for model in dict.fromkeys(row["model"] for row in rows):
        own, plain = value.get((model, 0, most, "itm")), value.get((model, 0, most, "plain"))
        if own and plain and own > IDLE_LOSS * plain:
            print(f"MISSED: {model} takes {own / plain:.2f} times as long as plain on an idle machine, {IDLE_LOSS} at most")
            wrong = 1
        busy, alone = value.get((model, 1, most, "itm")), value.get((model, 1, 1, "itm"))
        if busy and alone and busy > BUSY_LOSS * alone:
            print(f"MISSED: {model} takes {busy / alone:.2f} times as long with {most} threads as with one beside a busy program, {BUSY_LOSS} at most")
            wrong = 1
    return wrong


if __name__ == "__main__":
    sys.exit(main())
