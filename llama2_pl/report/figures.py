"""The paper's figures as inline SVG, each from plain numbers."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

from llama2_pl.evaluation.curves import Curve
from llama2_pl.report.metrics import smooth

COLOURS = ["#2f6f9f", "#c8553d", "#588157", "#8a5a9e", "#b08900", "#5b6770"]
RATINGS = ["significantly better", "better", "slightly better", "negligibly better"]


def _pyplot() -> Any:
    try:
        import matplotlib
        from cycler import cycler
    except ImportError as error:
        raise ImportError('the report draws with matplotlib: pip install "llama2-pl[report]"') from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
            "axes.prop_cycle": cycler(color=COLOURS),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#e4e4e0",
            "font.size": 10,
            "legend.frameon": False,
            "svg.fonttype": "none",
            "svg.hashsalt": "llama2_pl",
        }
    )
    return plt


def _count_on(axis: Any) -> None:
    """Whole numbers alone, and 1.5 M instead of 1.5 and a lonely 1e6 in the corner."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(EngFormatter(sep=" "))


def _draw(paint: Callable[[Any], None], *, width: float = 5.6, height: float = 3.4) -> str:
    """An SVG element with what `paint(axes)` draws."""
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
    paint(axes)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def curves(
    named: dict[str, Curve],
    *,
    x_label: str,
    y_label: str,
    smoothing: float = 0.0,
    markers: Sequence[str] = (),
) -> str:
    """Lines over steps or tokens; smoothed ones keep the raw points faintly behind; `markers` are drawn with dots."""

    def paint(axes: Any) -> None:
        for number, (name, curve) in enumerate(named.items()):
            colour = COLOURS[number % len(COLOURS)]
            if smoothing and name not in markers:
                axes.plot(curve.x, curve.y, color=colour, alpha=0.25, linewidth=0.8)
                axes.plot(curve.x, smooth(curve.y, smoothing), color=colour, label=name)
            else:
                axes.plot(
                    curve.x, curve.y, color=colour, label=name, marker="o" if name in markers else None, ms=4
                )
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        _count_on(axes.xaxis)
        axes.legend()

    return _draw(paint)


def reward_against_n(by_temperature: dict[str, dict], *, what: str = "reward") -> str:
    """Max (solid) and median (dashed) reward among N samples, a colour per temperature (as Figs. 7 and 8)."""

    def paint(axes: Any) -> None:
        for number, (temperature, rows) in enumerate(by_temperature.items()):
            colour = COLOURS[number % len(COLOURS)]
            axes.plot(rows["n"], rows["max"], color=colour, marker="o", ms=3, label=f"max, T = {temperature}")
            axes.plot(
                rows["n"], rows["median"], color=colour, linestyle="--", label=f"median, T = {temperature}"
            )
        axes.set_xscale("log", base=2)
        ticks = next(iter(by_temperature.values()))["n"] if by_temperature else []
        axes.set_xticks(ticks, [str(n) for n in ticks])
        axes.minorticks_off()
        axes.set_xlabel("N samples")
        axes.set_ylabel(what)
        axes.legend(fontsize=8, ncols=2)

    return _draw(paint)


def calibration(rows: list[dict]) -> str:
    """Observed accuracy against the probability that the model gives its preferred answer; the diagonal is perfect."""

    def paint(axes: Any) -> None:
        axes.plot([0.5, 1], [0.5, 1], color="#b5b5b0", linestyle=":")
        axes.plot([r["predicted"] for r in rows], [r["observed"] for r in rows], marker="o")
        for row in rows:
            axes.annotate(
                f"{row['count']}",
                (row["predicted"], row["observed"]),
                fontsize=7,
                xytext=(4, -9),
                textcoords="offset points",
            )
        axes.set_xlabel("predicted probability")
        axes.set_ylabel("observed accuracy")

    return _draw(paint, width=4.2)


def histogram(named: dict[str, dict[str, list[float]]], *, x_label: str) -> str:
    """Shares by bin (`edges`, `share`), an outline per name."""

    def paint(axes: Any) -> None:
        for number, (name, row) in enumerate(named.items()):
            axes.stairs(row["share"], row["edges"], color=COLOURS[number % len(COLOURS)], label=name)
        axes.set_xlabel(x_label)
        axes.set_ylabel("share of answers")
        axes.legend()

    return _draw(paint, width=4.2)


def intervals(named: dict[str, dict], *, x_label: str, line: float | None = None) -> str:
    """One dot with its 95 % interval per name (`mean`, `low`, `high`)."""

    def paint(axes: Any) -> None:
        for place, row in enumerate(named.values()):
            colour = COLOURS[place % len(COLOURS)]
            axes.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=2)
            axes.plot([row["mean"]], [place], "o", color=colour)
            axes.annotate(
                f"{row['mean']:.2f}",
                (row["mean"], place),
                xytext=(0, 7),
                textcoords="offset points",
                ha="center",
                fontsize=9,
            )
        if line is not None:
            axes.axvline(line, color="#b5b5b0", linestyle=":")
        axes.set_yticks(range(len(named)), list(named))
        axes.set_ylim(len(named) - 0.4, -0.6)
        axes.set_xlabel(x_label)

    return _draw(paint, height=0.7 + 0.55 * max(len(named), 2))


def bands(named: dict[str, dict[str, dict]], *, x_label: str, y_label: str, whole: bool = False) -> str:
    """Means with 95 % bands by number, a line per name; `whole`: the axis runs from 0 to 1."""

    def paint(axes: Any) -> None:
        for number, (name, by_place) in enumerate(named.items()):
            places = sorted(by_place, key=float)
            rows, x = [by_place[place] for place in places], [float(place) for place in places]
            colour = COLOURS[number % len(COLOURS)]
            axes.fill_between(
                x, [r["low"] for r in rows], [r["high"] for r in rows], color=colour, alpha=0.15, linewidth=0
            )
            axes.plot(x, [r["mean"] for r in rows], marker="o", color=colour, label=name)
        axes.set_xticks(sorted({float(place) for by_place in named.values() for place in by_place}))
        if whole:
            axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.legend()

    return _draw(paint)


def persistence(named: dict[str, dict[str, dict]]) -> str:
    """Share of answers that keep the instruction, by turn, a line per model (as Table 30)."""
    return bands(named, x_label="turn", y_label="instruction kept", whole=True)


def heat_map(rows: list[list[float | None]], *, step: int, mark: tuple[int, int], highest: float) -> str:
    """Squares of `step` tokens, row by row, None left white; dashed lines around the tokens of `mark` (as Fig. 10)."""

    def paint(axes: Any) -> None:
        end = len(rows) * step
        shades = [[float("nan") if value is None else value for value in row] for row in rows]
        image = axes.imshow(shades, cmap="viridis", vmin=0, vmax=highest, extent=(0, end, end, 0))
        for place in mark:
            axes.axvline(place, color=COLOURS[1], linestyle="--", linewidth=0.9)
        axes.grid(visible=False)
        axes.set_xlabel("token that is read")
        axes.set_ylabel("token that reads")
        axes.figure.colorbar(image, ax=axes, shrink=0.8)

    return _draw(paint, width=5.0, height=4.2)
