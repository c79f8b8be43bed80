// Points, boxes and painted masks: kept by the server, found in every exam that is open, and listed.
import { bitsOf, post, textOf } from "./net.js";
import { element, emit, notify, on, redraw, state } from "./state.js";

let revision = -1;
let busy = false;
const wanted = [];

const randomId = () => Array.from(crypto.getRandomValues(new Uint8Array(9)), (b) => b.toString(36).padStart(2, "0")).join("");

export function newName(kind) {
  const word = { point: "Point", box: "Box", mask: "Mask" }[kind];
  for (let n = 1; ; n++) if (!state.marks.some((m) => m.name === `${word} ${n}`)) return `${word} ${n}`;
}

// Colours that the structures do not have, as long as there are enough.
function colourOf(position) {
  const { colours, structures } = state.model;
  const taken = new Set(structures.map((s) => s.colour));
  const free = colours.filter((c) => !taken.has(c));
  const all = free.length ? free : colours;
  return all[position % all.length];
}

const panelOf = (id) => state.panels.find((panel) => panel.id === id);

// A mark of the server in the millimetres of the page, keeping what is known of where it is.
function fromServer(data, position) {
  const old = state.marks.find((m) => m.id === data.id);
  // Until the server has answered, where the page itself finds a new mark is kept.
  const same = old && (!old.text || old.text === JSON.stringify(data));
  const mark = { ...data, text: JSON.stringify(data), colour: old ? old.colour : colourOf(position), places: same ? old.places : {} };
  return scaled(mark);
}

// The atlas may learn its size later, so that its marks are scaled when they are read.
function scaled(mark) {
  const panel = panelOf(mark.exam);
  if (!panel || !panel.unit) return mark;
  const data = JSON.parse(mark.text);
  if (data.at) mark.at = panel.fromServer(data.at);
  if (data.centre) {
    mark.centre = panel.fromServer(data.centre);
    mark.axes = data.axes.map((row, r) => row.map((v) => v * panel.unit[r]));
  }
  return mark;
}

export function rescaleMarks() {
  state.marks.forEach(scaled);
  for (const mark of state.marks) for (const [id, place] of Object.entries(mark.places)) if (place.raw) mark.places[id] = placed(id, place.raw);
}

// A place that the server found, in the millimetres of the page.
function placed(id, raw) {
  const panel = panelOf(id);
  const place = { ...raw, raw };
  if (!panel || !panel.unit || !raw.found) return place;
  if (raw.at) place.at = panel.fromServer(raw.at);
  if (raw.centre) {
    place.centre = panel.fromServer(raw.centre);
    place.axes = raw.axes.map((row, r) => row.map((v) => v * panel.unit[r]));
  }
  return place;
}

function accept({ revision: number, marks }) {
  if (!marks) return;
  revision = number;
  state.marks = marks.map(fromServer);
  for (const panel of state.panels)
    for (const id of panel.painted.keys()) if (!state.marks.some((m) => m.id === id)) panel.painted.delete(id);
  if (!state.marks.some((m) => m.id === state.selected)) state.selected = null;
  state.panels.forEach(showPainted);
  list();
  redraw(true);
  carryAll();
}

export async function pollMarks() {
  if (document.hidden) return;
  try {
    accept(await post("/api/marks", { since: revision }));
    for (const old of document.querySelectorAll("#notices [data-key=gone]")) old.remove();
  } catch (error) {
    notify(error.message, { key: error.gone ? "gone" : error.message });
  }
}

async function change(data) {
  try {
    accept(await post("/api/marks/change", data));
  } catch (error) {
    notify(error.message, { key: error.gone ? "gone" : error.message });
  }
}

// What the server holds of a mark.
function plain(mark) {
  const data = { id: mark.id, kind: mark.kind, name: mark.name, exam: mark.exam };
  const panel = panelOf(mark.exam);
  const unit = panel.unit || [1, 1, 1];
  if (mark.kind === "point") data.at = panel.toServer(mark.at);
  if (mark.kind === "box") {
    data.centre = panel.toServer(mark.centre);
    data.axes = mark.axes.map((row, r) => row.map((v) => v / unit[r]));
  }
  if (mark.kind === "mask") data.mask = mark.mask;
  return data;
}

// Show a mark at once, where the page itself finds it, and let the server keep it.
export function putMark(mark) {
  mark.id ||= randomId();
  const at = state.marks.findIndex((m) => m.id === mark.id);
  mark.colour ||= at >= 0 ? state.marks[at].colour : colourOf(state.marks.length);
  mark.text = "";
  mark.places = mark.kind === "point" ? preview(mark) : {};
  if (at >= 0) state.marks[at] = mark;
  else state.marks.push(mark);
  state.selected = mark.id;
  list();
  redraw(mark.kind === "mask");
  return change({ put: [plain(mark)] });
}

function preview(mark) {
  const source = panelOf(mark.exam), places = {};
  const c = source.linked ? source.map.at(mark.at) : null;
  for (const panel of state.panels)
    if (panel !== source && panel.linked && c) {
      const { place, found } = panel.map.find(c);
      places[panel.id] = { found, at: place, preview: true };
    }
  return places;
}

export const deleteMark = (id) => change({ delete: [id] });

// -- found in every exam ------------------------------------------------------------------------------------------

export function carryAll() {
  for (const mark of state.marks)
    for (const panel of state.panels) {
      if (panel.id === mark.exam || !panel.map || panel.failed) continue;
      const place = mark.places[panel.id];
      if ((!place || place.preview) && mark.text && !wanted.some((w) => w.mark === mark.id && w.to === panel.id))
        wanted.push({ mark: mark.id, to: panel.id });
    }
  carryNext();
}

// One after the other: the server's network works on one exam at a time in any case.
async function carryNext() {
  if (busy || !wanted.length) return;
  busy = true;
  const { mark: id, to } = wanted.shift();
  const mark = state.marks.find((m) => m.id === id);
  if (mark && panelOf(to)) {
    const { text } = mark;
    try {
      const { places, notes } = await post("/api/carry", { mark: id, to: [to] });
      for (const note of notes) notify(note);
      const now = state.marks.find((m) => m.id === id);
      // It may have been moved meanwhile.
      if (now && now.text === text && panelOf(to)) {
        now.places[to] = placed(to, places[to]);
        showPainted(panelOf(to));
        list();
        redraw(mark.kind === "mask");
      }
    } catch (error) {
      const now = state.marks.find((m) => m.id === id);
      if (now) now.places[to] = { found: false, reason: error.message };
      list();
    }
  }
  busy = false;
  emit("carried", id);
  carryNext();
}

// The voxels of the painted masks in a panel.
export function showPainted(panel) {
  if (!panel.image) return;
  for (const mark of state.marks) {
    if (mark.kind !== "mask") continue;
    const mask = mark.exam === panel.id ? mark.mask : mark.places[panel.id]?.mask;
    const key = mask ? mask.bits : "";
    if (!mask) panel.painted.delete(mark.id);
    else if (panel.painted.get(mark.id)?.key !== key) {
      const data = new Uint8Array(panel.image.data.length);
      fill(data, panel.image.shape, mask);
      data.key = key;
      panel.painted.set(mark.id, data);
    }
  }
  panel.paintVersion = (panel.paintVersion || 0) + 1;
  panel.invalidate();
}

function fill(data, [, H, W], { start, shape: [d, h, w], bits: text }) {
  const bits = bitsOf(text, d * h * w);
  for (let z = 0, n = 0; z < d; z++)
    for (let y = 0; y < h; y++)
      for (let x = 0; x < w; x++, n++) if (bits[n]) data[((start[0] + z) * H + start[1] + y) * W + start[2] + x] = 1;
}

// The smallest box of the painted voxels and its bits; null where nothing is painted.
export function maskOf(data, [D, H, W]) {
  const low = [D, H, W], high = [-1, -1, -1];
  for (let z = 0, n = 0; z < D; z++)
    for (let y = 0; y < H; y++)
      for (let x = 0; x < W; x++, n++)
        if (data[n]) [z, y, x].forEach((v, a) => { low[a] = Math.min(low[a], v); high[a] = Math.max(high[a], v); });
  if (high[0] < 0) return null;
  const shape = high.map((v, a) => v - low[a] + 1);
  const bits = new Uint8Array(shape[0] * shape[1] * shape[2]);
  for (let z = 0, n = 0; z < shape[0]; z++)
    for (let y = 0; y < shape[1]; y++)
      for (let x = 0; x < shape[2]; x++, n++) bits[n] = data[((low[0] + z) * H + low[1] + y) * W + low[2] + x];
  return { start: low, shape, bits: textOf(bits) };
}

// -- the list -----------------------------------------------------------------------------------------------------

export function list() {
  const box = document.getElementById("marks");
  document.getElementById("no-marks").hidden = state.marks.length > 0;
  const typing = document.activeElement?.closest?.("#marks li")?.dataset.mark;
  // Nobody's typing is disturbed.
  if (typing && document.activeElement.type === "text") {
    for (const item of box.children) tellFound(item, state.marks.find((m) => m.id === item.dataset.mark));
    return;
  }
  box.replaceChildren(...state.marks.map(item));
}

function item(mark) {
  const swatch = element("span", { className: "swatch" });
  swatch.style.background = mark.colour;
  const name = element("input", { type: "text", value: mark.name, maxLength: 80 });
  name.setAttribute("aria-label", "Name of the mark");
  name.addEventListener("change", () => {
    const text = name.value.trim();
    name.blur();
    if (text && text !== mark.name) change({ put: [{ ...plain(mark), name: text }] });
    else list();
  });
  const go = element("button", { text: "Go", title: "Show it" });
  go.addEventListener("click", () => { select(mark); emit("go", mark); });
  const gone = element("button", { text: "×", title: "Delete" });
  gone.setAttribute("aria-label", `Delete ${mark.name}`);
  gone.addEventListener("click", () => deleteMark(mark.id));
  const found = element("span", { className: "found" });
  const row = element("li", { className: mark.id === state.selected ? "selected" : "" }, swatch, name, go, gone, found);
  row.dataset.mark = mark.id;
  row.addEventListener("pointerdown", () => {
    for (const other of document.querySelectorAll("#marks li")) other.classList.toggle("selected", other === row);
    select(mark);
  });
  tellFound(row, mark);
  return row;
}

function select(mark) {
  state.selected = mark.id;
  redraw();
}

function tellFound(row, mark) {
  if (!mark) return;
  const box = row.querySelector(".found");
  const others = state.panels.filter((panel) => panel.id !== mark.exam && panel.map);
  const places = others.map((panel) => [panel, mark.places[panel.id]]).filter(([, place]) => place && !place.preview);
  const missed = places.filter(([, place]) => !place.found);
  const waiting = others.length - places.length;
  const source = state.session.exams.find((e) => e.id === mark.exam)?.name || mark.exam;
  box.textContent = `in ${source}` + (others.length ? `, found in ${places.length - missed.length} of ${others.length}` : "") + (waiting ? " …" : "");
  box.classList.toggle("bad", missed.length > 0);
  box.title = missed.map(([panel, place]) => `${panel.name}: ${place.reason}`).join("\n");
}

on("mapped", (panel) => { showPainted(panel); list(); carryAll(); });

export const startMarks = async () => {
  accept(await post("/api/marks", {}));
  setInterval(pollMarks, 2000);
  document.addEventListener("visibilitychange", pollMarks);
};
