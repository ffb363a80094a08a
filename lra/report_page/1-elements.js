"use strict";

// Elements, and numbers as text. What comes from the data enters as text nodes and attributes, never as markup.

const NONE = "–";

/** An HTML element; attributes that start with `on` are listeners, empty children are left out. */
function h(name, attributes = {}, ...children) {
  return build(document.createElement(name), attributes, children);
}

/** An SVG element, with the same rules as `h`. */
function s(name, attributes = {}, ...children) {
  return build(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function build(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? "" : String(value));
  }
  const whole = children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);
  node.append(...whole);
  return node;
}

function byId(id) {
  return document.getElementById(id);
}

/** Replace what `container` holds; the focus stays on the element with the same `data-focus`. */
function put(container, ...children) {
  const focused = container.contains(document.activeElement) ? document.activeElement.dataset.focus : undefined;
  container.replaceChildren(...children.flat(Infinity).filter(Boolean));
  if (focused === undefined) return;
  const again = [...container.querySelectorAll("[data-focus]")].find((node) => node.dataset.focus === focused);
  if (again) again.focus({ preventScroll: true });
}

/** A link where `url` is an address of the web, otherwise plain text. */
function link(text, url, title) {
  let parsed = null;
  try {
    parsed = new URL(url);
  } catch {
    return h("span", { title }, text);
  }
  if (parsed.protocol !== "https:" && parsed.protocol !== "http:") return h("span", { title }, text);
  return h("a", { href: parsed.href, title, target: "_blank", rel: "noopener noreferrer" }, text);
}

function known(value) {
  return typeof value === "number" && Number.isFinite(value);
}

function decimal(value, digits = 1) {
  return known(value) ? value.toFixed(digits).replace("-", "−") : NONE;
}

function signed(value) {
  if (!known(value)) return NONE;
  const size = Math.abs(value).toFixed(1);
  return size === "0.0" ? "0.0" : (value > 0 ? "+" : "−") + size;
}

function whole(value) {
  return known(value) ? Math.round(value).toLocaleString("en-US") : NONE;
}

/** 1,200 as 1.2k: for the ticks of axes. */
function short(value) {
  for (const [size, letter] of [
    [1e9, "G"],
    [1e6, "M"],
    [1e3, "k"],
  ]) {
    if (value >= size) return Number((value / size).toPrecision(3)) + letter;
  }
  return String(Number(value.toPrecision(3)));
}

function duration(seconds) {
  if (!known(seconds)) return NONE;
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function plural(count, word, many = word + "s") {
  return `${whole(count)} ${count === 1 ? word : many}`;
}

/** Words of a deviation with room to break after each comma. */
function spaced(deviation) {
  return deviation.replaceAll(",", ", ");
}

function unique(values) {
  return [...new Set(values)];
}

/** A name that may break after its underscores. */
function breakable(name) {
  return name.split(/(?<=_)/).flatMap((part, i) => (i ? [h("wbr"), part] : [part]));
}

/** A table from heads and rows of nodes or texts; `numeric` lists the columns that align right. */
function plainTable(heads, rows, { numeric = [], caption = "", kind = "" } = {}) {
  const align = (i) => (numeric.includes(i) ? "number" : null);
  return h(
    "table",
    { class: `plain ${kind}` },
    caption && h("caption", {}, caption),
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        heads.map((head, i) => h("th", { scope: "col", class: align(i) }, head)),
      ),
    ),
    h(
      "tbody",
      {},
      rows.map((row) =>
        h(
          "tr",
          {},
          row.map((value, i) => h("td", { class: align(i) }, value)),
        ),
      ),
    ),
  );
}

function empty(...text) {
  return h("p", { class: "empty" }, ...text);
}
