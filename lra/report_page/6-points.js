// Figures of cells as points, and what all figures share: captions and the legend.

function caption(text, note = "") {
  return h("figcaption", {}, text, note && h("small", {}, ` ${note}`));
}

/** Buttons that hide and show attentions in the plots of all sections. */
function legend(attentions) {
  const toggle = (name) =>
    set({ hide: state.hide.includes(name) ? state.hide.filter((other) => other !== name) : [...state.hide, name] });
  const entry = (attention) =>
    h(
      "button",
      {
        type: "button",
        "aria-pressed": String(!state.hide.includes(attention.name)),
        "data-focus": `legend ${attention.name}`,
        "data-attention": attention.name,
        onclick: () => toggle(attention.name),
        onpointerenter: () => emphasise(attention.name),
        onpointerleave: () => emphasise(""),
        onfocus: () => emphasise(attention.name),
        onblur: () => emphasise(""),
      },
      swatch(attention),
      attention.name,
    );
  return h(
    "div",
    { class: "legend", role: "group", "aria-label": "Attentions shown in the plots" },
    attentions.map(entry),
  );
}

/** Let the lines of one attention stand out. */
function emphasise(name) {
  for (const node of document.querySelectorAll("svg.chart [data-series]")) {
    node.classList.toggle("pale", name !== "" && node.dataset.series !== name);
  }
}

function attentionsOf(cells) {
  return unique(cells.map((cell) => cell.attention)).sort((a, b) => a.index - b.index);
}

function shownOf(cells) {
  return cells.filter((cell) => !state.hide.includes(cell.attention.name));
}

function membersOf(column, cells) {
  return cells.filter((cell) => cell.column === column);
}

function columnsOf(cells) {
  return DATA.columns.filter((column) => cells.some((cell) => cell.column === column));
}

// Accuracy against speed.

function drawSpeed(cells) {
  const measured = cells.filter((cell) => known(cell.accuracy) && known(cell.tokens_per_s) && cell.device);
  const devices = unique(measured.map((cell) => cell.device)).sort();
  const device = devices.includes(state.device) ? state.device : devices[0];
  drawDevices(devices, device);
  if (!measured.length)
    return put(byId("speed-body"), empty("No finished run among these cells has a measured speed."));
  const here = measured.filter((cell) => cell.device === device);
  const left = cells.filter((cell) => known(cell.accuracy)).length - here.length;
  const most = Math.max(...here.map((cell) => cell.peak_memory_mb ?? 0));
  const text = [
    `Training speed on ${device}: up and to the right is better. Bars: 95% intervals.`,
    most > 0 && `The area of a mark is its peak memory; the largest is ${whole(most)} MB.`,
    here.some((cell) => cell.deviation) && "Marks with a dashed outline deviate from the recipe.",
    devices.length > 1 && "Speeds of different devices do not compare: one device at a time.",
    left > 0 && `${plural(left, "cell")} of another device, or without a speed, ${left === 1 ? "is" : "are"} not here.`,
  ];
  put(
    byId("speed-body"),
    h("p", { class: "muted" }, text.filter(Boolean).join(" ")),
    legend(attentionsOf(here)),
    panels(columnsOf(here), (column, width) => speedPanel(column, membersOf(column, shownOf(here)), most, width)),
  );
}

function drawDevices(devices, chosen) {
  const option = (device) => h("option", { value: device, selected: device === chosen }, device);
  const choose = h(
    "select",
    { "data-focus": "device", onchange: (event) => set({ device: event.target.value }) },
    devices.map(option),
  );
  put(byId("devices"), devices.length > 1 && h("label", {}, "Device ", choose));
}

function speedPanel(column, cells, most, width) {
  if (!cells.length) return [caption(title(column)), empty("All attentions are hidden.")];
  const height = Math.round(Math.min(width * 0.72, 360));
  const box = { left: 34, right: width - 8, top: 24, bottom: height - 38 };
  const speeds = cells.map((cell) => cell.tokens_per_s);
  const [slow, fast] = [Math.min(...speeds) / 1.25, Math.max(...speeds) * 1.35];
  const floors = Object.values(column.floors).filter(known);
  const heights = [...cells.flatMap((cell) => [cell.accuracy, ...(cell.interval ?? []).slice(0, 2)]), ...floors];
  const range = extent(heights, 2);
  const x = {
    scale: logarithmic(slow, fast, box.left, box.right),
    ticks: logTicks(slow, fast),
    text: short,
    name: "tokens/s, log",
  };
  const y = {
    scale: linear(...range, box.bottom, box.top),
    ticks: linearTicks(...range),
    text: String,
    name: "test accuracy, %",
  };
  const best = cells.reduce((a, b) => (b.accuracy > a.accuracy ? b : a));
  const top = `${label(best)} with ${decimal(best.accuracy)}% at ${whole(best.tokens_per_s)} tokens/s`;
  const about = `${plural(cells.length, "cell")}; most accurate ${top}.`;
  const svg = chart(width, height, box, x, y, `${title(column)}: accuracy against speed`, about);
  const points = cells.map((cell) => ({
    cell,
    attention: cell.attention,
    text: cell.attention.name,
    x: x.scale(cell.tokens_per_s),
    y: y.scale(cell.accuracy),
    r: Math.sqrt(markArea(cell, most) / Math.PI),
  }));
  svg.append(
    ...floorLines(column, y.scale, box, range, points),
    ...points.map((point) => speedMark(point, most, y.scale)),
    ...placeLabels(points, box),
  );
  return [caption(title(column)), firstStop(svg)];
}

function markArea(cell, most) {
  return most > 0 && known(cell.peak_memory_mb) ? Math.max(20, 420 * (cell.peak_memory_mb / most)) : 40;
}

function speedMark({ cell, x, y }, most, scale) {
  const bar =
    cell.interval && s("path", { class: "bar", d: `M${x} ${scale(cell.interval[0])}V${scale(cell.interval[1])}` });
  const mark = s("path", {
    class: cell.deviation ? "mark open" : "mark",
    d: shape(cell.attention, markArea(cell, most)),
    transform: `translate(${x} ${y})`,
  });
  return alive(
    s("g", { class: "series", style: hue(cell.attention), "data-series": cell.attention.name }, bar, mark),
    cell,
  );
}

// Published against ours.

function drawPublished(cells) {
  const both = cells.filter((cell) => known(cell.accuracy) && known(cell.published?.value));
  const plain = both.filter((cell) => !cell.deviation);
  if (!plain.length) {
    const deviate = both.length === 1 ? "which deviates" : "all of which deviate";
    const why = both.length
      ? `No reproduction: ${plural(both.length, "cell")} with a published value, ${deviate} from the recipe.`
      : "None of these cells has both a finished run and a published value.";
    return put(byId("published-body"), empty(why));
  }
  const left = both.length - plain.length;
  const text = [
    "Full marks with bars: ours, with the 95% interval.",
    "Rings: published; dashed where the value could not be read in its source.",
    left > 0 && `Left out: ${plural(left, "cell")} off the recipe.`,
  ];
  put(
    byId("published-body"),
    h("p", { class: "muted" }, text.filter(Boolean).join(" ")),
    panels(columnsOf(plain), (column, width) => dotPanel(column, membersOf(column, plain), width)),
  );
}

function dotPanel(column, cells, width) {
  const step = 21;
  const height = cells.length * step + 62;
  const box = {
    left: Math.min(128, 12 + 6.6 * Math.max(...cells.map((cell) => cell.attention.name.length))),
    right: width - 12,
    top: 20,
    bottom: height - 38,
  };
  const range = extent(
    cells.flatMap((cell) => [cell.accuracy, cell.published.value, ...(cell.interval ?? []).slice(0, 2)]),
    2,
    0.04,
  );
  const x = {
    scale: linear(...range, box.left, box.right),
    ticks: linearTicks(...range, width < 340 ? 4 : 6),
    text: String,
    name: "test accuracy, %",
  };
  const y = {
    scale: (i) => box.top + (i + 0.5) * step,
    ticks: cells.map((_, i) => i),
    text: (i) => cells[i].attention.name,
    name: "",
  };
  const svg = chart(
    width,
    height,
    box,
    x,
    y,
    `${title(column)}: published against ours`,
    cells
      .map((cell) => `${cell.attention.name} ${decimal(cell.accuracy)}, published ${cell.published.text}`)
      .join("; "),
  );
  svg.append(...cells.map((cell, i) => dotMark(cell, x.scale, y.scale(i))));
  return [caption(title(column)), firstStop(svg)];
}

function dotMark(cell, scale, y) {
  const [ours, theirs] = [scale(cell.accuracy), scale(cell.published.value)];
  return alive(
    s(
      "g",
      { class: "series", style: hue(cell.attention), "data-series": cell.attention.name },
      s("path", { class: "gap", d: `M${ours} ${y}H${theirs}` }),
      cell.interval && s("path", { class: "bar", d: `M${scale(cell.interval[0])} ${y}H${scale(cell.interval[1])}` }),
      s("circle", {
        class: "ring",
        cx: theirs,
        cy: y,
        r: 5,
        "stroke-dasharray": cell.published.status === "read" ? null : "2 2",
      }),
      s("circle", { class: "mark full", cx: ours, cy: y, r: 4 }),
      // A wider target for the pointer.
      s("rect", {
        class: "target",
        x: Math.min(ours, theirs) - 8,
        y: y - 10,
        width: Math.abs(ours - theirs) + 16,
        height: 20,
      }),
    ),
    cell,
  );
}
