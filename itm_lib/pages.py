"""Executed notebooks as HTML pages that need no network, and the index that links them.

nbconvert's own pages load MathJax and two more scripts from a CDN, so without a network no formula shows. Here each
formula becomes MathML, which browsers draw by themselves, and no script is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import pass_context
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode

from itm_lib.files import InputError, read_json, write_text

TEMPLATE = """{% extends 'lab/index.html.j2' %}
{% block html_head_js %}{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
{% block html_head_css %}<style>mtd[columnalign=left] { text-align: left } mtd[columnalign=right] { text-align: right }</style>
{% endblock %}"""

# The converter knows these by another name only.
UNKNOWN_TEX = {"{aligned}": "{align*}", "\\operatorname*": "\\operatorname"}

HEADLINE_METRICS = ("rsum", "i2t_r1", "t2i_r1", "i2t_map_at_r", "t2i_map_at_r", "pointing")

STYLE = """body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { border-bottom: 1px solid #ccc; padding: .4rem .6rem; text-align: left; vertical-align: top; }
td.number { text-align: right; }
.failed { color: #a00; font-weight: bold; }"""


def mathml(tex: str, display: str) -> str:
    """TeX as MathML, ``display`` "inline" or "block"; what the converter cannot read stays as TeX source."""
    for name, known in UNKNOWN_TEX.items():
        tex = tex.replace(name, known)
    try:
        # HTML knows <math> without a namespace, which nbconvert's handling of headings would turn into a prefix
        return convert(tex, display=display).replace(' xmlns="http://www.w3.org/1998/Math/MathML"', "", 1)
    except Exception:  # the converter's dozen error classes have no common base
        return f"<code>{escape(tex)}</code>"


class MathRenderer(IPythonRenderer):
    """nbconvert's Markdown renderer with formulas as MathML."""

    def inline_math(self, body: str) -> str:
        return mathml(body, "inline")

    def block_math(self, body: str) -> str:
        return mathml(body, "block")

    def latex_environment(self, name: str, body: str) -> str:
        return mathml(f"\\begin{{{name}}}{body}\\end{{{name}}}", "block")


class PageExporter(HTMLExporter):
    """A notebook as one self-contained HTML page without scripts."""

    def __init__(self, **options: Any):
        super().__init__(raw_template=TEMPLATE, embed_images=True, **options)

    @pass_context
    def markdown2html(self, context: Mapping[str, Any], source: str) -> str:
        renderer = MathRenderer(
            escape=False, attachments=context.get("cell", {}).get("attachments", {}), embed_images=self.embed_images,
            path=context.get("resources", {}).get("metadata", {}).get("path", ""), anchor_link_text=self.anchor_link_text,
        )
        return MarkdownWithMath(renderer=renderer).render(source)


def write_page(notebook: NotebookNode, path: Path, pictures: Path) -> None:
    """Write ``notebook`` as HTML to ``path``; pictures that it links relative to ``pictures`` are put into the page."""
    resources = {"metadata": {"name": path.stem, "path": str(pictures)}}
    page, _ = PageExporter().from_notebook_node(notebook, resources)
    write_text(path, page)


def write_index(runs: Path, profile: str) -> Path:
    """Write runs/<profile>/index.html: every run of that profile with its status, minutes and headline metrics."""
    rows = "\n".join(_row(record, runs / profile / record["folder"]) for record in run_records(runs / profile))
    index = runs / profile / "index.html"
    write_text(index, f"""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>Image-text matching: runs of the {escape(profile)} profile</title><style>{STYLE}</style></head>
<body>
<h1>Image-text matching: runs of the {escape(profile)} profile</h1>
<table>
<tr><th>notebook</th><th>parameters</th><th>status</th><th>minutes</th><th>metrics</th></tr>
{rows}
</table>
</body>
</html>
""")
    return index


def run_records(folder: Path) -> list[dict[str, Any]]:
    """The run.json of every run in ``folder``, in the order of their names, each with the name of its ``folder``."""
    return [{**read_json(path), "folder": path.parent.name} for path in sorted(folder.glob("*/run.json"))]


def _row(record: Mapping[str, Any], folder: Path) -> str:
    page, notebook = f"{record['notebook']}.html", f"{record['notebook']}.ipynb"
    name = escape(record["notebook"])
    links = f'<a href="{escape(folder.name)}/{page}">{name}</a>' if (folder / page).is_file() else name
    links += f' (<a href="{escape(folder.name)}/{notebook}">ipynb</a>)'
    parameters = " ".join(f"{key}={value}" for key, value in record["parameters"].items())
    failed = record["status"] != "ok"
    status = f'<span class="failed">{escape(record["error"])}</span>' if failed else "ok"
    return (f'<tr><td>{links}</td><td>{escape(parameters)}</td><td>{status}</td>'
            f'<td class="number">{record["seconds"] / 60:.1f}</td><td>{"<br>".join(map(escape, headlines(folder)))}</td></tr>')


def headlines(folder: Path) -> list[str]:
    """One line a result of a run's metrics.json: the model and its headline metrics (or its first three)."""
    if not (folder / "metrics.json").is_file():
        return []
    try:
        results = read_json(folder / "metrics.json")
    except InputError as error:
        return [str(error).replace(str(folder), folder.name)]
    return [_headline(result) for result in (results if isinstance(results, Sequence) else [results])]


def _headline(result: Mapping[str, Any]) -> str:
    metrics = result.get("metrics", {})
    names: Iterable[str] = [name for name in HEADLINE_METRICS if name in metrics] or list(metrics)[:3]
    shown = ", ".join(f"{name} {_number(metrics[name])}" for name in names)
    return f"{result.get('model', '')}: {shown}" if result.get("model") else shown


def _number(value: Any) -> str:
    """A metric for reading: a float with one decimal, the mean of an entry that has one."""
    if isinstance(value, Mapping) and "mean" in value:
        value = value["mean"]
    return f"{value:.1f}" if isinstance(value, float) else str(value)
