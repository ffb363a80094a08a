// The matrix of tasks by attention, and the flat list of cells.

/** Visible cells by attention, then by column: lists with the plain recipe first. */
function matrixRows(cells) {
  const rows = new Map();
  for (const cell of cells) {
    if (!rows.has(cell.attention)) rows.set(cell.attention, { attention: cell.attention, lists: new Map() });
    const { lists } = rows.get(cell.attention);
    lists.set(
      cell.column,
      [...(lists.get(cell.column) ?? []), cell].sort((a, b) => Boolean(a.deviation) - Boolean(b.deviation)),
    );
  }
  return [...rows.values()].sort((a, b) => a.attention.index - b.attention.index);
}

function leadOf(row, column) {
  return row.lists.get(column)?.[0];
}

/** Sorted by `key` such as `-mlpen/listops:accuracy`; what has no value stands last in both directions. */
function sortRows(rows, columns) {
  const [falling, key] = splitSort(state.sort);
  if (!key) return rows;
  if (key === "name") {
    return [...rows].sort((a, b) => a.attention.name.localeCompare(b.attention.name, "en") * (falling ? -1 : 1));
  }
  const cut = key.lastIndexOf(":");
  const column = columns.find((other) => other.id === key.slice(0, cut));
  const value = (row) => leadOf(row, column)?.[key.slice(cut + 1)];
  return column ? [...rows].sort((a, b) => compare(value(a), value(b), falling)) : rows;
}

function splitSort(text) {
  return text.startsWith("-") ? [true, text.slice(1)] : [false, text];
}

function compare(a, b, falling) {
  const missing = (value) => value === null || value === undefined || value === "";
  if (missing(a) || missing(b)) return missing(a) - missing(b);
  const order = typeof a === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  return falling ? -order : order;
}

/** A header cell whose button sorts: `first` is the direction of the first click. */
function sortHead(field, key, text, first, attributes = {}) {
  const [falling, current] = splitSort(state[field]);
  const active = current === key;
  const next = active ? (falling ? key : `-${key}`) : first === "falling" ? `-${key}` : key;
  const sorted = active ? (falling ? "descending" : "ascending") : null;
  // Buttons are left blank in heads that are repeated on further pages.
  const button = printing
    ? text
    : h("button", { type: "button", "data-focus": `${field} ${key}`, onclick: () => set({ [field]: next }) }, text);
  return h("th", { scope: "col", "aria-sort": sorted, ...attributes }, button);
}

function drawMatrix(cells) {
  const columns = DATA.columns.filter((column) => cells.some((cell) => cell.column === column));
  const rows = sortRows(matrixRows(cells), columns);
  const leads = rows.flatMap((row) => columns.map((column) => leadOf(row, column)).filter(Boolean));
  const deviations = unique(leads.map((cell) => cell.deviation ?? ""));
  const common = deviations.length === 1 ? deviations[0] : "";
  const table = h(
    "table",
    { class: "matrix", style: `--columns:${columns.length}` },
    common && h("caption", {}, "Every cell deviates from its recipe: ", h("code", {}, spaced(common))),
    matrixHead(columns),
    h(
      "tbody",
      {},
      rows.flatMap((row) => matrixLines(row, columns, common)),
    ),
  );
  put(byId("matrix"), table);
  fitFrame(byId("matrix"));
}

function matrixHead(columns) {
  const spans = DATA.protocols
    .map((name) => [name, columns.filter((column) => column.protocol === name).length])
    .filter(([, count]) => count > 0);
  const protocols = h(
    "tr",
    { class: "protocols" },
    h("th", {}),
    spans.map(([name, count]) => h("th", { colspan: 2 * count, scope: "colgroup" }, h("span", {}, `protocol ${name}`))),
  );
  const tasks = h(
    "tr",
    { class: "tasks" },
    h("th", {}),
    columns.map((column) => h("th", { colspan: 2, scope: "colgroup" }, taskHead(column))),
  );
  const fields = h(
    "tr",
    { class: "fields" },
    sortHead("sort", "name", "attention", "rising"),
    columns.map((column) => [
      sortHead("sort", `${column.id}:accuracy`, "ours, %", "falling", {
        class: "ours",
        "aria-label": `${column.name}: ours`,
      }),
      sortHead("sort", `${column.id}:difference`, "published, diff", "falling", {
        class: "paper",
        "aria-label": `${column.name}: difference`,
      }),
    ]),
  );
  return h("thead", {}, spans.length > 1 && protocols, tasks, fields);
}

function taskHead(column) {
  const floors = Object.entries(column.floors).map(([name, value]) => `${name} ${decimal(value)}%`);
  const about = [`${column.source} data, ${column.data.slice(0, 12)}`, ...floors].join("; ");
  return h("span", { title: about }, column.name, column.shared && h("small", {}, ` data ${column.data.slice(0, 8)}`));
}

/** The line of an attention, and below it, where opened, a line for each other deviation. */
function matrixLines(row, columns, common) {
  const others = [...row.lists.values()].flatMap((list) => list.slice(1));
  const isOpen = state.open.has(row.attention.name);
  const toggle = () => {
    if (isOpen) state.open.delete(row.attention.name);
    else state.open.add(row.attention.name);
    drawMatrix(visible());
  };
  const more = (column) => {
    const count = (row.lists.get(column)?.length ?? 0) - 1;
    const focus = `open ${row.attention.name} ${column.id}`;
    return (
      count > 0 &&
      h(
        "button",
        { type: "button", class: "more", "aria-expanded": String(isOpen), "data-focus": focus, onclick: toggle },
        `+${plural(count, "variant")}`,
      )
    );
  };
  const first = h(
    "tr",
    {},
    h("th", { scope: "row" }, swatch(row.attention), breakable(row.attention.name)),
    columns.map((column) => matrixCells(leadOf(row, column), common, more(column))),
  );
  if (!isOpen) return [first];
  const lines = unique(others.map((cell) => cell.deviation)).map((deviation) =>
    h(
      "tr",
      { class: "variant" },
      h("th", { scope: "row" }, h("code", {}, spaced(deviation))),
      columns.map((column) =>
        matrixCells(
          others.find((cell) => cell.column === column && cell.deviation === deviation),
          deviation,
        ),
      ),
    ),
  );
  return [first, ...lines];
}

/** The two table cells of a cell; its deviation is named where it is not `told` already. */
function matrixCells(cell, told, more = null) {
  if (!cell) return [h("td", { class: "ours none" }, NONE, more), h("td", { class: "paper none" })];
  const open = () => set({ cell: cell.id }, true);
  const failures = failureText(cell);
  const button = h(
    "button",
    {
      type: "button",
      class: "value",
      "data-cell": cell.id,
      "data-focus": `cell ${cell.id}`,
      "aria-haspopup": "dialog",
      onclick: open,
    },
    h(
      "span",
      { class: "mean" },
      decimal(cell.accuracy),
      cell.excess && h("sup", { title: `${cell.excess} parameters` }, "†"),
    ),
    h("small", {}, ` n ${cell.finished}`),
    cell.interval && h("small", { class: "interval" }, intervalText(cell), h("sup", {}, intervalKind(cell))),
    failures && h("small", { class: "failed" }, `✕ ${failures}`),
    cell.failures.interrupted > 0 && h("small", { class: "unfinished" }, `${cell.failures.interrupted} unfinished`),
    cell.deviation &&
      cell.deviation !== told &&
      h("small", { class: "deviation", title: spaced(cell.deviation) }, spaced(cell.deviation)),
  );
  return [
    h("td", { class: "ours" }, button, more),
    h("td", { class: "paper", onclick: (event) => event.target.closest("a") ?? open() }, paper(cell)),
  ];
}

/** The published value with its source as a link, and below it the difference. */
function paper(cell) {
  if (!cell.published) return null;
  const { text, mark, status, source, url, note } = cell.published;
  const about = [source, READ[status], note].filter(Boolean).join("; ");
  return [
    link(`${text}${mark}`, url, about),
    h("small", { class: "source" }, ` ${sourceNumber(cell.published)}`),
    h("small", { class: `difference ${verdict(cell)}` }, signed(cell.difference)),
  ];
}

/** Whether the published value lies outside of our interval; a cell that deviates is no reproduction. */
function verdict(cell) {
  if (cell.deviation) return "deviates";
  if (!cell.interval || !known(cell.published?.value)) return "";
  return cell.published.value < cell.interval[0] || cell.published.value > cell.interval[1] ? "outside" : "";
}

/** A short line and a mark in the attention's colour, dashes and shape. */
function swatch(attention) {
  return s(
    "svg",
    {
      class: "swatch series",
      width: 22,
      height: 10,
      viewBox: "0 0 22 10",
      "aria-hidden": "true",
      style: hue(attention),
    },
    s("path", { class: "line", d: "M0 5H22", "stroke-dasharray": dashes(attention) }),
    s("path", { class: "mark", d: shape(attention, 34), transform: "translate(11 5)" }),
  );
}

/** A frame that its table fits is no frame: then the header sticks to the window instead. */
function fitFrame(frame) {
  frame.classList.remove("fits");
  frame.classList.toggle("fits", frame.scrollWidth <= frame.clientWidth + 1);
}

const LIST = [
  ["protocol", (cell) => cell.column.protocol],
  ["task", (cell) => cell.column.name + (cell.column.shared ? ` ${cell.column.data.slice(0, 8)}` : "")],
  ["attention", (cell) => cell.attention.name + (cell.excess ? "†" : "")],
  ["deviation", (cell) => cell.deviation, spaced],
  ["test %", (cell) => cell.accuracy, decimal],
  ["low", (cell) => cell.interval?.[0], decimal],
  ["high", (cell) => cell.interval?.[1], decimal],
  ["kind", (cell) => intervalKind(cell)],
  ["seeds", (cell) => cell.finished, whole],
  ["failures", failureCount, (value) => (value ? whole(value) : "")],
  ["unfinished", (cell) => cell.failures.interrupted ?? 0, (value) => (value ? whole(value) : "")],
  ["published", (cell) => cell.published?.value, decimal],
  ["diff", (cell) => cell.difference, signed],
  ["train %", (cell) => cell.train_accuracy, decimal],
  ["params", (cell) => cell.params, whole],
  ["tokens/s", (cell) => cell.tokens_per_s, whole],
  ["peak MB", (cell) => cell.peak_memory_mb, whole],
  ["device", (cell) => cell.device],
].map(([name, value, text]) => ({
  name,
  value,
  text: text ?? ((found) => found ?? ""),
  number: text !== undefined && text !== spaced,
}));

function drawList(cells) {
  const [falling, name] = splitSort(state.by);
  const column = LIST.find((other) => other.name === name);
  const sorted = column ? [...cells].sort((a, b) => compare(column.value(a), column.value(b), falling)) : cells;
  const heads = LIST.map((other) =>
    sortHead("by", other.name, other.name, other.number ? "falling" : "rising", {
      class: other.number ? "number" : null,
    }),
  );
  put(
    byId("list"),
    h("table", { class: "plain list" }, h("thead", {}, h("tr", {}, heads)), h("tbody", {}, sorted.map(listLine))),
  );
  fitFrame(byId("list"));
}

function listLine(cell) {
  const open = () => set({ cell: cell.id }, true);
  const texts = LIST.map((column) => {
    const value = column.value(cell);
    const text = value === null || value === undefined ? NONE : column.text(value);
    if (column.name === "attention")
      return h(
        "td",
        {},
        h(
          "button",
          { type: "button", class: "opens", "data-cell": cell.id, "data-focus": `row ${cell.id}`, onclick: open },
          text,
        ),
      );
    if (column.name === "published" && cell.published)
      return h(
        "td",
        { class: "number" },
        link(cell.published.text + cell.published.mark, cell.published.url, cell.published.source),
        ` ${sourceNumber(cell.published)}`,
      );
    return h(
      "td",
      {
        class: [
          column.number && "number",
          column.name === "failures" && "failed",
          column.name === "deviation" && "words",
        ]
          .filter(Boolean)
          .join(" "),
      },
      text,
    );
  });
  return h("tr", { onclick: (event) => event.target.closest("a, button") ?? open() }, texts);
}

/** What the signs in the matrix mean, only those that stand there. */
function drawKey(cells) {
  const kinds = new Set(cells.map((cell) => cell.interval?.[2]));
  const lines = [
    cells.some((cell) => cell.accuracy !== null) &&
      "Mean test accuracy over n finished runs, which differ in their seed alone; below it the 95% interval.",
    kinds.has("wilson") && "W: Wilson, of one run over the items of the test set.",
    kinds.has("student") && "t: Student, of the mean over seeds.",
    cells.some((cell) => verdict(cell) === "outside") &&
      "A difference in strong print: the published value lies outside of our interval.",
    cells.some((cell) => cell.deviation && cell.published) &&
      "A difference in italics: the cell deviates from its recipe and reproduces nothing.",
    cells.some((cell) => cell.excess) && "†: over 10% more parameters than softmax.",
    cells.length > 0 && "Runs with other data, splits or protocols are never averaged. Press a cell for its runs.",
  ];
  put(byId("key"), h("p", {}, lines.filter(Boolean).join(" ")));
}
