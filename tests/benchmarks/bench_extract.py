"""Regions of pictures by backbones of full size: pictures a second and memory, by batch size and loader workers.

    python tests/benchmarks/bench_extract.py [--pictures 48] [--batches 1 4 16] [--workers 0 2] [--backbones resnet-50 detr region-encoder]

Pictures of 640 x 480 are generated, JPEGs of about a hundred thousand bytes. The weights are random, and of the published sizes:
ResNet-50 at 224 pixels, its 49 cells; DETR on ResNet-50 with the shorter side at 256 pixels in place of 800, so that a laptop gets
through a quarter of the pictures; the course's own region encoder, by sliding windows, an eighth of them. Each line is a process of
its own, forked from one that has imported what all of them need, so that its peak memory (resident size, of the process and of its
largest worker) is its own; "opened" is that before the first picture. Memory that forked workers share with their parent counts in
both. The exit status is 1 if the number of workers changes the file.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import resource
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

BACKBONES = {"resnet-50": (1, None), "detr": (4, 256), "region-encoder": (8, None)}  # one of so many pictures, size
WARM_UP = 2
IMPORTED = ["itm_lib.features.backbones", "itm_lib.features.extract", "transformers.models.resnet.modeling_resnet",
            "transformers.models.detr.modeling_detr"]


def make_pictures(folder: Path, count: int, width: int = 640, height: int = 480) -> Path:
    """JPEGs like photographs: large soft shapes, smaller ones, and grain."""
    folder.mkdir(parents=True)
    for number in range(count):
        rng, picture = np.random.default_rng(number), np.zeros((height, width, 3), np.float32)
        for cells, weight in ((4, 120), (16, 70), (64, 40), (width, 12)):
            part = rng.uniform(-weight, weight, (max(1, cells * height // width), cells, 3)) + 127
            resized = Image.fromarray(np.clip(part, 0, 255).astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
            picture += np.asarray(resized, np.float32) - 127
        Image.fromarray(np.clip(picture + 127, 0, 255).astype(np.uint8)).save(folder / f"{number:04}.jpg", quality=90)
    return folder


def write_model(kind: str, folder: str) -> None:
    """Save a model of that kind with random weights, of the size of the published one: transformers' own defaults."""
    import torch
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig, ResNetModel

    from itm_lib.features.pretrained import quiet_transformers

    torch.manual_seed(0)
    with quiet_transformers():
        if kind == "resnet-50":
            ResNetModel(ResNetConfig()).save_pretrained(folder)
        else:
            DetrForObjectDetection(DetrConfig(use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
                                              backbone_config=ResNetConfig(out_features=["stage4"]))).save_pretrained(folder)


def measure(images: str, backbone_name: str, size: int | None, batch_size: int, workers: int, out: str) -> dict[str, float | str]:
    """Extract, the first pictures apart; what it took, and a digest of the file."""
    from itm_lib.features.backbones import open_backbone
    from itm_lib.features.extract import extract, extract_picture

    backbone = open_backbone(backbone_name, size=size)
    opened = peak_mib(resource.RUSAGE_SELF)
    for path in sorted(Path(images).iterdir())[:WARM_UP]:
        extract_picture(backbone, path)
    made = extract(images, backbone, out, batch_size, workers, progress=False)
    return {"opened_mib": opened, "pictures_s": made.pictures_per_second, "seconds": made.seconds, "peak_mib": peak_mib(resource.RUSAGE_SELF),
            "worker_mib": peak_mib(resource.RUSAGE_CHILDREN) if workers else 0.0, "digest": hashlib.sha256(made.path.read_bytes()).hexdigest()}


def peak_mib(who: int) -> float:
    return resource.getrusage(who).ru_maxrss / (2**10 if sys.platform == "linux" else 2**20)


def in_a_process(function, *given):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(function, *given).result()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=48)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES), choices=list(BACKBONES))
    asked = parser.parse_args()
    differing = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        print(f"{'':16}{'pictures':>9}{'batch':>7}{'workers':>9}{'seconds':>9}{'pictures/s':>12}{'opened MiB':>12}{'peak MiB':>10}{'worker MiB':>12}")
        for backbone in asked.backbones:
            share, size = BACKBONES[backbone]
            images, name = make_pictures(folder / f"{backbone} pictures", max(1, asked.pictures // share)), backbone
            if backbone != "region-encoder":
                name = str(folder / backbone)
                in_a_process(write_model, backbone, name)
            for batch_size in asked.batches:
                digests = set()
                for workers in asked.workers:
                    found = in_a_process(measure, str(images), name, size, batch_size, workers, str(folder / f"{backbone}-{batch_size}-{workers}.h5"))
                    digests.add(found["digest"])
                    print(f"{backbone:16}{len(list(images.iterdir())):9}{batch_size:7}{workers:9}{found['seconds']:9.1f}{found['pictures_s']:12.2f}"
                          f"{found['opened_mib']:12,.0f}{found['peak_mib']:10,.0f}{found['worker_mib']:12,.0f}", flush=True)
                if len(digests) > 1:
                    differing.append(f"{backbone} in batches of {batch_size}")
    if differing:
        print(f"the number of workers changes the file: {', '.join(differing)}")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
