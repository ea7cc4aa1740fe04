// Everything about one run, in a dialog.
"use strict";

LightningDP.showDetails = (run) => {
  const { element: h, format, term } = LightningDP;
  const dialog = document.getElementById("details");
  const list = (entries) => h("dl", { class: "facts" }, entries.filter(([, value]) => value !== null && value !== undefined && value !== "")
    .map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, typeof value === "number" ? format.compact(value) : value))));
  const scores = (title, values, mark) => (Object.keys(values).length ? h("section", {}, h("h3", {}, title, mark ? [" ", term("nonprivate", "nonprivate")] : ""),
    h("table", { class: "numbers" }, h("tbody", {}, Object.entries(values).map(([name, value]) =>
      h("tr", {}, h("th", { scope: "row" }, name), h("td", { "data-value": name }, format.number(value))))))) : null);
  const plan = run.privacy;
  const epsilon = format.epsilon(run.epsilon);
  const claim = run.epsilon === Infinity
    ? "Trained without privacy: nothing about the training data is protected."
    : run.epsilon === null
      ? "The folder does not say what was spent."
      : `(ε, δ) = (${epsilon}, ${format.compact(run.delta)}) per ${run.unit}, ${plan.relation ?? "add or remove one unit"}.`;
  const baselines = Object.fromEntries(Object.entries(run.baselines).flatMap(([name, values]) =>
    Object.entries(values).map(([metric, value]) => [`${name.replaceAll("_", " ")}, ${metric}`, value])));
  dialog.replaceChildren(
    h("header", {},
      h("div", {}, h("h2", { id: "details-title" }, run.name), h("p", { class: "muted" }, LightningDP.swatch(run.method), [run.series || run.method, run.dataset, run.task].filter(Boolean).join(" · "))),
      h("button", { type: "button", class: "quiet", autofocus: true, onclick() { dialog.close(); } }, "Close")),
    h("p", { class: "claim" }, claim, plan.unit_description ? ` One unit: ${plan.unit_description}.` : ""),
    h("div", { class: "columns" },
      h("section", {}, h("h3", {}, "Privacy"), list([
        [term("ε spent", "epsilon"), epsilon], [term("δ", "delta"), run.delta], [term("unit", "unit"), run.unit],
        ...Object.entries(run.of_unit).map(([unit, value]) => [`ε per ${unit}`, value === null ? "undefined" : format.epsilon(value)]),
        ["noise multiplier σ", plan.noise_multiplier], ["clip norm C", plan.max_grad_norm], ["sampling rate q", plan.sampling_rate],
        ["expected batch", plan.expected_batch_size], ["units", plan.num_units], ["steps planned", plan.num_steps], ["steps charged", plan.steps_charged],
        ["sampling", plan.sampling], ["accountant", plan.accountant], ["signature", plan.signature],
        ["ledger entry", run.ledger[0] ? `${run.ledger[0]} ${run.ledger[1].slice(0, 12)}…` : null],
      ])),
      h("section", {}, h("h3", {}, "Setting"), list([["status", run.status], ["seed", run.seed === null ? "unknown" : String(run.seed)], ...Object.entries(run.facts)])),
      scores("Test scores", run.scores, false), scores("Baselines", baselines, false), scores("Statistics", run.nonprivate, true)),
    h("p", { class: "links" }, LightningDP.links(run)),
    run.plots.length ? h("section", { class: "plots" }, h("h3", {}, "Figures ", term("nonprivate", "nonprivate")), run.plots.map((plot) =>
      h("a", { href: `runs/${run.key}/${plot}`, target: "_blank", rel: "noopener" }, h("img", { src: `runs/${run.key}/${plot}`, loading: "lazy", alt: plot })))) : "",
  );
  dialog.showModal();
  dialog.scrollTop = 0;
};
// A click beside a dialog closes it.
for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
}
