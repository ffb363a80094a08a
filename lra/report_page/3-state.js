// What is shown: the state of the page, kept in the address so that a view can be linked, and the filters that set it.

const LISTS = ["protocol", "task", "attn", "status", "hide"];
const FLAGS = ["published", "plain"];
const TEXTS = ["q", "view", "sort", "by", "device", "cell"];

let state = blank();

function blank() {
  const fields = { open: new Set() };
  for (const key of LISTS) fields[key] = [];
  for (const key of FLAGS) fields[key] = false;
  for (const key of TEXTS) fields[key] = "";
  return fields;
}

function readAddress() {
  const words = new URLSearchParams(location.hash.slice(1));
  const fields = blank();
  for (const key of LISTS) fields[key] = words.getAll(key);
  for (const key of FLAGS) fields[key] = words.get(key) === "1";
  for (const key of TEXTS) fields[key] = words.get(key) ?? "";
  fields.open = state.open;
  return fields;
}

function address(fields) {
  const words = new URLSearchParams();
  for (const key of TEXTS) if (fields[key]) words.append(key, fields[key]);
  for (const key of LISTS) fields[key].forEach((value) => words.append(key, value));
  for (const key of FLAGS) if (fields[key]) words.append(key, "1");
  return `#${words}`;
}

/** Browsers may refuse a change of the address, from a file or after too many: the view itself is not lost by that. */
function writeAddress(asNew) {
  const wanted = address(state);
  if (wanted === (location.hash || "#")) return;
  try {
    history[asNew ? "pushState" : "replaceState"](null, "", wanted);
  } catch {
    return;
  }
}

/** Change the state, the address and what depends on them. */
function set(changes, asNew = false) {
  Object.assign(state, changes);
  writeAddress(asNew);
  render(Object.keys(changes));
}

function isFiltered() {
  const lists = ["protocol", "task", "attn", "status"].some((key) => state[key].length > 0);
  return lists || state.q.trim() !== "" || state.published || state.plain;
}

/** The cells that pass the filters, in the order of the data. */
function visible() {
  const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
  const among = (key, value) => state[key].length === 0 || state[key].includes(value);
  return DATA.cells.filter(
    (cell) =>
      among("protocol", cell.column.protocol) &&
      among("task", cell.column.name) &&
      among("attn", cell.attention.name) &&
      (state.status.length === 0 || state.status.some((key) => hasStatus(cell, key))) &&
      (!state.published || cell.published) &&
      (!state.plain || !cell.deviation) &&
      words.every((word) => cell.text.includes(word)),
  );
}

function hasStatus(cell, status) {
  return status === "finished" ? cell.finished > 0 : (cell.failures[status] ?? 0) > 0;
}

function drawFilters() {
  const search = h("input", {
    type: "search",
    id: "search",
    placeholder: "Search",
    "aria-label": "Search names, paths, deviations",
    value: state.q,
    oninput: (event) => set({ q: event.target.value }),
  });
  const choices = [
    ["protocol", "Protocol", unique(DATA.columns.map((column) => column.protocol)).map((name) => [name, name])],
    ["task", "Task", unique(DATA.columns.map((column) => column.name)).map((name) => [name, name])],
    ["attn", "Attention", DATA.attentions.map((attention) => [attention.name, attention.name])],
    ["status", "Status", STATUSES],
  ];
  const menus = choices.map((choice) => menu(...choice));
  const flags = [check("published", "with a published value"), check("plain", "reproductions only")];
  const clear = h("button", { type: "button", id: "clear", class: "quiet", onclick: clearFilters }, "Clear");
  put(byId("filters"), search, menus, flags, clear);
}

function clearFilters() {
  const { q, protocol, task, attn, status, published, plain } = blank();
  set({ q, protocol, task, attn, status, published, plain });
  syncFilters();
  byId("search").focus();
}

/** A menu of check boxes; none checked means all. */
function menu(key, name, choices) {
  const toggle = (value, on) =>
    set({ [key]: on ? [...state[key], value] : state[key].filter((other) => other !== value) });
  const box = ([value, text]) =>
    h(
      "label",
      {},
      h("input", { type: "checkbox", name: key, value, onchange: (event) => toggle(value, event.target.checked) }),
      " ",
      text,
    );
  return h(
    "details",
    { class: "menu", "data-key": key },
    h("summary", {}, name, h("span", { class: "chosen" })),
    h("div", { class: "choices" }, choices.map(box)),
  );
}

function check(key, text) {
  const onchange = (event) => set({ [key]: event.target.checked });
  return h("label", { class: "flag" }, h("input", { type: "checkbox", name: key, onchange }), " ", text);
}

/** Bring the controls in line with the state. */
function syncFilters() {
  const search = byId("search");
  if (search.value !== state.q) search.value = state.q;
  for (const box of byId("filters").querySelectorAll("input[type=checkbox]")) {
    box.checked = FLAGS.includes(box.name) ? state[box.name] : state[box.name].includes(box.value);
  }
  for (const node of byId("filters").querySelectorAll(".menu")) {
    const chosen = state[node.dataset.key];
    node.querySelector(".chosen").textContent = chosen.length ? `: ${chosen.join(", ").replaceAll("_", " ")}` : "";
    node.classList.toggle("active", chosen.length > 0);
  }
  byId("clear").hidden = !isFiltered();
}

/** Menus close by Escape and by a click elsewhere. */
function closeMenus(except) {
  for (const node of byId("filters").querySelectorAll("details[open]")) if (node !== except) node.open = false;
}

// The theme: the system's until the reader chooses; the choice is kept where the browser allows it.

function storedTheme() {
  try {
    return localStorage.getItem("lra-theme");
  } catch {
    return null;
  }
}

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function applyTheme(theme) {
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
  byId("theme").textContent = isDark() ? "Light" : "Dark";
  byId("theme").setAttribute("aria-label", isDark() ? "Use light colours" : "Use dark colours");
}

function toggleTheme() {
  const theme = isDark() ? "light" : "dark";
  applyTheme(theme);
  try {
    localStorage.setItem("lra-theme", theme);
  } catch {
    return;
  }
}
