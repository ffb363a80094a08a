// The panel of one cell: its runs, what differs in their configurations, and its curves.

function drawPanel() {
  const panel = byId("panel");
  const cell = DATA.cells.find((other) => other.id === state.cell);
  if (!cell) {
    if (panel.open) panel.close();
    return;
  }
  put(panel, panelHead(cell), panelFacts(cell), panelParts(cell));
  if (!panel.open) panel.showModal();
  panel.scrollTop = 0;
}

function panelHead(cell) {
  const close = h(
    "button",
    { type: "button", class: "quiet", id: "close", onclick: () => byId("panel").close() },
    "Close",
  );
  return h(
    "div",
    { class: "masthead" },
    h("h2", { id: "panel-title" }, swatch(cell.attention), `${cell.attention.name} on ${cell.column.name}`),
    close,
  );
}

function panelFacts(cell) {
  const over = cell.interval?.[2] === "student" ? "Student's t, over seeds" : "Wilson, over the test items of one run";
  const floors = Object.entries(cell.column.floors).map(([name, value]) => `${name} ${decimal(value)}%`);
  const facts = [
    ["protocol", cell.column.protocol],
    ["data", `${cell.column.source}, ${cell.column.data}`],
    [
      "test accuracy",
      known(cell.accuracy) ? `${decimal(cell.accuracy)}%, mean of ${plural(cell.finished, "run")}` : "no finished run",
    ],
    cell.interval && ["95% interval", `${intervalText(cell)} (${over})`],
    ["published", cell.published ? publishedFact(cell.published) : "nothing under this protocol"],
    known(cell.difference) && [
      "difference",
      `${signed(cell.difference)} points${cell.deviation ? ", no reproduction: the cell deviates" : ""}`,
    ],
    failureText(cell) && ["failures", h("span", { class: "failed" }, failureText(cell))],
    cell.failures.interrupted > 0 && ["unfinished", whole(cell.failures.interrupted)],
    known(cell.train_accuracy) && ["training accuracy", `${decimal(cell.train_accuracy)}%`],
    known(cell.params) && ["parameters", whole(cell.params) + (cell.excess && ` († ${cell.excess} of softmax's)`)],
    known(cell.tokens_per_s) && ["speed", `${whole(cell.tokens_per_s)} tokens/s`],
    known(cell.peak_memory_mb) && ["peak memory", `${whole(cell.peak_memory_mb)} MB`],
    ["device", cell.device ?? "several: speed and memory are not averaged"],
    floors.length > 0 && ["without attention", floors.join(", ")],
    ["deviation", cell.deviation ? h("code", {}, spaced(cell.deviation)) : "none: the protocol's recipe"],
  ];
  return h(
    "dl",
    {},
    facts.filter(Boolean).map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]),
  );
}

function publishedFact(published) {
  const { text, mark, status, source, url, note } = published;
  return [`${text}${mark}, `, link(source, url), `, ${READ[status] ?? status}`, note ? `; ${note}` : ""];
}

function panelParts(cell) {
  const softmax = softmaxOf(cell);
  const faulty = cell.runs
    .filter((run) => run.predictions)
    .map((run) => `seed ${run.seed}: predictions.npz ${run.predictions}`);
  const notes = [...cell.notes, ...faulty];
  const parts = [
    [`Runs`, runsTable(cell.runs)],
    cell.superseded.length > 0 && ["Superseded by a newer run of the same seed", runsTable(cell.superseded)],
    cell.runs.some(hasCurve) && [
      "Learning curves",
      panels(["accuracy", "loss"], (field, width) => curvePanel(cell.column, [cell], field, width), "two"),
    ],
    Object.keys(cell.declared).length > 0 && ["Declared for this attention and task", pairs(cell.declared)],
    cell.runs.length > 1 && [
      "What differs between its runs",
      differences(
        cell.runs,
        cell.runs.map((run) => `seed ${run.seed}`),
      ),
    ],
    softmax && [
      "What differs from softmax on this task",
      differences(partners(cell, softmax), [cell.attention.name, label(softmax)]),
    ],
    cell.elsewhere.length > 0 && [
      "Published elsewhere",
      h(
        "ul",
        {},
        cell.elsewhere.map((value) => h("li", {}, publishedFact(value))),
      ),
    ],
    notes.length > 0 && [
      "Notes",
      h(
        "ul",
        {},
        notes.map((note) => h("li", {}, note)),
      ),
    ],
  ];
  return parts.filter(Boolean).map(([name, body]) => h("section", {}, h("h3", {}, name), body));
}

const RUN = [
  ["seed", (run) => run.seed],
  [
    "status",
    (run) =>
      h(
        "span",
        { class: FAILURES.some(([key]) => key === run.status) ? "failed" : null },
        STATUSES.find(([key]) => key === run.status)?.[1] ?? run.status,
      ),
  ],
  ["test %", (run) => decimal(run.accuracy), true],
  ["steps", (run) => whole(run.steps), true],
  ["time", (run) => duration(run.seconds), true],
  ["tokens/s", (run) => whole(run.tokens_per_s), true],
  ["peak MB", (run) => whole(run.peak_memory_mb), true],
  ["device", (run) => run.device + (run.processes > 1 ? `, ${run.processes} processes` : "")],
  ["dtype", (run) => run.dtype],
  ["kernel", (run) => run.kernel || "torch"],
  ["commit", (run) => h("code", { title: run.git_commit }, (run.git_commit ?? "").slice(0, 9))],
  ["data", (run) => h("code", { title: run.data_sha256 }, (run.data_sha256 ?? "").slice(0, 8))],
  ["config", (run) => h("code", { title: run.config_sha256 }, (run.config_sha256 ?? "").slice(0, 8))],
  ["finished", (run) => run.finished_at],
  ["path", (run) => h("code", {}, run.path)],
];

function runsTable(runs) {
  const numeric = RUN.flatMap(([, , number], i) => (number ? [i] : []));
  return h(
    "div",
    { class: "frame", tabindex: "0" },
    plainTable(
      RUN.map(([name]) => name),
      runs.map((run) => RUN.map(([, value]) => value(run) ?? NONE)),
      { numeric },
    ),
  );
}

function valueText(value) {
  return value === undefined ? "absent" : typeof value === "string" ? value : JSON.stringify(value);
}

function pairs(values) {
  const rows = Object.entries(values).map(([key, value]) => [h("code", {}, key), h("code", {}, valueText(value))]);
  return h("div", { class: "frame" }, plainTable(["key", "value"], rows, { kind: "wraps" }));
}

/** The keys that have not one value in the configurations of `runs`. */
function differences(runs, names) {
  const keys = unique(runs.flatMap((run) => Object.keys(run.config ?? {}))).sort();
  const values = (key) => runs.map((run) => (run.recorded === false ? "not recorded" : valueText(run.config?.[key])));
  const differing = keys.filter((key) => unique(values(key)).length > 1);
  if (!differing.length) return h("p", { class: "muted" }, "Nothing.");
  return h(
    "div",
    { class: "frame", tabindex: "0" },
    plainTable(
      ["key", ...names],
      differing.map((key) => [key, ...values(key)].map((text) => h("code", {}, text))),
      { kind: "wraps" },
    ),
  );
}

/** The softmax cell of the same column, with the same deviation if there is one, otherwise the plain one. */
function softmaxOf(cell) {
  if (cell.attention.name === "softmax") return null;
  const found = DATA.cells.filter(
    (other) => other.column === cell.column && other.attention.name === "softmax" && other.runs.length > 0,
  );
  return (
    found.find((other) => other.deviation === cell.deviation) ?? found.find((other) => !other.deviation) ?? found[0]
  );
}

/** A run of each of two cells, with the same seed if they share one. */
function partners(cell, other) {
  for (const run of cell.runs) {
    const twin = other.runs.find((candidate) => candidate.seed === run.seed);
    if (twin) return [run, twin];
  }
  return [cell.runs[0], other.runs[0]];
}
