"""Flickr30K and COCO as the papers use them: whose they are, where their parts come from, and how large they are."""

from __future__ import annotations

from dataclasses import dataclass, field

from itm_lib.files import InputError, nearest

CAPTIONS_PER_IMAGE = 5
VAL_IMAGES = 1000  # of the val pictures the papers' code uses the first so many, on both datasets

_KAGGLE = "https://www.kaggle.com/datasets/kuanghueilee/scan-features"
_SPLITS = ('Karpathy\'s splits: dataset_{0}.json of caption_datasets.zip, from the page of "Deep Visual-Semantic Alignments",\n'
           "http://cs.stanford.edu/people/karpathy/deepimagesent/")
_DETECTOR = "the bottom-up attention detector, https://github.com/peteanderson80/bottom-up-attention,"


@dataclass(frozen=True)
class DatasetInfo:
    """One dataset: ``licence``, where ``captions``, ``images`` and ``features`` are to be had, as text for people; ``expected``,
    the number of pictures a split; ``archive``, the folder of SCAN's archive that holds it."""

    name: str
    title: str
    licence: str
    captions: str
    images: str
    features: str
    archive: str
    expected: dict[str, int]
    restval: bool = False  # whether Karpathy's file has pictures marked "restval", which the papers train on
    notes: tuple[str, ...] = field(default=())

    def expected_captions(self, split: str) -> int:
        """How many captions the papers use of a split: five a picture."""
        return CAPTIONS_PER_IMAGE * self.expected[split]


DATASETS: dict[str, DatasetInfo] = {
    "flickr30k": DatasetInfo(
        name="flickr30k", title="Flickr30K (Young et al., TACL 2014), 31,783 pictures of Flickr with five captions each, 31,014 of them in the splits",
        licence="The photographs belong to their owners on Flickr; the University of Illinois gives access for non-commercial research and\n"
                "education. Region features come from the photographs: the same terms hold for them.",
        captions=_SPLITS.format("flickr30k"),
        images="on request, through the form on the dataset's page of the University of Illinois,\n"
               "http://shannon.cs.illinois.edu/DenotationGraph/",
        features=f"SCAN's archive, folder f30k_precomp: 36 regions of 2048 numbers a picture, no boxes. Its first host is gone; SCAN's author\n"
                 f"keeps it at {_KAGGLE}\nOr run {_DETECTOR}\non the photographs, which gives boxes too (.tsv).",
        archive="f30k_precomp", expected={"train": 29000, "val": 1014, "test": 1000},
    ),
    "coco": DatasetInfo(
        name="coco", title="COCO 2014 (Lin et al., ECCV 2014), 123,287 pictures, with five to seven captions each",
        licence="The captions are CC BY 4.0; the photographs follow Flickr's terms of use, each under the licence that its owner chose. Region\n"
                "features come from the photographs: the same terms hold for them.",
        captions=_SPLITS.format("coco") + "\nCOCO's own: https://cocodataset.org, \"2014 Train/Val annotations\"",
        images='https://cocodataset.org, "2014 Train images" and "2014 Val images"',
        features=f"SCAN's archive, folder coco_precomp: 36 regions of 2048 numbers a picture, no boxes. Its first host is gone; SCAN's author\n"
                 f"keeps it at {_KAGGLE}\nOr the .tsv files with boxes that the authors of {_DETECTOR}\nmade of COCO: "
                 "their page says where they are at present; or run the detector.",
        archive="coco_precomp", expected={"train": 113287, "val": 5000, "test": 5000}, restval=True,
        notes=("ECCV Caption and CxC need COCO's numbers of pictures and captions, which SCAN's archive lacks: give Karpathy's file\n"
               "too (--captions), and pictures and captions are named by it.",),
    ),
}


def dataset_info(name: str) -> DatasetInfo:
    """The dataset called ``name``."""
    if name not in DATASETS:
        raise InputError(f"no published dataset is called {name!r}; {nearest(name, DATASETS)}")
    return DATASETS[name]


def instructions(name: str) -> str:
    """What to get, from where, on what terms, and the commands that make a dataset folder of it."""
    info = dataset_info(name)
    sizes = ", ".join(f"{split} {count:,}" for split, count in info.expected.items())
    parts = {"terms": info.licence, "captions": info.captions, "features": info.features,
             "images": f"only for models that read pixels: {info.images}"}
    lines = [info.title, f"pictures: {sizes}; of val the papers use the first {VAL_IMAGES:,}", "",
             "itm does not fetch any of it. Ask its owners:"]
    for title, text in parts.items():
        first, *rest = text.split("\n")
        lines += [f"  {title + ':':10}{first}", *(f"  {'':10}{line}" for line in rest)]
    lines += ["", *(line for note in info.notes for line in note.split("\n")), *([""] if info.notes else []),
              "Then, with SCAN's archive:",
              f"  itm data prepare {name} --source {info.archive}",
              "with features as .tsv, or one .npy or .npz a picture:",
              f"  itm data prepare {name} --source FEATURES --captions dataset_{name}.json",
              "with the pictures alone, for models that read pixels:",
              f"  itm data prepare {name} --captions dataset_{name}.json --images FOLDER"]
    return "\n".join(lines)
