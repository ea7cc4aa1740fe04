"""What `report` prints: averages at equal ε, paired tests, in Markdown and LaTeX."""

import json
import math
import re
import shutil
import subprocess

import numpy as np
import pytest
from scipy import stats

from lightning_dp.cli import main
from lightning_dp.tracking.paired import holm, paired_tests
from lightning_dp.tracking.results import (
    RunResult,
    better,
    compare,
    epsilon_text,
    metric_label,
    read_results,
    repeated_seeds,
    series_names,
)
from lightning_dp.tracking.tables import comparison_tables, latex, markdown, paired_table


def result(tmp_path, *, method="a", epsilon=8.0, seed=0, mse=0.4, facts=None, dataset="D") -> RunResult:
    return RunResult(
        folder=tmp_path,
        dataset=dataset,
        method=method,
        epsilon=epsilon,
        delta=1e-5,
        unit="window" if math.isfinite(epsilon) else "",
        epsilon_of_unit={},
        seed=seed,
        facts=facts or {},
        scores={"mse": mse},
        baselines={"mean_of_days": {"mse": 0.5}},
    )


def folder(path, **changes):
    path.mkdir(parents=True)
    content = {"method": "a", "dataset": "D", "epsilon": 8.0, "unit": "window", "metrics": {"test/mse": 0.4}}
    (path / "results.json").write_text(json.dumps(content | changes))
    return path


def test_old_and_new_spellings_of_infinity_and_seed(tmp_path):
    old = folder(tmp_path / "old", epsilon=math.inf, metrics={"test/mse": math.nan, "test/epsilon": math.inf})
    assert "Infinity" in (old / "results.json").read_text()
    (old / "config.yaml").write_text("seed_everything: 7\nrun:\n  seed_everything: 9\n")
    folder(tmp_path / "new", epsilon="inf", seed=3, facts={"task": "impute"}, metrics={"test/mse": "nan"})
    new, old_result = sorted(read_results([tmp_path]), key=lambda found: found.seed)
    assert (new.epsilon, new.seed, new.task) == (math.inf, 3, "impute")
    assert (old_result.epsilon, old_result.seed) == (math.inf, 7)
    assert math.isnan(new.scores["mse"])
    assert list(old_result.scores) == ["mse"]


def test_copies_that_loggers_keep_are_no_runs(tmp_path):
    folder(tmp_path / "run")
    folder(tmp_path / "run" / "wandb" / "files")
    assert len(read_results([tmp_path])) == 1


def test_a_file_that_is_no_result_is_named(tmp_path):
    folder(tmp_path / "run")
    (tmp_path / "run" / "results.json").write_text('{"method": ')
    with pytest.raises(ValueError, match=r"run/results.json is not the result of a run"):
        read_results([tmp_path])


def test_runs_that_differ_in_a_fact_are_never_averaged(tmp_path):
    runs = [
        result(tmp_path, seed=seed, mse=0.3 + ratio, facts={"task": "t", "saliency_ratio": ratio})
        for ratio in (0.1, 0.5)
        for seed in (0, 1)
    ]
    assert series_names(runs) == ["a · saliency_ratio 0.1"] * 2 + ["a · saliency_ratio 0.5"] * 2
    first, second, baseline = compare(runs)
    assert (first.mean["mse"], second.mean["mse"]) == (pytest.approx(0.4), pytest.approx(0.8))
    assert (first.runs, second.runs, baseline.runs) == (2, 2, 1)
    # Nor is a fact that follows from another, and a statistic of the data is no setting.
    for run in runs:
        count = 1000 * run.facts["saliency_ratio"]
        run.facts.update({"share": count, "trainable_parameters": run.seed, "nonprivate/skipped": run.seed})
    assert series_names(runs) == ["a · saliency_ratio 0.1"] * 2 + ["a · saliency_ratio 0.5"] * 2
    # A fact that all runs share is not worth a word.
    assert series_names(runs[:2]) == ["a", "a"]


def test_tasks_and_data_sets_have_tables_of_their_own(tmp_path):
    runs = [result(tmp_path, facts={"task": task}) for task in ("forecast", "impute")]
    tables = comparison_tables(compare([*runs, result(tmp_path, dataset="E")]))
    assert [table.title for table in tables] == ["D · forecast", "D · impute", "E"]


def test_one_seed_twice_is_told(tmp_path):
    rows = compare([result(tmp_path, seed=0), result(tmp_path, seed=0, mse=0.5)])
    assert ["one seed in several runs" in sentence for sentence in repeated_seeds(rows)] == [True]
    assert repeated_seeds(compare([result(tmp_path, seed=0), result(tmp_path, seed=1)])) == []


def test_paired_tests_are_scipy_s_on_the_pairs_only(tmp_path):
    random = np.random.default_rng(0)
    first, second = random.normal(0.40, 0.02, 8), random.normal(0.38, 0.02, 8)
    runs = [result(tmp_path, seed=seed, mse=value) for seed, value in enumerate(first)]
    # In another order, and with a seed that has no partner.
    runs += [result(tmp_path, method="b", seed=seed, mse=second[seed]) for seed in reversed(range(8))]
    runs += [result(tmp_path, method="b", seed=99, mse=10.0)]
    (test,) = paired_tests(runs, metric="mse")
    assert (test.first, test.second, test.pairs) == ("a", "b", 8)
    assert test.difference == pytest.approx((first - second).mean())
    assert test.p_t == pytest.approx(stats.ttest_rel(first, second).pvalue)
    assert test.p_wilcoxon == pytest.approx(stats.wilcoxon(first, second).pvalue)
    half = stats.t.ppf(0.975, 7) * (first - second).std(ddof=1) / math.sqrt(8)
    assert test.interval == pytest.approx((test.difference - half, test.difference + half))
    assert test.note == ""
    # Unpaired, the seeds' common part would hide the difference: the pairing matters.
    shared = [result(tmp_path, method="c", seed=s, mse=v + 0.005 + 1e-4 * s) for s, v in enumerate(first)]
    (close,) = paired_tests([*runs[:8], *shared], metric="mse")
    assert close.p_t < 1e-6


def test_only_equal_epsilon_and_equal_unit_are_compared(tmp_path):
    runs = [
        result(tmp_path, method=method, epsilon=epsilon, seed=seed, mse=0.1 * seed + epsilon / 100)
        for method, epsilon in (("a", 1.0), ("a", 8.0), ("b", 8.0), ("b", 3.0))
        for seed in range(3)
    ]
    (test,) = paired_tests(runs, metric="mse")
    assert (test.epsilon, test.first, test.second) == (8.0, "a", "b")


@pytest.mark.parametrize(
    ("seeds", "pairs", "note"),
    [(([0], [1]), 0, "no seed in common"), (([0], [0]), 1, "too few"), (([0, 1], [0, 1]), 2, "below 0.5")],
)
def test_too_few_pairs_say_so(tmp_path, seeds, pairs, note):
    values = iter(np.random.default_rng(0).random(4))
    runs = [
        result(tmp_path, method=method, seed=seed, mse=next(values))
        for method, own in zip("ab", seeds, strict=True)
        for seed in own
    ]
    (test,) = paired_tests(runs, metric="mse")
    assert test.pairs == pairs
    assert note in test.note
    assert (test.p_t is None) == (pairs < 2)
    assert note in markdown([paired_table([test], metric="mse")])


def test_equal_differences_are_not_a_p_value_of_zero(tmp_path):
    runs = [result(tmp_path, method=m, seed=s, mse=v) for m, v in (("a", 0.5), ("b", 0.25)) for s in range(6)]
    (test,) = paired_tests(runs, metric="mse")
    assert test.p_t is None
    assert "all differences are equal" in test.note


def test_holm_is_step_down_and_monotone():
    assert holm([0.01, 0.04, None, 0.03]) == pytest.approx([0.03, 0.06, None, 0.06])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    # The table's p values are the corrected ones.
    assert holm([]) == []


@pytest.mark.parametrize(
    ("metric", "label", "direction"),
    [
        ("mse", "MSE", "lower"),
        ("crps_sum", "CRPS sum", "lower"),
        ("coverage_90", "coverage of 90 %", ""),  # of an interval: 1 is as wrong as 0.8
        ("coverage", "coverage", "higher"),  # of images
        ("trainable", "trainable", ""),
    ],
)
def test_metrics_have_words_and_a_direction(metric, label, direction):
    assert (metric_label(metric), better(metric)) == (label, direction)


def test_large_epsilon_is_written_out():
    assert [epsilon_text(epsilon) for epsilon in (8479.4, 0.4567, 8.0)] == ["8,480", "0.457", "8"]


def test_latex_is_booktabs_and_escaped(tmp_path):
    runs = [result(tmp_path, method="50% a_b & c", seed=seed, mse=0.4 + seed / 10) for seed in (0, 1)]
    text = latex(comparison_tables(compare(runs)))
    assert r"50\% a\_b \& c & 8 & undefined & 2 & 0.4500 $\pm$ 0.0500 \\" in text
    for rule in ("toprule", "midrule", "bottomrule"):
        assert text.count(rule) == 1
    columns = len(re.search(r"begin{tabular}{(\w+)}", text)[1])
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {columns - 1}
    assert text.isascii()


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here")
def test_latex_compiles(tmp_path):
    runs = [result(tmp_path, method=m, seed=s, mse=0.4 + s / 10) for m in "ab" for s in (0, 1)]
    tables = [*comparison_tables(compare(runs)), paired_table(paired_tests(runs, metric="mse"), metric="mse")]
    page = (
        "\\documentclass{article}\\usepackage{booktabs}\\begin{document}" + latex(tables) + "\\end{document}"
    )
    (tmp_path / "page.tex").write_text(page)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0


def test_the_command_prints_both_and_knows_its_metrics(tmp_path, capsys):
    for method in "ab":
        for seed in (0, 1):
            scores = {"test/crps": 0.2 + seed / 10, "test/accuracy": 0.5}
            folder(tmp_path / f"{method}{seed}", method=method, seed=seed, metrics=scores)
    assert main(["report", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "| a      | 8            | undefined   | 2    | 0.2500 ± 0.0500 |" in printed
    assert "Paired tests of CRPS" in printed
    assert main(["report", str(tmp_path), "--format=latex", "--metric=accuracy"]) == 0
    assert "Paired tests of accuracy" in capsys.readouterr().out
    assert main(["report", str(tmp_path), "--columns", "accuracy"]) == 0
    header = capsys.readouterr().out.splitlines()[2]
    assert "accuracy" in header
    assert "CRPS" not in header
    assert main(["report", str(tmp_path), "--columns", "crps", "fid"]) == 2
    assert "no run has the metric 'fid'" in capsys.readouterr().err
    assert main(["report", str(tmp_path), "--metric=fid"]) == 2
    assert "choose one of crps, accuracy" in capsys.readouterr().err
