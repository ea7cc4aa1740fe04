// Gradient tails: how far single units' gradients reach beyond the clip norm.
"use strict";

LightningDP.views.push((() => {
  const { element: h, format, statistics, charts, selection, term } = LightningDP;
  const limit = 12;
  const partitionNames = { all: "all parameters", cond: "conditioning (θ_cond)", other: "other parameters (θ_other)" };
  const stepNames = { clip_fraction: "share of units clipped", eta_mean: "mean of η = ‖clip g‖ / ‖g‖", cond_share: "share of θ_cond in ‖g‖²" };
  let partition = "all";
  let quantity = "p99";

  const isGradient = (plot) => /(^|\/)gradient_[^/]*\.png$/.test(plot);
  const found = (run) => LightningDP.details.get(run.key)?.diagnostics;
  const line = (run) => run.series || run.method;
  const hover = (run) => `<b>${format.chartText(run.name)}</b><br>${format.chartText(line(run))}, ε = ${format.epsilon(run.group)}`;
  const legend = { y: -0.2, itemclick: false, itemdoubleclick: false };

  const lines = (runs, points) => {
    const epsilons = statistics.distinct(runs.map((run) => run.group), statistics.byEpsilon);
    return [...charts.key(statistics.distinct(runs.map((run) => run.method)), epsilons), ...runs.map((run) => ({
      type: "scatter", mode: "lines", showlegend: false, meta: run.key, ...points(run),
      line: { color: charts.colour(run.method), width: 1.9, dash: charts.dashes[epsilons.indexOf(run.group) % charts.dashes.length] },
    }))];
  };

  const tail = (runs) => ({ narrow }) => {
    const bounds = statistics.distinct(runs.map((run) => found(run).max_grad_norm), (a, b) => a - b);
    return {
      traces: lines(runs, (run) => {
        const { share, norm } = found(run).partitions[partition].ecdf;
        // The last point has nothing above it, which a logarithm can't show.
        const kept = share.map((value, i) => [norm[i], 1 - value]).filter(([at, above]) => above > 0 && at > 0);
        return { x: kept.map(([at]) => at), y: kept.map(([, above]) => above), hovertemplate: `${hover(run)}<br>%{y:.3~p} of units above %{x:.3~g}<extra></extra>` };
      }),
      layout: {
        margin: { t: 26, b: 96 }, legend, hovermode: "closest",
        xaxis: { type: "log", dtick: "D2", minorloglabels: "complete", title: { text: narrow ? "‖g‖" : "norm of one unit's gradient, before clipping" } },
        yaxis: { type: "log", tickformat: ".2~p", title: { text: "share of units above" } },
        shapes: bounds.map((bound) => ({ type: "line", xref: "x", yref: "paper", x0: bound, x1: bound, y0: 0, y1: 1, line: { color: charts.muted(), width: 1.3, dash: "dot" } })),
        annotations: bounds.map((bound) => ({ xref: "x", yref: "paper", x: Math.log10(bound), y: 1, xanchor: "center", yanchor: "bottom", showarrow: false, text: `C = ${format.compact(bound)}`, font: { size: 12, color: charts.muted() } })),
      },
    };
  };

  const overSteps = (runs) => () => ({
    traces: lines(runs, (run) => {
      const steps = found(run).steps;
      return { x: steps.step, y: quantity in stepNames ? steps[quantity] : steps[partition][quantity], hovertemplate: `${hover(run)}<br>step %{x}: %{y:.4~g}<extra></extra>` };
    }),
    layout: {
      margin: { b: 96 }, legend, hovermode: "closest",
      xaxis: { title: { text: "optimizer step" } },
      yaxis: { title: { text: stepNames[quantity] ?? `${quantity} of ‖g‖` }, rangemode: "tozero" },
    },
  });

  const table = (runs) => {
    const levels = statistics.distinct(runs.flatMap((run) => Object.keys(found(run).partitions[partition].quantiles)));
    const index = (estimate) => (estimate ? `${format.compact(estimate.alpha)} (${format.compact(estimate.low)} to ${format.compact(estimate.high)})` : "–");
    const head = ["run", "units", "clipped", "mean η", ...levels, "p99 / p50", "tail index α (interval)"];
    return h("div", { class: "scroll" }, h("table", { class: "numbers" },
      h("caption", {}, `Norms of ${partitionNames[partition]}; a smaller tail index is a heavier tail`),
      h("thead", {}, h("tr", {}, head.map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, runs.map((run) => {
        const report = found(run);
        const own = report.partitions[partition];
        const values = [["units", format.number(report.units)], ["clip_fraction", format.compact(report.clip_fraction)], ["eta", format.compact(report.eta.mean)],
          ...levels.map((level) => [level, format.compact(own.quantiles[level])]), ["tail_ratio", format.compact(own.tail_ratio)], ["tail_index", index(own.tail_index)]];
        return h("tr", { "data-run": run.name }, h("th", { scope: "row" }, LightningDP.swatch(run.method), LightningDP.openDetails(run)),
          values.map(([name, text]) => h("td", { "data-field": name }, text)));
      }))));
  };

  const card = (panel) => {
    const own = panel.runs.filter((run) => found(run)?.partitions[partition]);
    const drawn = panel.runs.filter((run) => !found(run) && run.plots.some(isGradient));
    const heading = [panel.dataset || "no result yet", panel.task].filter(Boolean).join(" · ");
    return [
      own.length ? h("article", { class: "card" }, h("h2", {}, heading),
        h("div", { class: "pair" },
          h("section", {}, h("h3", {}, "Tail over all steps"), charts.node(tail(own), { label: `Share of units with a gradient norm above a value on ${heading}, for ${format.count(own.length, "run")}` })),
          h("section", {}, h("h3", {}, "Over training"), charts.node(overSteps(own), { label: `${stepNames[quantity] ?? `${quantity} of the gradient norm`} over optimizer steps on ${heading}, for ${format.count(own.length, "run")}` }))),
        panel.total > panel.runs.length ? h("p", { class: "note" }, `One seed of each line, ${panel.runs.length} of ${panel.total} runs: filter to see others.`) : null,
        table(own)) : null,
      drawn.map((run) => h("article", { class: "card" }, h("h2", {}, LightningDP.swatch(run.method), `${line(run)}, ε = ${format.epsilon(run.group)}`),
        run.plots.filter(isGradient).map((plot) => h("img", { class: "wide", src: `runs/${run.key}/${plot}`, loading: "lazy", alt: `${plot} of ${run.name}` })))),
    ];
  };

  const show = (panels) => {
    const runs = panels.flatMap((panel) => panel.runs);
    if (!runs.length) return [LightningDP.empty("No run with gradient statistics yet.", "Add the GradientDiagnostics callback to a run to see its gradient tails.")];
    const measured = runs.filter(found);
    const partitions = Object.keys(partitionNames).filter((name) => measured.some((run) => found(run).partitions[name]));
    if (!partitions.includes(partition)) partition = partitions[0] ?? "all";
    const own = measured.filter((run) => found(run).partitions[partition]);
    const quantities = own.length ? [
      ...Object.keys(found(own[0]).steps[partition]).map((name) => [name, `${name} of ‖g‖`]),
      ...Object.entries(stepNames).filter(([name]) => own.some((run) => found(run).steps[name]?.some((value) => value !== null))),
    ] : [];
    if (quantities.length && !quantities.some(([name]) => name === quantity)) quantity = quantities[0][0];
    return [
      LightningDP.viewHead("Gradient tails ", term("nonprivate", "nonprivate"), {
        text: ["Norms of single units' gradients before clipping. Colour is the method, the stroke is ", term("ε", "epsilon"), "; the dotted line is the clip norm C."],
        controls: own.length ? [
          LightningDP.choice("Parameters", partitions.map((name) => [name, partitionNames[name]]), partition, (value) => { partition = value; LightningDP.render(); }),
          LightningDP.choice("Over steps", quantities, quantity, (value) => { quantity = value; LightningDP.render(); }),
        ] : [],
      }),
      panels.map(card),
    ];
  };

  return {
    name: "gradients",
    label: "Gradients",
    render() {
      const all = selection.runs().filter((run) => run.files.includes("diagnostics.json") || run.plots.some(isGradient));
      const panels = statistics.panels(all).map((panel) => {
        const firsts = LightningDP.firstSeeds(panel.runs);
        return { ...panel, runs: firsts.slice(0, limit), total: panel.runs.length };
      });
      return LightningDP.afterDetails(panels.flatMap((panel) => panel.runs), () => show(panels));
    },
  };
})());
