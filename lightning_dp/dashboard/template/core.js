// The one global name, and the two functions that data scripts call.
"use strict";

const LightningDP = {
  views: [],
  details: new Map(),
  data: null,

  receive(data) {
    // JSON has no infinity; the data say "inf".
    for (const run of data.runs) {
      for (const field of ["epsilon", "group"]) if (run[field] === "inf") run[field] = Infinity;
    }
    this.data = data;
  },

  receiveDetails(key, details) {
    this.details.set(key, details);
  },

  // One script per run, loaded when the run is looked at first.
  loadDetails(run) {
    if (!run.loading) {
      run.loading = LightningDP.loadScript(`runs/${run.key}/details.js`).then(() => this.details.get(run.key));
    }
    return run.loading;
  },

  loadScript(source) {
    return new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = source;
      script.onload = resolve;
      script.onerror = () => reject(new Error(`${source} could not be loaded`));
      document.head.append(script);
    });
  },
};

// Before the first paint, so that a dark page does not flash white.
LightningDP.theme = (() => {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const listeners = [];
  let chosen = null;
  try { chosen = localStorage.getItem("lightning-dp theme"); } catch { /* storage may be off */ }
  const current = () => chosen ?? (system.matches ? "dark" : "light");
  const apply = () => {
    document.documentElement.dataset.theme = current();
    for (const listener of listeners) listener();
  };
  system.addEventListener("change", apply);
  document.documentElement.dataset.theme = current();
  return {
    current,
    toggle() {
      chosen = current() === "dark" ? "light" : "dark";
      try { localStorage.setItem("lightning-dp theme", chosen); } catch { /* then it lasts as long as the page */ }
      apply();
    },
    onChange(listener) { listeners.push(listener); },
  };
})();
