// Quality against ε: one chart and one table for each data set and task.
"use strict";

LightningDP.views.push((() => {
  const { element: h, format, statistics, charts, selection, term } = LightningDP;
  let seedsShown = true;
  let logarithmic = false;

  // A baseline far beyond the results would squeeze them; it is named below the chart instead.
  const near = (baselines, cells) => {
    const largest = Math.max(...cells.map((cell) => cell.mean));
    return baselines.filter((baseline) => baseline.mean <= 1.3 * largest);
  };

  const build = (panel, cells, baselines, metric) => ({ narrow }) => {
    const epsilons = statistics.distinct(cells.map((cell) => cell.at), statistics.byEpsilon);
    const units = statistics.distinct(panel.runs.map((run) => run.unit).filter(Boolean));
    const axis = charts.epsilonAxis(epsilons, units.length === 1 ? units[0] : "", narrow);
    const strokes = charts.strokes(cells);
    const lines = [...strokes.keys()];
    const traces = [];
    const shown = near(baselines, cells);
    const spread = cells.flatMap((cell) => [...(seedsShown ? cell.values : []), cell.mean - (cell.se ?? 0), cell.mean + (cell.se ?? 0)]);
    const low = Math.min(...spread, ...shown.map((baseline) => baseline.mean));
    const high = Math.max(...spread, ...shown.map((baseline) => baseline.mean));
    const pad = (high - low || Math.abs(high) || 1) * 0.09;
    const logarithm = logarithmic && low > 0;
    const range = logarithm ? [Math.log10(low / 1.05), Math.log10(high * 1.05)] : [low - pad, high + pad];

    lines.forEach((line, number) => {
      const own = cells.filter((cell) => cell.line === line);
      const colour = charts.colour(own[0].method);
      const { dash, open } = strokes.get(line);
      const shift = number - (lines.length - 1) / 2;
      const symbol = charts.symbol(own[0].method) + (open ? "-open" : "");
      // Two traces, so that no line leads to ∞; one legend entry.
      [own.filter((cell) => axis.finite(cell.at)), own.filter((cell) => !axis.finite(cell.at))].forEach((part, beyond) => {
        if (!part.length) return;
        if (seedsShown) {
          const dots = part.flatMap((cell) => cell.values.map((value, i) => ({ at: cell.at, value, run: cell.runs[i] })));
          traces.push({
            type: "scatter", mode: "markers", legendgroup: line, showlegend: false,
            x: dots.map((dot) => axis.place(dot.at, shift)), y: dots.map((dot) => dot.value),
            marker: { color: colour, size: 5, opacity: 0.38 },
            text: dots.map((dot) => format.chartText(dot.run.name)),
            hovertemplate: `%{text}<br>${format.chartText(metric.label)} %{y:.4f}<extra></extra>`,
            meta: "seeds",
          });
        }
        traces.push({
          type: "scatter", mode: beyond ? "markers" : "lines+markers", name: format.chartText(line), legendgroup: line,
          showlegend: beyond === 0 || own.every((cell) => !axis.finite(cell.at)),
          x: part.map((cell) => axis.place(cell.at, shift)), y: part.map((cell) => cell.mean),
          error_y: { type: "data", array: part.map((cell) => cell.se ?? 0), visible: true, color: colour, thickness: 1.6, width: 5 },
          line: { color: colour, width: 2.2, dash },
          marker: { color: colour, size: 9, symbol, line: { color: open ? colour : charts.ground(), width: open ? 2 : 1 } },
          customdata: part.map((cell) => [format.epsilon(cell.at), cell.unit ? ` per ${format.chartText(cell.unit)}` : "",
            format.withError(cell), format.count(cell.n, "run"), cell.at]),
          hovertemplate: `<b>${format.chartText(line)}</b><br>ε = %{customdata[0]}%{customdata[1]}<br>`
            + `${format.chartText(metric.label)} %{customdata[2]}<br>%{customdata[3]}<extra></extra>`,
          meta: "means",
        });
      });
    });

    const height = 400 - 14 - 110;
    const scale = (value) => ((logarithm ? Math.log10(value) : value) - range[0]) / (range[1] - range[0]) * height;
    let last = -Infinity;
    const annotations = [];
    for (const baseline of shown) {
      const at = Math.max(scale(baseline.mean), last + 16);
      last = at;
      traces.push({
        type: "scatter", mode: "lines", showlegend: false, name: format.chartText(baseline.name), meta: "baseline",
        x: axis.axis.range.map((value) => 10 ** value), y: [baseline.mean, baseline.mean],
        line: { color: charts.muted(), width: 1.3, dash: "5px,4px" },
        hovertemplate: `${format.chartText(baseline.name)}, a baseline without privacy cost<br>%{y:.4f}<extra></extra>`,
      });
      annotations.push({
        xref: "paper", ...(narrow ? { x: 0, xanchor: "left", xshift: 4 } : { x: 1, xanchor: "left", xshift: 6 }), yref: "y", y: logarithm ? Math.log10(baseline.mean) : baseline.mean,
        yanchor: "middle", yshift: at - scale(baseline.mean) + (narrow ? 9 : 0), text: format.chartText(baseline.name), showarrow: false,
        font: { size: 12, color: charts.muted() },
      });
    }
    const direction = metric.better ? `, ${metric.better} is better` : "";
    return {
      traces,
      layout: {
        margin: { r: shown.length && !narrow ? 118 : 24, b: 110 },
        shapes: axis.shapes, annotations, hovermode: "closest",
        xaxis: { ...axis.axis },
        yaxis: { range, type: logarithm ? "log" : "linear", title: { text: `${format.chartText(metric.label)}${direction}` } },
        legend: { y: narrow ? -0.2 : -0.26 },
      },
    };
  };

  const table = (cells, baselines, metric) => {
    const epsilons = statistics.distinct(cells.map((cell) => cell.at), statistics.byEpsilon);
    const lines = statistics.distinct(cells.map((cell) => cell.line));
    return h("div", { class: "scroll" }, h("table", { class: "numbers" },
      h("caption", {}, `${metric.label}: mean ± standard error over `, term("seeds", "seeds"), ", number of runs in brackets"),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "method"),
        epsilons.map((epsilon) => h("th", { scope: "col" }, `ε = ${format.epsilon(epsilon)}`)))),
      h("tbody", {},
        lines.map((line) => {
          const own = cells.filter((cell) => cell.line === line);
          return h("tr", {}, h("th", { scope: "row" }, LightningDP.swatch(own[0].method), line),
            epsilons.map((epsilon) => {
              const cell = own.find((found) => found.at === epsilon);
              return h("td", { "data-line": line, "data-epsilon": format.epsilon(epsilon) },
                cell ? [format.withError(cell), " ", h("span", { class: "muted" }, `(${cell.n})`)] : "–");
            }));
        }),
        baselines.map((baseline) => h("tr", { class: "baseline" }, h("th", { scope: "row" }, baseline.name),
          h("td", { colspan: epsilons.length, "data-baseline": baseline.name }, format.withError(baseline))))),
    ));
  };

  const card = (panel, metric) => {
    const cells = statistics.cells(panel.runs, metric.name);
    const baselines = statistics.baselines(panel.runs, metric.name);
    const heading = [panel.dataset, panel.task].filter(Boolean).join(" · ");
    if (!cells.length) return h("article", { class: "card" }, h("h2", {}, heading), h("p", { class: "empty" }, `No run here has ${metric.label}.`));
    const far = baselines.filter((baseline) => !near(baselines, cells).includes(baseline));
    const label = `${metric.label} against ε on ${heading}: ${cells.map((cell) =>
      `${cell.line} at ε ${format.epsilon(cell.at)}: ${format.withError(cell)}`).join("; ")}`;
    const repeated = cells.filter((cell) => cell.repeated);
    return h("article", { class: "card" },
      h("h2", {}, heading),
      charts.node(build(panel, cells, baselines, metric), { label }),
      far.length ? h("p", { class: "note" }, "Off the chart: ", far.map((baseline) => `${baseline.name} ${format.number(baseline.mean)}`).join(", "), ".") : null,
      repeated.length ? h("p", { class: "note warn" }, `The same seed appears in several runs of ${repeated.map((cell) =>
        `${cell.line} at ε = ${format.epsilon(cell.at)}`).join(", ")}: they differ in something that is not shown. Tell them apart with run.method.`) : null,
      table(cells, baselines, metric));
  };

  return {
    name: "quality",
    label: "Quality",
    render() {
      const runs = selection.finished();
      const metric = LightningDP.metric(runs);
      if (!metric) return [LightningDP.empty("No finished run passes the filters.", "A run has results once 'lightning-dp fit' or 'test' has ended.")];
      const panels = statistics.panels(runs);
      return [
        LightningDP.viewHead("Quality against ", term("ε", "epsilon"), {
          text: ["Methods are compared at equal ε only. Dashed lines are ", term("baselines", "baselines"), " that cost no privacy."],
          controls: [
            LightningDP.metricChoice(runs),
            LightningDP.check("Single runs", seedsShown, (value) => { seedsShown = value; LightningDP.render(); }),
            LightningDP.check("Log scale", logarithmic, (value) => { logarithmic = value; LightningDP.render(); }),
          ],
        }),
        // A data set without the chosen metric shows the first that it has.
        panels.map((panel) => card(panel, LightningDP.metric(panel.runs) ?? metric)),
      ];
    },
  };
})());
