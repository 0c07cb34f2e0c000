"""The report draws what a run's files hold, leaves out what they do not, and trusts no text."""

import csv
import json
import re
from pathlib import Path

import pytest

from llama2_pl.evaluation.curves import Curve, read_curve
from llama2_pl.report import figures
from llama2_pl.report.build import build_report
from llama2_pl.report.metrics import smooth

INTERVAL = {"mean": 0.6, "low": 0.5, "high": 0.7, "count": 100}


def write_metrics(folder, version, rows):
    path = folder / "metrics" / f"version_{version}" / "metrics.csv"
    path.parent.mkdir(parents=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(
            file, fieldnames=["step", "train/loss", "train/tokens", "ppo/reward", "val/loss"]
        )
        writer.writeheader()
        writer.writerows(rows)


def write_results(run):
    by_rating = {
        "significantly better": 0.95,
        "better": 0.8,
        "slightly better": 0.7,
        "negligibly better": 0.5,
    }
    calibration = [
        {"predicted": 0.6, "observed": 0.55, "count": 40},
        {"predicted": 0.9, "observed": 0.88, "count": 60},
    ]
    results = {
        "about": "A run for a test.",
        "parameters": 2_000_000,
        "reward_accuracy": {
            "helpfulness": {
                "overall": 0.77,
                "by_rating": by_rating,
                "pairs": 100,
                "gap_by_rating": {"significantly better": INTERVAL, "negligibly better": INTERVAL},
                "calibration": calibration,
                "histograms": {"sigmoid": {"edges": [0.0, 0.5, 1.0], "share": [0.25, 0.75]}},
            }
        },
        "reward_accuracy_by_source": {
            "helpfulness": {
                name: {"overall": 0.7, "by_rating": by_rating, "pairs": 50} for name in ("web", "<b>forum")
            }
        },
        "unsafe_recall": INTERVAL,
        "best_of_n": {
            "by_temperature": {"1": {"n": [1, 2, 4], "max": [0.1, 0.5, 0.9], "median": [0.1, 0.1, 0.1]}},
            "annotators": {"two_annotators": 0.81, "annotator_and_oracle": 0.9, "pairs": 48},
            "diversity": {t: {"self_bleu": INTERVAL, "distinct_2": INTERVAL} for t in ("0.7", "1", "1.3")},
        },
        "gold": {"sft": INTERVAL, "ppo": INTERVAL},
        "win_rate": {"ppo vs sft": INTERVAL},
        "gatt": {"without": {"1": INTERVAL, "4": INTERVAL}, "with": {"1": INTERVAL, "4": INTERVAL}},
        "gatt_attention": {
            "dialog": [{"role": "system", "content": "Act as <script>a cat</script>"}],
            "bin": 4,
            "system": [4, 8],
            "maps": {name: [[0.5, None], [0.25, 0.125]] for name in ("without", "with")},
            "by_turn": {name: {"1": INTERVAL, "2": INTERVAL} for name in ("without", "with")},
        },
        "samples": [
            {
                "messages": [{"role": "user", "content": "hi <script>alert(1)</script>"}],
                "answers": {"ppo": "<img src=x onerror=alert(1)>"},
            }
        ],
    }
    (run / "results.json").write_text(json.dumps(results))


def page_of(run):
    return Path(build_report(str(run))).read_text(encoding="utf-8")


@pytest.fixture
def run(tmp_path):
    pytest.importorskip("matplotlib", reason="the report needs the extra llama2-pl[report]")
    rows = [{"step": s, "train/loss": 5.0 - s / 10, "train/tokens": s * 100} for s in range(10)]
    write_metrics(tmp_path / "pretrain", 0, rows)
    write_metrics(tmp_path / "ppo", 0, [{"step": s, "ppo/reward": s / 10} for s in range(5)])
    write_results(tmp_path)
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "pretrain.json").write_text(
        json.dumps({"shell": "llama2-pl fit", "seconds": 90.0})
    )
    return tmp_path


def test_every_figure_of_the_paper_is_drawn_from_the_runs_files(run):
    text = page_of(run)
    for part in (
        "as Fig. 5",
        "as Table 8",
        "95 % interval 67.8% to 84.2%",  # Wilson's, of 77 in 100
        "as Fig. 27",
        "How far apart the helpfulness model",
        "a part of Fig. 21",
        "AC2 0.81",
        "&lt;b&gt;forum",
        "as Figs. 7 and 8",
        "as Table 30",
        "60% [50%, 70%]",
        "as Fig. 10",
        "Win rates",
        "Commands",
        "1.5 min",
    ):
        assert part in text, part
    # loss, calibration, gap, histogram, reward against N, diversity, PPO reward, gold, wins,
    # GAtt kept, looked at, two maps
    assert text.count("<svg") == 13


def test_ppo_s_curves_are_over_iterations_which_is_what_its_metrics_count(run):
    text = page_of(run)
    assert ">iteration</text>" in text and "optimizer step" not in text


def test_the_recipe_s_time_says_where_it_is_that_of_last_attempts(run):
    assert "<b>1.5 min</b><span>whole recipe</span>" in page_of(run)
    again = {"shell": "llama2-pl fit", "seconds": 30.0, "attempts": 3}
    (run / "manifests/ppo.json").write_text(json.dumps(again))
    assert "<b>2.0 min</b><span>whole recipe, last attempts alone</span>" in page_of(run)


def test_text_of_a_model_or_user_cannot_become_markup(run):
    text = page_of(run)
    assert "<script" not in text and "<img" not in text
    assert "&lt;script&gt;" in text


def test_the_names_of_a_run_and_of_its_stages_cannot_become_markup(tmp_path, monkeypatch):
    run = tmp_path / "<img src=x onerror=alert(1)>"
    stage = run / "manifests" / "<script>alert(2)<" / "b.json"
    stage.parent.mkdir(parents=True)
    stage.write_text(json.dumps({"shell": "llama2-pl fit", "seconds": 1.0}))
    monkeypatch.chdir(run)
    for named in (run, Path(".")):
        text = page_of(named)
        assert "<img" not in text and "<script" not in text
        assert "Llama 2, &lt;img src=x onerror=alert(1)&gt;</h1>" in text  # also where the run is `.`
        assert "&lt;script&gt;alert(2)&lt;/b, 1 s" in text


def test_a_run_without_results_still_gets_a_page(tmp_path):
    text = page_of(tmp_path)
    assert "<svg" not in text and "</html>" in text


def test_a_page_that_another_run_links_stays_that_run_s(tmp_path):
    """As `--share` links what another run made."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps({"about": f"run {name}"}))
    page_of(tmp_path / "a")
    (tmp_path / "b/report.html").hardlink_to(tmp_path / "a/report.html")
    assert "run b" in page_of(tmp_path / "b")
    assert "run a" in (tmp_path / "a/report.html").read_text()


def test_a_missing_run_is_an_error_with_the_way_out(tmp_path):
    with pytest.raises(ValueError, match="no such run; give the folder"):
        build_report(str(tmp_path / "nowhere"))


def test_a_resumed_runs_metrics_win_where_steps_meet(tmp_path, monkeypatch):
    write_metrics(tmp_path, 0, [{"step": 0, "train/loss": 3.0}, {"step": 1, "train/loss": 9.0}])
    write_metrics(tmp_path, 1, [{"step": 1, "train/loss": 2.0}, {"step": 2, "train/loss": 1.0}])
    assert read_curve(tmp_path, "train/loss") == ([0.0, 1.0, 2.0], [3.0, 2.0, 1.0])
    for version in (10, 9):
        write_metrics(tmp_path, version, [{"step": 2, "train/loss": float(version)}])
    listed = list(tmp_path.rglob("metrics.csv"))
    for order in (sorted(listed), sorted(listed, reverse=True)):  # in whichever the disk has them
        monkeypatch.setattr(type(tmp_path), "rglob", lambda *_, order=order: order)
        assert read_curve(tmp_path, "train/loss").y == [3.0, 2.0, 10.0]


def test_smoothing_is_the_bias_corrected_moving_average():
    # by hand: 0.5 * 2 / 0.5 = 2; (0.25 * 2 + 0.5 * 4) / 0.75 = 10 / 3
    assert smooth([2.0, 4.0], 0.5) == pytest.approx([2.0, 10 / 3])


def test_the_sum_of_carbon_is_unknown_where_a_stage_s_is(run):
    (run / "pretrain/carbon.json").write_text(
        json.dumps(
            {
                "stages": {
                    "pretrain": {"hours": 2.0, "kwh": 0.5, "co2e_kg": None, "source": "watts"},
                    "again": {"hours": 1.0, "kwh": 0.25, "co2e_kg": 0.125, "source": "watts"},
                }
            }
        )
    )
    (line,) = [line for line in page_of(run).split("<tr>") if line.startswith("<td>all</td>")]
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", line)
    assert cells == ["all", "3", "750", "–", ""]


def test_the_scaling_study_is_drawn_by_size_and_batch(tmp_path):
    cells = [
        {"size": size, "batch": batch, "pairs": 10, "accuracy": {"overall": INTERVAL}}
        for size in ("small", "large")
        for batch in (1, 7, 14)
    ]
    cells[0]["accuracy"]["significantly better"] = INTERVAL
    (tmp_path / "scaling.json").write_text(json.dumps({"kind": "helpfulness", "cells": cells}))
    text = page_of(tmp_path)
    assert text.count("<svg") == 2 and "as Fig. 6" in text and "rated significantly better" in text
    figure = text.split("<svg")[1]
    assert all(f">{label}<" in figure for label in ("small", "large", "1", "7", "14", "weekly batch"))


def write_safety_study(folder, names):
    histogram = {"edges": [0.0, 0.5, 1.0], "share": [0.25, 0.75]}
    row = {"safety": INTERVAL, "helpfulness": INTERVAL, "low_tail": INTERVAL, "histogram": histogram}
    (folder / "safety.json").write_text(json.dumps({"threshold": 0.15, "models": dict.fromkeys(names, row)}))
    said = {"set": "borderline", "id": "b", "answer": "<b>No", "probability": 0.75}
    said["messages"] = [{"role": "user", "content": "kill <i>time"}]
    row = {"refused": {"helpfulness": INTERVAL, "borderline": INTERVAL, "safety": INTERVAL}}
    row |= {"false_refusals": [said] * 21, "safety_answered": []}
    (folder / "refusals.json").write_text(json.dumps({"models": dict.fromkeys(names, row)}))


def test_the_study_of_safety_data_is_drawn_over_its_shares(tmp_path):
    write_safety_study(tmp_path, ("0", "1", "100"))
    text = page_of(tmp_path)
    scores, spread, rates = text.split("<svg")[1:]
    assert "as Fig. 15" in text and "as Fig. 33" in text
    for figure in (scores, rates):
        assert all(f">{label}<" in figure for label in ("0", "1", "100", "safety data used (%)"))
    assert ">helpfulness<" in scores and ">safety score<" in spread and ">borderline<" in rates
    assert "<th>score below 0.15</th>" in text
    assert "<td>100</td><td>60.0% [50.0%, 70.0%]</td>" in text
    # text of a model is no markup; 20 of 21 are shown
    assert "&lt;b&gt;No" in text and "<b>No" not in text and "kill &lt;i&gt;time" in text
    assert (
        "0: 21 prompts refused that ought to be answered" in text and "and 1 more, in refusals.json" in text
    )
    assert "safety prompts answered" not in text and "with probability 0.75" in text


def test_refusals_of_models_with_names_are_drawn_side_by_side(tmp_path):
    write_safety_study(tmp_path, ("sft", "ppo"))
    text = page_of(tmp_path)
    assert text.count("<svg") == 5  # two axes, the histogram, two sets
    assert ">PPO<" in text.split("<svg")[1] and "safety data used" not in text


def test_the_doctor_speaks_in_the_report(tmp_path):
    finding = {
        "name": "few_eos",
        "severity": "warning",
        "value": 0.4,
        "threshold": 0.5,
        "words": "40% end. Way out: x",
    }
    lines = [
        {
            "iteration": n,
            "numbers": {"eos_rate": 0.4, "goodhart_gold": 0.1 * n, "kl": None},
            "findings": [finding] * (n > 0),
        }
        for n in (0, 1, 2, 1)
    ]
    (tmp_path / "ppo").mkdir()
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "ppo/doctor.jsonl").write_text(text + '{"iteration": 9, "num')
    html = Path(build_report(str(tmp_path))).read_text(encoding="utf-8")
    assert "3 iterations examined, 1 kinds of finding" in html and "40% end. Way out: x" in html
    assert html.count("<svg") == 2 and "Goodhart gap" in html


def test_every_version_s_ppo_has_its_name_and_they_come_in_order(tmp_path):
    pytest.importorskip("matplotlib", reason="the report needs the extra llama2-pl[report]")
    for version in ("v10", "v2", "v1"):
        write_metrics(tmp_path / version / "ppo", 0, [{"step": s, "ppo/reward": s} for s in range(2)])
        line = {"iteration": 0, "numbers": {}, "findings": []}
        (tmp_path / version / "ppo/doctor.jsonl").write_text(json.dumps(line))
    titles = [title for title in re.findall("<h2>(.*?)</h2>", page_of(tmp_path)) if "PPO" in title]
    assert titles == [f"{what} of {v}" for v in ("v1", "v2", "v10") for what in ("PPO", "PPO doctor")]


def test_versions_are_drawn_with_their_gap_pool_and_checkpoint(run):
    row = {
        "reward": INTERVAL,
        "gold": INTERVAL,
        "gap": None,
        "forgetting": 0.0,
        "temperature": None,
        "sweep": None,
        "pool": None,
        "choice": None,
    }
    part = {
        "version": 1,
        "sampler": "cafe" * 16,
        "temperatures": [1.2],
        "entries": 7,
        "taken": 5,
        "score": 0.5,
    }
    curve = {"1.2": {"n": [1, 2], "max": [0.1, 0.4], "median": [0.1, 0.1]}}
    after = {
        **row,
        "version": "v1",
        "gap": {**INTERVAL, "mean": 0.271},
        "temperature": 1.2,
        "sweep": curve,
        "pool": {"take": "all", "versions": [part]},
        "choice": {"chosen": "v1/fine_tune/checkpoints/last.ckpt", "sha256": "beef" * 16},
    }
    results = {
        "versions": [{**row, "version": "v0"}, after],
        "win_rate": {"v1 vs v0": {**INTERVAL, "mean": 0.655}},
        "judged_win_rate": {"v1 vs v0": {**INTERVAL, "mean": 0.755}},
    }
    (run / "results.json").write_text(json.dumps(results))
    for version in (0, 1):
        write_metrics(run / "v1/ppo", version, [{"step": s, "ppo/reward": s} for s in range(3)])
    (run / "manifests/v1").mkdir()
    (run / "manifests/v1/pool.json").write_text(json.dumps({"shell": "llama2-pl rlhf pool", "seconds": 1.0}))
    text = page_of(run)
    for shown in (
        *(
            "Versions</h2>",
            "0.271 [0.500, 0.700]",
            "65.5% [50.0%, 70.0%]",
            "75.5%",
            "last.ckpt, beefbeefbeef",
        ),
        *(
            "cafecafecafe",
            "llama2-pl rlhf pool",
            "v1/pool, 1 s",
            "Gold score by version",
            "Goodhart gap: above 0",
        ),
    ):
        assert shown in text, shown
    assert "PPO</h2>" in text and "PPO of v1</h2>" in text
    assert "Versions</h2>" not in page_without(run, "versions")


@pytest.mark.parametrize("x", [[1.0], [1.0, 2.0], [0.0, 1.0, 2.0], [0.0, 11.0]])
def test_an_axis_that_counts_shows_whole_numbers(x):
    pytest.importorskip("matplotlib", reason="the report needs the extra llama2-pl[report]")
    drawn = figures.curves(
        {"a": Curve(x, [0.5] * len(x))}, x_label="batches", y_label="share", markers=("a",)
    )
    ticks = re.findall(r"<text[^>]*>([^<]*)</text>", drawn.split('id="matplotlib.axis_2"')[0])
    assert ticks[-1] == "batches" and len(ticks) > 1
    assert all(tick.isdigit() for tick in ticks[:-1]), ticks


def page_without(run, key):
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps({k: v for k, v in results.items() if k != key}))
    return page_of(run)


def test_a_heat_map_has_the_colour_of_each_square(monkeypatch):
    matplotlib = pytest.importorskip("matplotlib")
    from matplotlib.axes import Axes

    drawn = []
    monkeypatch.setattr(
        Axes,
        "imshow",
        lambda self, rows, real=Axes.imshow, **how: drawn.append(real(self, rows, **how)) or drawn[-1],
    )
    figures.heat_map([[0.5, None], [0.0, 0.25]], step=4, mark=(4, 8), highest=0.5)
    colours = matplotlib.colormaps["viridis"]
    shades = drawn[0].to_rgba(drawn[0].get_array())
    assert shades[0, 0].tolist() == pytest.approx(colours(1.0)) and shades[1, 0].tolist() == pytest.approx(
        colours(0.0)
    )
    assert shades[0, 1, 3] == 0.0  # nothing is drawn above the diagonal
    assert drawn[0].get_extent() == [0, 8, 8, 0]
