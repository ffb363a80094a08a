// What every plot is made of: scales, axes, marks, the tip, and drawing only what is near the window.

const DASHES = [null, "6 2.5", "2 2.5", "8 2.5 2 2.5"];
const pending = new Map();
const near = new IntersectionObserver(
  (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => drawNow(entry.target)),
  { rootMargin: "400px" },
);

/** Draw into `node` when it comes near the window. */
function drawLater(node, draw) {
  pending.set(node, draw);
  near.observe(node);
}

function drawNow(node) {
  const draw = pending.get(node);
  pending.delete(node);
  near.unobserve(node);
  if (draw && node.isConnected) put(node, draw(Math.max(260, Math.min(760, node.clientWidth || 360))));
}

function drawAll() {
  [...pending.keys()].forEach(drawNow);
}

/** A grid of panels, one for each of `items`, drawn lazily. */
function panels(items, draw, kind = "") {
  return h(
    "div",
    { class: `panels ${kind}` },
    items.map((item) => {
      const node = h("figure", { class: "plot" });
      drawLater(node, (width) => draw(item, width));
      return node;
    }),
  );
}

function dashes(attention) {
  return DASHES[(attention.dash ?? 0) % DASHES.length];
}

/** An outline of `area` square pixels around the origin; neighbours in the list of attentions differ in shape. */
function shape(attention, area) {
  const polygon = (corners) => `M${corners.map(([x, y]) => `${x.toFixed(2)} ${y.toFixed(2)}`).join("L")}Z`;
  const r = Math.sqrt(area / Math.PI);
  const a = Math.sqrt(area) / 2;
  const t = Math.sqrt(area / 3 / Math.sqrt(3));
  const outlines = [
    () => `M${-r} 0A${r} ${r} 0 1 1 ${r} 0A${r} ${r} 0 1 1 ${-r} 0Z`,
    () =>
      polygon([
        [-a, -a],
        [a, -a],
        [a, a],
        [-a, a],
      ]),
    () =>
      polygon([
        [0, -1.414 * a],
        [1.414 * a, 0],
        [0, 1.414 * a],
        [-1.414 * a, 0],
      ]),
    () =>
      polygon([
        [0, -2 * t],
        [1.732 * t, t],
        [-1.732 * t, t],
      ]),
    () =>
      polygon([
        [0, 2 * t],
        [1.732 * t, -t],
        [-1.732 * t, -t],
      ]),
  ];
  return outlines[attention.index % outlines.length]();
}

function linear(low, high, from, to) {
  const span = high - low || 1;
  return (value) => from + ((value - low) / span) * (to - from);
}

function logarithmic(low, high, from, to) {
  const scale = linear(Math.log(low), Math.log(high), from, to);
  return (value) => scale(Math.log(value));
}

/** The range of `values` with some air, at least `least` wide. */
function extent(values, least = 1, share = 0.06) {
  const [low, high] = [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))];
  const air = Math.max((least - (high - low)) / 2, (high - low) * share);
  return [low - air, high + air];
}

function linearTicks(low, high, count = 5) {
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= raw);
  const ticks = [];
  for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9; i++)
    ticks.push(Number((i * step).toPrecision(12)));
  return ticks;
}

/** 1, 2 and 5 of each decade, or the decades alone where those would be too many. */
function logTicks(low, high) {
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
    ticks.push(...[1, 2, 5].map((factor) => factor * 10 ** power));
  }
  const inside = ticks.filter((tick) => tick >= low && tick <= high);
  const decades = inside.filter((tick) => Number.isInteger(Number(Math.log10(tick).toFixed(9))));
  return inside.length > 7 && decades.length > 1 ? decades : inside;
}

/**
 * An SVG with its two axes. `x` and `y`: {scale, ticks, text, name}; the plot lies between `box` = {left, right, top,
 * bottom}. The title names the picture for those who cannot see it, the description what it shows.
 */
function chart(width, height, box, x, y, name, description) {
  const grid = y.ticks.map((tick) => s("path", { class: "grid", d: `M${box.left} ${y.scale(tick)}H${box.right}` }));
  const ticks = x.ticks.map((tick) => s("path", { class: "tick", d: `M${x.scale(tick)} ${box.bottom}v4` }));
  const xTexts = x.ticks.map((tick) =>
    s("text", { class: "axis", x: x.scale(tick), y: box.bottom + 16, "text-anchor": "middle" }, x.text(tick)),
  );
  const yTexts = y.ticks.map((tick) =>
    s("text", { class: "axis", x: box.left - 6, y: y.scale(tick) + 3.5, "text-anchor": "end" }, y.text(tick)),
  );
  return s(
    "svg",
    { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": name },
    s("desc", {}, description),
    grid,
    s("path", { class: "base", d: `M${box.left} ${box.bottom}H${box.right}` }),
    ticks,
    xTexts,
    yTexts,
    s("text", { class: "axis name", x: box.right, y: box.bottom + 31, "text-anchor": "end" }, x.name),
    y.name && s("text", { class: "axis name", x: 0, y: box.top - 9 }, y.name),
  );
}

/** Dashed lines for accuracies that need no attention at all; the names stand at the side that is freer of `points`. */
function floorLines(column, scale, box, range, points = []) {
  return Object.entries(column.floors)
    .filter(([, value]) => known(value) && value >= range[0] && value <= range[1])
    .map(([name, value]) => {
      const y = scale(value);
      const beside = points.filter((point) => Math.abs(point.y - y) < point.r + 12).map((point) => point.x);
      const isLeft =
        beside.reduce((a, b) => Math.min(a, b), box.right) - box.left >
        box.right - beside.reduce((a, b) => Math.max(a, b), box.left);
      const place = isLeft ? { x: box.left + 2 } : { x: box.right, "text-anchor": "end" };
      return s(
        "g",
        { class: "floor" },
        s("path", { d: `M${box.left} ${y}H${box.right}` }),
        s("text", { ...place, y: y - 3 }, name),
      );
    });
}

function showTip(lines, target) {
  const tip = byId("tip");
  put(
    tip,
    lines.map((line) => h("div", {}, line)),
  );
  // An open dialog covers everything outside of itself.
  (byId("panel").open ? byId("panel") : document.body).append(tip);
  tip.hidden = false;
  const at = target.getBoundingClientRect();
  const { width, height } = tip.getBoundingClientRect();
  const left = Math.max(6, Math.min(at.left + at.width / 2 - width / 2, innerWidth - width - 6));
  tip.style.left = `${left}px`;
  tip.style.top = `${at.top - height - 8 > 0 ? at.top - height - 8 : at.bottom + 8}px`;
}

function hideTip() {
  byId("tip").hidden = true;
}

/** Let a mark show the values of its cell, and open it. */
function alive(node, cell) {
  const lines = summary(cell);
  node.setAttribute("tabindex", "-1");
  node.setAttribute("role", "button");
  node.setAttribute("aria-label", lines.join("; "));
  node.setAttribute("data-mark", cell.id);
  const open = () => set({ cell: cell.id }, true);
  const events = {
    pointerenter: () => showTip(lines, node),
    focus: () => showTip(lines, node),
    pointerleave: hideTip,
    blur: hideTip,
    click: open,
  };
  for (const [name, react] of Object.entries(events)) node.addEventListener(name, react);
  node.addEventListener("keydown", (event) => moveAmongMarks(event, node, open));
  return node;
}

/** One stop of the tab key for all marks of a plot: the arrows go from mark to mark. */
function moveAmongMarks(event, node, open) {
  const marks = [...node.ownerSVGElement.querySelectorAll("[data-mark]")];
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (step) {
    const next = marks[(marks.indexOf(node) + step + marks.length) % marks.length];
    node.setAttribute("tabindex", "-1");
    next.setAttribute("tabindex", "0");
    next.focus();
  } else if (event.key === "Enter" || event.key === " ") open();
  else return;
  event.preventDefault();
}

function firstStop(svg) {
  svg.querySelector("[data-mark]")?.setAttribute("tabindex", "0");
  if (svg.querySelector("[data-mark]")) svg.setAttribute("role", "group");
  return svg;
}

/** Names beside their points where there is room: each takes the first free place around its point. */
function placeLabels(points, box) {
  const taken = points.map(({ x, y, r }) => [x - r, y - r, x + r, y + r]);
  const isFree = ([a, b, c, d]) =>
    a >= box.left &&
    c <= box.right &&
    b >= box.top - 6 &&
    d <= box.bottom &&
    !taken.some(([e, f, g, i]) => a < g && c > e && b < i && d > f);
  const labels = [];
  for (const point of points) {
    const w = 6.3 * point.text.length;
    const [near, far] = [point.r + 3, point.r + 12];
    const places = [
      [near, -6],
      [-near - w, -6],
      [-w / 2, -near - 12],
      [-w / 2, near],
      [near, -far - 6],
      [near, far - 6],
      [-near - w, -far - 6],
      [-near - w, far - 6],
    ];
    const found = places
      .map(([dx, dy]) => [point.x + dx, point.y + dy, point.x + dx + w, point.y + dy + 12])
      .find(isFree);
    if (!found) continue;
    taken.push(found);
    labels.push(
      s("text", { class: "label series", style: hue(point.attention), x: found[0], y: found[1] + 9.5 }, point.text),
    );
  }
  return labels;
}
