// Curves over optimizer steps, as they were logged.
"use strict";

LightningDP.views.push((() => {
  const { element: h, format, statistics, charts, selection, term } = LightningDP;
  const limit = 16;
  let chosen = "";
  let logarithmic = false;
  let oneSeed = true;

  const isPrivate = (name) => name.startsWith("nonprivate/");
  const usual = ["nonprivate/train_loss", "val/loss", "train_loss"];

  const build = (runs, name) => () => {
    const epsilons = statistics.distinct(runs.map((run) => run.group), statistics.byEpsilon);
    return {
      traces: [...charts.key(statistics.distinct(runs.map((run) => run.method)), epsilons), ...runs.map((run) => {
        const curve = LightningDP.details.get(run.key).curves[name];
        return {
          type: "scatter", mode: curve.step.length > 40 ? "lines" : "lines+markers", name: format.chartText(run.name), meta: run.key,
          x: curve.step, y: curve.value, showlegend: false,
          line: { color: charts.colour(run.method), width: 1.8, dash: charts.dashes[epsilons.indexOf(run.group) % charts.dashes.length] },
          marker: { size: 4 },
          hovertemplate: `<b>${format.chartText(run.name)}</b><br>${format.chartText(run.series || run.method)}, ε = ${format.epsilon(run.epsilon)}<br>step %{x}: %{y:.4g}<extra></extra>`,
        };
      })],
      layout: {
        height: 440, margin: { b: 96 }, legend: { y: -0.18, itemclick: false, itemdoubleclick: false }, hovermode: "closest",
        xaxis: { title: { text: "optimizer step" } },
        yaxis: { title: { text: format.chartText(name) }, type: logarithmic ? "log" : "linear" },
      },
    };
  };

  const card = ({ dataset, task, runs, total }, name) => {
    const own = runs.filter((run) => LightningDP.details.get(run.key).curves[name]);
    if (!own.length) return null;
    const thinned = own.some((run) => { const curve = LightningDP.details.get(run.key).curves[name]; return curve.logged > curve.step.length; });
    const heading = [dataset || "no result yet", task].filter(Boolean).join(" · ");
    return h("article", { class: "card" },
      h("h2", {}, heading, " ", isPrivate(name) ? term("nonprivate", "nonprivate") : ""),
      charts.node(build(own, name), { label: `${name} over optimizer steps on ${heading}, for ${format.count(own.length, "run")}`, height: 440 }),
      total > runs.length ? h("p", { class: "note" }, `${runs.length} of ${total} runs: filter to see others.`) : null,
      thinned ? h("p", { class: "note" }, "Long curves are thinned to every n-th logged point.") : null);
  };

  const show = (panels) => {
    const runs = panels.flatMap((panel) => panel.runs);
    const names = statistics.distinct(runs.flatMap((run) => Object.keys(LightningDP.details.get(run.key)?.curves ?? {})));
    if (!names.length) return [LightningDP.empty("No curves in these runs.", "metrics.csv of a run needs at least two logged steps.")];
    const name = names.includes(chosen) ? chosen : usual.find((found) => names.includes(found)) ?? names[0];
    return [
      LightningDP.viewHead("Training curves", {
        text: ["Colour is the method, the stroke is ", term("ε", "epsilon"), "."],
        controls: [
          LightningDP.choice("Curve", names.map((found) => [found, found]), name, (value) => { chosen = value; LightningDP.render(); }),
          LightningDP.check("First seed only", oneSeed, (value) => { oneSeed = value; LightningDP.render(); }),
          LightningDP.check("Log scale", logarithmic, (value) => { logarithmic = value; LightningDP.render(); }),
        ],
      }),
      panels.map((panel) => card(panel, name)),
    ];
  };

  return {
    name: "training",
    label: "Training",
    render() {
      const all = selection.runs();
      if (!all.length) return [LightningDP.empty("No run passes the filters.")];
      const panels = statistics.panels(all).map((panel) => {
        const wanted = oneSeed ? LightningDP.firstSeeds(panel.runs) : panel.runs;
        return { ...panel, runs: wanted.slice(0, limit), total: wanted.length };
      });
      return LightningDP.afterDetails(panels.flatMap((panel) => panel.runs), () => show(panels));
    },
  };
})());
