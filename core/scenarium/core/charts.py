"""Plots for a plugin's hook ``report``: each returns a self-contained SVG or HTML fragment for ``Figure(title, html)``.

    return [Figure("Confusion matrix", charts.confusion_matrix(true, predicted, labels))]

matplotlib draws without pyplot, so there is no global state; text becomes paths, so a reader needs no font. Chinese text is
drawn with the font that ``scenarium.core.fonts`` finds. matplotlib is imported when a plot is drawn.
"""

from __future__ import annotations

import base64
import html
import io
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

INK, BLUE, ORANGE, GREY = "#1f2933", "#2563eb", "#ea580c", "#9aa5b1"
_PALETTE = ("#dbeafe", "#dcfce7", "#fee2e2", "#fef9c3", "#ede9fe", "#cffafe", "#ffedd5", "#fce7f3")


def confusion_matrix(true: Sequence[str], predicted: Sequence[str], labels: Sequence[str] | None = None, *, limit: int = 25) -> str:
    """Counts of (true, predicted) label pairs as SVG; shade is the share of the true label's row.

    Args:
        true: the labels of the rows.
        predicted: the answers, as many and in the same order.
        labels: order of the axes; None: sorted.
        limit: most labels shown: the most frequent ones; the rest is left out and said below the plot.
    """
    import numpy as np

    names = list(labels) if labels is not None else sorted({*true, *predicted})
    if len(names) > limit:
        names = sorted(names, key=lambda name: -sum(t == name for t in true))[:limit]
    at = {name: position for position, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    for t, p in zip(true, predicted, strict=True):
        if t in at and p in at:
            counts[at[t], at[p]] += 1
    side = min(2.2 + 0.45 * len(names), 11)
    canvas, axes = _canvas(side + 0.8, side)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(counts.shape):
        if counts[row, column]:
            ink = "white" if shares[row, column] > 0.55 else INK
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=8, color=ink)
    axes.set_xticks(range(len(names)), names, rotation=45 if max(map(len, names), default=0) > 3 else 0, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted / 预测", ylabel="true / 实际")
    for spine in axes.spines.values():
        spine.set_visible(False)
    left_out = len(true) - int(counts.sum())
    return _svg(canvas) + (f"<p>{left_out} pairs with rarer labels are not shown / 另有 {left_out} 个稀有标签的样本未显示</p>" if left_out else "")


def precision_recall_curve(true: Sequence[bool], scores: Mapping[str, Sequence[float]] | Sequence[float]) -> str:
    """Precision over recall as SVG, with the average precision of each method in the legend.

    Average precision is the step-wise sum over thresholds, as scikit-learn defines it.

    Args:
        true: whether each row is positive.
        scores: method name to scores (higher = more positive), or one method's scores.
    """
    from sklearn.metrics import average_precision_score
    from sklearn.metrics import precision_recall_curve as curve

    methods = scores if isinstance(scores, Mapping) else {"": scores}
    canvas, axes = _canvas(5.2, 3.6)
    for name, values in methods.items():
        precision, recall, _ = curve(list(true), list(values))
        axes.step(recall, precision, where="post", label=f"{name} AP {average_precision_score(list(true), list(values)):.3f}".strip())
    share = sum(map(bool, true)) / max(len(true), 1)
    axes.axhline(share, color=GREY, linestyle=":", label=f"chance / 随机 {share:.3f}")
    axes.set(xlabel="recall / 召回率", ylabel="precision / 精确率", xlim=(0, 1.01), ylim=(0, 1.03))
    axes.legend(frameon=False)
    return _svg(canvas)


def forecast_fan(
    history: Sequence[float],
    quantiles: Mapping[float, Sequence[float]],
    actual: Sequence[float] | None = None,
    *,
    title: str = "",
    times: Sequence[Any] | None = None,
) -> str:
    """Past values and the forecast's quantiles as a fan, as SVG.

    Args:
        history: the last known values, oldest first.
        quantiles: level (0.1, 0.5, …) to one value a step of the horizon; levels p and 1-p become one band.
        actual: what really came, as long as the horizon.
        title: shown above.
        times: labels or datetimes of history and horizon together; None: steps, 0 is the last known value.
    """
    levels = sorted(quantiles)
    steps = len(next(iter(quantiles.values())))
    x: list[Any] = list(times) if times is not None else list(range(1 - len(history), steps + 1))
    past, ahead = x[: len(history)], x[len(history) - 1 :]
    last = [history[-1]]  # known exactly: every line begins there
    canvas, axes = _canvas(7, 3.4)
    axes.plot(past, list(history), color=INK, label="history / 历史")
    pairs = [(low, high) for low in levels for high in levels if low < 0.5 and abs(high - (1 - low)) < 1e-9]
    for number, (low, high) in enumerate(pairs, 1):
        band, shade = f"{round((high - low) * 100)} %", 0.15 + 0.35 * number / len(pairs)
        colour = [1 - shade * (1 - int(BLUE[at : at + 2], 16) / 255) for at in (1, 3, 5)]  # opaque, so that the legend shows the same
        axes.fill_between(ahead, [*last, *quantiles[low]], [*last, *quantiles[high]], color=colour, linewidth=0, label=band)
    if 0.5 in quantiles:
        axes.plot(ahead, [*last, *quantiles[0.5]], color=BLUE, label="median / 中位数")
    if actual is not None:
        axes.plot(ahead[: len(actual) + 1], [*last, *actual], color=ORANGE, linestyle="--", label="actual / 实际")
    axes.set_xlabel("steps from the last known value / 距最后已知值的步数" if times is None else "")
    axes.set_title(title)
    _legend(axes, 6)
    return _svg(canvas)


def lines(series: Mapping[str, Sequence[tuple[float, float]]], *, x: str = "", y: str = "", log: bool = False, width: float = 5.2, height: float = 2.8) -> str:
    """Named lines of (x, y) points as SVG; ``log`` makes the y axis logarithmic."""
    canvas, axes = _canvas(width, height)
    for name, points in series.items():
        marker = "o" if len(points) < 30 else None
        axes.plot([p[0] for p in points], [p[1] for p in points], label=name, marker=marker, markersize=3, linewidth=1.4)
    axes.set(xlabel=x, ylabel=y, yscale="log" if log else "linear")
    if len(series) > 1:
        _legend(axes, 4)
    return _svg(canvas)


def bars(values: Mapping[str, float], *, unit: str = "", limit: int = 30) -> str:
    """Named values as horizontal bars, in the order given, as SVG; at most ``limit`` of them."""
    names = list(values)[:limit]
    canvas, axes = _canvas(6, 0.7 + 0.28 * len(names))
    drawn = axes.barh(names, [values[name] for name in names], color=BLUE, height=0.65)
    axes.bar_label(drawn, fmt="%.4g", padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel(unit)
    return _svg(canvas)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """An HTML table. Floats are shown with four significant digits; all text is escaped."""
    cells = "".join(f"<th>{html.escape(str(cell))}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td{_kind(cell)}>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div class=table><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>"


def metrics_table(metrics: Mapping[str, Mapping[str, float]]) -> str:
    """Method to (metric to value) as an HTML table, one row a method."""
    names = list(dict.fromkeys(name for found in metrics.values() for name in found))
    return table(["", *names], [[method, *(found.get(name, "") for name in names)] for method, found in metrics.items()])


def entity_table(rows: Sequence[tuple[str, Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]], *, limit: int = 20) -> str:
    """Texts with their true and predicted entities marked, as an HTML table.

    Args:
        rows: (text, true entities, predicted entities); an entity has ``start``, ``end`` (code points, end exclusive) and ``label``.
        limit: most rows shown.
    """
    labels = sorted({str(entity["label"]) for _, true, predicted in rows for entity in (*true, *predicted)})
    colours = {label: _PALETTE[position % len(_PALETTE)] for position, label in enumerate(labels)}
    body = "".join(f"<tr><td>{_marked(text, true, colours)}</td><td>{_marked(text, predicted, colours)}</td></tr>" for text, true, predicted in rows[:limit])
    return f"<div class=table><table class=entities><thead><tr><th>true / 实际</th><th>predicted / 预测</th></tr></thead><tbody>{body}</tbody></table></div>"


def image_grid(images: Sequence[np.ndarray], captions: Sequence[str] | None = None, *, columns: int = 6, limit: int = 24, side: int = 120) -> str:
    """Images as an HTML grid of embedded PNGs.

    Args:
        images: ``uint8`` ``[H, W]`` or ``[H, W, 3]``; other dtypes are scaled from their own minimum and maximum.
        captions: one a picture.
        columns: pictures in a row, fewer where the page is narrow.
        limit: most pictures shown.
        side: width of a picture on the page, pixels.
    """
    texts = list(captions) if captions is not None else [""] * len(images)
    cells = "".join(
        f"<figure><img width={side} src='{_png(image)}' alt='{html.escape(text, quote=True)}'><figcaption>{html.escape(text)}</figcaption></figure>"
        for image, text in zip(images[:limit], texts, strict=False)
    )
    return f"<div class=grid style='grid-template-columns:repeat(auto-fill,{side}px);max-width:{columns * (side + 8)}px'>{cells}</div>"


def heat_maps(images: Sequence[np.ndarray], maps: Sequence[np.ndarray], captions: Sequence[str] | None = None, *, columns: int = 6, limit: int = 24) -> str:
    """Images with a score map laid over them, as an HTML grid.

    Args:
        images: ``uint8`` ``[H, W]`` or ``[H, W, 3]``.
        maps: float ``[H, W]`` of the same height and width; all maps share one scale, from the lowest to the highest score.
        captions: one a picture.
        columns: pictures in a row.
        limit: most pictures shown.
    """
    import numpy as np
    from matplotlib import colormaps

    low = min((float(np.min(m)) for m in maps[:limit]), default=0.0)
    high = max((float(np.max(m)) for m in maps[:limit]), default=1.0)
    laid = []
    for image, scores in zip(images[:limit], maps[:limit], strict=True):
        level = ((np.asarray(scores) - low) / max(high - low, 1e-12))[..., None]
        heat = colormaps["inferno"](level[..., 0])[..., :3] * 255
        base = np.asarray(image, dtype=np.float64)
        base = base if base.ndim == 3 else np.repeat(base[..., None], 3, axis=2)
        # Low scores leave the picture as it is, so that only what stands out is coloured.
        laid.append((base * (1 - 0.7 * level) + heat * 0.7 * level).clip(0, 255).astype(np.uint8))
    return image_grid(laid, captions, columns=columns, limit=limit)


def _canvas(width: float, height: float) -> tuple[Canvas, Axes]:
    """An empty figure of ``width`` x ``height`` inches with one pair of axes, in the report's style."""
    from matplotlib.figure import Figure as Canvas

    from scenarium.core import fonts

    canvas = Canvas(figsize=(width, height), layout="constrained")
    axes = canvas.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9, labelfontfamily=fonts.families())
    return canvas, axes


def _legend(axes: Axes, columns: int) -> None:
    """The legend above the plot, where it covers no line."""
    axes.legend(frameon=False, fontsize=8, ncols=columns, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, columnspacing=1.2)


def _svg(canvas: Canvas) -> str:
    """The figure as SVG markup: text as paths, no XML header, ids that do not depend on the run."""
    import matplotlib
    from matplotlib.text import Text

    from scenarium.core import fonts

    buffer = io.StringIO()
    for text in canvas.findobj(Text):
        text.set_fontfamily(fonts.families())
    # Without a Chinese font the text stays text, for the reader's browser to draw.
    settings: Any = {"svg.fonttype": "path" if fonts.chinese() else "none", "svg.hashsalt": "scenarium"}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        canvas.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    markup = buffer.getvalue()
    return markup[markup.index("<svg") :]


def _png(image: np.ndarray) -> str:
    """The image as a ``data:`` URL."""
    import numpy as np
    from PIL import Image

    array = np.asarray(image)
    if array.dtype != np.uint8:
        low, high = float(array.min()), float(array.max())
        array = ((array - low) / max(high - low, 1e-12) * 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _marked(text: str, entities: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> str:
    """The text with its entities marked; an entity that overlaps an earlier one is left out."""
    parts, done = [], 0
    for entity in sorted(entities, key=lambda e: (int(e["start"]), -int(e["end"]))):
        start, end, label = int(entity["start"]), int(entity["end"]), str(entity["label"])
        if start >= done:
            parts.append(html.escape(text[done:start]))
            parts.append(f"<mark style='background:{colours[label]}'>{html.escape(text[start:end])}<sub>{html.escape(label)}</sub></mark>")
            done = end
    return "".join(parts) + html.escape(text[done:])


def _numeric(cell: object) -> bool:
    return isinstance(cell, (int, float)) and not isinstance(cell, bool)


def _kind(cell: object) -> str:
    """The class attribute of a cell: numbers stand right, a word too long for a line (a hash, a path) may be broken."""
    if _numeric(cell):
        return " class=number"
    return " class=long" if max(map(len, str(cell).split()), default=0) > 24 else ""


def _text(cell: object) -> str:
    return f"{cell:.4g}" if isinstance(cell, float) else html.escape(str(cell))
