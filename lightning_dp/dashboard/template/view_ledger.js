// What every run together has spent on each data set, by the ledger.
"use strict";

LightningDP.views.push((() => {
  const { element: h, format, term } = LightningDP;
  const row = (cells) => h("tr", {}, cells.map((cell, i) => h(i ? "td" : "th", i ? {} : { scope: "row" }, cell)));
  const table = (caption, head, rows) => h("div", { class: "scroll" }, h("table", { class: "numbers" }, h("caption", {}, caption),
    h("thead", {}, h("tr", {}, head.map((name) => h("th", { scope: "col" }, name)))), h("tbody", {}, rows)));
  const values = (list) => (list.length > 2 ? `${format.compact(list[0])} … ${format.compact(list.at(-1))}` : list.map(format.compact).join(", ") || "–");
  const when = (time) => time.slice(0, 16).replace("T", " ");

  const meter = (account) => {
    if (account.limit_epsilon === null) return h("p", { class: "note" }, "No limit is set.");
    const share = account.limit_epsilon ? Number(account.filter_epsilon) / account.limit_epsilon : 1;
    return [
      h("div", { class: "meter", role: "meter", "aria-valuemin": 0, "aria-valuemax": account.limit_epsilon, "aria-valuenow": account.filter_epsilon, "aria-label": "share of the limit that is used" },
        h("div", { class: share > 0.9 ? "full" : "", style: `width:${Math.min(100, 100 * share)}%` })),
      h("p", { class: "note" }, term("Filter's ε", "filter"), ` ${format.compact(account.filter_epsilon)} of the limit ${format.compact(account.limit_epsilon)} (${Math.round(100 * share)} %)`),
    ];
  };

  const card = (account, runs) => h("article", { class: "card", "data-account": `${account.dataset} ${account.unit}` },
    h("h2", {}, account.dataset),
    h("div", { class: "account" },
      h("p", { class: "big" }, h("span", { class: "muted" }, term("ε spent", "spent")), h("strong", { "data-spent": account.epsilon }, format.compact(account.epsilon))),
      h("dl", {},
        h("div", {}, h("dt", {}, term("per unit", "unit")), h("dd", {}, account.unit)),
        h("div", {}, h("dt", {}, term("δ", "delta")), h("dd", {}, format.compact(account.delta))),
        h("div", {}, h("dt", {}, "runs"), h("dd", {}, String(account.runs.length))),
        h("div", {}, h("dt", {}, "releases"), h("dd", {}, String(account.releases.length))),
        h("div", {}, h("dt", {}, "accountant"), h("dd", {}, account.accountant)))),
    meter(account),
    account.runs.length ? h("details", { open: account.runs.length <= 12 }, h("summary", {}, format.count(account.runs.length, "run")),
      table("Each run's own ε; together they cost what is above, not the sum.", ["run", "ε alone", "steps charged", "σ", "q", "starts / clean ends", "last entry (UTC)"],
        account.runs.map((run) => {
          const known = runs.get(run.run);
          return row([known ? LightningDP.openDetails(known) : run.run, format.compact(run.epsilon), run.steps.toLocaleString("en"),
            values(run.noise_multipliers), values(run.sampling_rates), `${run.starts} / ${run.clean_ends}`, when(run.last_entry)]);
        }))) : null,
    account.releases.length ? table("Releases", ["entry", "kind", "ε alone", "note"],
      account.releases.map((release) => row([String(release.seq), release.kind, format.compact(release.epsilon), release.note]))) : null,
    account.overrides.length ? table("Overrides of the limit", ["entry", "reason"],
      account.overrides.map((override) => row([String(override.seq), override.reason]))) : null);

  return {
    name: "ledger",
    label: "Ledger",
    render() {
      const { ledger, runs } = LightningDP.data;
      if (!ledger) return [LightningDP.empty("No ledger was read.", "Write the page again with --ledger to see what was spent on each data set.")];
      if (!ledger.accounts.length) return [LightningDP.empty("The ledger has no data set yet.")];
      const known = new Map(runs.filter((run) => run.ledger_run).map((run) => [run.ledger_run, run]));
      return [
        LightningDP.viewHead("The ledger's accounts", {
          text: ["What was charged to each data set, by all runs, whether they are shown here or not. Filters do not apply."],
          controls: [],
        }),
        ledger.accounts.map((account) => card(account, known)),
      ];
    },
  };
})());
