"""Figures of the course: arrays in, a matplotlib Figure out. Nothing is drawn, set or saved by importing this module.

Pictures are (H, W, 3) uint8 arrays or PIL images; boxes are x0 y0 x1 y1 in [0, 1]; a score matrix has a row a picture and
a column a caption. Colours are those of Okabe and Ito, which readers with any colour vision tell apart; what is right and
what is wrong also differs by sign and by line, never by colour alone. A notebook calls :func:`style` once, and the
Figure that ends a cell is shown.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from itm_lib.files import InputError

BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK, GREY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#7F7F7F")
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED)
RECALLS = {"i2t_r1": "R@1", "i2t_r5": "R@5", "i2t_r10": "R@10", "t2i_r1": "R@1", "t2i_r5": "R@5", "t2i_r10": "R@10"}
DIRECTIONS = {"i2t": "picture to captions (i2t)", "t2i": "caption to pictures (t2i)"}
WIDE = 6  # up to so many columns of a score matrix have room for wrapped captions
# sign, colour and line of a retrieved item
OWN, ALSO_TRUE, TRUE, WRONG = ("✓ own", GREEN, "-"), ("✓ also true", GREEN, (0, (3, 2))), ("✓ true", GREEN, "-"), ("✗ false", RED, "-")
OTHER = ("another", GREY, (0, (1, 1)))  # nobody knows whether it is true


def style() -> None:
    """Set the look of the course's figures: readable sizes, no frame on top and right. Call it once a notebook."""
    import matplotlib.pyplot as plt

    plt.rcParams.update({
        "figure.dpi": 100, "savefig.dpi": 100, "font.size": 10, "axes.titlesize": 10, "axes.labelsize": 10,
        "legend.fontsize": 9, "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False,
        "axes.prop_cycle": plt.cycler(color=COLOURS), "lines.linewidth": 1.6, "image.cmap": "viridis",
        "axes.grid": False, "grid.color": "#DDDDDD", "axes.axisbelow": True,
    })
    plt.switch_backend(plt.get_backend())  # in a notebook this turns the display of figures on, which else waits for pyplot


def captioned_pictures(pictures: Sequence[Any], captions: Sequence[str], columns: int = 4, width: float = 2.4) -> Figure:
    """A grid of pictures, each with its caption below. ``width`` is inches a picture."""
    if len(pictures) != len(captions):
        raise InputError(f"{len(pictures)} pictures but {len(captions)} captions: give one caption a picture")
    texts = [textwrap.fill(caption, int(12 * width)) for caption in captions]
    rows, lines = -(-len(pictures) // columns), max(text.count("\n") + 1 for text in texts)
    figure, axes = _grid(rows, columns, (columns * width, rows * (width + 0.17 * lines)))
    for ax, picture, text in zip(axes.flat, pictures, texts):
        _picture(ax, picture)
        ax.set_xlabel(text)
    for ax in axes.flat[len(pictures):]:
        ax.set_axis_off()
    return figure


def caption_list(pictures: Sequence[Any], captions: Sequence[Sequence[str]], own: Sequence[Sequence[bool]] | None = None,
                 true: Sequence[Sequence[bool]] | None = None, scores: Sequence[Sequence[float]] | None = None,
                 width: float = 9.0) -> Figure:
    """A row a picture: the picture, and its captions in the order given.

    With ``own`` (the caption was written for the picture) and ``true`` (it is true of the picture) every caption gets its
    sign: own, also true, or false. ``scores`` are printed in front.
    """
    figure, axes = _grid(len(pictures), 2, (width, 1.9 * len(pictures)), width_ratios=(1, width / 1.9 - 1))
    for row, (picture, texts) in enumerate(zip(pictures, captions)):
        _picture(axes[row, 0], picture)
        ax = axes[row, 1]
        ax.set_axis_off()
        ax.set(xlim=(0, 1), ylim=(0, 1))
        for line, text in enumerate(texts):
            mark, colour, _ = _verdict(own[row][line], true[row][line]) if own is not None else ("", BLACK, "-")
            score = f"{scores[row][line]:+.2f}  " if scores is not None else ""
            y = 1 - (line + 0.5) / len(texts)
            ax.text(0.0, y, mark or "•", color=colour, va="center", weight="bold")
            ax.text(0.17 if mark else 0.03, y, score + text, va="center")
    return figure


def retrieved_pictures(queries: Sequence[str], pictures: Sequence[Sequence[Any]], own: Sequence[Sequence[bool]] | None,
                       true: Sequence[Sequence[bool]] | None, scores: Sequence[Sequence[float]] | None = None,
                       width: float = 1.75, regions: Sequence[Sequence[tuple[Any, Any]]] | None = None) -> Figure:
    """A row a query caption: its best pictures from left to right.

    A solid green frame is the picture the caption was written for, a dashed green one another picture it is true of, a
    red one a picture it is false of. ``own`` and ``true`` (queries, pictures) say which is which; of a query that was written for
    none, ``own`` is None, and what is true has a solid frame. Where nobody knows what is true, as of photographs, ``true`` is None, and
    all others are grey. ``regions``: boxes (r, 4) and
    weights (r,) of each picture; boxes are filled by weight, the largest is framed.
    """
    columns = max(len(row) for row in pictures)
    figure = Figure(figsize=(columns * width, len(queries) * (width + 0.55)), layout="constrained")
    nothing = [None] * len(queries)
    for part, query, row, is_own, is_true, marks, looks in zip(
            figure.subfigures(len(queries), 1, squeeze=False)[:, 0], queries, pictures, own if own is not None else nothing, true if true is not None else nothing,
            scores if scores is not None else nothing, regions if regions is not None else nothing):
        part.suptitle(f"“{query}”", x=0.01, ha="left", fontsize=10, weight="bold")
        for place, ax in enumerate(part.subplots(1, columns, squeeze=False)[0]):
            if place >= len(row):
                ax.set_axis_off()
                continue
            if is_true is None:
                mark, colour, line = OWN if is_own is not None and is_own[place] else OTHER
            else:
                mark, colour, line = _verdict(is_own[place], is_true[place]) if is_own is not None else TRUE if is_true[place] else WRONG
            height, breadth = _picture(ax, row[place])
            if looks is not None:
                _weighted_boxes(ax, np.asarray(looks[place][0], dtype=float) * [breadth, height, breadth, height], looks[place][1], 0.35)
            _frame(ax, colour, line)
            ax.set_xlabel(mark + ("" if marks is None else f"  {marks[place]:+.2f}"), color=colour)
    return figure


def score_matrix(scores: Any, pictures: Sequence[Any] | None = None, captions: Sequence[str] | None = None,
                 truth: Any = None, numbers: bool | None = None, title: str = "", label: str = "score",
                 cell: float | None = None) -> Figure:
    """A heat map of scores (I, C), with the pictures beside the rows and the captions under the columns.

    ``truth`` (I, C) frames the true pairs. ``numbers`` writes the scores into the cells (default: if there are at most
    60). ``cell`` is inches a cell where pictures or captions are given (default: by the number of columns).
    """
    scores = np.asarray(scores, dtype=float)
    if scores.ndim != 2:
        raise InputError(f"a score matrix has 2 axes, (pictures, captions); this one has shape {scores.shape}")
    rows, columns = scores.shape
    labelled = pictures is not None or captions is not None
    cell = cell or (1.15 if columns <= WIDE else 0.72)
    size = (cell * (columns + 2.2), cell * rows + 1.3) if labelled else (6.4, 1.2 + 4.6 * min(1.0, rows / columns))
    figure = Figure(figsize=size, layout="constrained")
    ax = figure.add_subplot()
    image = ax.imshow(scores, aspect="equal" if labelled or rows == columns else "auto", interpolation="nearest")
    figure.colorbar(image, ax=ax, label=label, shrink=0.8)
    ax.spines[:].set_visible(False)
    if numbers if numbers is not None else scores.size <= 60:
        _cell_numbers(ax, scores, image)
    if truth is not None:
        for row, column in np.argwhere(np.asarray(truth, dtype=bool)):
            ax.add_patch(Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, fill=False, edgecolor=RED, linewidth=2.5))
    _score_axes(ax, rows, columns, pictures, captions)
    ax.set_title(title)
    return figure


def training_curve(histories: Mapping[str, Sequence[Mapping[str, Any]]], metric: str = "rsum",
                   perfect: float | None = None, relative: bool = False) -> Figure:
    """The loss (left, by step) and a validation metric (right, by epoch) of one or more runs, one colour a run.

    ``histories`` {run: rows of a :class:`itm_lib.training.History`}. The dashed line is the loss of a collapsed model, which
    gives every pair the same score; with ``relative`` each loss is drawn as a share of it, so that losses of several kinds
    have one axis. A ring marks the epoch whose weights are kept. ``perfect`` draws what a perfect matcher would reach on val.
    """
    figure = Figure(figsize=(9.2, 3.3), layout="constrained")
    left, right = figure.subplots(1, 2)
    collapsed: dict[int, float] = {}
    for number, (name, rows) in enumerate(histories.items()):
        steps, epochs = _rows(rows, "steps", "loss"), _rows(rows, "epoch", metric)
        look = {"color": COLOURS[number % len(COLOURS)], "label": name}
        levels = {row["step"]: row["collapsed_loss"] for row in steps if "collapsed_loss" in row}
        if relative:
            steps = [{**row, "loss": row["loss"] / levels[row["step"]]} for row in steps if row["step"] in levels]
            levels = dict.fromkeys(levels, 1.0)
        left.plot([row["step"] for row in steps], [row["loss"] for row in steps], **look)
        right.plot([row["epoch"] for row in epochs], [row[metric] for row in epochs], "o-", markersize=3.5, **look)
        for row in [row for row in epochs if row.get("best")][-1:]:
            right.plot(row["epoch"], row[metric], "o", markersize=10, fillstyle="none", color=look["color"])
        collapsed.update(levels)
    if collapsed:
        left.plot(sorted(collapsed), [collapsed[step] for step in sorted(collapsed)], "--", color=BLACK, linewidth=1.2,
                  label="collapsed model")
    if perfect is not None:
        right.axhline(perfect, color=BLACK, linestyle="--", linewidth=1.2, label="perfect matcher")
    left.set(xlabel="step", ylabel="training loss / that of a collapsed model" if relative else "training loss", ylim=(0, None))
    right.set(xlabel="epoch", ylabel=f"{metric} on val")
    right.xaxis.get_major_locator().set_params(integer=True)
    for ax in (left, right):
        ax.grid(axis="y")
        ax.legend(loc="best")
    return figure


class LiveCurve:
    """:func:`training_curve` drawn anew after every epoch, in place, while a notebook cell trains.

    >>> curve = LiveCurve()
    >>> Trainer(model, train, val, config, folder, on_epoch=curve.follow("VSE++")).fit()      # doctest: +SKIP
    >>> run_recipe(recipe, folder, on_epoch=LiveCurve().follow_stages)                        # doctest: +SKIP
    """

    def __init__(self, metric: str = "rsum", perfect: float | None = None, relative: bool = False):
        self.metric, self.perfect, self.relative = metric, perfect, relative
        self.histories: dict[str, Sequence[Mapping[str, Any]]] = {}
        self._shown: Any = None

    def follow(self, name: str) -> Callable[[Sequence[Mapping[str, Any]]], None]:
        """What a Trainer takes as ``on_epoch``: draws the run as ``name``."""
        return lambda history: self._draw(name, history, partial(training_curve, relative=self.relative))

    def follow_stages(self, history: Sequence[Mapping[str, Any]]) -> None:
        """An ``on_epoch`` for a recipe with stages: draws them one after the other, see :func:`staged_curve`."""
        self._draw(history[-1]["stage"], history, staged_curve)

    def _draw(self, name: str, history: Sequence[Mapping[str, Any]], curve: Callable[..., Figure]) -> None:
        from IPython.display import display

        self.histories[name] = history
        figure = curve(self.histories, self.metric, self.perfect)
        if self._shown is None:
            self._shown = display(figure, display_id=True)
        else:
            self._shown.update(figure)


def recall_bars(results: Mapping[str, Mapping[str, float]], ceiling: Mapping[str, float] | None = None) -> Figure:
    """R@1, R@5, R@10 of both directions as bars, one colour a model; black lines are the ceiling of a perfect matcher.

    ``results`` {model: {"i2t_r1": percent, ...}}; ``ceiling`` {"i2t_r1": percent, ...}, a missing key draws no line.
    """
    figure = Figure(figsize=(9.2, 3.3), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    width = 0.8 / len(results)
    for ax, direction in zip(axes, DIRECTIONS):
        keys = [key for key in RECALLS if key.startswith(direction)]
        for number, (name, metrics) in enumerate(results.items()):
            x = np.arange(len(keys)) + (number - (len(results) - 1) / 2) * width
            bars = ax.bar(x, [metrics[key] for key in keys], 0.92 * width, color=COLOURS[number % len(COLOURS)], label=name)
            _label_inside(ax, bars)
        for place, key in enumerate(keys):
            if ceiling is not None and key in ceiling:
                ax.plot([place - 0.45, place + 0.45], [ceiling[key]] * 2, color=BLACK, linewidth=2,
                        label="perfect matcher")
        ax.set_xticks(range(len(keys)), [RECALLS[key] for key in keys])
        ax.set(title=DIRECTIONS[direction], ylim=(0, 108), yticks=range(0, 101, 20))
        ax.grid(axis="y")
    axes[0].set_ylabel("queries answered (%)")
    entries = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels())}
    figure.legend(entries.values(), entries.keys(), loc="outside right center")
    return figure


def foil_bars(results: Mapping[str, Mapping[str, float]]) -> Figure:
    """Share of foils that score below the true pair, by what was changed, one colour a model; the line is a coin's share.

    ``results`` {model: {"foil_object": percent, "foil_attribute": percent, "foil_relation": percent}}.
    """
    kinds = ("object", "attribute", "relation")
    figure = Figure(figsize=(6.6, 3.1), layout="constrained")
    ax = figure.subplots()
    width = 0.8 / len(results)
    for number, (name, metrics) in enumerate(results.items()):
        x = np.arange(len(kinds)) + (number - (len(results) - 1) / 2) * width
        bars = ax.bar(x, [metrics[f"foil_{kind}"] for kind in kinds], 0.92 * width, color=COLOURS[number % len(COLOURS)], label=name)
        _label_inside(ax, bars)
    ax.axhline(50, color=BLACK, linestyle="--", linewidth=1.2, label="a coin")
    ax.set_xticks(range(len(kinds)), [f"{kind}\nchanged" for kind in kinds])
    ax.set(ylabel="true pair scores higher (%)", ylim=(0, 108), yticks=range(0, 101, 25))
    ax.grid(axis="y")
    figure.legend(loc="outside right center")
    return figure


def word_attention(picture: Any, words: Sequence[str], boxes: Any, weights: Any, gold: Sequence[Any] | None = None,
                   columns: int = 5, width: float = 1.9) -> Figure:
    """Attention of words over the regions of one picture: a panel a word, every box filled by its weight.

    ``boxes`` (R, 4), ``weights`` (W, R) sum to 1 over R. The solid frame is the region with the largest weight; a dashed
    black frame is ``gold[w]``, the box (or boxes) the word speaks of, None where it speaks of none.
    """
    boxes, weights = np.asarray(boxes, dtype=float), np.asarray(weights, dtype=float)
    if weights.shape != (len(words), len(boxes)):
        raise InputError(f"attention of {len(words)} words over {len(boxes)} regions has shape {weights.shape}")
    rows = -(-len(words) // columns)
    figure, axes = _grid(rows, columns, (columns * width, rows * (width + 0.4)))
    for number, (ax, word) in enumerate(zip(axes.flat, words)):
        height, breadth = _picture(ax, picture)
        scale = np.array([breadth, height, breadth, height])
        top = _weighted_boxes(ax, boxes * scale, weights[number])
        for box in [] if gold is None or gold[number] is None else np.atleast_2d(gold[number]):
            _box(ax, box * scale, fill=False, edgecolor=BLACK, linewidth=1.5, linestyle=(0, (3, 2)),
                 path_effects=[withStroke(linewidth=3, foreground="white")])  # seen on dark pictures too
        ax.set_title(word, weight="bold")
        ax.set_xlabel(f"largest weight {weights[number, top]:.2f}", fontsize=8)
    for ax in axes.flat[len(words):]:
        ax.set_axis_off()
    return figure


def result_dots(values: Mapping[str, Mapping[str, Sequence[float]]], levels: Mapping[str, float] | None = None,
                unit: str = "%", singles: Mapping[str, Mapping[str, float]] | None = None) -> Figure:
    """One panel a metric, one line a model: every seed an open dot, the mean a full one, a bar of one standard deviation.

    ``values`` {metric: {model: one value a seed}}; ``levels`` {metric: value} draws a dashed line: what a perfect matcher or a
    coin reaches. ``singles`` {metric: {model: value}}: runs of another origin, black diamonds.
    """
    singles = singles or {}
    names = list(dict.fromkeys(name for models in (*values.values(), *singles.values()) for name in models))
    figure = Figure(figsize=(min(11.0, max(4.6, 1.5 + 3.1 * len(values))), 1.0 + 0.42 * len(names)), layout="constrained")
    for ax, (metric, models) in zip(figure.subplots(1, len(values), sharey=True, squeeze=False)[0], values.items()):
        for number, name in enumerate(names):
            if name in singles.get(metric, {}):
                ax.plot(singles[metric][name], number - 0.24, "D", color=BLACK, markersize=5)
            if name not in models:
                continue
            seeds, colour = np.asarray(models[name], dtype=float), COLOURS[number % len(COLOURS)]
            spread = seeds.std(ddof=1) if len(seeds) > 1 else 0.0
            ax.plot(seeds, np.full(len(seeds), number + 0.24), "o", fillstyle="none", color=colour, markersize=4)
            ax.errorbar(seeds.mean(), number, xerr=spread, fmt="o", color=colour, capsize=3, markersize=7)
        if levels is not None and metric in levels:
            ax.axvline(levels[metric], color=BLACK, linestyle="--", linewidth=1.2)
        ax.set_yticks(range(len(names)), names)
        ax.set(xlabel=f"{metric} ({unit})" if unit else metric, ylim=(len(names) - 0.5, -0.5))
        ax.grid(axis="x")
    return figure


def _grid(rows: int, columns: int, size: tuple[float, float], **gridspec: Any) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, gridspec_kw=gridspec)


def _picture(ax: Axes, picture: Any) -> tuple[int, int]:
    """Draw a picture without ticks or frame; its height and width in pixels."""
    pixels = np.asarray(picture)
    ax.imshow(pixels)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    return pixels.shape[0], pixels.shape[1]


def _frame(ax: Axes, colour: str, line: Any) -> None:
    for spine in ax.spines.values():
        spine.set(visible=True, color=colour, linewidth=3.5, linestyle=line)


def _box(ax: Axes, box: np.ndarray, **look: Any) -> None:
    ax.add_patch(Rectangle(box[:2], box[2] - box[0], box[3] - box[1], **look))


def _weighted_boxes(ax: Axes, boxes: np.ndarray, weights: Any, alpha: float = 0.65) -> int:
    """Fill each of ``boxes`` (r, 4), in pixels, by its weight, and frame the one of the largest weight, whose number is returned."""
    strength = np.clip(np.asarray(weights, dtype=float), 0, None)
    strength = strength / max(strength.max(), 1e-12)
    for region in np.argsort(strength):
        _box(ax, boxes[region], facecolor=ORANGE, alpha=alpha * strength[region], linewidth=0)
    top = int(strength.argmax())
    _box(ax, boxes[top], fill=False, edgecolor=RED, linewidth=2)
    return top


def _verdict(own: bool, true: bool) -> tuple[str, str, Any]:
    return OWN if own else ALSO_TRUE if true else WRONG


def _label_inside(ax: Axes, bars: BarContainer) -> None:
    """Write each bar's height near its foot, where no line crosses it."""
    for bar in bars:
        ax.text(bar.get_x() + bar.get_width() / 2, 3, f"{bar.get_height():.0f}", ha="center", fontsize=8,
                color="white" if _is_dark(bar.get_facecolor()) else "black")


def _is_dark(colour: Sequence[float]) -> bool:
    red, green, blue = colour[:3]
    return 0.299 * red + 0.587 * green + 0.114 * blue < 0.5


def _rows(history: Sequence[Mapping[str, Any]], kind: str, key: str) -> list[Mapping[str, Any]]:
    return [row for row in history if row["kind"] == kind and key in row]


def _cell_numbers(ax: Axes, scores: np.ndarray, image: Any) -> None:
    for (row, column), score in np.ndenumerate(scores):
        dark = _is_dark(image.cmap(image.norm(score)))
        ax.text(column, row, f"{score:.2f}", ha="center", va="center", color="white" if dark else "black")


def _score_axes(ax: Axes, rows: int, columns: int, pictures: Sequence[Any] | None, captions: Sequence[str] | None) -> None:
    if captions is not None:
        wide = columns <= WIDE
        texts = [textwrap.fill(caption, 17) if wide else textwrap.shorten(caption, 34, placeholder=" …") for caption in captions]
        ax.set_xticks(range(columns), texts, fontsize=8, **({} if wide else {"rotation": 50, "ha": "right", "rotation_mode": "anchor"}))
    else:
        ax.set_xlabel("caption")
    if pictures is None:
        ax.set_ylabel("picture")
    else:
        ax.set_yticks([])
        for row, picture in enumerate(pictures):
            _picture(ax.inset_axes([-1.62, row - 0.46, 0.92, 0.92], transform=ax.transData), picture)
    ax.tick_params(length=0)


# ---- 01 From pixels to regions -------------------------------------------------------------------------------------------

KINDS = {  # what a box is: its colour, line and width
    "object": (BLUE, "-", 2.2), "part": (ORANGE, (0, (4, 2)), 1.8), "background": (BLACK, (0, (1, 1.5)), 1.6),
    "finds an object": (GREEN, "-", 2.2), "finds none": (RED, (0, (4, 2)), 1.6), "object that nothing found": (BLACK, (0, (1, 1.5)), 2.0),
    "kept": (BLUE, "-", 2.2), "thrown away": (GREY, (0, (4, 2)), 1.6), "cell": (GREY, "-", 1.0)}


def region_boxes(pictures: Sequence[Any], boxes: Sequence[Any], kinds: Sequence[Sequence[str]] | None = None,
                 names: Sequence[Sequence[str]] | None = None, width: float = 3.0) -> Figure:
    """Pictures side by side with their boxes. ``kinds`` (a name of ``KINDS`` a box: "object", "part", "kept", ...) gives each its line.

    ``boxes`` holds (R, 4) a picture; ``names`` writes a word at the upper edge of each box.
    """
    figure, axes = _grid(1, len(pictures), (len(pictures) * width, width + (0.3 if kinds is not None else 0)))
    for number, (ax, picture) in enumerate(zip(axes.flat, pictures)):
        height, breadth = _picture(ax, picture)
        for region, box in enumerate(np.asarray(boxes[number], dtype=float) * [breadth, height, breadth, height]):
            colour, line, thick = KINDS[kinds[number][region] if kinds is not None else "object"]
            halo = [withStroke(linewidth=thick + 1.6, foreground="white")]
            _box(ax, box, fill=False, edgecolor=colour, linestyle=line, linewidth=thick, path_effects=halo)
            if names is not None:
                ax.text(box[0] + 1, box[1] + 1, names[number][region], fontsize=8, va="top",
                        bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 0.8})
        ax.set(xlim=(-0.5, breadth - 0.5), ylim=(height - 0.5, -0.5))
    if kinds is not None:
        used = [kind for kind in KINDS if any(kind in row for row in kinds)]
        lines = [Line2D([], [], color=KINDS[kind][0], linestyle=KINDS[kind][1], linewidth=KINDS[kind][2]) for kind in used]
        figure.legend(lines, used, loc="outside lower center", ncols=len(used))
    return figure


def crop_grid(crops: Any, texts: Sequence[str] | None = None, right: Sequence[bool | None] | None = None, columns: int = 8,
              width: float = 1.15) -> Figure:
    """Crops (n, H, W, 3) in a grid, each with a text of one or two lines below.

    ``right`` adds a sign and a frame to each, right or wrong; None adds none.
    """
    columns = min(columns, len(crops))
    rows = -(-len(crops) // columns)
    lines = max((text.count("\n") + 1 for text in texts), default=0) if texts is not None else 0
    figure, axes = _grid(rows, columns, (columns * width, rows * (width + 0.17 * lines)))
    figure.get_layout_engine().set(w_pad=0.07, h_pad=0.05)
    for number, ax in enumerate(axes.flat):
        if number >= len(crops):
            ax.set_axis_off()
            continue
        _picture(ax, crops[number])
        text, colour = texts[number] if texts is not None else "", BLACK
        if right is not None and right[number] is not None:
            sign, colour, line = ("✓ ", GREEN, "-") if right[number] else ("✗ ", RED, (0, (3, 2)))
            _frame(ax, colour, line)
            text = sign + text
        ax.set_xlabel(text, fontsize=8, color=colour)
    return figure


def encoder_curve(history: Sequence[Mapping[str, float]], blind: float | None = None) -> Figure:
    """The loss (left) and the held-out accuracies (right) of a region encoder, by epoch.

    ``history``: the rows of :func:`itm_lib.features.region_encoder.train_region_encoder`. ``blind`` draws the loss of a
    network that does not look at its crop.
    """
    figure = Figure(figsize=(9.2, 3.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    left.plot(epochs, [row["loss"] for row in history], "o-", markersize=4, color=BLUE, label="this encoder")
    if blind is not None:
        left.axhline(blind, color=BLACK, linestyle="--", linewidth=1.2, label="blind: knows the frequencies alone")
    for (name, marker), colour in zip({"object": "o", "background": "s", "colour": "^"}.items(), COLOURS):
        right.plot(epochs, [row[name] for row in history], f"{marker}-", markersize=4, color=colour, label=name)
    left.set(xlabel="epoch", ylabel="training loss", ylim=(0, None))
    right.set(xlabel="epoch", ylabel="held-out accuracy (%)", ylim=(0, 103))
    for ax in (left, right):
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(axis="y")
        ax.legend(loc="best")
    return figure


def feature_map(points: Any, groups: Sequence[str], others: str = "other", title: str = "",
                palette: Mapping[str, str] | None = None) -> Figure:
    """Points (n, 2) in a plane, a colour and a marker a group; those of the group ``others`` are small and grey.

    ``palette`` {group: colour} replaces the course's colours.
    """
    return feature_maps({title: points}, groups, others, palette, (7.6, 5.0))


def feature_maps(panels: Mapping[str, Any], groups: Sequence[str], others: str = "other", palette: Mapping[str, str] | None = None,
                 size: tuple[float, float] | None = None) -> Figure:
    """Maps as of :func:`feature_map` side by side, of the same things by different features: {title: points (n, 2)}."""
    groups = np.asarray(groups)
    figure, axes = _grid(1, len(panels), size or (4.2 * len(panels) + 1.4, 4.2))
    for ax, (title, points) in zip(axes[0], panels.items()):
        _groups_of_points(ax, np.asarray(points, dtype=float), groups, others, palette)
        ax.set(xticks=[], yticks=[], xlabel="t-SNE, first axis", ylabel="t-SNE, second axis", title=title)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center")
    return figure


def _groups_of_points(ax: Axes, points: np.ndarray, groups: np.ndarray, others: str, palette: Mapping[str, str] | None) -> None:
    ax.plot(*points[groups == others].T, ".", color=GREY, alpha=0.4, markersize=4, label=others, linestyle="none")
    names = [name for name in dict.fromkeys(groups.tolist()) if name != others]
    for number, name in enumerate(sorted(names)):
        colour = palette[name] if palette else COLOURS[number % len(COLOURS)]
        ax.plot(*points[groups == name].T, "os^DvP"[number % 6], color=colour, markersize=5, alpha=0.85, label=name, linestyle="none")


def pooled_box(values: Any, box: Any, y_weights: Any, x_weights: Any) -> Figure:
    """RoIAlign of one box in numbers: the map with the places where it is read, and the product that reads it.

    ``values`` (H, W); ``box`` x0 y0 x1 y1 in [0, 1]; ``y_weights`` (p, H) and ``x_weights`` (q, W), a row a place, each row's mean
    cell number being the place. The last panel is ``y_weights @ values @ x_weights.T``.
    """
    values, rows, columns = (np.asarray(each, dtype=float) for each in (values, y_weights, x_weights))
    height, width = values.shape
    panels = {"the map, the box, the places": values, "weights of the rows, $W_y$": rows, "the map, $F$": values,
              "weights of the columns, $W_x^T$": columns.T, r"$W_y\,F\,W_x^T$": rows @ values @ columns.T}
    figure, axes = _grid(1, 5, (12.4, 2.9), width_ratios=[max(2.4, each.shape[1]) for each in panels.values()])
    for number, (ax, (title, each)) in enumerate(zip(axes[0], panels.items())):
        image = ax.imshow(each, cmap="Blues", vmin=0, vmax=1.3 * (1 if number in (1, 3) else values.max()))
        for (row, column), value in np.ndenumerate(each) if number else ():
            ax.text(column, row, f"{value:.4g}", ha="center", va="center", fontsize=9, color="white" if _is_dark(image.cmap(image.norm(value))) else BLACK)
        ax.set(title=title, xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    ax = axes[0, 0]
    for (row, column), value in np.ndenumerate(values):
        ax.text(column - 0.44, row - 0.44, f"{value:.4g}", ha="left", va="top", fontsize=8)
    _box(ax, np.asarray(box, dtype=float) * [width, height, width, height] - 0.5, fill=False, edgecolor=RED, linewidth=2.2)
    places = [(x, y) for y in rows @ np.arange(height) for x in columns @ np.arange(width)]
    ax.plot(*zip(*places), "o", color=ORANGE, markeredgecolor=BLACK, markersize=7)
    return figure


def probe_bars(accuracies: Mapping[str, float], baselines: Mapping[str, float]) -> Figure:
    """Accuracy in percent of each probe as a bar; the black tick is its baseline: always the most frequent answer."""
    figure = Figure(figsize=(8.4, 0.8 + 0.36 * len(accuracies)), layout="constrained")
    ax = figure.subplots()
    places = range(len(accuracies))
    ax.barh(places, list(accuracies.values()), 0.7, color=SKY)
    for place, value in zip(places, accuracies.values()):
        ax.text(103, place, f"{value:.0f}", va="center")  # beside all bars, where no tick crosses it
    ax.plot([baselines[name] for name in accuracies], places, "|", color=BLACK, markersize=16, markeredgewidth=2.5,
            linestyle="none", label="always the most frequent answer")
    ax.set_yticks(places, list(accuracies))
    ax.set(xlabel="val accuracy of a linear probe (%)", xlim=(0, 110), xticks=range(0, 101, 20),
           ylim=(len(accuracies) - 0.5, -0.5))
    figure.legend(loc="outside lower center")
    return figure


# ---- 03 CAMP -------------------------------------------------------------------------------------------------------------

GATE_TICKS = (1e-9, 1e-6, 1e-3, 0.1, 0.5, 0.9, 0.999)
PAIRS = {"true pairs": (GREEN, "-"), "false pairs": (RED, (0, (4, 2)))}


def staged_curve(stages: Mapping[str, Sequence[Mapping[str, Any]]], metric: str = "rsum", perfect: float | None = None) -> Figure:
    """The training of a recipe with stages: one after the other, a colour a stage, on one axis of steps and one of epochs.

    ``stages`` {name: rows of its History}, in order. Their losses are of different kinds, so each is drawn as a share of what
    a collapsed model would have: the dashed line at 1. A ring marks the epoch that the next stage starts with.
    """
    figure = Figure(figsize=(9.2, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    step = epoch = 0
    for number, (name, rows) in enumerate(stages.items()):
        look = {"color": COLOURS[number % len(COLOURS)], "label": name}
        steps, epochs = _rows(rows, "steps", "collapsed_loss"), _rows(rows, "epoch", metric)
        left.plot([step + row["step"] for row in steps], [row["loss"] / row["collapsed_loss"] for row in steps], **look)
        right.plot([epoch + row["epoch"] for row in epochs], [row[metric] for row in epochs], "o-", markersize=3.5, **look)
        for row in [row for row in epochs if row.get("best")][-1:]:
            right.plot(epoch + row["epoch"], row[metric], "o", markersize=10, fillstyle="none", color=look["color"])
        step, epoch = step + max(row["step"] for row in rows), epoch + max(row["epoch"] for row in rows)
        for ax, end in ((left, step), (right, epoch)) if number < len(stages) - 1 else ():
            ax.axvline(end, color=GREY, linewidth=0.8)
    left.axhline(1, color=BLACK, linestyle="--", linewidth=1.2, label="collapsed model (left)")
    if perfect is not None:
        right.axhline(perfect, color=BLACK, linestyle=":", linewidth=1.2, label="perfect matcher (right)")
    left.set(xlabel="step", ylabel="training loss / that of a collapsed model", ylim=(0, None))
    right.set(xlabel="epoch", ylabel=f"{metric} on val")
    right.xaxis.get_major_locator().set_params(integer=True)
    for ax in (left, right):
        ax.grid(axis="y")
    entries = {label: handle for ax in (left, right) for handle, label in zip(*ax.get_legend_handles_labels())}
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=len(entries))
    return figure


def open_gates(pictures: Sequence[Any], boxes: Sequence[Any], region_gates: Sequence[Any], words: Sequence[Sequence[str]],
               word_gates: Sequence[Any], titles: Sequence[str], width: float = 3.3) -> Figure:
    """How far the gates of some pairs are open, a column a pair: on the regions of the picture above, on the words below.

    ``boxes`` (R, 4) and ``region_gates`` (R,), ``words`` and ``word_gates`` (W,) a pair. A box has the colour of its gate, and a thicker
    line the wider it is open; its number stands in its upper left corner. A bar is a word's gate.
    """
    import matplotlib

    high, tall = 0.78 * width, 0.22 * max(len(each) for each in words)
    figure, axes = _grid(2, len(pictures), (len(pictures) * width, high + tall + 1.1), height_ratios=(high, tall))
    colours = matplotlib.colormaps["viridis"]
    for column, (above, below) in enumerate(axes.T):
        gates, tokens, bars = np.asarray(region_gates[column], dtype=float), words[column], np.asarray(word_gates[column], dtype=float)
        if gates.shape != (len(boxes[column]),) or bars.shape != (len(tokens),):
            raise InputError(f"pair {column}: gates of shapes {gates.shape} and {bars.shape} for {len(boxes[column])} regions and "
                             f"{len(tokens)} words")
        height, breadth = _picture(above, pictures[column])
        for region in np.argsort(gates):
            box, thick = np.asarray(boxes[column][region]) * [breadth, height, breadth, height], 1.2 + 3 * gates[region]
            _box(above, box, fill=False, edgecolor=colours(gates[region]), linewidth=thick,
                 path_effects=[withStroke(linewidth=thick + 1.6, foreground="white")])
            above.text(box[0] + 2, box[1] + 2, f"{gates[region]:.2f}", fontsize=6.5, va="top",
                       bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 0.6})
        above.set(xlim=(-3, breadth + 2), ylim=(height + 2, -3))
        above.set_title(textwrap.fill(titles[column], int(13 * width)), fontsize=9)
        below.barh(range(len(tokens)), bars, 0.75, color=colours(bars))
        below.set_yticks(range(len(tokens)), tokens, fontsize=8)
        below.set(xlim=(0, 1), ylim=(len(tokens) - 0.4, -0.6), xlabel="gate of the word")
        below.grid(axis="x")
    scale = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0, 1), colours)
    figure.colorbar(scale, ax=axes[:, -1].tolist(), label="gate (0 closed, 1 open)", shrink=0.7, aspect=30)
    return figure


def gate_histograms(gates: Mapping[str, Mapping[str, Any]], marks: Mapping[str, tuple[float, str]] | None = None) -> Figure:
    """How gates are spread, a panel a side, on the axis of their logits, where 1e-9 and 0.97 have room in one figure.

    ``gates`` {"regions": {"true pairs": (n,), "false pairs": (n,)}, "words": ...}, from 0 to 1; a triangle is the mean gate. ``marks``
    {label: (gate, colour)} draws dotted lines, for numbers of a paper.
    """
    logit = lambda values: np.log(values) - np.log1p(-values)  # noqa: E731
    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    axes = figure.subplots(1, len(gates), sharey=True, squeeze=False)[0]
    ticks = logit(np.array(GATE_TICKS))
    edges = np.linspace(ticks[0] - 1, ticks[-1] + 1, 61)
    for ax, (side, kinds) in zip(axes, gates.items()):
        means = []
        for kind, values in kinds.items():
            values, (colour, line) = np.clip(np.asarray(values, dtype=float), 1e-9, 1 - 1e-9), PAIRS[kind]
            counts = np.histogram(np.clip(logit(values), edges[0], edges[-1]), edges)[0]
            ax.stairs(100 * counts / len(values), edges, color=colour, linestyle=line, linewidth=1.6, label=kind)
            mean = float(values.mean())
            ax.plot(logit(mean), 0, "^", color=colour, markersize=9, clip_on=False, zorder=3)
            means.append(f"{mean:.3f} of {kind}" if mean >= 0.01 else f"{mean:.1e} of {kind}")
        for label, (gate, colour) in (marks or {}).items():
            ax.axvline(logit(gate), color=colour, linestyle=":", linewidth=2, label=label)
        ax.set_xticks(ticks, [f"{gate:g}" for gate in GATE_TICKS])
        ax.set(title=f"{side}: mean {', '.join(means)}", xlabel="gate (the axis is even in its logit)")
        ax.grid(axis="y")
    axes[0].set(ylabel="gates in the bin (%)", ylim=(0, None))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


# ---- 04 HREM -------------------------------------------------------------------------------------------------------------

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def attention_blocks(steps: Mapping[str, Any]) -> Figure:
    """Which blocks of the graph each attention step uses, a panel a step: ``steps`` {title: (2, 2) bool}.

    Rows are the nodes that hear, images before captions, columns those that speak. Blocks of A and S that a step uses are filled.
    """
    names = [["I-I", "I-T"], ["T-I", "T-T"]]
    figure = Figure(figsize=(2.5 * len(steps), 2.9), layout="constrained")
    for number, (ax, (title, used)) in enumerate(zip(figure.subplots(1, len(steps), squeeze=False)[0], steps.items())):
        for (row, column), on in np.ndenumerate(np.asarray(used, dtype=bool)):
            look = {"facecolor": SKY} if on else {"facecolor": "white", "hatch": "///"}
            ax.add_patch(Rectangle((column, row), 1, 1, edgecolor=GREY, **look))
            ax.text(column + 0.5, row + 0.5, names[row][column] if on else "not used", ha="center", va="center",
                    bbox={"facecolor": look["facecolor"], "linewidth": 0, "pad": 2})
        ax.set(xlim=(0, 2), ylim=(2, 0), aspect="equal", title=title, xlabel="speaks")
        ax.set_xticks([0.5, 1.5], ["images", "captions"])
        ax.set_yticks([0.5, 1.5], ["images", "captions"] if not number else ["", ""], rotation=90, va="center")
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        if not number:
            ax.set_ylabel("hears")
    return figure


def relation_map(relations: Any, images: Sequence[Any], captions: Sequence[str], title: str = "", numbers: bool = False,
                 label: str = "relevance S", cell: float = 0.42, wide: int = 44, limits: tuple[float, float] | None = None,
                 group: int | None = None) -> Figure:
    """Heat map of the relations of a batch (N, N), images before captions; NaN, which is white, where nothing is connected.

    Row i hears column j. ``images``: pictures, or names, of the first I nodes; ``captions`` (C,): texts, cut to ``wide`` characters
    beside the rows, by their letter below the columns. ``limits`` of the colours: those of the values by default. ``cell`` is inches
    a cell; black lines are the borders of the four blocks, dotted ones stand after every ``group`` nodes.
    """
    values, count, total = np.asarray(relations, dtype=float), len(images), len(images) + len(captions)
    if values.shape != (total, total):
        raise InputError(f"relations of {count} images and {len(captions)} captions have shape {values.shape}")
    texts = [f"{letter}  {textwrap.shorten(text, wide, placeholder=' …')}" for letter, text in zip(LETTERS, captions)]
    beside = 0.062 * max(map(len, [*texts, *(each for each in images if isinstance(each, str))]))
    figure = Figure(figsize=(cell * (total + 1) + beside + 1.6, cell * (total + 2) + 0.7), layout="constrained")
    ax = figure.subplots()
    low, high = limits or (None, None)
    image = ax.imshow(np.ma.masked_invalid(values), vmin=low, vmax=high, interpolation="nearest")
    if numbers:
        _relation_numbers(ax, values, image)
    for border in (-0.5, count - 0.5, total - 0.5):
        ax.axhline(border, color=BLACK, linewidth=1.6)
        ax.axvline(border, color=BLACK, linewidth=1.6)
    for border in range(group, total, group) if group else ():
        ax.axhline(border - 0.5, color=GREY, linestyle=":", linewidth=1)
        ax.axvline(border - 0.5, color=GREY, linestyle=":", linewidth=1)
    _node_axes(ax, images, texts)
    ax.set(title=title, xlim=(-0.5, total - 0.5), ylim=(total - 0.5, -0.5), ylabel="row: who hears")
    ax.set_xlabel("column: who speaks", labelpad=4 if isinstance(images[0], str) else 72 * cell)
    figure.colorbar(image, ax=ax, label=f"{label} (white: not connected)", shrink=0.75, aspect=30)
    return figure


def _relation_numbers(ax: Axes, values: np.ndarray, image: Any) -> None:
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            dark = _is_dark(image.cmap(image.norm(value)))
            ax.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color="white" if dark else "black")


def _node_axes(ax: Axes, images: Sequence[Any], captions: Sequence[str]) -> None:
    """Pictures or names, then captions, along both axes."""
    names = [each if isinstance(each, str) else "" for each in images]
    places = range(len(names) + len(captions))
    ax.set_yticks(places, [*names, *captions], fontsize=8)
    ax.set_xticks(places, [*(name and str(number) for number, name in enumerate(names)), *(text[0] for text in captions)], fontsize=8)
    ax.tick_params(length=0, pad=3)
    ax.spines[:].set_visible(False)
    for number, picture in enumerate(images):
        if not isinstance(picture, str):
            _picture(ax.inset_axes((-1.65, number - 0.47, 0.94, 0.94), transform=ax.transData), picture)
            _picture(ax.inset_axes((number - 0.47, len(places) - 0.28, 0.94, 0.94), transform=ax.transData), picture)


def negative_weights(panels: Mapping[str, tuple[Any, Mapping[int, Any]]], marks: Mapping[str, float] | None = None) -> Figure:
    """How likely each negative of an anchor is drawn, against its distance: a panel a set of embeddings, a colour a dimension.

    ``panels`` {title: (distances (n,), {dimension of the sphere: weights (n,)})}; the weights of one anchor sum to 1. A dashed line
    is an even draw; ``marks`` {label: distance} draws dotted lines. Chances below 1e-6 are drawn there.
    """
    figure = Figure(figsize=(3.6 * len(panels) + 0.6, 3.6), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, sharex=True, squeeze=False)[0]
    for ax, (title, (distances, weights)) in zip(axes, panels.items()):
        order = np.argsort(distances)
        for number, (dim, each) in enumerate(weights.items()):
            ax.plot(np.asarray(distances)[order], np.maximum(np.asarray(each, dtype=float)[order], 1e-6), "os^Dv"[number % 5], markersize=4.5, alpha=0.75,
                    linestyle="none", color=COLOURS[number], label=f"{dim} dimensions")
        ax.axhline(1 / len(order), color=BLACK, linestyle="--", linewidth=1.2, label="even draw")
        for place, (name, distance) in enumerate((marks or {}).items()):
            ax.axvline(distance, color=GREY, linestyle=(":", "-.")[place % 2], linewidth=1.4, label=name)
        ax.set(title=title, xlabel="distance from the anchor", xlim=(0.4, 2), yscale="log", ylim=(6e-7, 1.8))
        ax.grid(axis="y")
    axes[0].set_ylabel("chance to be drawn")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def distance_histograms(distances: Mapping[str, Mapping[str, Any]], marks: Mapping[str, float] | None = None) -> Figure:
    """How the distances of true and of false pairs are spread, a panel a model: {model: {"true pairs": (n,), "false pairs": (n,)}}.

    Distances of unit vectors lie in [0, 2]. A triangle is the mean; ``marks`` {label: distance} draws dotted lines.
    """
    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    axes = figure.subplots(1, len(distances), sharey=True, squeeze=False)[0]
    edges = np.linspace(0, 2, 41)
    for ax, (title, kinds) in zip(axes, distances.items()):
        for kind, values in kinds.items():
            values, (colour, line) = np.asarray(values, dtype=float), PAIRS[kind]
            ax.stairs(100 * np.histogram(values, edges)[0] / len(values), edges, color=colour, linestyle=line, linewidth=1.6, label=kind)
            ax.plot(values.mean(), 0, "^", color=colour, markersize=9, clip_on=False, zorder=3)
        for place, (name, distance) in enumerate((marks or {}).items()):
            ax.axvline(distance, color=GREY, linestyle=(":", "-.")[place % 2], linewidth=1.4, label=name)
        ax.set(title=title, xlabel="distance of picture and caption", xlim=(0, 2))
        ax.grid(axis="y")
    axes[0].set(ylabel="pairs in the bin (%)", ylim=(0, None))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2 + len(marks or {}))
    return figure


def node_rows(nodes: Sequence[Any], pictures: Sequence[Sequence[Any]], picture_values: Sequence[Sequence[float]],
              captions: Sequence[Sequence[str]], caption_values: Sequence[Sequence[float]], own: Sequence[Sequence[bool]] | None = None,
              head: str = "the node", width: float = 1.1, wide: int = 48) -> Figure:
    """What a picture of a batch is connected to, a row a picture: the node, pictures with their values, captions with theirs.

    ``own`` (rows, captions) marks the captions that were written for the node.
    """
    columns = max(map(len, pictures))
    lines = max(map(len, captions))
    figure, axes = _grid(len(nodes), columns + 2, ((columns + 1) * width + 0.088 * wide + 0.2, len(nodes) * max(width + 0.25, 0.21 * lines)),
                         width_ratios=[1] * (columns + 1) + [0.088 * wide / width])
    for row, line in enumerate(axes):
        _picture(line[0], nodes[row])
        _frame(line[0], BLUE, "-")
        line[0].set_xlabel(head, fontsize=9, color=BLUE)
        for place, ax in enumerate(line[1:-1]):
            if place >= len(pictures[row]):
                ax.set_axis_off()
                continue
            _picture(ax, pictures[row][place])
            ax.set_xlabel(f"{picture_values[row][place]:.3f}", fontsize=9)
        line[-1].set_axis_off()
        line[-1].set(xlim=(0, 1), ylim=(0, 1))
        for place, (text, value) in enumerate(zip(captions[row], caption_values[row])):
            is_own = own is not None and own[row][place]
            line[-1].text(0.02, 1 - (place + 0.5) / lines, f"{value:.3f}  {textwrap.shorten(text, wide, placeholder=' …')}" + (" (its own)" if is_own else ""),
                          va="center", fontsize=9, color=GREEN if is_own else BLACK)
    return figure


def picture_rows(rows: Mapping[str, Sequence[Any]], width: float = 1.0) -> Figure:
    """Rows of small pictures, each with its name on the left: clusters, or batches. ``width`` is inches a picture."""
    columns = max(map(len, rows.values()))
    side = 0.085 * max(len(line) for name in rows for line in name.split("\n"))
    figure, axes = _grid(len(rows), columns, (columns * width + side, len(rows) * width))
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02)
    for line, (name, pictures) in zip(axes, rows.items()):
        for place, ax in enumerate(line):
            if place < len(pictures):
                _picture(ax, pictures[place])
            else:
                ax.set_axis_off()
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    return figure


def efficiency(models: Mapping[str, Mapping[str, Any]], gallery: str, perfect: float | None = None) -> Figure:
    """rsum against the time of a query (left), and what that time is made of (right); both times on a log axis.

    ``models`` {name: {"rsum": one value a seed, "encode": ms, "score": ms}}: to encode the query, and to score it against all of
    the ``gallery``, whose encodings are kept. The bar over a point is one standard deviation over the seeds.
    """
    figure = Figure(figsize=(10.4, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    totals = [each["encode"] + each["score"] for each in models.values()]
    for number, (name, each) in enumerate(models.items()):
        colour, marker = COLOURS[number % len(COLOURS)], "osD^v*"[number % 6]
        rsum, total = np.asarray(each["rsum"], dtype=float), each["encode"] + each["score"]
        left.errorbar(total, rsum.mean(), yerr=rsum.std(ddof=1) if len(rsum) > 1 else 0, fmt=marker, color=colour, capsize=3, markersize=8)
        crowded = any(total < other < 4 * total for other in totals)  # a label to the right would lie on the next point
        left.annotate(name, (total, rsum.mean()), (-9 if crowded else 9, 5), textcoords="offset points", color=colour,
                      ha="right" if crowded else "left")
        right.plot([each["encode"], each["score"]], [number, number], color=GREY, linewidth=1)
        right.plot(each["encode"], number, marker, fillstyle="none", color=colour, markersize=8)
        right.plot(each["score"], number, marker, color=colour, markersize=8)
    if perfect is not None:
        left.axhline(perfect, color=BLACK, linestyle="--", linewidth=1.2, label="perfect matcher")
        left.legend(loc="best")
    for ax in (left, right):
        ax.set_xscale("log")
        ax.margins(x=0.25)
        ax.grid()
    left.set(xlabel="ms for a query: encode it and score the gallery", ylabel="rsum on test")
    left.margins(y=0.2)
    right.set_yticks(range(len(models)), list(models))
    right.set(xlabel=f"ms for a query, a gallery of {gallery}", ylim=(len(models) - 0.5, -0.5))
    key = [Line2D([], [], color=GREY, marker="o", fillstyle=fill, linestyle="none", label=what)
           for fill, what in (("none", "encode the query"), ("full", "score it against the gallery"))]
    right.legend(handles=key, loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=2)
    return figure


# ---- 05 DivE -------------------------------------------------------------------------------------------------------------

SIMILARITIES = {"MIL": ORANGE, "MP": PURPLE, "Chamfer": SKY, "smooth-Chamfer": BLUE}
TRUE_PICTURES = {"1": (1, 1), "2": (2, 2), "3": (3, 3), "4": (4, 4), "5 to 9": (5, 9), "10 to 19": (10, 19), "20 or more": (20, None)}
MARKERS = "os^Dv*"


def true_picture_bars(counts: Mapping[str, Any]) -> Figure:
    """Of how many pictures captions are true, a colour a dataset: ``counts`` {dataset: (C,) true pictures of each caption}."""
    figure = Figure(figsize=(7.6, 3.2), layout="constrained")
    ax = figure.subplots()
    width = 0.8 / len(counts)
    for number, (name, values) in enumerate(counts.items()):
        values = np.asarray(values)
        shares = [100 * float(((values >= low) & (values <= (high or values.max()))).mean()) for low, high in TRUE_PICTURES.values()]
        x = np.arange(len(shares)) + (number - (len(counts) - 1) / 2) * width
        bars = ax.bar(x, shares, 0.92 * width, color=COLOURS[number % len(COLOURS)], label=f"{name}: {values.mean():.1f} on average")
        ax.bar_label(bars, fmt="%.0f", fontsize=8, padding=1)
    ax.set_xticks(range(len(TRUE_PICTURES)), list(TRUE_PICTURES))
    ax.set(xlabel="pictures that a caption is true of", ylabel="captions (%)")
    ax.grid(axis="y")
    ax.legend(loc="upper right")
    return figure


def points_on_circle(panels: Mapping[str, Mapping[str, Any]], links: Mapping[str, Sequence[tuple[Any, Any]]] | None = None,
                     apart: float = 0.0, width: float = 3.4) -> Figure:
    """Unit vectors of two numbers, a panel a situation: {title: {name: points (n, 2)}}, a colour and a marker a name.

    ``links`` {title: pairs of points} draws lines, each with the cosine of its ends. ``apart`` draws each name on a circle of its own,
    so much smaller than the one before, where points would cover each other. The lower half is left out if nothing is there.
    """
    names = list(dict.fromkeys(name for points in panels.values() for name in points))
    lowest = min(float(np.asarray(points, dtype=float)[..., 1].min()) for groups in panels.values() for points in groups.values())
    low = -1.15 if lowest < -0.15 else -0.2
    figure, axes = _grid(1, len(panels), (len(panels) * width, width * (1.15 - low) / 2.3 + 0.8))
    for ax, (title, groups) in zip(axes[0], panels.items()):
        for ends in (links or {}).get(title, ()):
            first, second = np.asarray(ends, dtype=float)
            ax.plot(*np.stack([first, second], axis=1), color=GREY, linestyle=":", linewidth=1.4)
            ax.text(*(0.4 * (first + second)), f"{first @ second:.2f}", ha="center", va="center", fontsize=9)
        for circle, (name, points) in enumerate(groups.items()):
            _points_on_arc(ax, np.atleast_2d(np.asarray(points, dtype=float)) * (1 - apart * circle), names.index(name), name, low)
        ax.set(xlim=(-1.15, 1.15), ylim=(low, 1.15), aspect="equal", xticks=[-1, 0, 1], yticks=[-1, 0, 1] if low < -1 else [0, 1], title=title,
               xlabel="first number")
    axes[0, 0].set_ylabel("second number")
    entries = {label: handle for ax in axes[0] for handle, label in zip(*ax.get_legend_handles_labels())}
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=min(5, len(entries)))
    return figure


def _points_on_arc(ax: Axes, points: np.ndarray, place: int, name: str, low: float) -> None:
    radius = float(np.linalg.norm(points[0]))
    turn = np.linspace(0, 2 * np.pi, 181) if low < -1 else np.linspace(-0.2, np.pi + 0.2, 121)
    ax.plot(radius * np.cos(turn), radius * np.sin(turn), color="#DDDDDD", linewidth=1, zorder=0)
    ax.plot(*points.T, MARKERS[place % len(MARKERS)], color=COLOURS[place % len(COLOURS)], markersize=9, alpha=0.9, linestyle="none", label=name)


def element_gradients(cosines: Any, weights: Mapping[str, Any], norms: Mapping[str, Any]) -> Figure:
    """What each similarity asks of two sets: its derivative by every cosine (above), and the gradient of every element (below).

    ``cosines`` (K, K') stand on the left, rows are elements x of the first set. ``weights`` {similarity: (K, K') dS/dc}, ``norms``
    {similarity: (K,) of ‖dS/dx‖}.
    """
    cosines = np.asarray(cosines, dtype=float)
    columns = 1 + len(weights)
    figure, axes = _grid(2, columns, (2.35 * columns, 4.4), height_ratios=(1.35, 1))
    tops = {"cosines c": cosines, **{f"dS/dc, {name}": np.asarray(value, dtype=float) for name, value in weights.items()}}
    largest = max(float(value.max()) for name, value in tops.items() if name != "cosines c")
    for ax, (title, values) in zip(axes[0], tops.items()):
        limits = (-1, 1) if title == "cosines c" else (0, largest)
        image = ax.imshow(values, vmin=limits[0], vmax=limits[1], cmap="viridis" if title == "cosines c" else "Blues")
        for (row, column), value in np.ndenumerate(values):
            ax.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8,
                    color="white" if _is_dark(image.cmap(image.norm(value))) else "black")
        ax.set_xticks(range(values.shape[1]), [f"y{_low(number)}" for number in range(1, values.shape[1] + 1)])
        ax.set_yticks(range(values.shape[0]), [f"x{_low(number)}" for number in range(1, values.shape[0] + 1)])
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        ax.set_title(title)
    axes[1, 0].set_axis_off()
    highest = 1.15 * max(float(np.asarray(value).max()) for value in norms.values())
    for ax, (name, values) in zip(axes[1, 1:], norms.items()):
        bars = ax.bar(range(len(values)), values, 0.7, color=SIMILARITIES.get(name, BLUE))
        ax.bar_label(bars, fmt="%.2f", fontsize=8, padding=1)
        ax.set_xticks(range(len(values)), [f"x{_low(number)}" for number in range(1, len(values) + 1)])
        ax.set(ylim=(0, highest))
        ax.grid(axis="y")
    axes[1, 1].set_ylabel("‖dS/dx‖")
    return figure


def _low(number: int) -> str:
    return "".join("₀₁₂₃₄₅₆₇₈₉"[int(digit)] for digit in str(number))


def alpha_curves(alphas: Sequence[float], weights: Any, scores: Sequence[float], limit: float, element: str = "x₁") -> Figure:
    """smooth-Chamfer as α grows: how much each element of the other set weighs for ``element`` (left), and the score (right).

    ``weights`` (A, K') add up to 1 a row; ``scores`` (A,); ``limit`` is Chamfer's score, where α → ∞ leads.
    """
    figure = Figure(figsize=(9.2, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, line in enumerate(np.asarray(weights, dtype=float).T):
        left.plot(alphas, line, MARKERS[number % len(MARKERS)] + "-", markersize=4, color=COLOURS[number % len(COLOURS)], label=f"y{_low(number + 1)}")
    right.plot(alphas, scores, "o-", markersize=4, color=SIMILARITIES["smooth-Chamfer"], label="smooth-Chamfer")
    right.axhline(limit, color=BLACK, linestyle="--", linewidth=1.2, label="Chamfer")
    left.set(ylabel=f"weight for {element}", ylim=(-0.03, 1.03))
    right.set(ylabel="similarity of the two sets")
    for ax in (left, right):
        ax.set_xscale("log", base=2)
        ax.set_xticks(list(alphas), [f"{alpha:g}" for alpha in alphas])
        ax.set_xlabel("α")
        ax.grid(axis="y")
        ax.legend(loc="best")
    return figure


def element_paths(paths: Mapping[str, Any], targets: Sequence[float]) -> Figure:
    """Where the elements of a set in the plane go, step by step, a panel a similarity: {title: (steps, K) degrees}.

    Dashed lines are ``targets``, the angles of the elements of the other set.
    """
    figure, axes = _grid(1, len(paths), (2.5 * len(paths), 3.1))
    for ax, (title, angles) in zip(axes[0], paths.items()):
        for target in targets:
            ax.axhline(target, color=BLACK, linestyle="--", linewidth=1.2)
        for number, line in enumerate(np.asarray(angles, dtype=float).T):
            ax.plot(line, (":", "-")[number % 2], color=SIMILARITIES.get(title.split(",")[0], BLUE), linewidth=2.2, label=f"x{_low(number + 1)}")
        low, high = min(targets), max(targets)
        ax.set(title=title, xlabel="step", ylim=(low - 15, high + 15), yticks=np.arange(0, 181, 30))
        ax.grid(axis="y")
    axes[0, 0].set_ylabel("angle (degrees)")
    axes[0, 0].legend(loc="center right")
    for ax in axes[0, 1:]:
        ax.set_yticklabels([])
    return figure


def slot_maps(panels: Mapping[str, Any], fragments: Sequence[str], cell: float = 0.62, numbers: bool = True, label: str = "weight") -> Figure:
    """Weights of slots (rows) over fragments (columns), a heat map a panel: {title: (K, F)}; one scale of colours from 0 on."""
    largest = max(float(np.asarray(values).max()) for values in panels.values())
    beside = 0.075 * max(map(len, fragments))
    rows = max(len(values) for values in panels.values())
    figure, axes = _grid(1, len(panels), (len(panels) * (cell * len(fragments) + 0.9) + 0.9, cell * rows + 0.9 + beside))
    for number, (ax, (title, values)) in enumerate(zip(axes[0], panels.items())):
        values = np.asarray(values, dtype=float)
        if values.shape[1] != len(fragments):
            raise InputError(f"weights of {len(fragments)} fragments have shape {values.shape}")
        image = ax.imshow(values, vmin=0, vmax=largest, aspect="auto", interpolation="nearest")
        for (row, column), value in np.ndenumerate(values) if numbers else ():
            ax.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8,
                    color="white" if _is_dark(image.cmap(image.norm(value))) else "black")
        ax.set_xticks(range(len(fragments)), fragments, rotation=45, ha="right", rotation_mode="anchor")
        ax.set_yticks(range(len(values)), [f"slot {row + 1}" if not number else "" for row in range(len(values))])
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        ax.set_title(title)
    figure.colorbar(image, ax=axes[0].tolist(), label=label, shrink=0.9, aspect=15)
    return figure


def slots_on_picture(picture: Any, boxes: Any, weights: Any, captions: Sequence[Sequence[str]], own: Sequence[Sequence[bool]],
                     true: Sequence[Sequence[bool]], scores: Sequence[Sequence[float]], title: str = "", width: float = 2.55) -> Figure:
    """What each slot takes of a picture, a column a slot, and below the captions that are nearest to its element.

    ``boxes`` (R, 4); ``weights`` (K, R) add up to 1 over the regions: a box is filled the more, the more the slot takes of it, and the
    frame is around the one it takes most of. ``captions``, ``own``, ``true`` and ``scores`` (K, n) as in :func:`caption_list`.
    """
    boxes, weights = np.asarray(boxes, dtype=float), np.asarray(weights, dtype=float)
    if weights.shape[1] != len(boxes):
        raise InputError(f"weights of {weights.shape[0]} slots over {len(boxes)} regions have shape {weights.shape}")
    wrap = int(15 * width)
    texts = [[textwrap.fill(f"{_verdict(*signs)[0]} {score:.2f}  {text}", wrap, max_lines=3, placeholder=" …")
              for text, score, *signs in zip(*column)] for column in zip(captions, scores, own, true)]
    lines = max(sum(text.count("\n") + 1 for text in column) for column in texts)
    tall = 0.148 * lines + 0.1 * len(texts[0])
    figure, axes = _grid(2, len(weights), (len(weights) * width, width + tall + (0.65 if title else 0.3)), height_ratios=(width, tall))
    figure.get_layout_engine().set(h_pad=0.09)
    for number, (above, below) in enumerate(axes.T):
        height, breadth = _picture(above, picture)
        top = _weighted_boxes(above, boxes * [breadth, height, breadth, height], weights[number])
        above.set_title(f"slot {number + 1}: at most {weights[number, top]:.2f}", fontsize=9)
        below.set_axis_off()
        below.set(xlim=(0, 1), ylim=(lines, 0))
        line = 0.0
        for text, *signs in zip(texts[number], own[number], true[number]):
            below.text(0, line, text, va="top", fontsize=8, color=_verdict(*signs)[1])
            line += text.count("\n") + 1.25
        below.set_ylim(max(lines + 0.25 * len(texts[0]), line), 0)
    if title:
        figure.suptitle(textwrap.fill(title, int(11 * width * len(weights))), x=0.01, ha="left", fontsize=10, weight="bold")
    return figure


def gradient_shares(shares: Mapping[str, Any]) -> Figure:
    """What share of a set's gradient its elements get, that with the largest first, a colour a similarity: {name: (K,)}."""
    figure = Figure(figsize=(7.0, 3.2), layout="constrained")
    ax = figure.subplots()
    width, count = 0.8 / len(shares), len(next(iter(shares.values())))
    for number, (name, values) in enumerate(shares.items()):
        x = np.arange(count) + (number - (len(shares) - 1) / 2) * width
        bars = ax.bar(x, 100 * np.asarray(values, dtype=float), 0.92 * width, color=SIMILARITIES.get(name, COLOURS[number % len(COLOURS)]), label=name)
        ax.bar_label(bars, fmt="%.0f", fontsize=8, padding=1)
    ax.axhline(100 / count, color=BLACK, linestyle="--", linewidth=1.2, label="even")
    ax.set_xticks(range(count), ["largest", *(f"no. {place}" for place in range(2, count + 1))])
    ax.set(xlabel="element of the picture's set, by its gradient", ylabel="share of the gradient (%)", ylim=(0, 112))
    ax.grid(axis="y")
    ax.legend(loc="upper right")
    return figure


def variance_histograms(variances: Mapping[str, Mapping[str, Any]], floor: float = 1e-7) -> Figure:
    """How far the elements of sets lie apart, a panel a side: {side: {model: (n,) circular variances}}, on a log axis.

    A triangle is the mean. Below ``floor`` a variance is drawn there.
    """
    figure, axes = _grid(1, len(variances), (4.8 * len(variances), 3.3))
    every = np.concatenate([np.asarray(values, dtype=float) for models in variances.values() for values in models.values()]).clip(floor, 1)
    edges = np.logspace(min(-2, np.floor(np.log10(every.min()))), 0, 41)
    for ax, (side, models) in zip(axes[0], variances.items()):
        for number, (name, values) in enumerate(models.items()):
            values, colour = np.asarray(values, dtype=float).clip(floor, 1), SIMILARITIES.get(name, COLOURS[number % len(COLOURS)])
            ax.stairs(100 * np.histogram(values, edges)[0] / len(values), edges, color=colour, linestyle=("-", (0, (4, 2)), ":", "-.")[number % 4],
                      linewidth=1.8, label=name)
            ax.plot(values.mean(), 0, "^", color=colour, markersize=9, clip_on=False, zorder=3)
        ax.set(title=side, xlabel="circular variance (0: collapsed, 1: in all directions)", xscale="log", xlim=(edges[0], 1.05), ylim=(0, None))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.grid(axis="y")
    axes[0, 0].set_ylabel("sets in the bin (%)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=min(4, len(axes[0, 0].get_legend_handles_labels()[1])))
    return figure


def paired_seeds(panels: Mapping[str, Mapping[str, Sequence[float]]], xlabel: str, ylabel: str) -> Figure:
    """Runs of the same seed joined by a line, a panel a dataset: {panel: {setting: one value a seed}}; the black line is the mean.

    Seeds stand in the same order at every setting; settings with another number of seeds raise :class:`InputError`.
    """
    figure, axes = _grid(1, len(panels), (4.6 * len(panels), 3.5))
    for ax, (title, settings) in zip(axes[0], panels.items()):
        values = [np.asarray(each, dtype=float) for each in settings.values()]
        if len({len(each) for each in values}) > 1:
            raise InputError(f"{title}: settings have {', '.join(str(len(each)) for each in values)} seeds; pairs need the same")
        table = np.stack(values)
        for number, line in enumerate(table.T):
            ax.plot(line, MARKERS[number % len(MARKERS)] + "-", color=COLOURS[number % len(COLOURS)], linewidth=1.2, markersize=5, alpha=0.9,
                    label=f"seed {number}")
        ax.plot(table.mean(1), "-", color=BLACK, linewidth=2.6, label="mean")
        ax.set_xticks(range(len(settings)), list(settings))
        ax.set(title=title, xlabel=xlabel, xlim=(-0.3, len(settings) - 0.7))
        ax.grid(axis="y")
    axes[0, 0].set_ylabel(ylabel)
    entries = {label: handle for ax in axes[0] for handle, label in zip(*ax.get_legend_handles_labels())}
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=len(entries))
    return figure


def group_bars(values: Mapping[str, Mapping[str, float]], xlabel: str, ylabel: str) -> Figure:
    """One bar a model and group: {model: {group: value}}, the groups from left to right."""
    figure = Figure(figsize=(7.6, 3.2), layout="constrained")
    ax = figure.subplots()
    width, groups = 0.8 / len(values), list(next(iter(values.values())))
    for number, (name, each) in enumerate(values.items()):
        x = np.arange(len(groups)) + (number - (len(values) - 1) / 2) * width
        bars = ax.bar(x, [each[group] for group in groups], 0.92 * width, color=COLOURS[number % len(COLOURS)], label=name)
        ax.bar_label(bars, fmt="%.0f", fontsize=8, padding=1)
    ax.set_xticks(range(len(groups)), groups)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.margins(y=0.12)
    ax.grid(axis="y")
    figure.legend(loc="outside right center")
    return figure


def setting_curves(panels: Mapping[str, Mapping[float, float]], xlabel: str, chosen: float | None = None) -> Figure:
    """One quantity a panel against a setting: {quantity: {setting: value}}; a ring marks the setting ``chosen``."""
    figure, axes = _grid(1, len(panels), (4.2 * len(panels), 3.0))
    for ax, (name, values) in zip(axes[0], panels.items()):
        ax.plot(list(values), list(values.values()), "o-", color=BLUE)
        if chosen in values:
            ax.plot(chosen, values[chosen], "o", markersize=12, fillstyle="none", color=BLACK)
        ax.set_xticks(list(values), [f"{setting:g}" for setting in values])
        ax.set(xlabel=xlabel, ylabel=name)
        ax.grid(axis="y")
    return figure


# ---- 06 Reproduction -----------------------------------------------------------------------------------------------------

def recall_curves(models: Mapping[str, Mapping[str, float]], ceiling: Mapping[str, float] | None = None) -> Figure:
    """Recall@K against K, a panel a direction and a line a model; the dashed line is the ceiling of a perfect matcher.

    ``models`` {model: {"i2t_r1": percent, ...}}, ``ceiling`` the same of the perfect matcher.
    """
    figure = Figure(figsize=(10.4, 3.7), layout="constrained")
    places = (1, 5, 10)
    for ax, direction in zip(figure.subplots(1, 2, sharey=True), DIRECTIONS):
        for number, (name, metrics) in enumerate(models.items()):
            ax.plot(range(3), [metrics[f"{direction}_r{k}"] for k in places], marker=MARKERS[number % len(MARKERS)],
                    color=COLOURS[number % len(COLOURS)], label=name, linestyle="-" if number < len(COLOURS) else ":")
        if ceiling is not None:
            ax.plot(range(3), [ceiling[f"{direction}_r{k}"] for k in places], "--", color=BLACK, linewidth=1.2, label="perfect matcher")
        ax.set_xticks(range(3), [f"R@{k}" for k in places])
        ax.set(title=DIRECTIONS[direction])
        ax.grid(axis="y")
    figure.axes[0].set_ylabel("queries answered (%)")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center")
    return figure


def chosen_epochs(runs: Mapping[str, Mapping[str, Sequence[float]]], metric: str = "rsum") -> Figure:
    """A panel a run: ``metric`` on val and on test after every epoch, the epoch that val chooses and the one that test would.

    ``runs`` {run: {"val": one value an epoch, "test": the same}}. The ring is what may be reported, the star what choosing on
    test would report.
    """
    columns = min(3, len(runs))
    figure, axes = _grid(-(-len(runs) // columns), columns, (3.5 * columns, 2.7 * -(-len(runs) // columns)))
    for ax, (name, run) in zip(axes.flat, runs.items()):
        val, test = np.asarray(run["val"], dtype=float), np.asarray(run["test"], dtype=float)
        if len(val) != len(test):
            raise InputError(f"{name}: {len(val)} epochs on val and {len(test)} on test")
        epochs, on_val, on_test = np.arange(1, len(val) + 1), int(val.argmax()), int(test.argmax())
        ax.plot(epochs, val, "--", color=GREY, label="val")
        ax.plot(epochs, test, "-", color=BLUE, label="test")
        ax.plot(epochs[on_val], test[on_val], "o", markersize=12, fillstyle="none", color=BLACK, label="chosen on val")
        ax.plot(epochs[on_test], test[on_test], "*", markersize=11, color=RED, label="chosen on test")
        # only the end matters: the first epochs are far below
        ax.set(title=f"{name}: test flatters by {test[on_test] - test[on_val]:.1f}", ylim=(np.quantile([val, test], 0.3), None))
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.grid(axis="y")
    for ax in axes.flat[len(runs):]:
        ax.set_axis_off()
    for ax in axes[:, 0]:
        ax.set_ylabel(metric)
    for ax in list(axes.flat)[max(0, len(runs) - columns):len(runs)]:
        ax.set_xlabel("epoch")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def spreads(rows: Mapping[str, tuple[float, str]], xlabel: str, groups: Mapping[str, str]) -> Figure:
    """Standard deviations as bars, one a row: {what varies: (sd, group)}; ``groups`` {group: colour} is the legend."""
    figure = Figure(figsize=(8.4, 1.2 + 0.32 * len(rows)), layout="constrained")
    ax = figure.subplots()
    bars = ax.barh(range(len(rows)), [value for value, _ in rows.values()], 0.66, color=[groups[group] for _, group in rows.values()])
    ax.bar_label(bars, fmt="%.1f", padding=3)
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set(xlabel=xlabel, ylim=(len(rows) - 0.5, -0.5))
    ax.margins(x=0.1)
    ax.grid(axis="x")
    used = {group for _, group in rows.values()}
    handles = [Rectangle((0, 0), 1, 1, color=colour, label=group) for group, colour in groups.items() if group in used]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return figure


def draws(panels: Mapping[str, tuple[Any, float, tuple[float, float]]], mark: float | None = None) -> Figure:
    """A panel a quantity: the histogram of its bootstrap draws, the measured value, and the interval that holds 95 % of them.

    ``panels`` {quantity: (draws, measured, (low, high))}; ``mark`` draws a dashed line, 0 for differences.
    """
    figure, axes = _grid(1, len(panels), (4.3 * len(panels), 3.0))
    for ax, (name, (values, measured, (low, high))) in zip(axes[0], panels.items()):
        ax.hist(np.asarray(values, dtype=float), bins=40, color=SKY)
        ax.axvspan(low, high, color=GREY, alpha=0.2, linewidth=0)
        ax.axvline(measured, color=BLACK, linewidth=2)
        if mark is not None:
            ax.axvline(mark, color=RED, linestyle="--")
        ax.set(xlabel=name, yticks=[], title=f"{measured:.1f}; 95 % from {low:.1f} to {high:.1f}")
        ax.spines["left"].set_visible(False)
    return figure


def search_cost(models: Mapping[str, Mapping[str, Any]], gallery: str) -> Figure:
    """rsum against the time of a query on a log axis (left), and what that time is made of (right), a colour a model.

    ``models`` {name: {"rsum": one value a seed, "encode": ms, "score": ms}} as in :func:`efficiency`, for any number of models:
    points are numbered, and the numbers stand in front of the names on the right.
    """
    figure = Figure(figsize=(10.6, 1.6 + 0.36 * len(models)), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, each in enumerate(models.values()):
        colour, rsum = COLOURS[number % len(COLOURS)], np.asarray(each["rsum"], dtype=float)
        total = each["encode"] + each["score"]
        left.errorbar(total, rsum.mean(), yerr=rsum.std(ddof=1) if len(rsum) > 1 else 0, fmt="o", color=colour, capsize=3, markersize=13)
        left.text(total, rsum.mean(), str(number + 1), color="white" if colour in (BLUE, RED) else BLACK, ha="center", va="center", fontsize=8, weight="bold")
        right.barh(number, each["encode"], 0.62, color=GREY)
        right.barh(number, each["score"], 0.62, left=each["encode"], color=colour)
        right.text(total * 1.1, number, f"{total:.3g}", va="center", fontsize=9)
    for ax in (left, right):
        ax.set_xscale("log")
        ax.grid(axis="x")
    left.grid(axis="y")
    left.margins(x=0.15, y=0.15)
    left.set(xlabel=f"ms for a query, a gallery of {gallery}", ylabel="rsum on test")
    least = min(each["encode"] for each in models.values())
    right.set_yticks(range(len(models)), [f"{number}  {name}" for number, name in enumerate(models, 1)])
    right.set(xlabel="ms: grey to encode the query, colour to score the gallery", ylim=(len(models) - 0.5, -0.5),
              xlim=(least / 2, 4 * max(each["encode"] + each["score"] for each in models.values())))
    return figure


def published(rows: Mapping[str, tuple[float, float | None]], xlabel: str) -> Figure:
    """Values that papers report, a row each, with a bar of one standard deviation where one is known: {row: (value, sd or None)}."""
    figure = Figure(figsize=(8.8, 0.9 + 0.3 * len(rows)), layout="constrained")
    ax = figure.subplots()
    for number, (value, spread) in enumerate(rows.values()):
        ax.errorbar(value, number, xerr=spread, fmt="o" if spread is None else "D", color=BLUE if spread is None else ORANGE, capsize=3, markersize=6)
        ax.annotate(f"{value:.1f}" + ("" if spread is None else f" ± {spread:.1f}"), (value, number), (10 if spread is None else 14, 0),
                    textcoords="offset points", va="center", fontsize=9)
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set(xlabel=xlabel, ylim=(len(rows) - 0.5, -0.5))
    ax.margins(x=0.12)
    ax.grid(axis="x")
    return figure


# ---- 07 Training on GPUs -------------------------------------------------------------------------------------------------

FP16 = (2.0**-25, 2.0**-14, 65504.0)  # what is at most the first becomes 0, below the second digits are lost, above the third it is infinite
PARTS = {"loading": GREY, "encoding": SKY, "scoring and loss": ORANGE, "backward": BLUE, "update": GREEN}


def lines(panels: Mapping[str, Mapping[str, Mapping[float, float]]], xlabel: str, ylabels: Sequence[str], log: str = "",
          marks: Mapping[str, float] | None = None) -> Figure:
    """Curves, a panel each: {title: {curve: {x: y}}}; ``log`` is "x", "y" or "xy", of base 2 along x. ``marks`` {label: y}: dashed lines."""
    figure, axes = _grid(1, len(panels), (5.0 * len(panels) if len(panels) > 1 else 6.6, 3.4))
    for ax, (title, curves), ylabel in zip(axes[0], panels.items(), ylabels):
        for number, (name, values) in enumerate(curves.items()):
            look = {"marker": MARKERS[(number + number // len(COLOURS)) % len(MARKERS)]} if len(values) <= 20 else {"linestyle": ("-", "--", ":")[number % 3], "linewidth": (7, 2.5, 2.5)[number % 3],
                                                                                      "alpha": (0.35, 1, 1)[number % 3]}
            ax.plot(list(values), list(values.values()), color=COLOURS[number % len(COLOURS)], markersize=5, label=name, **look)
        for name, level in (marks or {}).items():
            ax.axhline(level, color=BLACK, linestyle="--", linewidth=1.2, label=name)
        if "x" in log:
            ax.set_xscale("log", base=2)
            ticks = sorted({x for values in curves.values() for x in values})
            ax.set_xticks(ticks, [f"{x:g}" for x in ticks])
            ax.xaxis.set_minor_formatter(NullFormatter())
        if "y" in log:
            ax.set_yscale("log")
        ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
        ax.grid()
        ax.legend(loc="best")
    return figure


def gradient_range(panels: Mapping[str, Any]) -> Figure:
    """Sizes of gradients against what half precision (fp16) can hold, a panel each: {title: magnitudes}; zeros are left out.

    Red: becomes 0. Orange: keeps fewer digits. On the right, red again: infinite. The title says how much of all is lost.
    """
    figure, axes = _grid(len(panels), 1, (8.6, 1.9 * len(panels) + 0.4))
    zero, few, largest = FP16
    for ax, (title, values) in zip(axes[:, 0], panels.items()):
        values = np.abs(np.asarray(values, dtype=float).ravel())
        values = values[values > 0]
        ax.hist(np.log2(values), bins=np.arange(-60, 24, 1.0), color=BLUE, weights=np.full(len(values), 100 / len(values)))
        for low, high, colour in ((-60, np.log2(zero), RED), (np.log2(zero), np.log2(few), ORANGE), (np.log2(largest), 24, RED)):
            ax.axvspan(low, high, color=colour, alpha=0.18, linewidth=0)
        lost, over = 100 * (values <= zero).mean(), 100 * (values > largest).mean()
        ax.set(title=f"{title}: {lost:.1f} % become 0, {over:.1f} % infinite", ylabel="gradients (%)", xlim=(-60, 24))
        ax.set_xticks(range(-60, 21, 10), [f"2^{power}" if power else "1" for power in range(-60, 21, 10)])
        ax.set_xticks([], minor=True)
    axes[-1, 0].set_xlabel("size of a gradient")
    return figure


def seen_pairs(panels: Mapping[str, Any]) -> Figure:
    """Which pairs of a step are scored, a panel each: {title: (B, B)}, 2 a match, 1 a negative, 0 a pair that nobody scores."""
    figure, axes = _grid(1, len(panels), (2.75 * len(panels), 3.2))
    colours = np.array([[0.92, 0.92, 0.92], [0.34, 0.71, 0.91], [0.0, 0.62, 0.45]])
    for ax, (title, values) in zip(axes[0], panels.items()):
        values = np.asarray(values, dtype=int)
        ax.imshow(colours[values], interpolation="nearest")
        for line in range(1, len(values)):
            ax.axhline(line - 0.5, color="white", linewidth=1)
            ax.axvline(line - 0.5, color="white", linewidth=1)
        ax.spines[:].set_visible(False)
        ax.set(xticks=[], yticks=[], title=title, xlabel=f"captions\n{int((values == 1).sum())} negatives")
    axes[0, 0].set_ylabel("pictures")
    handles = [Rectangle((0, 0), 1, 1, color=colour, label=what) for colour, what in zip(colours[::-1], ("match", "negative", "not scored"))]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def time_parts(models: Mapping[str, Mapping[str, float]], rate: Mapping[str, float] | None = None) -> Figure:
    """Where a training step goes: {model: {part: ms}} as shares, the whole in ms at the end of the bar, with ``rate`` {model: pairs/s}."""
    figure = Figure(figsize=(9.6, 1.3 + 0.42 * len(models)), layout="constrained")
    ax = figure.subplots()
    for number, (name, parts) in enumerate(models.items()):
        whole, left = sum(parts.values()), 0.0
        for part, value in parts.items():
            share = 100 * value / whole
            ax.barh(number, share, 0.66, left=left, color=PARTS[part])
            if share >= 5:
                ax.text(left + share / 2, number, f"{share:.0f}", ha="center", va="center", fontsize=9,
                        color="white" if part in ("backward", "loading", "update") else BLACK)
            left += share
        ax.text(101, number, f"{whole:.3g} ms" + (f", {rate[name]:.0f} pairs/s" if rate else ""), va="center")
    ax.set_yticks(range(len(models)), list(models))
    ax.set(xlabel="share of a training step (%)", xlim=(0, 125 if rate else 115), xticks=range(0, 101, 20), ylim=(len(models) - 0.5, -0.5))
    handles = [Rectangle((0, 0), 1, 1, color=PARTS[part], label=part) for part in next(iter(models.values()))]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return figure


def resumed_run(whole: Mapping[float, float], before: Mapping[float, float], after: Mapping[float, float], checkpoint: float, title: str = "") -> Figure:
    """Loss by step of a run that nothing stopped, and of one that was killed: what was done ``before``, and what was done ``after`` it was
    started again from ``checkpoint``."""
    figure = Figure(figsize=(8.8, 3.3), layout="constrained")
    ax = figure.subplots()
    ax.plot(list(whole), list(whole.values()), color=GREY, linewidth=5, alpha=0.45, label="never stopped")
    ax.plot(list(before), list(before.values()), color=RED, label="killed")
    ax.plot(list(after), list(after.values()), "--", color=BLUE, label="started again")
    ax.axvline(checkpoint, color=BLACK, linestyle=":", label="its last checkpoint")
    ax.set(xlabel="step", ylabel="loss", title=title)
    ax.grid(axis="y")
    ax.legend(loc="best")
    return figure


# ---- 08 Search -----------------------------------------------------------------------------------------------------------

def inverted_lists(points: Any, centres: Any, query: Any, probed: Sequence[int], found: Sequence[int], exact: Sequence[int], title: str = "") -> Figure:
    """An inverted file in the plane: every point in the cell of its nearest centre, and the cells that a query looks into.

    ``points`` (n, 2), ``centres`` (m, 2), ``query`` (2,); ``probed`` are the cells that are searched, ``found`` and ``exact`` the
    numbers of the points that the search returns and should return: a ring and a cross.
    """
    points, centres, query = (np.asarray(each, dtype=float) for each in (points, centres, query))
    figure = Figure(figsize=(7.4, 4.6), layout="constrained")
    ax = figure.subplots()
    low, high = np.minimum(points.min(0), query) - 0.08, np.maximum(points.max(0), query) + 0.08
    x, y = np.meshgrid(np.linspace(low[0], high[0], 400), np.linspace(low[1], high[1], 400))
    cells = ((np.stack([x, y], -1)[:, :, None] - centres) ** 2).sum(-1).argmin(-1)
    ax.contour(x, y, cells, levels=np.arange(len(centres)) + 0.5, colors=GREY, linewidths=1)
    ax.imshow(np.where(np.isin(cells, probed), 1.0, np.nan), extent=(low[0], high[0], low[1], high[1]), origin="lower", cmap="Wistia", alpha=0.35, vmin=0, vmax=1, aspect="auto")
    ax.plot(*points.T, ".", color=BLUE, markersize=7, label="stored vector")
    ax.plot(*centres.T, "P", color=BLACK, markersize=9, label="centre of a cell")
    ax.plot(*points[list(found)].T, "o", fillstyle="none", color=GREEN, markersize=12, markeredgewidth=2, label="found")
    ax.plot(*points[list(exact)].T, "x", color=RED, markersize=8, markeredgewidth=2, label="truly nearest")
    ax.plot(*query, "*", color=ORANGE, markeredgecolor=BLACK, markersize=18, label="query")
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xlabel="first number", ylabel="second number", title=title)
    figure.legend(loc="outside right center")
    return figure


def code_words(parts: Mapping[str, tuple[Any, Any, Any]], names: Sequence[str] | None = None) -> Figure:
    """Product quantisation, a panel a part: {title: (pieces (n, 2), words (k, 2), codes (n,))}, each piece joined to its word.

    ``names`` labels the pieces.
    """
    figure, axes = _grid(1, len(parts), (4.6 * len(parts), 3.9))
    for ax, (title, (pieces, words, codes)) in zip(axes[0], parts.items()):
        pieces, words, codes = np.asarray(pieces, dtype=float), np.asarray(words, dtype=float), np.asarray(codes, dtype=int)
        for number, (piece, code) in enumerate(zip(pieces, codes)):
            ax.plot(*np.stack([piece, words[code]]).T, "-", color=GREY, linewidth=1)
            ax.plot(*piece, "o", color=COLOURS[code % len(COLOURS)], markersize=7)
            if names is not None:
                ax.annotate(names[number], piece, (9, 7), textcoords="offset points", fontsize=9)
        for number, word in enumerate(words):
            ax.plot(*word, "s", color=COLOURS[number % len(COLOURS)], markeredgecolor=BLACK, markersize=12)
            ax.annotate(str(number), word, color="white", ha="center", va="center", fontsize=8, weight="bold")
        ax.set(title=title, xlabel="first number of the part", ylabel="second number of the part")
        ax.margins(0.15)
    return figure


def graph_walk(points: Any, layers: Sequence[Sequence[tuple[int, int]]], walks: Sequence[Sequence[int]], query: Any) -> Figure:
    """A walk through a graph of neighbours, a panel a layer, the top one first: ``layers`` are edges, ``walks`` the points visited in order.

    ``points`` (n, 2) are those of all layers; a layer has the points that its edges or its walk name.
    """
    points, query = np.asarray(points, dtype=float), np.asarray(query, dtype=float)
    figure, axes = _grid(1, len(layers), (4.3 * len(layers), 3.9))
    for number, (ax, edges, walk) in enumerate(zip(axes[0], layers, walks)):
        used = sorted({end for edge in edges for end in edge} | set(walk))
        for edge in edges:
            ax.plot(*points[list(edge)].T, "-", color=GREY, alpha=0.6, linewidth=1)
        ax.plot(*points[used].T, "o", color=SKY, markersize=8)
        for first, second in zip(walk, walk[1:]):
            ax.annotate("", points[second], points[first], arrowprops={"arrowstyle": "-|>", "color": RED, "linewidth": 2, "shrinkA": 5, "shrinkB": 5})
        ax.plot(*points[walk[0]], "s", color=BLACK, markersize=10)
        ax.plot(*points[walk[-1]], "o", fillstyle="none", color=GREEN, markersize=15, markeredgewidth=2.2)
        ax.plot(*query, "*", color=ORANGE, markeredgecolor=BLACK, markersize=17)
        low, high = np.minimum(points.min(0), query), np.maximum(points.max(0), query)
        ax.set(title=f"layer {len(layers) - 1 - number}: {len(used)} points", xticks=[], yticks=[], xlim=(low[0] - 0.08, high[0] + 0.08), ylim=(low[1] - 0.08, high[1] + 0.08))
    handles = [Line2D([], [], linestyle="none", marker=marker, color=colour, fillstyle=fill, markersize=10, label=label) for marker, colour, fill, label in (
        ("s", BLACK, "full", "where the walk begins"), ("o", GREEN, "none", "where it ends"), ("*", ORANGE, "full", "query"))]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def recall_against_time(panels: Mapping[str, Mapping[str, Mapping[float, tuple[float, float]]]], exact: Mapping[str, float], limit: float = 0.0,
                        xlabel: str = "ms a query") -> Figure:
    """What a setting of an approximate index trades, a panel each: {title: {index: {setting: (ms a query, recall in percent)}}}.

    ``exact`` {title: ms a query of exact search} draws a dashed line. The settings stand beside the points. ``limit``: where the
    axis of recall begins.
    """
    figure, axes = _grid(1, len(panels), (5.2 * len(panels), 3.8))
    for ax, (title, indexes) in zip(axes[0], panels.items()):
        for number, (name, points) in enumerate(indexes.items()):
            x, y = zip(*points.values())
            ax.plot(x, y, MARKERS[number] + "-", color=COLOURS[number], markersize=6, label=name)
            for setting, point in points.items():
                ax.annotate(f"{setting:g}", point, (4, -11), textcoords="offset points", fontsize=8, color=COLOURS[number])
        ax.axvline(exact[title], color=BLACK, linestyle="--", linewidth=1.2, label="exact search")
        ax.set(xscale="log", title=title, xlabel=xlabel, ylim=(limit, 104))
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.margins(x=0.12)
        ax.grid()
    axes[0, 0].set_ylabel("recall@10 against exact (%)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


# ---- 09 Real photographs ---------------------------------------------------------------------------------------------------

VERDICTS = {"holds": (GREEN, "o"), "open": (GREY, "s"), "reversed": (RED, "v")}
MISTAKES = {"subject": BLUE, "action": ORANGE, "number": PURPLE, "colour": RED, "setting": SKY, "none": GREEN}


def differences(rows: Sequence[tuple[str, float, float, float, str, float | None]], xlabel: str) -> Figure:
    """Differences with their intervals, a row each: (name, mean, low, high, verdict, a paper's difference or None).

    The verdict, "holds", "open" or "reversed", is the colour and the marker; a paper's difference is a black diamond without an interval.
    """
    figure = Figure(figsize=(9.6, 1.3 + 0.27 * len(rows)), layout="constrained")
    ax = figure.subplots()
    for number, (_, mean, low, high, verdict, paper) in enumerate(rows):
        colour, marker = VERDICTS[verdict]
        if np.isfinite([low, high]).all():  # one seed has no interval
            ax.plot([low, high], [number, number], color=colour, linewidth=2)
        ax.plot(mean, number, marker, color=colour, markersize=6)
        if paper is not None:
            ax.plot(paper, number, "D", color=BLACK, markersize=4)
    ax.axvline(0, color=BLACK, linewidth=1)
    ax.set_yticks(range(len(rows)), [name for name, *_ in rows])
    ax.set(xlabel=xlabel, ylim=(len(rows) - 0.5, -0.5))
    ax.grid(axis="x")
    used = {verdict for *_, verdict, _ in rows}
    handles = [Line2D([], [], color=colour, marker=marker, label=verdict) for verdict, (colour, marker) in VERDICTS.items() if verdict in used]
    if any(paper is not None for *_, paper in rows):
        handles.append(Line2D([], [], color=BLACK, marker="D", linestyle="", markersize=4, label="the paper, Flickr30K"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return figure


def mistake_bars(panels: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Figure:
    """Wrong first answers by kind, a panel a direction and a bar a model: {title: {model: {kind: percent of the queries}}}."""
    names = list(dict.fromkeys(name for models in panels.values() for name in models))
    figure = Figure(figsize=(5.4 * len(panels), 1.2 + 0.36 * len(names)), layout="constrained")
    for ax, (title, models) in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items()):
        for number, name in enumerate(names):
            left = 0.0
            for kind, value in models.get(name, {}).items():
                ax.barh(number, value, 0.7, left=left, color=MISTAKES[kind])
                if value >= 4:
                    ax.text(left + value / 2, number, f"{value:.0f}", ha="center", va="center", fontsize=8,
                            color="white" if MISTAKES[kind] in (BLUE, RED) else BLACK)
                left += value
        ax.set_yticks(range(len(names)), names)
        ax.set(title=title, xlabel="queries with a wrong first answer (%)", ylim=(len(names) - 0.5, -0.5))
    handles = [Rectangle((0, 0), 1, 1, color=colour, label=kind) for kind, colour in MISTAKES.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return figure
