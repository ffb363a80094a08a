// The page as a whole: header, notes, what is drawn again when the state changes, print.

const SECTIONS = [
  ["accuracy", "Accuracy"],
  ["speed", "Speed"],
  ["curves", "Curves"],
  ["published", "Published"],
  ["crossover", "Crossover"],
  ["notes", "Notes"],
];

/** Draw again what depends on the changed keys of the state; all of it without keys. */
function render(keys = null) {
  const changed = (...names) => keys === null || names.some((name) => keys.includes(name));
  const isNewSelection = changed("q", "protocol", "task", "attn", "status", "published", "plain");
  const cells = visible();
  if (isNewSelection) {
    syncFilters();
    drawShown(cells);
    drawKey(cells);
  }
  if (isNewSelection || changed("view", "sort", "by")) drawTables(cells);
  if (isNewSelection || changed("hide", "device")) drawSpeed(cells);
  if (isNewSelection || changed("hide")) drawCurves(cells);
  if (isNewSelection) drawPublished(cells);
  if (changed("hide")) drawCrossover();
  if (changed("cell")) drawPanel();
}

function drawTables(cells) {
  const isList = state.view === "list";
  const view = (name, text) =>
    h(
      "button",
      {
        type: "button",
        "aria-pressed": String(isList === (name === "list")),
        "data-focus": name,
        onclick: () => set({ view: name === "list" ? "list" : "" }),
      },
      text,
    );
  put(byId("views"), view("matrix", "Matrix"), view("list", "List"));
  byId("matrix").hidden = isList && cells.length > 0;
  byId("list").hidden = !isList || !cells.length;
  if (!cells.length) return put(byId("matrix"), noCells());
  if (isList) drawList(cells);
  else drawMatrix(cells);
}

function noCells() {
  if (DATA.cells.length) return empty("No cell passes these filters.");
  return empty(
    "No runs yet. The first: ",
    h("code", {}, "make lra task=listops attn=mra2"),
    ", then ",
    h("code", {}, "make compare"),
    ".",
  );
}

function drawShown(cells) {
  const all = DATA.cells.length;
  byId("shown").textContent =
    cells.length === all ? plural(all, "cell") : `${whole(cells.length)} of ${plural(all, "cell")} shown`;
}

function drawFacts() {
  const superseded = DATA.cells.reduce((sum, cell) => sum + cell.superseded.length, 0);
  const counted = STATUSES.map(([key, name]) => [
    DATA.runs.filter((run) => run.status === key).length,
    name,
    key,
  ]).filter(([count]) => count > 0);
  const failed = (key) => (FAILURES.some(([other]) => other === key) ? "failed" : null);
  const facts = [
    [
      plural(DATA.runs.length, "run"),
      counted.length ? ": " : "",
      counted.map(([count, name, key], i) => [
        i ? ", " : "",
        h("span", { class: failed(key) }, `${whole(count)} ${name}`),
      ]),
    ],
    superseded > 0 && `${superseded} superseded`,
    DATA.problems.length > 0 &&
      h("a", { href: "#notes", class: "failed", onclick: goTo }, plural(DATA.problems.length, "problem")),
    DATA.filters && ["only ", h("code", {}, DATA.filters)],
    DATA.generated && `written ${DATA.generated}`,
    DATA.commit && ["commit ", h("code", {}, DATA.commit.slice(0, 12))],
  ];
  put(
    byId("facts"),
    facts.filter(Boolean).map((fact) => h("span", { class: "fact" }, fact)),
  );
  put(
    byId("sections"),
    SECTIONS.map(([id, name]) => h("a", { href: `#${id}`, onclick: goTo }, name)),
  );
}

/** Go to a section; the address keeps the view. */
function goTo(event) {
  event.preventDefault();
  byId(event.currentTarget.getAttribute("href").slice(1)).scrollIntoView();
}

function drawNotes() {
  const list = (lines, attributes) =>
    h(
      "ul",
      attributes,
      lines.map((line) => h("li", {}, line)),
    );
  const common = DATA.common && Object.keys(DATA.common).length > 0;
  put(
    byId("notes-body"),
    DATA.notes.length > 0 && list(DATA.notes, { class: "notes" }),
    DATA.problems.length > 0 && [h("h3", {}, "Problems"), list(DATA.problems, { class: "notes problems" })],
    DATA.sources.length > 0 && [h("h3", {}, "Sources"), list(DATA.sources.map(sourceLine), { class: "notes sources" })],
    common &&
      h(
        "details",
        {},
        h("summary", {}, `Configuration that all runs share: ${plural(Object.keys(DATA.common).length, "key")}`),
        pairs(DATA.common),
      ),
    !DATA.notes.length && !DATA.problems.length && !DATA.sources.length && !common && empty("Nothing to note."),
  );
}

function sourceLine(line) {
  const url = line.match(/https?:\/\/\S+$/)?.[0];
  return url ? [line.slice(0, -url.length), link(url, url)] : line;
}

let printing = false;

/** On paper everything is open: all variants, the list below the matrix, every plot, every fold. */
function openForPrint() {
  const cells = visible();
  const kept = state.open;
  printing = true;
  state.open = new Set(cells.map((cell) => cell.attention.name));
  if (cells.length) {
    drawMatrix(cells);
    drawList(cells);
  }
  state.open = kept;
  printing = false;
  drawAll();
  document.querySelectorAll("main details:not(.menu)").forEach((node) => (node.open = true));
}

function listen() {
  addEventListener("hashchange", () => {
    state = readAddress();
    render();
  });
  addEventListener("beforeprint", openForPrint);
  addEventListener("afterprint", () => drawTables(visible()));
  addEventListener("resize", debounced(redrawForWidth, 150));
  document.addEventListener("click", (event) => closeMenus(event.target.closest?.("details.menu")));
  document.addEventListener("keydown", pressed);
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("theme").addEventListener("click", toggleTheme);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => applyTheme());
  const panel = byId("panel");
  panel.addEventListener("close", () => {
    hideTip();
    document.body.append(byId("tip"));
    // The event comes late: the panel may be open again, for another cell.
    if (state.cell && !panel.open) set({ cell: "" });
  });
  panel.addEventListener("click", (event) => event.target === panel && panel.close());
}

function pressed(event) {
  if (event.key === "Escape") {
    closeMenus();
    hideTip();
  }
  const isTyping = event.target.closest?.("input, select, textarea, dialog");
  if (event.key === "/" && !isTyping && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    byId("search").focus();
  }
}

function debounced(act, wait) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(act, wait);
  };
}

let drawnWidth = 0;

/** Plots are drawn for the width they have; a change of the height alone, as on phones, draws nothing. */
function redrawForWidth() {
  if (document.documentElement.clientWidth === drawnWidth) return;
  drawnWidth = document.documentElement.clientWidth;
  render(["view", "hide", "device", "plain"]);
}

function start() {
  applyTheme(storedTheme());
  try {
    DATA = model(JSON.parse(byId("data").textContent));
  } catch (error) {
    put(byId("facts"), h("span", { class: "failed" }, `The data of this page cannot be read: ${error.message}`));
    return;
  }
  if (DATA.schema !== 1) put(byId("facts"), `The data has schema ${DATA.schema}; this page reads schema 1.`);
  else drawFacts();
  byId("main").hidden = false;
  drawnWidth = document.documentElement.clientWidth;
  drawFilters();
  drawNotes();
  state = readAddress();
  listen();
  render();
}

start();
