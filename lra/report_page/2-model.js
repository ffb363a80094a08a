// The data of the page, with the links between its parts: cell -> column, attention, runs.

const FAILURES = [
  ["diverged", "diverged"],
  ["out_of_memory", "out of memory"],
];
const STATUSES = [["finished", "finished"], ...FAILURES, ["interrupted", "unfinished"]];
const READ = { read: "read in its source", secondary: "from another paper's table", unverified: "not verified" };
const GREY = "#777777";
// For attentions without runs, which have no colour of their own: those of lra/style.py.
const PALETTE = [
  "#0072B2",
  "#D55E00",
  "#009E73",
  "#CC79A7",
  "#56B4E9",
  "#E69F00",
  "#882255",
  "#44AA99",
  "#999933",
  "#332288",
];

let DATA = null;

/** The page's JSON made whole: lists where there are none, ids, and references instead of indices. */
function model(data) {
  for (const key of ["columns", "attentions", "cells", "runs", "notes", "sources", "problems"]) data[key] ??= [];
  data.attentions.forEach((attention, i) => Object.assign(attention, { index: i, ...twins(attention.colour) }));
  const names = data.columns.map((column) => `${column.protocol}/${column.name}`);
  data.columns.forEach((column, i) => {
    const shared = names.filter((name) => name === names[i]).length > 1;
    column.id = names[i] + (shared ? `@${column.data.slice(0, 8)}` : "");
    column.shared = shared;
    column.floors ??= {};
  });
  data.protocols = unique(data.columns.map((column) => column.protocol));
  const ids = new Map();
  // One column group for each protocol, whatever the order of the data.
  const indexed = data.columns;
  data.columns = data.protocols.flatMap((name) => indexed.filter((column) => column.protocol === name));
  for (const cell of data.cells) {
    connect(cell, indexed, data);
    const times = (ids.get(cell.id) ?? 0) + 1;
    ids.set(cell.id, times);
    if (times > 1) cell.id += `~${times}`;
  }
  return data;
}

function connect(cell, columns, data) {
  cell.column = columns[cell.column];
  cell.attention = data.attentions[cell.attention];
  cell.runs = (cell.runs ?? []).map((i) => data.runs[i]);
  cell.superseded = (cell.superseded ?? []).map((i) => data.runs[i]);
  cell.failures ??= {};
  cell.excess ??= "";
  cell.elsewhere ??= [];
  cell.notes ??= [];
  cell.declared ??= {};
  cell.id = [cell.column.id, cell.attention.name, cell.deviation].filter(Boolean).join("/");
  const words = [cell.id, cell.column.task, cell.column.source, cell.device, cell.published?.source, cell.notes];
  cell.text = [...words, cell.runs.map((run) => run.path)].flat().join(" ").toLowerCase();
}

/** A colour for light and one for dark grounds; greys are turned over, dark hues are lifted. */
function twins(colour) {
  const light = /^#[0-9a-f]{6}$/i.test(colour) ? colour : GREY;
  const [r, g, b] = [1, 3, 5].map((i) => parseInt(light.slice(i, i + 2), 16) / 255);
  const [high, low] = [Math.max(r, g, b), Math.min(r, g, b)];
  const lightness = (high + low) / 2;
  if (high - low < 0.08) {
    const grey = Math.round(255 * Math.max(0.55, 1 - 0.8 * lightness));
    return { light, dark: `rgb(${grey} ${grey} ${grey})` };
  }
  const lift = Math.max(0, (0.64 - lightness) / (1 - lightness));
  const lifted = [r, g, b].map((part) => Math.round(255 * (part + (1 - part) * lift)));
  return { light, dark: `rgb(${lifted.join(" ")})` };
}

/** The style that gives an element its attention's colour, in both themes. */
function hue(attention) {
  return `--light:${attention.light ?? GREY};--dark:${attention.dark ?? GREY}`;
}

/** The attention of that name; one without runs gets a look of its own, by its `place` among its like. */
function attentionNamed(name, place) {
  const found = DATA.attentions.find((attention) => attention.name === name);
  const turn = DATA.attentions.length + place;
  return (
    found ?? { name, index: turn, dash: Math.floor(turn / PALETTE.length), ...twins(PALETTE[turn % PALETTE.length]) }
  );
}

/** The task's name as columns and panels print it: with the protocol where there are several. */
function title(column) {
  const name = DATA.protocols.length > 1 ? `${column.name}, ${column.protocol}` : column.name;
  return column.shared ? `${name}, data ${column.data.slice(0, 8)}` : name;
}

function label(cell) {
  return cell.attention.name + (cell.excess ? "†" : "") + (cell.deviation ? `, ${spaced(cell.deviation)}` : "");
}

function failureText(cell) {
  return FAILURES.filter(([key]) => cell.failures[key])
    .map(([key, name]) => `${cell.failures[key]} ${name}`)
    .join(", ");
}

function failureCount(cell) {
  return FAILURES.reduce((sum, [key]) => sum + (cell.failures[key] ?? 0), 0);
}

function intervalText(cell) {
  return cell.interval ? `${decimal(cell.interval[0])} to ${decimal(cell.interval[1])}` : NONE;
}

function intervalKind(cell) {
  return { wilson: "W", student: "t" }[cell.interval?.[2]] ?? "";
}

/** The number in brackets of a published value's paper in the list of sources. */
function sourceNumber(published) {
  const i = DATA.sources.findIndex((line) => line.endsWith(published.url) && line.includes(published.source));
  return i < 0 ? "" : `[${i + 1}]`;
}

/** What a pointer on a mark of `cell` shows. */
function summary(cell) {
  const seeds = plural(cell.finished, "seed");
  return [
    `${label(cell)} on ${title(cell.column)}`,
    `${decimal(cell.accuracy)}% (${intervalText(cell)}, ${seeds})`,
    known(cell.tokens_per_s) && `${whole(cell.tokens_per_s)} tokens/s`,
    known(cell.peak_memory_mb) && `${whole(cell.peak_memory_mb)} MB at peak`,
    cell.published && `published ${cell.published.text}${cell.published.mark}, difference ${signed(cell.difference)}`,
    failureText(cell),
  ].filter(Boolean);
}
