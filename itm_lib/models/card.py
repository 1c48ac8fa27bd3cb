"""The model card: README.md of a model folder, made of what its config.json says and of nothing else.

What a run leaves under ``metadata`` there, each part with a section of its own where it is known:

* ``recipe``: every setting of the run; or where a checkpoint of a paper's authors came from
* ``data``: name, pictures and captions a split, words, and what the images were: the extractor of the regions and its settings
* ``training``: epochs, the best of them, stages, seed, steps, seconds, commit, number of weights
* ``val``: metrics of the best epoch
* ``results``: metrics on test, once measured (:func:`write_card`)
* ``license``: of the model, if its owner gave one
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from itm_lib.files import counted, read_json, write_json, write_text

CARD, CONFIG = "README.md", "config.json"
TASK = "image-text-retrieval"  # the Hub has no pipeline of this kind, so the card names none
SHOWN = {"i2t_r1": "picture → text R@1", "i2t_r5": "R@5", "i2t_r10": "R@10", "t2i_r1": "text → picture R@1", "t2i_r5": "R@5",
         "t2i_r10": "R@10", "rsum": "rSum"}
MORE = {"i2t_map_at_r": "picture → text mAP@R", "t2i_map_at_r": "text → picture mAP@R"}  # where the data has an exact ground truth
_UNITS = (("h", 3600), ("min", 60), ("s", 1))


class Paper(NamedTuple):
    """What a method is, and where it was published."""

    name: str
    does: str
    key: str
    authors: str
    title: str
    venue: str
    year: int
    arxiv: str | None = None


PAPERS = {
    "vse": Paper(
        "VSE++", "A picture and a caption are one vector each; the score is their cosine.", "faghri2018vse",
        "Faghri, Fartash and Fleet, David J. and Kiros, Jamie Ryan and Fidler, Sanja",
        "{VSE++}: Improving Visual-Semantic Embeddings with Hard Negatives", "British Machine Vision Conference (BMVC)", 2018, "1707.05612"),
    "scan": Paper(
        "SCAN", "Each word attends to the regions, or each region to the words; the score is how well they agree.", "lee2018stacked",
        "Lee, Kuang-Huei and Chen, Xi and Hua, Gang and Hu, Houdong and He, Xiaodong",
        "Stacked Cross Attention for Image-Text Matching", "European Conference on Computer Vision (ECCV)", 2018, "1803.08024"),
    "camp": Paper(
        "CAMP", "Regions and words send each other messages, let in by gates, before a pair is scored.", "wang2019camp",
        "Wang, Zihao and Liu, Xihui and Li, Hongsheng and Sheng, Lu and Yan, Junjie and Wang, Xiaogang and Shao, Jing",
        "{CAMP}: Cross-Modal Adaptive Message Passing for Text-Image Retrieval", "International Conference on Computer Vision (ICCV)", 2019,
        "1909.05506"),
    "hrem": Paper(
        "HREM", "A picture and a caption are one vector each, learned from the relations between the pictures and captions of a batch.",
        "fu2023learning", "Fu, Zheren and Mao, Zhendong and Song, Yan and Zhang, Yongdong",
        "Learning Semantic Relationship among Instances for Image-Text Matching", "Conference on Computer Vision and Pattern Recognition (CVPR)",
        2023),
    "dive": Paper(
        "DivE", "A picture and a caption are a set of vectors each; the score is the smooth Chamfer similarity of the sets.", "kim2023improving",
        "Kim, Dongwon and Kim, Namyup and Kwak, Suha", "Improving Cross-Modal Retrieval with Set of Diverse Embeddings",
        "Conference on Computer Vision and Pattern Recognition (CVPR)", 2023, "2211.16761"),
}


def model_card(content: Mapping[str, Any], address: str = "path/to/this/folder", license: str | None = None) -> str:
    """The card of the model whose config.json holds ``content``. ``address``: what ``load_model`` reads it from."""
    metadata = _without_places(content.get("metadata") or {})
    papers = [PAPERS[method] for method in dict.fromkeys(content["config"].get("methods", [content["method"]])) if method in PAPERS]
    sections = {
        "": _head(content, metadata, papers),
        "How to use it": _use(content, metadata, address),
        "Results": _results(metadata),
        "Data": _data(metadata.get("data") or {}),
        "Training": _training(metadata),
        "Limits": _limits(content, metadata),
        "Citation": "\n\n".join(map(_bibtex, papers)),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" if title else text for title, text in sections.items() if text)
    data = _front_matter(content, metadata, license or metadata.get("license"))
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n"))


def write_card(folder: str | Path, results: Iterable[Mapping[str, Any]] = ()) -> Path:
    """Write the card of the local model folder ``folder`` anew and return its path.

    ``results``: {"dataset", "split", "metrics": {name: number}, "commit", "command"} each, kept in config.json; one of the same data
    and split takes the place of an older one.
    """
    folder = Path(folder)
    content = read_json(folder / CONFIG)
    metadata = content.get("metadata") or {}
    kept = {(each["dataset"], each["split"]): each for each in (*metadata.get("results", []), *results)}
    if kept:
        content["metadata"] = {**metadata, "results": [dict(each) for each in kept.values()]}
        write_json(folder / CONFIG, content)
    write_text(folder / CARD, model_card(content))
    return folder / CARD


# --- the front matter -----------------------------------------------------------------------------------------------------


def _front_matter(content: Mapping[str, Any], metadata: Mapping[str, Any], license: str | None) -> ModelCardData:
    """The part that the Hub reads."""
    data = metadata.get("data") or {}
    measured = _measured(metadata)
    found = [EvalResult(task_type=TASK, task_name="Image-text retrieval", dataset_type=place, dataset_name=place, dataset_split=split,
                        metric_type=name, metric_name=_label(name), metric_value=round(float(value), 2))
             for place, split, _, metrics in measured if place for name, value in metrics.items() if name in SHOWN or name in MORE]
    return ModelCardData(
        library_name="itm_lib", license=license, datasets=[data["name"]] if data.get("name") else None,
        tags=["image-text-matching", TASK, *dict.fromkeys(content["config"].get("methods", [content["method"]]))],
        metrics=["recall"] if found else None, model_name=_title(content, metadata) if found else None, eval_results=found or None)


def _measured(metadata: Mapping[str, Any]) -> list[tuple[str, str, str, Mapping[str, float]]]:
    """(dataset, split, what to call the row, metrics) of everything that was measured."""
    name = (metadata.get("data") or {}).get("name", "")
    best = (metadata.get("training") or {}).get("best_epoch")
    val = metadata.get("val")
    rows = [(name, "val", f"val, epoch {best}" if best else "val", val)] if val else []
    for each in metadata.get("results", []):
        place = "" if each["dataset"] == name else f" of {each['dataset']}"
        rows.append((each["dataset"], each["split"], f"{each['split']}{place}", each["metrics"]))
    return rows


def _label(name: str) -> str:
    """``i2t_r5`` → ``picture → text R@5``."""
    if name in MORE:
        return MORE[name]
    way, _, recall = name.partition("_")
    return f"{SHOWN[f'{way}_r1'].removesuffix(' R@1')} {SHOWN[name].rpartition(' ')[2]}" if recall else SHOWN[name]


# --- the sections ---------------------------------------------------------------------------------------------------------


def _title(content: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    methods = content["config"].get("methods", [content["method"]])
    name = " + ".join(PAPERS[method].name if method in PAPERS else method for method in methods)
    data = (metadata.get("data") or {}).get("name")
    return f"{name}, trained on {data}" if data else name


def _head(content: Mapping[str, Any], metadata: Mapping[str, Any], papers: Sequence[Paper]) -> str:
    lines = [f"# {_title(content, metadata)}", "", "An image-text matching model: it scores how well a caption says what is in a picture."]
    if content["method"] == "ensemble":
        lines.append(f"An ensemble of {content['config']['members']} models, whose scores are averaged.")
    lines += [f"{paper.does} The method is {paper.name}, from [{paper.title.replace('{', '').replace('}', '')}]({_url(paper)}) "
              f"({paper.venue}, {paper.year})." if paper.arxiv else
              f"{paper.does} The method is {paper.name}, from \"{paper.title}\" ({paper.venue}, {paper.year})." for paper in papers]
    row = ((metadata.get("recipe") or {}).get("paper") or {})
    if row.get("variant"):
        lines.append(f"Its recipe is for the published row \"{row['variant']}\" on {row['dataset']}; the settings are {row['settings']}.")
    official = (metadata.get("recipe") or {}).get("official")
    if official:
        lines.append(f"The weights are the authors' own, converted from their checkpoint `{official['file']}` (SHA-256 `{official['sha256']}`).")
    return "\n".join(lines)


def _use(content: Mapping[str, Any], metadata: Mapping[str, Any], address: str) -> str:
    data = (metadata.get("data") or {}).get("name", "DATA")
    return "\n".join([
        "```python", "from itm_lib.evaluation import evaluate", "from itm_lib.models import load_model", "",
        f"model, vocabulary = load_model(\"{address}\")", f"print(evaluate(model, \"data/{data}\", split=\"val\"))", "```", "",
        "Search over a dataset folder, or a file of region features, with words:", "",
        "```sh", f"itm search index {address} data/{data}", "itm search query \"a dog left of a red car\" --out sheet.png", "```"])


def _results(metadata: Mapping[str, Any]) -> str:
    rows = [(label, metrics) for _, _, label, metrics in _measured(metadata)]
    names = [name for name in (*SHOWN, *MORE) if any(name in metrics for _, metrics in rows)]
    if not names:
        return ""
    cells = [["", *({**SHOWN, **MORE}[name] for name in names)], ["---", *("---:" for _ in names)]]
    cells += [[label, *(f"{metrics[name]:.1f}" if name in metrics else "" for name in names)] for label, metrics in rows]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    commands = dict.fromkeys(f"`{each['command']}`" for each in metadata.get("results", []) if each.get("command"))
    told = f" Test was measured by {', '.join(commands)}." if commands else ""
    return "\n".join([f"In percent; rSum is the sum of the six recalls.{told}", "", *lines])


def _data(data: Mapping[str, Any]) -> str:
    about = ", ".join(f"{name} {data[name]}" for name in ("variant", "size", "seed") if name in data)
    lines = [f"- dataset: {data['name']}{about and f' ({about})'}"] if data.get("name") else []
    lines += [f"- {split}: {counted(sizes['images'], 'picture')}, {counted(sizes['captions'], 'caption')}" for split, sizes in (data.get("splits") or {}).items()]
    if data.get("tokens"):
        kind = "words, those of the training captions" if data["tokens"]["kind"] == "words" else "word pieces of its text encoder"
        lines.append(f"- tokens: {data['tokens']['count']:,} {kind}")
    images = dict(data.get("images") or {})
    if "pixels" in images:
        lines.append(f"- images: pixels, {images['pixels']} × {images['pixels']}")
    elif images:
        size, dim, boxes = images.pop("max_regions"), images.pop("dim"), images.pop("boxes")
        lines.append(f"- images: at most {counted(size, 'region')} of {dim:,} numbers, {'with' if boxes else 'without'} boxes")
        lines.append(f"\nThe regions' extractor and its settings:\n\n```yaml\n{_as_yaml({name: _unpacked(value) for name, value in images.items()})}```")
    return "\n".join(lines)


def _unpacked(value: Any) -> Any:
    """What a file's attribute holds; lists and mappings stand there as JSON."""
    if not (isinstance(value, str) and value[:1] in ("{", "[")):
        return value
    try:
        return _without_places(json.loads(value))
    except json.JSONDecodeError:
        return value


def _as_yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)


def _training(metadata: Mapping[str, Any]) -> str:
    training, recipe = metadata.get("training") or {}, metadata.get("recipe") or {}
    lines = []
    if training:
        lines.append(f"Epoch {training['best_epoch']} of {training['epochs']} was the best on val. {training['steps']:,} steps, seed {training['seed']}, "
                     f"{_duration(training['seconds'])} on {training['device']}; {training['parameters']:,} weights; commit `{training['commit']}`.")
    if metadata.get("stages"):
        lines.append("Stages: " + "; ".join(f"{stage['stage']}, best epoch {stage['best_epoch']}" for stage in metadata["stages"]) + ".")
    if recipe and "official" not in recipe:
        lines.append(f"The recipe, every setting of it:\n\n```yaml\n{_as_yaml(recipe)}```")
    return "\n\n".join(lines)


def _limits(content: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    config, data = content["config"], metadata.get("data") or {}
    images = data.get("images") or {}
    lines = []
    if config.get("region_dim") and "pixels" not in images:
        maker = f"{images['extractor']} with the settings above" if images.get("extractor") else "the extractor of its training data"
        lines.append(f"- It reads regions of {config['region_dim']:,} numbers from {maker}. Regions of another extractor give scores that mean "
                     "nothing, even where the size fits.")
    if (data.get("tokens") or {}).get("kind") == "words":
        lines.append("- It knows the words of its training captions alone; any other word is read as unknown.")
    train = (data.get("splits") or {}).get("train")
    if train:
        lines.append(f"- It has seen {counted(train['images'], 'picture')}, with what they show and what was written of them. Other pictures and other "
                     "ways of writing are not what its numbers are about.")
    lines.append("- Scores rank pictures or captions; they are no probabilities, and those of two models cannot be compared.")
    if metadata.get("val") and not metadata.get("results"):
        lines.append("- It was not measured on a test split: the epoch was chosen by the val split whose numbers are above.")
    return "\n".join(lines)


def _bibtex(paper: Paper) -> str:
    fields = {"title": f"{{{paper.title}}}", "author": f"{{{paper.authors}}}", "booktitle": f"{{{paper.venue}}}", "year": f"{{{paper.year}}}"}
    lines = ",\n".join(f"  {name:<9} = {value}" for name, value in fields.items())
    return f"```bibtex\n@inproceedings{{{paper.key},\n{lines}\n}}\n```"


def _url(paper: Paper) -> str:
    return f"https://arxiv.org/abs/{paper.arxiv}"


def _duration(seconds: float) -> str:
    """``3 min 20 s``: the two largest units."""
    seconds, parts = round(seconds), []
    for unit, size in _UNITS:
        if seconds >= size or (unit == "s" and not parts):
            parts.append(f"{seconds // size} {unit}")
        seconds %= size
    return " ".join(parts[:2])


def _without_places(value: Any) -> Any:
    """``value`` with the names alone of what are paths on one machine."""
    if isinstance(value, Mapping):
        return {key: _without_places(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_places(each) for each in value]
    return PurePath(value).name if isinstance(value, str) and PurePath(value).is_absolute() else value
