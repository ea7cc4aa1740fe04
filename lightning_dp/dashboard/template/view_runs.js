// Every run, sortable, a page at a time.
"use strict";

LightningDP.views.push((() => {
  const { element: h, format, statistics, selection, term } = LightningDP;
  const size = 50;
  let order = { column: "run", down: false };
  let page = 0;

  const columns = (runs) => {
    const scored = LightningDP.data.metrics.filter((metric) => runs.some((run) => metric.name in run.scores)).slice(0, 5);
    const several = (field) => statistics.distinct(runs.map(field)).length > 1;
    return [
      { name: "run", title: "run", of: (run) => run.name, cell: (run) => LightningDP.openDetails(run) },
      { name: "method", title: "method", of: (run) => run.series || run.method, cell: (run) => [LightningDP.swatch(run.method), run.series || run.method] },
      ...(several((run) => run.dataset) ? [{ name: "dataset", title: "data set", of: (run) => run.dataset }] : []),
      ...(several((run) => run.task) ? [{ name: "task", title: "task", of: (run) => run.task }] : []),
      { name: "epsilon", title: "ε", of: (run) => run.epsilon, cell: (run) => format.epsilon(run.epsilon), number: true },
      { name: "unit", title: "unit", of: (run) => run.unit, cell: (run) => run.unit || "–" },
      { name: "seed", title: "seed", of: (run) => run.seed, cell: (run) => run.seed ?? "–", number: true },
      ...scored.map((metric) => ({ name: `score ${metric.name}`, title: metric.label, of: (run) => run.scores[metric.name] ?? null, cell: (run) => format.number(run.scores[metric.name]), number: true })),
      { name: "steps", title: "steps", of: (run) => run.privacy.steps_charged ?? null, cell: (run) => format.number(run.privacy.steps_charged), number: true },
      { name: "status", title: "status", of: (run) => run.status, cell: (run) => h("span", { class: run.finished ? "status" : "status open" }, run.status) },
      { name: "files", title: "files", cell: (run) => LightningDP.links(run, ["config.yaml", "privacy.json", "results.json"]) },
    ];
  };
  const compare = (a, b) => {
    if (a === b) return 0;
    if (a === null || a === undefined) return 1;
    if (b === null || b === undefined) return -1;
    return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  };

  return {
    name: "runs",
    label: "Runs",
    rewind() { page = 0; },
    render() {
      const runs = selection.runs();
      if (!runs.length) return [LightningDP.empty("No run passes the filters.")];
      const shown = columns(runs);
      const by = shown.find((column) => column.name === order.column) ?? shown[0];
      // Missing values stay last in both directions.
      const sorted = [...runs].sort((a, b) => {
        const [x, y] = [by.of(a), by.of(b)];
        const missing = [x, y].some((value) => value === null || value === undefined);
        return order.down && !missing ? compare(y, x) : compare(x, y);
      });
      const pages = Math.ceil(sorted.length / size);
      page = Math.min(page, pages - 1);
      const turn = (to) => () => { page = to; LightningDP.render(); };
      const pager = pages > 1 ? h("nav", { class: "pager", "aria-label": "Pages" },
        h("button", { type: "button", onclick: turn(page - 1), disabled: page === 0 }, "Previous"),
        h("span", {}, `${page * size + 1}–${Math.min(sorted.length, (page + 1) * size)} of ${sorted.length.toLocaleString("en")}`),
        h("button", { type: "button", onclick: turn(page + 1), disabled: page === pages - 1 }, "Next")) : null;
      return [
        LightningDP.viewHead("Runs", { text: ["Choose a run to see everything about it. ", term("ε", "epsilon"), " is what the run spent, per ", term("unit", "unit"), "."], controls: [] }),
        h("article", { class: "card" }, h("div", { class: "scroll" }, h("table", { class: "numbers runs" },
          h("thead", {}, h("tr", {}, shown.map((column) => h("th", {
            scope: "col", class: column.number ? "right" : "",
            "aria-sort": column.of && column === by ? (order.down ? "descending" : "ascending") : null,
          }, column.of ? h("button", {
            type: "button", class: "sort", "data-column": column.name,
            onclick() { order = { column: column.name, down: column === by && !order.down }; page = 0; LightningDP.render(`[data-column="${CSS.escape(column.name)}"]`); },
          }, column.title) : column.title)))),
          h("tbody", {}, sorted.slice(page * size, (page + 1) * size).map((run) => h("tr", { "data-run": run.name },
            shown.map((column) => h("td", { class: column.number ? "right" : "", "data-field": column.name }, column.cell ? column.cell(run) : column.of(run) || "–"))))))), pager),
      ];
    },
  };
})());
