// The only arithmetic of the page: means and standard errors over seeds.
"use strict";

LightningDP.statistics = (() => {
  const panelKey = (run) => JSON.stringify([run.dataset, run.task]);

  // Over the values that are there: `se` is null for one value.
  const summary = (values) => {
    const n = values.length;
    const mean = values.reduce((sum, value) => sum + value, 0) / n;
    const squares = values.reduce((sum, value) => sum + (value - mean) ** 2, 0);
    return { n, mean, se: n > 1 ? Math.sqrt(squares / (n - 1) / n) : null };
  };

  const byEpsilon = (a, b) => (a === b ? 0 : a === null ? 1 : b === null ? -1 : a - b);

  return {
    summary,
    byEpsilon,

    distinct(values, order) { return [...new Set(values)].sort(order); },

    // Runs of one data set and task; what is on one chart can be compared.
    panels(runs) {
      const found = new Map();
      for (const run of runs) {
        const key = panelKey(run);
        if (!found.has(key)) found.set(key, { dataset: run.dataset, task: run.task, runs: [] });
        found.get(key).runs.push(run);
      }
      // Runs without a result name no data set; they come last.
      return [...found.values()].sort((a, b) => (!a.dataset - !b.dataset) || a.dataset.localeCompare(b.dataset) || a.task.localeCompare(b.task));
    },

    // One cell for each line and ε with a value of the metric, over the runs that have it.
    cells(runs, metric, { line = (run) => run.series, place = (run) => run.group } = {}) {
      const units = new Set(runs.map((run) => run.unit).filter(Boolean));
      const groups = new Map();
      for (const run of runs) {
        const value = run.scores[metric];
        const at = place(run);
        if (typeof value !== "number" || at === null || at === undefined) continue;
        const name = units.size > 1 && run.unit ? `${line(run)} (per ${run.unit})` : line(run);
        const key = JSON.stringify([name, String(at)]);
        if (!groups.has(key)) groups.set(key, { line: name, method: run.method, unit: run.unit, at, runs: [], values: [] });
        groups.get(key).runs.push(run);
        groups.get(key).values.push(value);
      }
      return [...groups.values()].map((group) => {
        const seeds = group.runs.map((run) => run.seed).filter((seed) => seed !== null);
        return { ...group, ...summary(group.values), seeds, repeated: new Set(seeds).size < seeds.length };
      }).sort((a, b) => a.line.localeCompare(b.line) || byEpsilon(a.at, b.at));
    },

    // A baseline has one value per test split; where the splits differ, the mean of the distinct values.
    baselines(runs, metric) {
      const found = new Map();
      for (const run of runs) {
        for (const [name, scores] of Object.entries(run.baselines)) {
          if (typeof scores[metric] !== "number") continue;
          if (!found.has(name)) found.set(name, new Set());
          found.get(name).add(scores[metric]);
        }
      }
      return [...found].map(([name, values]) => ({ name: name.replaceAll("_", " "), ...summary([...values]) }))
        .sort((a, b) => a.mean - b.mean);
    },
  };
})();
