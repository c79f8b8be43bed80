// The page: first the names of the exams, then the model, then the exams one after the other.
import { get } from "./net.js";
import { Panel } from "./panel.js";
import { listExams, listStructures, startControls } from "./controls.js";
import { carryAll, rescaleMarks, startMarks } from "./marks.js";
import { element, emit, notify, on, redraw, state } from "./state.js";
import { follow } from "./tools.js";

// More are too small to be read, and take memory.
const MOST = 6;

async function open({ id, name }) {
  if (state.panels.some((panel) => panel.id === id)) return;
  if (state.panels.length >= MOST) {
    notify(`${MOST} exams at once are enough; close one first`);
    listExams();
    return;
  }
  const panel = new Panel({ id, name });
  if (id === "atlas") state.panels.unshift(panel);
  else state.panels.push(panel);
  show();
  await panel.load();
  if (panel.isAtlas) state.atlasImage = panel.image;
}

function close({ id }) {
  state.panels = state.panels.filter((panel) => panel.id !== id);
  if (state.cursor?.panel === id) state.cursor = null;
  if (state.active?.panel.id === id) state.active = null;
  show();
}

function show() {
  const main = document.getElementById("panels");
  main.replaceChildren(...state.panels.map((panel) => panel.parts.root));
  if (!state.panels.length) main.append(element("p", { className: "soft", text: "Choose an exam at the side." }));
  emit("panels");
  redraw();
}

on("open", open);
on("close", close);
on("mapped", (panel) => {
  // The atlas is shown in the millimetres of the first exam that the model knows.
  const atlas = state.panels.find((p) => p.isAtlas && p.image);
  const exam = state.panels.find((p) => p.unitMm && p.known !== false);
  if (atlas && exam && (panel === exam || panel === atlas) && String(atlas.unit) !== String(exam.unitMm)) {
    atlas.setUnit(exam.unitMm);
    if (state.cursor?.panel === "atlas") state.cursor.place = atlas.place;
    follow(atlas);
    rescaleMarks();
    redraw(true);
  }
});
on("shown", async (panel) => {
  redraw(true);
  carryAll();
  try {
    if (state.model.structures.length) await panel.loadMasks();
  } catch (error) {
    panel.fail(error);
  }
});

new ResizeObserver(() => redraw()).observe(document.getElementById("panels"));
window.addEventListener("error", (event) => notify(`an error of the page: ${event.message}`, { key: "page" }));
window.addEventListener("unhandledrejection", (event) => notify(`an error of the page: ${event.reason?.message || event.reason}`, { key: "page" }));

async function start() {
  startControls();
  state.session = await get("/api/session");
  document.title = `${state.session.title} – DeepATLAS`;
  document.getElementById("title").textContent = state.session.title;
  document.getElementById("title").title = `deepatlas ${state.session.version}`;
  listExams();
  emit("ready");
  state.model = await get("/api/model");
  listStructures();
  await startMarks();
  const exams = state.session.exams.filter((exam) => state.session.open.includes(exam.id)).slice(0, MOST - 1);
  await Promise.all([{ id: "atlas", name: "atlas" }, ...exams].map(open));
  emit("loaded");
}

start().catch((error) => notify(error.message, { key: error.gone ? "gone" : error.message }));
