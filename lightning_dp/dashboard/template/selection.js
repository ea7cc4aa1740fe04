// Which runs are looked at, and how: kept in the address, so that a view can be bookmarked.
"use strict";

LightningDP.selection = (() => {
  const sets = ["method", "epsilon"];
  const state = { view: "quality", dataset: "", task: "", text: "", metric: "", method: new Set(), epsilon: new Set() };
  const listeners = [];

  const read = () => {
    const given = new URLSearchParams(location.hash.slice(1));
    for (const name of Object.keys(state)) {
      state[name] = sets.includes(name) ? new Set(given.getAll(name)) : given.get(name) ?? "";
    }
    if (!LightningDP.views.some((view) => view.name === state.view)) state.view = LightningDP.views[0].name;
  };
  const write = () => {
    const said = new URLSearchParams();
    for (const [name, value] of Object.entries(state)) {
      if (sets.includes(name)) for (const item of value) said.append(name, item);
      else if (value) said.set(name, value);
    }
    history.replaceState(null, "", `#${said}`);
  };
  const tell = () => { write(); for (const listener of listeners) listener(); };

  const fits = (run, except) =>
    (except === "dataset" || !state.dataset || run.dataset === state.dataset)
    && (except === "task" || !state.task || run.task === state.task)
    && (except === "method" || !state.method.size || state.method.has(run.method))
    && (except === "epsilon" || !state.epsilon.size || state.epsilon.has(LightningDP.format.epsilon(run.group)))
    && (except === "text" || !state.text || words(run).includes(state.text.toLowerCase()));
  const words = (run) => {
    run.words ??= [run.name, run.series, run.method, run.dataset, run.task, run.unit, run.status,
      ...Object.entries(run.facts).flat()].join(" ").toLowerCase();
    return run.words;
  };

  return {
    state,
    read,
    onChange(listener) { listeners.push(listener); },
    set(change) { Object.assign(state, change); tell(); },
    toggle(name, value) {
      if (!state[name].delete(value)) state[name].add(value);
      tell();
    },
    reset() { this.set({ dataset: "", task: "", text: "", method: new Set(), epsilon: new Set() }); },
    // All runs that pass every filter but, where named, one.
    runs(except = null) { return LightningDP.data.runs.filter((run) => fits(run, except)); },
    finished() { return this.runs().filter((run) => run.finished); },
    active() { return Boolean(state.dataset || state.task || state.text || state.method.size || state.epsilon.size); },
    // In words, for paper.
    described() {
      const parts = [];
      if (state.dataset) parts.push(`data set ${state.dataset}`);
      if (state.task) parts.push(`task ${state.task}`);
      if (state.method.size) parts.push(`method ${[...state.method].join(", ")}`);
      if (state.epsilon.size) parts.push(`ε ${[...state.epsilon].join(", ")}`);
      if (state.text) parts.push(`“${state.text}”`);
      return parts.length ? parts.join(" · ") : "all runs";
    },
  };
})();
