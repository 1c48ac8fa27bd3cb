"""Flickr8k, Flickr30K and COCO as the papers use them: whose they are, where their parts come from, and how large they are."""

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
    """One dataset: ``licence``, where ``captions``, ``images`` and ``features`` are to be had, as text for people; ``expected``, the
    number of pictures a split; ``protocols``, the published evaluations of its test split, by their names in itm_lib.evaluation; ``archive``,
    the folder of SCAN's archive that holds it, empty if none does."""

    name: str
    title: str
    licence: str
    captions: str
    images: str
    features: str
    archive: str
    expected: dict[str, int]
    protocols: tuple[str, ...]
    restval: bool = False  # whether Karpathy's file has pictures marked "restval", which the papers train on
    notes: tuple[str, ...] = field(default=())
    commands: tuple[tuple[str, str], ...] = ()  # what each does, and the command; by default those of SCAN's archive

    def expected_captions(self, split: str) -> int:
        """How many captions the papers use of a split: five a picture."""
        return CAPTIONS_PER_IMAGE * self.expected[split]


DATASETS: dict[str, DatasetInfo] = {
    "flickr8k": DatasetInfo(
        name="flickr8k", title="Flickr8k (Hodosh, Young, Hockenmaier, JAIR 2013), 8,091 photographs of Flickr with five captions each, 8,000 of them in the splits",
        licence="The photographs belong to their owners on Flickr; the University of Illinois gives access for non-commercial research and\n"
                "education. Cite the paper. Region features come from the photographs: the same terms hold for them.",
        captions="one of three, about 3 MB each once unpacked:\n"
                 "the official text archive, Flickr8k_text.zip (2.3 MB): Flickr8k.token.txt, the three lists of the splits, and the human judgments\n"
                 "captions.txt of Kaggle's archive, https://www.kaggle.com/datasets/adityajn105/flickr8k (it has no judgments)\n"
                 "dataset_flickr8k.json of caption_datasets.zip, http://cs.stanford.edu/people/karpathy/deepimagesent/ (it has no judgments)",
        images="on request, through the form of the University of Illinois, https://forms.illinois.edu/sec/1713398 : Flickr8k_Dataset.zip, 1.1 GB;\n"
               "or Kaggle's archive, which holds both, 1.1 GB. Unpacked 1.1 GB, 8,091 JPEGs in one folder.",
        features="none are published; they are extracted here, about four minutes and 1.0 GB for 49 cells of 1280 numbers a photograph.",
        archive="", expected={"train": 6000, "val": 1000, "test": 1000}, protocols=("flickr8k_1k",),
        commands=(("a backbone without a network (a name on the Hub does as well, see README)", "itm backbone mobilenet-v2 --out data/backbones/mobilenet_v2"),
                  ("the regions of the photographs", "itm extract FOLDER --backbone data/backbones/mobilenet_v2 --out data/flickr8k/regions/all.h5"),
                  ("the dataset folder; CAPTIONS is the folder or the file that holds them", "itm data prepare flickr8k --captions CAPTIONS --images FOLDER"),
                  ("a model on it", "itm train flickr8k/vse --out runs/vse")),
    ),
    "flickr30k": DatasetInfo(
        name="flickr30k", title="Flickr30K (Young et al., TACL 2014), 31,783 pictures of Flickr with five captions each, 31,014 of them in the splits",
        licence="The photographs belong to their owners on Flickr; the University of Illinois gives access for non-commercial research and\n"
                "education. Region features come from the photographs: the same terms hold for them.",
        captions=_SPLITS.format("flickr30k"),
        images="only for models that read pixels: on request, through the form on the dataset's page of the University of Illinois,\n"
               "http://shannon.cs.illinois.edu/DenotationGraph/",
        features=f"SCAN's archive, folder f30k_precomp: 36 regions of 2048 numbers a picture, no boxes. Its first host is gone; SCAN's author\n"
                 f"keeps it at {_KAGGLE}\nOr run {_DETECTOR}\non the photographs, which gives boxes too (.tsv).",
        archive="f30k_precomp", expected={"train": 29000, "val": 1014, "test": 1000}, protocols=("f30k_1k",),
    ),
    "coco": DatasetInfo(
        name="coco", title="COCO 2014 (Lin et al., ECCV 2014), 123,287 pictures, with five to seven captions each",
        licence="The captions are CC BY 4.0; the photographs follow Flickr's terms of use, each under the licence that its owner chose. Region\n"
                "features come from the photographs: the same terms hold for them.",
        captions=_SPLITS.format("coco") + "\nCOCO's own: https://cocodataset.org, \"2014 Train/Val annotations\"",
        images='only for models that read pixels: https://cocodataset.org, "2014 Train images" and "2014 Val images"',
        features=f"SCAN's archive, folder coco_precomp: 36 regions of 2048 numbers a picture, no boxes. Its first host is gone; SCAN's author\n"
                 f"keeps it at {_KAGGLE}\nOr the .tsv files with boxes that the authors of {_DETECTOR}\nmade of COCO: "
                 "their page says where they are at present; or run the detector.",
        archive="coco_precomp", expected={"train": 113287, "val": 5000, "test": 5000},
        protocols=("coco_1k_fivefold", "coco_5k"), restval=True,
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
    cut = f"; of val the papers use the first {VAL_IMAGES:,}" if info.expected["val"] > VAL_IMAGES else ""
    lines = [info.title, f"pictures: {sizes}{cut}", "", "itm does not fetch any of it. Ask its owners:"]
    for title, text in (("terms", info.licence), ("captions", info.captions), ("images", info.images), ("features", info.features)):
        first, *rest = text.split("\n")
        lines += [f"  {title + ':':10}{first}", *(f"  {'':10}{line}" for line in rest)]
    lines += ["", *(line for note in info.notes for line in note.split("\n")), *([""] if info.notes else []), "Then:"]
    for what, command in info.commands or _archive_commands(info):
        lines += [what + ":", f"  {command}"]
    return "\n".join(lines)


def _archive_commands(info: DatasetInfo) -> list[tuple[str, str]]:
    """What to type, by what one has."""
    prepare = f"itm data prepare {info.name}"
    return [("with SCAN's archive", f"{prepare} --source {info.archive}"),
            ("with features as .tsv, or one .npy or .npz a picture", f"{prepare} --source FEATURES --captions dataset_{info.name}.json"),
            ("with the pictures alone, for models that read pixels", f"{prepare} --captions dataset_{info.name}.json --images FOLDER")]
