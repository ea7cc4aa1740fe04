// Elements and numbers as text. Every text goes in as a text node: names of runs are never markup.
"use strict";

LightningDP.element = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "value") node.value = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
};

LightningDP.format = (() => {
  const significant = (value, digits) => String(Number(value.toPrecision(digits)));
  const minus = (text) => text.replace("-", "−");

  return {
    // Four decimals, as the report prints; large numbers with five digits in all.
    number(value) {
      if (value === null || value === undefined) return "–";
      if (value === "inf" || value === Infinity) return "∞";
      if (typeof value !== "number") return String(value);
      if (Number.isInteger(value)) return minus(value.toLocaleString("en"));
      return minus(Math.abs(value) < 1000 ? value.toFixed(4) : significant(value, 5));
    },
    compact(value) {
      if (value === null || value === undefined) return "–";
      if (value === "inf" || value === Infinity) return "∞";
      return typeof value === "number" ? minus(significant(value, 4)) : String(value);
    },
    epsilon(value) {
      if (value === null || value === undefined) return "unknown";
      if (value === "inf" || value === Infinity) return "∞";
      return significant(value, 3);
    },
    withError(cell) {
      const mean = LightningDP.format.number(cell.mean);
      return cell.se === null ? mean : `${mean} ± ${LightningDP.format.number(cell.se)}`;
    },
    // Chart texts know a little markup of their own.
    chartText(text) {
      return String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
    },
    count(number, noun) {
      return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
    },
  };
})();

// A word with an explanation, for mouse, touch and keyboard.
LightningDP.term = (() => {
  const texts = {
    epsilon: "ε bounds how much one privacy unit can change what the training releases: the odds of any outcome "
      + "move by at most a factor exp(ε), except with probability about δ. Smaller is more private. ∞ means no privacy.",
    delta: "δ is the probability with which the bound of ε may fail. It should be well below one divided by the "
      + "number of units.",
    unit: "The privacy unit is what is added or removed in the guarantee: a record, a window, or all data of a "
      + "user. ε per window says little about a person whose data fill many windows.",
    seeds: "Runs that differ in their seed only. Error bars show the standard error of the mean over them; the "
      + "privacy noise itself is never seeded.",
    baselines: "Forecasts that learn nothing from the data set, so they cost no privacy.",
    filter: "The privacy filter's ε is what limits are held against. It also covers runs that were chosen after "
      + "looking at earlier results, so it is above the composed ε.",
    spent: "All charges of all runs and releases on this data set, composed by privacy loss distributions.",
    saliency: "The share of parameters that private training may change, chosen by saliency.",
    nonprivate: "Computed from private data without noise. No ε covers it: do not publish it.",
  };
  const tip = document.getElementById("tip");
  const hide = () => { tip.hidden = true; };
  const show = (node, text) => {
    tip.textContent = text;
    tip.hidden = false;
    // A dialog lies above the page, and so must its explanations.
    (node.closest("dialog") ?? document.body).append(tip);
    const place = node.getBoundingClientRect();
    const left = Math.min(Math.max(8, place.left), innerWidth - tip.offsetWidth - 8);
    const below = place.bottom + 6;
    const top = below + tip.offsetHeight > innerHeight ? place.top - tip.offsetHeight - 6 : below;
    tip.style.left = `${left}px`;
    tip.style.top = `${top}px`;
  };
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  document.addEventListener("scroll", hide, true);

  return (label, name) => {
    const node = LightningDP.element("span", {
      class: name === "nonprivate" ? "term nonprivate" : "term", tabindex: "0", "aria-describedby": "tip",
    }, label);
    const reveal = () => show(node, texts[name]);
    for (const event of ["mouseenter", "focus"]) node.addEventListener(event, reveal);
    for (const event of ["mouseleave", "blur"]) node.addEventListener(event, hide);
    return node;
  };
})();
