"""The site in a real browser: what it shows is what the run folders say, and it stays on this machine."""

import json
import math
import statistics
from pathlib import Path

import pytest
from synthetic import write_many, write_run

from lightning_dp.dashboard.site import write_site
from lightning_dp.privacy.accounting import GaussianEvent
from lightning_dp.privacy.ledger import Ledger

MARKUP = "<img src=x onerror=alert(1)>"
VIEWS = ("quality", "saliency", "gradients", "training", "samples", "ledger", "runs")


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Path:
    """Two methods, three budgets, three seeds; and what a real folder of runs also holds."""
    folder = tmp_path_factory.mktemp("site") / "runs"
    for number, (method, epsilon, seed) in enumerate(
        (method, epsilon, seed)
        for method in ("dp-aware", "vanilla")
        for epsilon in (1.0, 8.0, math.inf)
        for seed in range(3)
    ):
        write_run(
            folder / f"{method}-{epsilon:g}-{seed}",
            method=method,
            epsilon=epsilon,
            seed=seed,
            metrics={"mse": 0.3 + 0.017 * number**0.5, "crps": 0.2 + 0.001 * number},
            facts={"task": "forecast"},
            picture="forecast_fan",
            diagnostics=epsilon == 8.0,
        )
    for ratio in (0.1, 0.5):
        write_run(
            folder / f"lora-{ratio}",
            method="lora",
            dataset="fashion-mnist",
            metrics={"fd_lite0": 100 * ratio, "accuracy": 0.8},
            facts={"task": "generate", "saliency_ratio": ratio, "nonprivate/skipped_images": 3},
            picture="sample_grid",
        )
    write_run(folder / "old", method="old", dataset="old", epsilon=math.inf, seed=None, strict=False)
    write_run(folder / "killed", method=MARKUP, finished=False)
    write_run(folder / "broken", finished=False)
    (folder / "broken" / "results.json").write_text('{"method": ')
    return folder


@pytest.fixture(scope="session")
def ledger(runs) -> Ledger:
    ledger = Ledger(runs.parent / "ledger.sqlite")
    ledger.register("ETTh1", unit="window", delta=1e-5, limit_epsilon=20.0)
    for run in ("dp-aware-8-0", "elsewhere"):
        with ledger.open_run("ETTh1", unit="window", run=f"{run}-id") as lease:
            lease.reserve(GaussianEvent(noise_multiplier=1.25, sampling_rate=0.06, steps=40))
    return ledger


@pytest.fixture(scope="session")
def site(runs, ledger) -> Path:
    out = runs.parent / "out"
    write_site([runs], out=out, ledger=ledger, title="Sweep & co")
    return out


def results(runs: Path) -> dict[str, dict]:
    return {
        path.parent.name: json.loads(path.read_text())
        for path in runs.glob("*/results.json")
        if path.parent.name != "broken"
    }


def shown(value: float) -> str:
    return f"{value:.4f}".replace("-", "−")


def drawn(page) -> None:
    page.wait_for_selector(".chart[data-drawn]")


def test_every_view_opens_in_every_filter_and_theme_without_a_complaint(visit, site):
    with visit(site) as seen:
        page = seen.page
        assert page.title() == "Sweep & co · lightning-dp"
        for view in VIEWS:
            page.click(f"#tab-{view}")
            assert page.get_attribute(f"#tab-{view}", "aria-selected") == "true"
            page.wait_for_selector("main:not(:has-text('Loading'))")
            assert page.inner_text("main").strip()
            page.click("#theme")
            for choice in page.locator("main select").all():
                for value in choice.evaluate("node => [...node.options].map((option) => option.value)"):
                    name = choice.get_attribute("data-choice")
                    page.select_option(f'main [data-choice="{name}"]', value)
            for box in range(page.locator("main input[type=checkbox]").count()):
                page.locator("main input[type=checkbox]").nth(box).click()
        page.click("#tab-runs")
        for name in ("dp-aware", "old", MARKUP):
            page.locator("#filters button", has_text=name).first.click()
        page.click("text=Reset")
        page.select_option('[data-choice="Data set"]', "fashion-mnist")
        page.select_option('[data-choice="Task"]', "generate")
        assert page.inner_text(".count") == "2 of 23 runs"
        page.fill("#search", "lora-0.1")
        assert page.inner_text(".count") == "1 of 23 runs"
        page.reload()  # the filters are in the address
        assert page.inner_text(".count") == "1 of 23 runs"
        page.fill("#search", "nothing like it")
        assert page.inner_text("main .empty p:first-child") == "No run passes the filters."
        page.emulate_media(media="print")
        page.evaluate("dispatchEvent(new Event('beforeprint')); dispatchEvent(new Event('afterprint'))")


def test_means_and_errors_are_those_of_the_run_folders(visit, site, runs):
    groups: dict[tuple[str, str], list[dict]] = {}
    for result in results(runs).values():
        if result["dataset"] == "ETTh1":
            epsilon = "∞" if result["epsilon"] == "inf" else f"{result['epsilon']:g}"
            groups.setdefault((result["method"], epsilon), []).append(result)
    assert len(groups) == 6
    with visit(site) as seen:
        page = seen.page
        for metric in ("mse", "crps"):
            page.select_option('[data-choice="Metric"]', metric)
            drawn(page)
            plotted = page.evaluate(
                "[...document.querySelectorAll('.chart')].flatMap((chart) => chart.data ?? [])"
                ".filter((trace) => trace.meta === 'means').flatMap((trace) => Array.from(trace.y, (y, i) =>"
                " [trace.name, trace.customdata[i][0], y, Array.from(trace.error_y.array)[i]]))"
            )
            points = {(name, epsilon): (mean, error) for name, epsilon, mean, error in plotted}
            for (method, epsilon), group in groups.items():
                values = [result["metrics"][f"test/{metric}"] for result in group]
                mean, error = statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values))
                cell = page.locator(f'[data-line="{method}"][data-epsilon="{epsilon}"]').inner_text()
                assert cell == f"{shown(mean)} ± {shown(error)} (3)"
                assert points[method, epsilon] == pytest.approx((mean, error), rel=1e-12)
        page.select_option('[data-choice="Metric"]', "mse")
        assert page.locator('[data-baseline="mean of days"]').first.inner_text() == "0.4100"
        # Far above all results: said in words, where its line would squeeze the chart.
        assert "Off the chart: last value 1.7000." in page.inner_text("main")


def test_the_table_and_the_details_repeat_each_run(visit, site, runs):
    known = results(runs)
    with visit(site, "view=runs") as seen:
        page = seen.page
        rows = page.evaluate(
            "Object.fromEntries([...document.querySelectorAll('tr[data-run]')].map((row) => [row.dataset.run,"
            " Object.fromEntries([...row.cells].map((cell) => [cell.dataset.field, cell.innerText]))]))"
        )
        assert len(rows) == 23
        for name, result in known.items():
            infinite = result["epsilon"] in ("inf", math.inf)
            assert rows[name]["epsilon"] == ("∞" if infinite else f"{result['epsilon']:g}")
            assert rows[name]["seed"] == str(result.get("seed", 0))
            for metric in ("mse", "crps", "accuracy", "fd_lite0"):
                value = result["metrics"].get(f"test/{metric}")
                want = "–" if value is None else f"{value:.0f}" if value == int(value) else shown(value)
                assert rows[name][f"score {metric}"] == want
        # What was spent without a result is not forgotten.
        assert rows["killed"]["epsilon"] == "8"
        assert rows["killed"]["status"] == "running"
        assert "results.json is not the result of a run" in rows["broken"]["status"]
        page.click('[data-column="score mse"]')
        page.click('[data-column="score mse"]')
        ordered = page.locator('[data-field="score mse"]').all_inner_texts()
        numbers = [float(text) for text in ordered if text != "–"]
        assert numbers == sorted(numbers, reverse=True)
        assert ordered[len(numbers) :] == ["–"] * (23 - len(numbers))

        page.get_by_role("button", name="vanilla-1-2", exact=True).click()
        dialog = page.locator("#details")
        text = dialog.inner_text()
        assert "(ε, δ) = (1, 0.00001) per window" in text
        metrics = known["vanilla-1-2"]["metrics"]
        cells = dict(
            dialog.evaluate(
                "node => [...node.querySelectorAll('[data-value]')].map((cell) =>"
                " [cell.dataset.value, cell.innerText])"
            )
        )
        expected = {
            name.removeprefix("test/"): shown(value)
            for name, value in metrics.items()
            if name.startswith(("test/", "nonprivate/")) and name != "test/epsilon"
        }
        for name in ("mean_of_days", "last_value"):
            expected[f"{name.replace('_', ' ')}, mse"] = shown(metrics[f"baseline/{name}/mse"])
        assert cells == expected
        report = json.loads((runs / "vanilla-1-2" / "privacy.json").read_text())
        facts = dict(
            dialog.evaluate(
                "node => [...node.querySelectorAll('dl.facts > div')].map((line) =>"
                " [line.firstChild.innerText, line.lastChild.innerText])"
            )
        )
        for label, field in (
            ("noise multiplier σ", "noise_multiplier"),
            ("clip norm C", "max_grad_norm"),
            ("sampling rate q", "sampling_rate"),
            ("units", "num_units"),
            ("steps charged", "steps_charged"),
        ):
            assert float(facts[label]) == report[field]
        assert facts["ledger entry"] == f"6 {report['ledger_hash'][:12]}…"
        private = dialog.locator("section", has=page.locator("h3 .nonprivate")).first
        assert shown(metrics["nonprivate/train_loss"]) in private.inner_text()
        for name in ("config.yaml", "privacy.json", "results.json"):
            link = dialog.locator("a", has_text=name).get_attribute("href")
            assert (site / link).read_text() == (runs / "vanilla-1-2" / name).read_text()


def test_saliency_ratios_are_compared_by_the_run_folders_numbers(visit, site, runs):
    with visit(site, "view=saliency") as seen:
        page = seen.page
        for metric in ("accuracy", "fd_lite0"):
            page.select_option('[data-choice="Metric"]', metric)
            drawn(page)
            (points,) = page.evaluate(
                "document.querySelector('.chart').data.map((trace) =>"
                " Array.from(trace.x, (x, i) => [x, Array.from(trace.y)[i]]))"
            )
            for at, value in points:
                result = json.loads((runs / f"lora-{at}" / "results.json").read_text())
                assert value == result["metrics"][f"test/{metric}"]
                cell = page.locator(f'[data-line="lora, ε = 8"][data-ratio="{at}"]').inner_text()
                assert float(cell.removesuffix(" (1)")) == pytest.approx(value, abs=5e-5)
            assert [at for at, _ in points] == [0.1, 0.5]


def test_curves_and_tails_are_the_files_own_points(visit, site, runs):
    with visit(site, "view=training") as seen:
        page = seen.page
        drawn(page)
        assert page.locator("main .card .nonprivate").count() > 0
        curves = dict(
            page.evaluate("document.querySelector('.chart').data.map((trace) => [trace.meta, trace.y])")
        )
        key = next(key for key in curves if key.endswith("dp-aware-8-0"))
        lines = (runs / "dp-aware-8-0" / "metrics.csv").read_text().splitlines()[1:-1]
        assert curves[key] == [float(line.split(",")[1]) for line in lines]
        page.click("#tab-gradients")
        drawn(page)
        report = json.loads((runs / "vanilla-8-0" / "diagnostics.json").read_text())
        row = page.locator('tr[data-run="vanilla-8-0"]')
        own = report["partitions"]["all"]
        index = own["tail_index"]
        for field, value in {
            "clip_fraction": report["clip_fraction"],
            "eta": report["eta"]["mean"],
            "tail_ratio": own["tail_ratio"],
            **own["quantiles"],
        }.items():
            assert row.locator(f'[data-field="{field}"]').inner_text() == f"{value:.4g}"
        said = row.locator('[data-field="tail_index"]').inner_text()
        assert said == f"{index['alpha']:.4g} ({index['low']:.4g} to {index['high']:.4g})"
        tails = dict(
            page.evaluate("document.querySelector('.chart').data.map((trace) => [trace.meta, trace.y])")
        )
        share = report["partitions"]["all"]["ecdf"]["share"]
        key = next(key for key in tails if key.endswith("vanilla-8-0"))
        assert tails[key] == pytest.approx([1 - value for value in share if value < 1], rel=1e-12)


def test_the_ledger_s_account_is_the_ledger_s(visit, site, ledger):
    with visit(site, "view=ledger") as seen:
        page = seen.page
        spent = float(page.get_attribute("[data-spent]", "data-spent"))
        assert spent == ledger.epsilon("ETTh1", unit="window")
        assert page.inner_text("[data-spent]") == f"{spent:.4g}"
        used = ledger.budget("ETTh1", unit="window").filter_epsilon
        assert float(page.get_attribute("[role=meter]", "aria-valuenow")) == used
        # A known run opens its details; one that is not among the folders is still accounted for.
        assert "elsewhere-id" in page.inner_text("main")
        page.get_by_role("button", name="dp-aware-8-0").click()
        assert page.is_visible("#details[open]")


def test_keyboard_and_names_for_those_who_do_not_see(visit, site):
    with visit(site, "view=quality", color_scheme="dark") as seen:
        page = seen.page
        drawn(page)
        assert page.get_attribute("html", "data-theme") == "dark"
        page.focus("#tab-quality")
        page.keyboard.press("ArrowRight")
        assert page.evaluate("document.activeElement.id") == "tab-saliency"
        page.keyboard.press("ArrowLeft")
        page.focus("main .term")
        assert "privacy unit" in page.inner_text("#tip")
        page.keyboard.press("Escape")
        assert page.is_hidden("#tip")
        unnamed = page.evaluate(
            "[...document.querySelectorAll('button, select, input, a, img, .chart')].filter((node) =>"
            " ![node.textContent.trim(), node.ariaLabel, node.alt, node.labels?.length].some(Boolean))"
            ".map((node) => node.outerHTML)"
        )
        assert unnamed == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(visit, site, scheme):
    """4.5 : 1 for every text on its ground (WCAG 2, AA)."""
    with visit(site, "view=runs", color_scheme=scheme) as seen:
        faint = seen.page.evaluate(CONTRAST)
        assert faint == []


def test_a_thousand_runs_load_in_three_seconds(chromium, tmp_path):
    """Of the page's own time on the processor, so that other processes of this machine don't count."""
    write_many(tmp_path / "runs", count=1000)
    assert write_site([tmp_path / "runs"], out=tmp_path / "site") == 1000
    page = chromium.new_page(viewport={"width": 1366, "height": 820})
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.goto(f"{(tmp_path / 'site').as_uri()}/index.html")
    drawn(page)
    measured = {item["name"]: item["value"] for item in session.send("Performance.getMetrics")["metrics"]}
    assert 0.1 < measured["TaskDuration"] <= 3
    assert page.inner_text("#tiles .value >> nth=0") == "1,000"
    page.click("#tab-runs")
    assert page.locator("tr[data-run]").count() == 50  # a page at a time
    page.close()


CONTRAST = """
(() => {
  const channel = (c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (text) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = text;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = (rgb) => [0.2126, 0.7152, 0.0722].reduce((sum, w, i) => sum + w * channel(rgb[i] / 255), 0);
  const ground = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      if (colour[3] > 200) return colour;
    }
    return [255, 255, 255, 255];
  };
  const faint = new Set();
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const node = texts.currentNode.parentElement;
    if (!texts.currentNode.textContent.trim() || !node.checkVisibility()) continue;
    if (node.closest("script, :disabled")) continue;
    const [a, b] = [light(rgba(getComputedStyle(node).color)), light(ground(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) faint.add(`${node.className || node.tagName} ${ratio.toFixed(2)}`);
  }
  return [...faint];
})()
"""
