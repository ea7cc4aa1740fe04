// Figures of the runs side by side: methods down, ε across.
"use strict";

LightningDP.views.push((() => {
  const { element: h, format, statistics, selection, term } = LightningDP;
  let chosen = "";
  let seed = "";
  let across = "epsilon";

  const kind = (plot) => plot.replace(/^plots\//, "").replace(/\.png$/, "");
  const words = (text) => text.replaceAll("_", " ");

  const caption = (run) => `${run.series || run.method}, ε = ${format.epsilon(run.group)}, seed ${run.seed ?? "unknown"}`;
  const figure = (shown, number) => h("figure", {},
    h("button", { type: "button", class: "picture", title: "Enlarge", onclick() { enlarge(shown, number); } },
      h("img", { src: shown[number].source, loading: "lazy", alt: shown[number].alt })),
    h("figcaption", {}, `seed ${shown[number].run.seed ?? "unknown"} · `, LightningDP.openDetails(shown[number].run)));

  // One figure in full size; the arrow keys flip to its neighbours.
  const enlarge = (shown, first) => {
    const dialog = document.getElementById("picture");
    let at = first;
    const draw = () => {
      const turn = (by) => () => { at = (at + by + shown.length) % shown.length; draw(); };
      dialog.replaceChildren(
        h("header", {}, h("h2", {}, LightningDP.swatch(shown[at].run.method), caption(shown[at].run), " ", term("nonprivate", "nonprivate")),
          h("div", { class: "controls" }, h("button", { type: "button", class: "quiet", onclick: turn(-1) }, "← Previous"),
            h("button", { type: "button", class: "quiet", autofocus: true, onclick: turn(1) }, "Next →"),
            h("button", { type: "button", class: "quiet", onclick() { dialog.close(); } }, "Close"))),
        h("img", { src: shown[at].source, alt: shown[at].alt }));
    };
    dialog.onkeydown = (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (by) { at = (at + by + shown.length) % shown.length; draw(); }
    };
    draw();
    dialog.showModal();
  };

  const card = (panel, name) => {
    const runs = panel.runs.filter((run) => run.plots.some((plot) => kind(plot) === name) && (seed === "" || String(run.seed) === seed));
    const heading = [panel.dataset || "no result yet", panel.task].filter(Boolean).join(" · ");
    if (!runs.length) return null;
    const line = (run) => run.series || run.method;
    const epsilons = statistics.distinct(runs.map((run) => run.group), statistics.byEpsilon).map((epsilon) => ({
      head: `ε = ${format.epsilon(epsilon)}`, has: (run) => run.group === epsilon,
    }));
    const lines = statistics.distinct(runs.map(line)).map((name_) => ({
      head: [LightningDP.swatch(runs.find((run) => line(run) === name_).method), name_], has: (run) => line(run) === name_,
    }));
    const [columns, rows] = across === "epsilon" ? [epsilons, lines] : [lines, epsilons];
    const shown = [];
    return h("article", { class: "card" }, h("h2", {}, heading, " ", term("nonprivate", "nonprivate")),
      h("div", { class: "scroll" }, h("table", { class: "figures" },
        h("thead", {}, h("tr", {}, h("td", {}), columns.map((column) => h("th", { scope: "col" }, column.head)))),
        h("tbody", {}, rows.map((row) => h("tr", {}, h("th", { scope: "row" }, row.head), columns.map((column) => {
          const run = runs.filter((found) => row.has(found) && column.has(found)).sort((a, b) => (a.seed ?? 0) - (b.seed ?? 0))[0];
          if (!run) return h("td", {}, h("p", { class: "empty" }, "no figure"));
          shown.push({ run, source: `runs/${run.key}/${run.plots.find((plot) => kind(plot) === name)}`, alt: `${words(name)} of ${caption(run)}` });
          return h("td", {}, figure(shown, shown.length - 1));
        })))))));
  };

  return {
    name: "samples",
    label: "Samples",
    render() {
      const runs = selection.runs();
      const names = statistics.distinct(runs.flatMap((run) => run.plots.map(kind)).filter((name) => !name.startsWith("gradient_")));
      if (!names.length) return [LightningDP.empty("No figures in these runs.", "Forecast fans and sample grids appear here once a run has tested.")];
      const name = names.includes(chosen) ? chosen : names[0];
      const seeds = statistics.distinct(runs.filter((run) => run.plots.length && run.seed !== null).map((run) => String(run.seed)), (a, b) => a - b);
      if (!seeds.includes(seed)) seed = "";
      return [
        LightningDP.viewHead(words(name).replace(/^./, (letter) => letter.toUpperCase()), {
          text: ["Figures show real windows or images, which no ", term("ε", "epsilon"), " covers."],
          controls: [
            LightningDP.choice("Figure", names.map((found) => [found, words(found)]), name, (value) => { chosen = value; LightningDP.render(); }),
            LightningDP.choice("Across", [["epsilon", "ε"], ["method", "method"]], across, (value) => { across = value; LightningDP.render(); }),
            LightningDP.choice("Seed", [["", "first"], ...seeds.map((found) => [found, found])], seed, (value) => { seed = value; LightningDP.render(); }),
          ],
        }),
        statistics.panels(runs).map((panel) => card(panel, name)),
      ];
    },
  };
})());
