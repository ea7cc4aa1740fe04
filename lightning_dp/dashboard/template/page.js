// The frame: header, summary, filters, tabs, and the parts that views share.
"use strict";

(() => {
  const { element: h, format, statistics, selection, term, theme, charts } = LightningDP;
  const { state } = selection;
  const byId = (id) => document.getElementById(id);

  LightningDP.swatch = (method) => h("span", { class: "swatch", "aria-hidden": "true",
    style: `--light:${LightningDP.data.styles[method]?.light};--dark:${LightningDP.data.styles[method]?.dark}` });
  LightningDP.openDetails = (run) => h("button", { type: "button", class: "link", onclick() { LightningDP.showDetails(run); } }, run.name);
  LightningDP.links = (run, only = null) => h("span", { class: "files" }, run.files.filter((name) => !only || only.includes(name)).map((name) =>
    h("a", { href: `runs/${run.key}/${name}.txt`, target: "_blank", rel: "noopener" }, only ? name.split(".")[0] : name)));
  LightningDP.empty = (text, hint = "") => h("div", { class: "card empty" }, h("p", {}, text), hint ? h("p", { class: "muted" }, hint) : "");
  LightningDP.viewHead = (...parts) => {
    const { text, controls } = parts.pop();
    return h("div", { class: "view-head" }, h("div", {}, h("h2", {}, parts), h("p", { class: "muted" }, text)), h("div", { class: "controls" }, controls));
  };
  LightningDP.check = (label, checked, change) => h("label", { class: "check" },
    h("input", { type: "checkbox", checked, onchange(event) { change(event.target.checked); } }), label);
  LightningDP.choice = (label, options, value, change) => h("label", { class: "choice" }, h("span", {}, label),
    h("select", { "data-choice": label, onchange(event) { change(event.target.value); } },
      options.map(([key, text]) => h("option", { value: key, selected: key === value }, text))));

  const metricsOf = (runs) => LightningDP.data.metrics.filter((metric) => runs.some((run) => metric.name in run.scores));
  LightningDP.metric = (runs) => {
    const found = metricsOf(runs);
    return found.find((metric) => metric.name === state.metric) ?? found[0] ?? null;
  };
  LightningDP.metricChoice = (runs) => LightningDP.choice("Metric", metricsOf(runs).map((metric) => [metric.name, metric.label]),
    LightningDP.metric(runs).name, (value) => selection.set({ metric: value }));

  // What needs more than the records is drawn when the runs' own scripts are there.
  LightningDP.afterDetails = (runs, build) => {
    if (runs.every((run) => LightningDP.details.has(run.key))) return build();
    const waiting = h("div", { class: "card empty" }, h("p", {}, "Loading …"));
    Promise.allSettled(runs.map((run) => LightningDP.loadDetails(run))).then((loaded) => {
      for (const [i, { status }] of loaded.entries()) {
        if (status === "rejected") LightningDP.details.set(runs[i].key, { curves: {}, diagnostics: null });
      }
      if (waiting.isConnected) LightningDP.render();
    });
    return [waiting];
  };

  // Of each line and ε the run with the lowest seed.
  LightningDP.firstSeeds = (runs) => {
    const first = new Map();
    for (const run of runs) {
      const key = JSON.stringify([run.series || run.name, run.group, run.unit]);
      if (!first.has(key) || (run.seed ?? 0) < (first.get(key).seed ?? 0)) first.set(key, run);
    }
    return [...first.values()];
  };

  const tiles = () => {
    const runs = selection.runs();
    const withPrivacy = runs.filter((run) => run.epsilon !== Infinity);
    const epsilons = statistics.distinct(withPrivacy.map((run) => run.group).filter((epsilon) => epsilon !== null), statistics.byEpsilon);
    const units = statistics.distinct(runs.map((run) => run.unit).filter(Boolean));
    const unfinished = runs.filter((run) => !run.finished).length;
    const range = epsilons.length ? [epsilons[0], epsilons.at(-1)].map(format.epsilon) : [];
    const seeds = statistics.distinct(runs.map((run) => run.seed).filter((seed) => seed !== null));
    const tasks = statistics.distinct(runs.map((run) => run.task).filter(Boolean)).length;
    const tile = (label, value, note) => h("div", { class: "tile" }, h("p", { class: "muted" }, label), h("p", { class: "value" }, value), h("p", { class: "muted" }, note));
    byId("tiles").replaceChildren(
      tile("Runs", runs.length.toLocaleString("en"), `${withPrivacy.length.toLocaleString("en")} private${unfinished ? `, ${unfinished} without result` : ""}`),
      tile("Data sets", String(statistics.distinct(runs.map((run) => run.dataset).filter(Boolean)).length),
        tasks ? format.count(tasks, "task") : "compared one by one"),
      tile("Methods", String(statistics.distinct(runs.map((run) => run.method)).length), format.count(seeds.length, "seed")),
      tile(term("ε", "epsilon"), range.length ? (range[0] === range[1] ? range[0] : `${range[0]} – ${range[1]}`) : "∞",
        runs.length > withPrivacy.length && range.length ? "and ∞, not private" : range.length ? "spent, per unit" : "not private"),
      tile(term("Unit", "unit"), units.join(", ") || "–", "what one ε protects"));
  };

  const filters = () => {
    const all = LightningDP.data.runs;
    const chips = (name, values, text, extra) => h("div", { class: "chips", role: "group", "aria-label": name === "epsilon" ? "ε" : name },
      h("span", { class: "muted" }, name === "epsilon" ? term("ε", "epsilon") : "Method"),
      values.map((value) => h("button", {
        type: "button", class: state[name].size && !state[name].has(value) ? "chip off" : "chip", "aria-pressed": String(state[name].has(value)),
        "data-filter": `${name} ${value}`, onclick() { selection.toggle(name, value); },
      }, extra ? extra(value) : "", text(value))));
    const datasets = statistics.distinct(all.map((run) => run.dataset).filter(Boolean));
    const tasks = statistics.distinct(all.map((run) => run.task).filter(Boolean));
    const methods = statistics.distinct(all.map((run) => run.method));
    const epsilons = statistics.distinct(all.map((run) => run.group), statistics.byEpsilon).map(format.epsilon);
    const count = selection.runs().length;
    byId("filters").replaceChildren(
      h("div", { class: "row" },
        datasets.length > 1 ? LightningDP.choice("Data set", [["", "all"], ...datasets.map((name) => [name, name])], state.dataset, (value) => selection.set({ dataset: value })) : "",
        tasks.length > 1 ? LightningDP.choice("Task", [["", "all"], ...tasks.map((name) => [name, name])], state.task, (value) => selection.set({ task: value })) : "",
        chips("method", methods, (value) => value, LightningDP.swatch),
        chips("epsilon", epsilons, (value) => value),
        h("label", { class: "choice search" }, h("span", { class: "hidden" }, "Search"),
          h("input", { type: "search", placeholder: "Search runs", value: state.text, id: "search", oninput(event) { selection.set({ text: event.target.value }); } })),
        h("span", { class: "muted count", role: "status" }, count === all.length ? format.count(count, "run") : `${count.toLocaleString("en")} of ${format.count(all.length, "run")}`),
        selection.active() ? h("button", { type: "button", class: "quiet", onclick() { selection.reset(); } }, "Reset") : ""));
    byId("filters").hidden = state.view === "ledger";
    byId("shown").textContent = `Shown: ${selection.described()}`;
  };

  const tabs = () => byId("tabs").replaceChildren(...LightningDP.views.map((view) => h("button", {
    type: "button", role: "tab", id: `tab-${view.name}`, "aria-selected": String(view.name === state.view), "aria-controls": "view",
    tabindex: view.name === state.view ? "0" : "-1", onclick() { selection.set({ view: view.name }); byId(`tab-${view.name}`).focus(); },
  }, view.label)));
  byId("tabs").addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!move) return;
    const names = LightningDP.views.map((view) => view.name);
    selection.set({ view: names[(names.indexOf(state.view) + move + names.length) % names.length] });
    byId(`tab-${state.view}`).focus();
  });

  // Redrawing replaces controls, so the focus goes back to the one that was used.
  const withFocus = (draw, wanted) => {
    const active = document.activeElement;
    const place = active?.selectionStart;
    const address = wanted ?? (active?.id ? `#${CSS.escape(active.id)}` : active?.dataset?.filter ? `[data-filter="${CSS.escape(active.dataset.filter)}"]`
      : active?.dataset?.choice ? `[data-choice="${CSS.escape(active.dataset.choice)}"]` : null);
    draw();
    const again = address ? document.querySelector(address) : null;
    if (!again) return;
    again.focus({ preventScroll: true });
    if (again.type === "search" && typeof place === "number") again.setSelectionRange(place, place);
  };

  LightningDP.render = (focus) => withFocus(() => {
    charts.clear();
    const view = LightningDP.views.find((found) => found.name === state.view);
    byId("view").setAttribute("aria-labelledby", `tab-${view.name}`);
    byId("view").replaceChildren(...view.render().flat(Infinity).filter(Boolean));
  }, focus);
  const everything = () => withFocus(() => {
    tabs();
    tiles();
    filters();
    for (const view of LightningDP.views) view.rewind?.();
    LightningDP.render();
  });

  const nameTheme = () => {
    const dark = theme.current() === "dark";
    byId("theme").textContent = dark ? "Light" : "Dark";
    byId("theme").setAttribute("aria-label", dark ? "Switch to light colours" : "Switch to dark colours");
  };
  byId("theme").addEventListener("click", () => theme.toggle());
  theme.onChange(nameTheme);
  nameTheme();

  if (!LightningDP.data) {
    byId("view").replaceChildren(LightningDP.empty("data.js is missing beside this page.", "Write the page again with 'lightning-dp dashboard'."));
    return;
  }
  byId("title").textContent = LightningDP.data.title;
  byId("written").textContent = `lightning-dp · ${LightningDP.data.written}`;
  selection.read();
  selection.onChange(everything);
  addEventListener("hashchange", () => { selection.read(); everything(); });
  everything();
})();
