// Quality against the saliency ratio: how much of a network is worth training privately.
"use strict";

LightningDP.views.push((() => {
  const { element: h, format, statistics, charts, selection, term } = LightningDP;
  const ratio = (run) => run.facts.saliency_ratio;
  const line = (run) => `${run.method}, ε = ${format.epsilon(run.group)}`;

  const byMethodAndEpsilon = (cells) => {
    const first = new Map(cells.map((cell) => [cell.line, cell]));
    return (a, b) => first.get(a).method.localeCompare(first.get(b).method) || statistics.byEpsilon(first.get(a).runs[0].group, first.get(b).runs[0].group);
  };

  const build = (cells, metric) => ({ narrow }) => {
    const names = statistics.distinct(cells.map((cell) => cell.line), byMethodAndEpsilon(cells));
    const epsilons = statistics.distinct(cells.map((cell) => cell.runs[0].group), statistics.byEpsilon);
    return {
      traces: names.map((name) => {
        const own = cells.filter((cell) => cell.line === name);
        const colour = charts.colour(own[0].method);
        const dash = charts.dashes[epsilons.indexOf(own[0].runs[0].group) % charts.dashes.length];
        return {
          type: "scatter", mode: "lines+markers", name: format.chartText(name), meta: "means",
          x: own.map((cell) => cell.at), y: own.map((cell) => cell.mean),
          error_y: { type: "data", array: own.map((cell) => cell.se ?? 0), color: colour, thickness: 1.6, width: 5 },
          line: { color: colour, width: 2.2, dash },
          marker: { color: colour, size: 9, symbol: charts.symbol(own[0].method), line: { color: charts.ground(), width: 1 } },
          customdata: own.map((cell) => [format.withError(cell), format.count(cell.n, "run")]),
          hovertemplate: `<b>${format.chartText(name)}</b><br>ratio %{x}<br>${format.chartText(metric.label)} %{customdata[0]}<br>%{customdata[1]}<extra></extra>`,
        };
      }),
      layout: {
        margin: { b: 110 }, legend: { y: -0.26 }, hovermode: "closest",
        xaxis: { title: { text: narrow ? "saliency ratio" : "saliency ratio (share of parameters trained)" }, tickformat: ".0%", tickvals: statistics.distinct(cells.map((cell) => cell.at), (a, b) => a - b) },
        yaxis: { title: { text: `${format.chartText(metric.label)}${metric.better ? `, ${metric.better} is better` : ""}` } },
      },
    };
  };

  const table = (cells, metric) => {
    const ratios = statistics.distinct(cells.map((cell) => cell.at), (a, b) => a - b);
    return h("div", { class: "scroll" }, h("table", { class: "numbers" },
      h("caption", {}, `${metric.label}: mean ± standard error over `, term("seeds", "seeds"), ", number of runs in brackets"),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "method and ε"), ratios.map((at) => h("th", { scope: "col" }, `${format.compact(100 * at)}%`)))),
      h("tbody", {}, statistics.distinct(cells.map((cell) => cell.line), byMethodAndEpsilon(cells)).map((name) => {
        const own = cells.filter((cell) => cell.line === name);
        return h("tr", {}, h("th", { scope: "row" }, LightningDP.swatch(own[0].method), name), ratios.map((at) => {
          const cell = own.find((found) => found.at === at);
          return h("td", { "data-line": name, "data-ratio": String(at) }, cell ? [format.withError(cell), " ", h("span", { class: "muted" }, `(${cell.n})`)] : "–");
        }));
      }))));
  };

  return {
    name: "saliency",
    label: "Saliency",
    render() {
      const runs = selection.finished().filter((run) => typeof ratio(run) === "number");
      if (!LightningDP.metric(runs)) return [LightningDP.empty("No run with a saliency ratio yet.", "Runs that train by saliency say their ratio in results.json, under facts.")];
      return [
        LightningDP.viewHead("Quality against the ", term("saliency ratio", "saliency"), {
          text: ["Colour is the method, the stroke is ε."],
          controls: [LightningDP.metricChoice(runs)],
        }),
        statistics.panels(runs).map((panel) => {
          const metric = LightningDP.metric(panel.runs);
          const cells = statistics.cells(panel.runs, metric.name, { line, place: ratio });
          const heading = [panel.dataset, panel.task].filter(Boolean).join(" · ");
          const label = `${metric.label} against the saliency ratio on ${heading}`;
          return h("article", { class: "card" }, h("h2", {}, heading),
            cells.length ? [charts.node(build(cells, metric), { label }), table(cells, metric)] : h("p", { class: "empty" }, `No run here has ${metric.label}.`));
        }),
      ];
    },
  };
})());
