// Charts: the library is loaded with the first one, and each is drawn when it comes into view.
"use strict";

LightningDP.charts = (() => {
  const dashes = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
  const drawn = new Map();
  let library = null;
  let printing = false;

  const load = () => { library ??= LightningDP.loadScript("plotly.min.js"); return library; };
  const token = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const theme = () => (printing ? "light" : LightningDP.theme.current());

  const layout = (own) => {
    const axis = {
      gridcolor: token("--grid"), linecolor: token("--axis"), tickcolor: token("--axis"), zeroline: false,
      ticks: "outside", ticklen: 4, showline: true, automargin: true, title: { standoff: 12, font: { size: 13 } },
    };
    return {
      ...own,
      font: { family: token("--font"), size: 13, color: token("--ink") },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 64, r: 24, t: 14, b: 56, ...own.margin },
      height: own.height ?? 400,
      hoverlabel: { bgcolor: token("--panel"), bordercolor: token("--axis"), font: { color: token("--ink"), size: 12.5 }, align: "left" },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: token("--axis"), activecolor: token("--ink") },
      legend: { orientation: "h", x: 0, y: -0.2, yanchor: "top", itemwidth: 42, font: { size: 12.5 }, ...own.legend },  // as wide as the longest stroke
      xaxis: { ...axis, ...own.xaxis, title: { ...axis.title, ...own.xaxis?.title } },
      yaxis: { ...axis, ...own.yaxis, title: { ...axis.title, ...own.yaxis?.title } },
    };
  };
  const paint = (node) => {
    const width = node.clientWidth;
    const { traces, layout: own } = drawn.get(node)({ narrow: width < 560 });
    // The browser lays paper out after the last script has run, so the width is said here.
    window.Plotly.react(node, traces, { ...layout(own), ...(printing ? { width, autosize: false } : { autosize: true }) }, {
      displaylogo: false, responsive: true,
      modeBarButtons: [["toImage", "resetScale2d"]],
      toImageButtonOptions: { format: "svg", filename: "lightning-dp" },
    });
    node.dataset.drawn = "";
  };

  const watch = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      watch.unobserve(target);
      load().then(() => { if (drawn.has(target)) paint(target); });
    }
  }, { rootMargin: "300px" });

  const repaint = () => { for (const node of drawn.keys()) if ("drawn" in node.dataset) paint(node); };
  LightningDP.theme.onChange(repaint);
  // On paper every chart is there, in light colours, as wide as the page.
  const setPrinting = (now) => {
    printing = now;
    document.documentElement.toggleAttribute("data-printing", now);
    document.documentElement.dataset.theme = theme();
    if (!window.Plotly) return;
    for (const node of drawn.keys()) paint(node);
  };
  addEventListener("beforeprint", () => setPrinting(true));
  addEventListener("afterprint", () => setPrinting(false));

  return {
    dashes,

    // `build` returns traces and layout for the theme of the moment; `label` says the chart in words.
    node(build, { label, height = 400 }) {
      const node = LightningDP.element("div", { class: "chart", role: "img", "aria-label": label, style: `min-height:${height}px` });
      drawn.set(node, build);
      watch.observe(node);
      return node;
    },

    // Forget the charts of a view that is left.
    clear() {
      for (const node of drawn.keys()) {
        watch.unobserve(node);
        if ("drawn" in node.dataset) window.Plotly.purge(node);
      }
      drawn.clear();
    },

    colour(method) { return LightningDP.data.styles[method]?.[theme()] ?? token("--muted"); },
    symbol(method) { return LightningDP.data.styles[method]?.symbol ?? "circle"; },
    ink: () => token("--ink"),
    muted: () => token("--muted"),
    ground: () => token("--panel"),

    // Legend entries of charts with many lines: colours are methods, strokes are ε.
    key(methods, epsilons) {
      const entry = (name, line) => ({ type: "scatter", mode: "lines", x: [null], y: [null], name: LightningDP.format.chartText(name), hoverinfo: "skip", line: { width: 2.2, ...line }, meta: "key" });
      return [
        ...methods.map((method) => entry(method, { color: this.colour(method) })),
        ...(epsilons.length > 1 ? epsilons.map((epsilon, i) => entry(`ε = ${LightningDP.format.epsilon(epsilon)}`, { color: this.muted(), dash: dashes[i % dashes.length] })) : []),
      ];
    },

    // The lines of one method share its colour and differ in their strokes.
    strokes(cells) {
      const ofMethod = new Map();
      const found = new Map();
      for (const cell of cells) {
        if (found.has(cell.line)) continue;
        const number = ofMethod.get(cell.method) ?? 0;
        ofMethod.set(cell.method, number + 1);
        found.set(cell.line, { dash: dashes[number % dashes.length], open: number % 2 === 1 });
      }
      return found;
    },

    // A logarithmic ε axis on which ∞ stands apart, behind a break.
    epsilonAxis(epsilons, unit, narrow) {
      const finite = epsilons.filter((epsilon) => Number.isFinite(epsilon) && epsilon > 0);
      const [low, high] = finite.length ? [Math.min(...finite), Math.max(...finite)] : [1, 1];
      const unbounded = epsilons.includes(Infinity);
      const beyond = finite.length ? high * Math.max(1.7, (high / low) ** 0.28) : 1;
      const gap = Math.sqrt(high * beyond);
      const edge = unbounded && finite.length ? (beyond / high) ** 0.5 : 1.35;
      const range = [Math.log10(finite.length ? low / 1.35 : beyond / 2), Math.log10((unbounded ? beyond : high) * edge)];
      return {
        place: (epsilon, shift) => (epsilon === Infinity ? beyond : epsilon) * 10 ** (shift * 0.011 * (range[1] - range[0])),
        finite: (epsilon) => Number.isFinite(epsilon),
        axis: {
          type: "log", range, showgrid: true, tickangle: 0,
          tickvals: [...finite, ...(unbounded ? [beyond] : [])],
          ticktext: [...finite.map(LightningDP.format.epsilon), ...(unbounded ? [narrow ? "∞" : "∞<br>not private"] : [])],
          title: { text: `ε${unit ? ` per ${LightningDP.format.chartText(unit)}` : ""}${narrow ? "" : ", smaller is more private"}` },
        },
        shapes: unbounded && finite.length ? [{
          type: "line", xref: "x", yref: "paper", x0: gap, x1: gap, y0: 0, y1: 1,
          line: { color: token("--axis"), width: 1, dash: "dot" },
        }] : [],
      };
    },
  };
})();
