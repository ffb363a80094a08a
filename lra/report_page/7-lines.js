// Figures of lines: learning curves over steps, and the crossover with softmax over length.

// Learning curves.

function drawCurves(cells) {
  const drawn = cells.filter((cell) => cell.runs.some(hasCurve));
  if (!drawn.length) return put(byId("curves-body"), empty("No run among these cells has a learning curve yet."));
  const text = [
    "Strong: validation. Faint: training. A line for each seed. Crosses: diverged.",
    "Point at a line for its values; a name hides and shows its lines.",
  ];
  put(
    byId("curves-body"),
    h("p", { class: "muted" }, text.join(" ")),
    legend(attentionsOf(drawn)),
    columnsOf(drawn).map((column) => curvePair(column, membersOf(column, drawn))),
  );
}

function hasCurve(run) {
  return ["val", "train"].some((split) => run.curves?.[split]?.steps?.length > 0);
}

function curvePair(column, cells) {
  const draw = (field, width) => curvePanel(column, shownOf(cells), field, width);
  return h("div", { class: "pair" }, h("h3", {}, title(column)), panels(["accuracy", "loss"], draw, "two"));
}

/** The lines of one field: {cell, run, split, points: [[step, value]]}, points without a number left out. */
function linesOf(cells, field) {
  const lines = [];
  for (const cell of cells) {
    for (const run of cell.runs) {
      for (const split of ["train", "val"]) {
        const { steps = [], [field]: values = [] } = run.curves?.[split] ?? {};
        const points = steps.map((step, i) => [step, values[i]]).filter(([, value]) => known(value));
        if (points.length) lines.push({ cell, run, split, points });
      }
    }
  }
  return lines;
}

function curvePanel(column, cells, field, width) {
  const lines = linesOf(cells, field);
  const name = field === "accuracy" ? "accuracy, %" : "loss, nats";
  if (!lines.length) return empty(`No ${field} to draw.`);
  const height = Math.round(Math.min(width * 0.6, 320));
  const box = { left: 36, right: width - 10, top: 24, bottom: height - 38 };
  const values = lines.flatMap((line) => line.points.map(([, value]) => value));
  const last = Math.max(...lines.map((line) => line.points.at(-1)[0]));
  const floors = field === "accuracy" ? Object.values(column.floors).filter(known) : [];
  const range = field === "accuracy" ? extent([...values, ...floors], 4) : lossRange(values);
  const x = {
    scale: linear(0, last, box.left, box.right),
    ticks: linearTicks(0, last, width < 340 ? 3 : 5),
    text: short,
    name: "step",
  };
  const y = { scale: linear(...range, box.bottom, box.top), ticks: linearTicks(...range), text: String, name };
  const svg = chart(
    width,
    height,
    box,
    x,
    y,
    `${title(column)}: ${name} over steps`,
    `${plural(unique(lines.map((line) => line.run)).length, "run")}; the values at the end stand in the tables.`,
  );
  // A value beyond the axis is drawn on its edge.
  for (const line of lines)
    line.places = line.points.map(([step, value]) => [
      x.scale(step),
      Math.max(box.top, Math.min(box.bottom, y.scale(value))),
    ]);
  const passed = lines.flatMap((line) => line.places.map((place) => ({ x: place[0], y: place[1], r: 0 })));
  if (field === "accuracy") svg.append(...floorLines(column, y.scale, box, range, passed));
  svg.append(...lines.map(curveLine));
  svg.addEventListener("pointermove", (event) => pointAtCurve(event, svg, lines, field));
  svg.addEventListener("pointerleave", leaveCurves);
  return svg;
}

/** Losses up to what 98% of the values reach: one divergence must not flatten all other curves. */
function lossRange(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return extent([sorted[0], sorted[Math.floor(0.98 * (sorted.length - 1))]], 0.1);
}

function curveLine({ cell, run, split, places }) {
  const at = ([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`;
  const [endX, endY] = places.at(-1);
  const cross = run.status === "diverged" && s("path", { class: "cross", d: `M${endX - 4} ${endY - 4}l8 8m0-8l-8 8` });
  const dot = places.length === 1 && s("circle", { class: "dot", cx: endX, cy: endY, r: 2.5 });
  const path = s("path", {
    class: "line",
    d: `M${places.map(at).join("L")}`,
    "stroke-dasharray": dashes(cell.attention),
  });
  return s(
    "g",
    { class: `series ${split}`, style: hue(cell.attention), "data-series": cell.attention.name },
    path,
    dot,
    cross,
  );
}

function pointAtCurve(event, svg, lines, field) {
  const frame = svg.getBoundingClientRect();
  const zoom = svg.viewBox.baseVal.width / frame.width;
  const [px, py] = [(event.clientX - frame.left) * zoom, (event.clientY - frame.top) * zoom];
  let best = { distance: 24 };
  for (const line of lines.filter((other) => other.split === "val" || lines.length === 1)) {
    line.places.forEach(([x, y], i) => {
      const distance = Math.hypot(x - px, y - py);
      if (distance < best.distance) best = { distance, line, i };
    });
  }
  if (!best.line) return leaveCurves();
  const { cell, run, split, points, places } = best.line;
  const [step, value] = points[best.i];
  const [x, y] = [places[best.i][0] / zoom + frame.left, places[best.i][1] / zoom + frame.top];
  emphasise(cell.attention.name);
  const shown = field === "accuracy" ? `${decimal(value)}%` : decimal(value, 3);
  showTip([`${label(cell)}, seed ${run.seed}`, `${split} ${field} ${shown} at step ${whole(step)}`], {
    getBoundingClientRect: () => new DOMRect(x, y, 0, 0),
  });
}

function leaveCurves() {
  emphasise("");
  hideTip();
}

// Crossover.

function drawCrossover() {
  const found = DATA.crossover;
  if (!found?.rows?.length)
    return put(byId("crossover-body"), empty("No crossover was measured yet: ", h("code", {}, "make bench"), "."));
  const rows = found.rows.filter((row) => !state.hide.includes(row.attention));
  const ahead = (value) => (value === null || value === undefined ? "never here" : whole(value));
  const fields = ["time", "memory"].filter((field) => found.rows.some((row) => row[field]?.some(known)));
  const table = plainTable(
    ["attention", "faster from", "less memory from"],
    found.rows.map((row) => [row.attention, ahead(row.ahead_from), ahead(row.memory_ahead_from)]),
    { numeric: [1, 2], caption: "First length ahead of softmax" },
  );
  const measured = found.source ? ` Measured: ${found.source}` : "";
  put(
    byId("crossover-body"),
    h("p", { class: "muted" }, `Ratio to softmax over the length of the sequence: below 1 is ahead.${measured}`),
    panels(fields, (field, width) => crossPanel(field, rows, found.lengths, width), "two"),
    h("div", { class: "frame" }, table),
  );
}

function crossPanel(field, rows, lengths, width) {
  const height = Math.round(Math.min(width * 0.66, 340));
  const longest = Math.max(...rows.map((row) => row.attention.length), 0);
  const box = { left: 36, right: width - 18 - 6.4 * longest, top: 24, bottom: height - 38 };
  const values = rows.flatMap((row) => (row[field] ?? []).filter((value) => known(value) && value > 0));
  if (!values.length) return empty("All attentions are hidden.");
  const [low, high] = [Math.min(0.9, ...values) / 1.1, Math.max(1.1, ...values) * 1.1];
  const x = {
    scale: logarithmic(lengths[0] / 1.05, lengths.at(-1) * 1.05, box.left, box.right),
    ticks: lengths,
    text: whole,
    name: "length, log",
  };
  const y = {
    scale: logarithmic(low, high, box.bottom, box.top),
    ticks: logTicks(low, high),
    text: short,
    name: `${field} ÷ softmax's, log`,
  };
  const about = rows
    .map((row) => `${row.attention}: ${(row[field] ?? []).map((value) => decimal(value, 2)).join(", ")}`)
    .join("; ");
  const svg = chart(width, height, box, x, y, `${field} as a ratio to softmax over length`, about);
  svg.append(s("path", { class: "one", d: `M${box.left} ${y.scale(1)}H${box.right}` }));
  const lines = rows.map((row) => crossLine(row, field, lengths, x.scale, y.scale)).filter(Boolean);
  svg.append(...lines.map((line) => line.node), ...endLabels(lines, box));
  return [caption(field), svg];
}

function crossLine(row, field, lengths, x, y) {
  const attention = attentionNamed(row.attention, DATA.crossover.rows.indexOf(row));
  const points = lengths
    .map((length, i) => [x(length), row[field]?.[i]])
    .filter(([, value]) => known(value) && value > 0)
    .map(([at, value]) => [at, y(value)]);
  if (!points.length) return null;
  const marks = points.map(([at, value]) =>
    s("path", { class: "mark full", d: shape(attention, 28), transform: `translate(${at} ${value})` }),
  );
  const path = s("path", {
    class: "line",
    d: `M${points.map((point) => point.join(" ")).join("L")}`,
    "stroke-dasharray": dashes(attention),
  });
  return {
    attention,
    end: points.at(-1),
    node: s("g", { class: "series val", style: hue(attention), "data-series": row.attention }, path, marks),
  };
}

/** Names at the ends of lines, moved apart where they would overlap. */
function endLabels(lines, box) {
  const sorted = [...lines].sort((a, b) => a.end[1] - b.end[1]);
  let free = box.top - 4;
  const places = sorted.map((line) => (free = Math.max(line.end[1], free) + 12) - 12);
  const over = Math.max(0, (places.at(-1) ?? 0) - box.bottom);
  return sorted.map((line, i) => {
    const y = places[i] - over;
    const leader = s("path", { class: "leader", d: `M${line.end[0] + 4} ${line.end[1]}L${box.right + 8} ${y}` });
    const name = s("text", { class: "label", x: box.right + 10, y: y + 3.5 }, line.attention.name);
    return s("g", { class: "series", style: hue(line.attention), "data-series": line.attention.name }, leader, name);
  });
}
