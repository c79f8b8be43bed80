// The bar above, the lists at the side, and the keys.
import { apply } from "./geometry.js";
import { PLANES } from "./draw.js";
import { deleteMark } from "./marks.js";
import { download } from "./net.js";
import { PRESETS, element, emit, notify, on, redraw, state } from "./state.js";
import { trustSentence, trustWords } from "./panel.js";
import { moveTo, resetView, scrollBy, stepAlong, undo, zoomBy } from "./tools.js";

// Where an exam shows less of a structure, the list says how much.
const SMALL_SHARE = 0.5;

const by = (id) => document.getElementById(id);

export function startControls() {
  startBar();
  startSide();
  document.addEventListener("keydown", key);
  setTool("move");
  setWindow(PRESETS[0]);
}

// -- the bar -------------------------------------------------------------------------------------------------------

function startBar() {
  for (const button of document.querySelectorAll("#tools button")) button.addEventListener("click", () => setTool(button.dataset.tool));
  const preset = by("preset");
  PRESETS.forEach(({ name }, n) => preset.append(element("option", { text: name, value: String(n) })));
  preset.append(element("option", { text: "own", value: "own", hidden: true }));
  preset.addEventListener("change", () => setWindow(PRESETS[preset.value]));
  on("window", setWindow);
  by("planes").addEventListener("change", (event) => setPlanes(event.target.value));
  by("overlay").addEventListener("change", (event) => setOverlay(event.target.value));
  by("overlay-opacity").addEventListener("input", (event) => {
    state.overlayOpacity = event.target.value / 100;
    redraw(true);
  });
  by("zoom-in").addEventListener("click", () => zoomBy(1.25));
  by("zoom-out").addEventListener("click", () => zoomBy(0.8));
  by("reset").addEventListener("click", resetView);
  by("help").addEventListener("click", () => by("keys").showModal());
  by("radius").addEventListener("input", (event) => setRadius(Number(event.target.value)));
  by("ball").addEventListener("change", (event) => { state.brush.ball = event.target.checked; });
  by("eraser").addEventListener("change", (event) => { state.brush.erase = event.target.checked; });
  by("new-mask").addEventListener("click", () => { state.selected = null; redraw(); });
  by("undo").addEventListener("click", undo);
}

export function setTool(tool) {
  state.tool = tool;
  for (const button of document.querySelectorAll("#tools button")) button.setAttribute("aria-checked", String(button.dataset.tool === tool));
  by("brush").hidden = tool !== "paint";
}

export function setWindow({ width, level }) {
  state.window = { width, level };
  const n = PRESETS.findIndex((p) => p.width === width && p.level === level);
  by("preset").value = n < 0 ? "own" : String(n);
  by("window-values").textContent = `${width} / ${level}`;
  redraw(true);
}

function setPlanes(planes) {
  state.planes = planes;
  by("planes").value = planes;
  for (const panel of state.panels) panel.arrange();
}

function setOverlay(overlay) {
  state.overlay = overlay;
  by("overlay").value = overlay;
  redraw(true);
}

function setRadius(radius) {
  state.brush.radius = Math.min(40, Math.max(1, radius));
  by("radius").value = state.brush.radius;
  by("radius-mm").textContent = `${state.brush.radius} mm`;
}

// -- the side ------------------------------------------------------------------------------------------------------

function startSide() {
  by("search").addEventListener("input", listExams);
  by("mask-opacity").addEventListener("input", (event) => {
    state.maskOpacity = event.target.value / 100;
    redraw(true);
  });
  by("outlines").addEventListener("change", (event) => setOutlines(event.target.checked));
  by("all-structures").addEventListener("click", () => showStructures(() => true));
  by("no-structures").addEventListener("click", () => showStructures(() => false));
  for (const button of document.querySelectorAll("[data-download]")) button.addEventListener("click", () => save(button));
  on("segmented", listStructures);
  on("mapped", listStructures);
  on("panels", () => { listExams(); listActive(); listStructures(); });
  on("moved", (panel) => {
    if (!panel.isAtlas && by("active").value !== panel.id) { by("active").value = panel.id; listStructures(); }
  });
  by("active").addEventListener("change", listStructures);
  on("delete", deleteMark);
  on("go", (mark) => {
    const panel = state.panels.find((p) => p.id === mark.exam && p.image);
    if (!panel) return;
    let place = mark.at || mark.centre;
    if (mark.mask) place = apply(panel.affine, [2, 1, 0].map((a) => mark.mask.start[a] + (mark.mask.shape[a] - 1) / 2));
    moveTo(panel, place);
  });
}

function setOutlines(shown) {
  state.outlines = shown;
  by("outlines").checked = shown;
  redraw(true);
}

export function listExams() {
  const { exams, skipped } = state.session;
  const search = by("search");
  search.hidden = exams.length < 9;
  const text = search.value.trim().toLowerCase();
  const found = exams.filter((exam) => exam.name.toLowerCase().includes(text));
  const open = new Set(state.panels.map((panel) => panel.id));
  by("exams").replaceChildren(
    ...[{ id: "atlas", name: "atlas" }, ...found.slice(0, 300)].map((exam) => {
      const box = element("input", { type: "checkbox", checked: open.has(exam.id) });
      box.addEventListener("change", () => emit(box.checked ? "open" : "close", { id: exam.id, name: exam.name }));
      return element("li", {}, element("label", { title: exam.name }, box, element("span", { className: "named", text: exam.name })));
    }),
  );
  const lines = Object.entries(skipped);
  by("skipped").hidden = !lines.length;
  by("skipped").textContent = `${lines.length} cannot be used`;
  by("skipped").title = lines.map(([name, why]) => `${name}: ${why}`).join("\n");
}

function listActive() {
  const select = by("active"), before = select.value;
  const exams = state.panels.filter((panel) => !panel.isAtlas);
  select.replaceChildren(...exams.map((panel) => element("option", { text: panel.name, value: panel.id })));
  if (exams.some((panel) => panel.id === before)) select.value = before;
}

// The structures, with their volume and the trust in them in the exam that was used last.
export function listStructures() {
  if (!state.model) return;
  const { structures } = state.model;
  by("structures-section").hidden = !structures.length;
  document.querySelector("[data-download=trust]").hidden = !state.model.calibrated;
  const panel = state.panels.find((p) => p.id === by("active").value);
  // A large exam takes a while, since structures are drawn on its own grid.
  const waiting = panel?.linked && !panel.millilitres && !panel.failed ? ": being drawn …" : "";
  by("structures-of").replaceChildren(...(panel ? ["in ", element("b", { text: panel.name }), waiting] : []));
  by("structures-of").title = panel ? `Volumes and trust are those in ${panel.name}` : "";
  by("structures-legend").hidden = !(panel?.trust && panel.linked);
  by("structures").replaceChildren(
    ...structures.map(({ id, name, colour }) => {
      const box = element("input", { type: "checkbox", checked: !state.hidden.has(id) });
      box.addEventListener("change", () => {
        if (box.checked) state.hidden.delete(id);
        else state.hidden.add(id);
        redraw(true);
      });
      const swatch = element("span", { className: "swatch" });
      swatch.style.background = colour;
      const numbers = element("span", { className: "numbers" });
      if (panel?.millilitres && panel.linked) {
        const millilitres = panel.millilitres[id], share = panel.shares[id];
        const words = [millilitres === undefined ? "not found" : `${millilitres.toFixed(millilitres < 10 ? 1 : 0)} ml`];
        const told = [`in ${panel.name}`];
        // The volume of a part says nothing about the structure.
        if (share < SMALL_SHARE) {
          words.push(`${share < 0.01 ? "< 1" : Math.round(100 * share)} % of it in the exam`);
          told.push("the exam shows only a part of this structure");
        }
        const trust = panel.trust?.[name];
        // There is no mask to be believed where none was found.
        if (millilitres !== undefined && trust && trust.trust !== null) {
          words.push(trustWords(trust));
          told.push(trustSentence(trust));
        } else if (trust && millilitres !== undefined) {
          words.push("no trust");
          told.push(`no trust: ${trust.reason}`);
        }
        numbers.textContent = words.join(" · ");
        numbers.title = told.join("; ");
      }
      return element("li", {}, element("label", { title: name }, box, swatch, element("span", { className: "named", text: name }), numbers));
    }),
  );
}

function showStructures(shown) {
  state.hidden = new Set(state.model.structures.filter((s) => !shown(s)).map((s) => s.id));
  listStructures();
  redraw(true);
}

async function save(button) {
  const what = button.dataset.download;
  const data = { what, exam: by("active").value, to: state.panels.filter((p) => p.map && !p.failed).map((p) => p.id) };
  button.disabled = true;
  try {
    const { name, note } = await download(data);
    notify(`${name} is in the folder of downloads${note ? `; ${note}` : ""}`, { plain: !note, key: "download" });
  } catch (error) {
    notify(error.message, { key: "download" });
  }
  button.disabled = false;
}

// -- keys ----------------------------------------------------------------------------------------------------------

const TOOL_KEYS = { n: "move", s: "scroll", h: "pan", w: "window", p: "point", b: "box", m: "paint" };
const ARROWS = { ArrowLeft: ["u", 1], ArrowRight: ["u", -1], ArrowUp: ["v", 1], ArrowDown: ["v", -1] };

function key(event) {
  const field = event.target.closest?.("input[type=text], input[type=search], select, dialog");
  if (field || by("keys").open) return;
  const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.ctrlKey || event.metaKey) {
    if (name === "z") { event.preventDefault(); undo(); }
    return;
  }
  if (event.altKey) return;
  if (event.target.matches?.("input[type=range]") && name.startsWith("Arrow")) return;
  const active = state.active || firstView();
  const done = () => event.preventDefault();
  if (TOOL_KEYS[name]) setTool(TOOL_KEYS[name]);
  else if (/^[1-5]$/.test(name)) setWindow(PRESETS[name - 1]);
  else if (ARROWS[name] && active) {
    const [across, step] = ARROWS[name];
    stepAlong(active.panel, PLANES[active.plane][across], step);
    done();
  } else if (name === "PageUp" && active) { scrollBy(active.panel, active.plane, 1); done(); }
  else if (name === "PageDown" && active) { scrollBy(active.panel, active.plane, -1); done(); }
  else if (name === "+" || name === "=") zoomBy(1.25);
  else if (name === "-") zoomBy(0.8);
  else if (name === "0") resetView();
  else if (name === "c") setOverlay("coordinates");
  else if (name === "a") setOverlay("atlas");
  else if (name === "x") setOverlay("none");
  else if (name === "o") setOutlines(!state.outlines);
  else if (name === "e") { state.brush.erase = !state.brush.erase; by("eraser").checked = state.brush.erase; }
  else if (name === "[") setRadius(state.brush.radius - 1);
  else if (name === "]") setRadius(state.brush.radius + 1);
  else if (name === "v") setPlanes({ all: "axial", axial: "coronal", coronal: "sagittal", sagittal: "all" }[state.planes]);
  else if (name === "?") by("keys").showModal();
  else if (name === "Delete" && state.selected) deleteMark(state.selected);
}

function firstView() {
  const panel = state.panels.find((p) => p.image && !p.isAtlas) || state.panels.find((p) => p.image);
  return panel && { panel, plane: Object.keys(panel.views)[0] };
}
