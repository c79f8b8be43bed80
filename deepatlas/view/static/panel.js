// One exam, or the atlas: three linked slices, what is known about it, and what the user does there.
import { AtlasMap, CoordinateMap, apply, inverse, spacing } from "./geometry.js";
import { PLANES, outlines, paintSlice, parseColour, patientBox, sliceLabels } from "./draw.js";
import { packed, unpackBits } from "./net.js";
import { drawCross, drawMarks, drawOutlines, drawWords } from "./overlay.js";
import { element, emit, state } from "./state.js";

// The first guess of the size of the atlas, until an exam tells it: millimetres of a unit of coordinates.
const GUESS = [110, 140, 190];

// The trust of a mask in a few words, and in full.
export const trustWords = ({ trust, bound }) => `trust ${trust.toFixed(2)}, ≥ ${bound.toFixed(2)}`;
export const trustSentence = ({ trust, bound }) =>
  `trust: predicted Dice ${trust.toFixed(2)}, in nine of ten exams at least ${bound.toFixed(2)}`;

export class Panel {
  constructor({ id, name }) {
    this.id = id;
    this.name = name;
    this.isAtlas = id === "atlas";
    this.unit = this.isAtlas ? GUESS : null;
    this.known = null;
    this.shownAnyway = false;
    // Where the crosshair is, in millimetres; `found` says whether it is the place that was asked for.
    this.place = null;
    this.found = true;
    this.reason = "";
    this.painted = new Map();
    this.views = {};
    this.slices = {};
    this.build();
  }

  // -- what the page knows of the exam ---------------------------------------------------------------------------

  async load() {
    try {
      await this.loadPicture();
      if (this.isAtlas) this.map = new AtlasMap(this.unit);
      else await this.loadCoordinates();
      emit("mapped", this);
      if (state.model.structures.length) await this.loadMasks();
      // Last, as it takes more passes of the network.
      if (state.model.calibrated && this.linked && !this.isAtlas) await this.loadTrust();
    } catch (error) {
      this.fail(error);
    }
  }

  // How much to believe of each structure, and the expected error of places.
  async loadTrust() {
    const { shape, affine, structures, arrays } = await packed(`/api/exam/${this.id}/trust`);
    this.trust = structures;
    this.errors = { shape, inverse: inverse(affine), error: arrays.error_mm, bound: arrays.bound_mm };
    this.status();
    emit("segmented", this);
  }

  // The expected error at a place in mm, and what nine of ten errors stay under; null where nobody can tell.
  errorAt(place) {
    if (!this.errors) return null;
    const { shape: [D, H, W], inverse: inv, error, bound } = this.errors;
    const [x, y, z] = apply(inv, place).map(Math.round);
    if (x < 0 || y < 0 || z < 0 || x >= W || y >= H || z >= D) return null;
    const at = (z * H + y) * W + x;
    return Number.isFinite(error[at]) ? { error: error[at], bound: bound[at] } : null;
  }

  async loadPicture() {
    const { shape, affine, arrays, lines, voxels, spacing: native } = await packed(`/api/exam/${this.id}/picture`);
    this.image = { shape, data: arrays.image };
    this.own = affine;
    this.setAffine();
    this.patient = patientBox(this.image);
    // In the middle of the patient, and of a slice of every plane.
    this.place = apply(this.affine, this.patient.map(([low, high]) => Math.round((low + high) / 2)));
    this.focus = this.patient.map(([low, high]) => (low + high) / 2);
    for (const line of lines) this.tell(line);
    if (voxels) {
      const mm = native.map((n) => Number(n.toPrecision(3))).join(" × ");
      this.parts.name.title = `${this.name}: ${voxels.join(" × ")} voxels of ${mm} mm`;
    }
    this.invalidate();
    emit("pictured", this);
  }

  async loadCoordinates() {
    this.chip("finding coordinates …", "");
    const answer = await packed(`/api/exam/${this.id}/coordinates`);
    this.map = new CoordinateMap(answer);
    this.unitMm = answer.unit_mm;
    this.known = answer.known;
    const fit = answer.fit === null ? "–" : answer.fit.toFixed(2);
    if (this.known === false) {
      this.chip(`not known · fit ${fit}`, "unknown");
      this.parts.root.classList.add("unknown");
      const anyway = element("button", { text: "Show nevertheless" });
      anyway.addEventListener("click", () => {
        this.shownAnyway = true;
        line.replaceChildren(`${warning}. It is linked nevertheless, as you asked: do not rely on it.`);
        emit("shown", this);
      });
      const warning = `${answer.warning[0].toUpperCase()}${answer.warning.slice(1)}`;
      const line = element("p", { className: "bad" }, `${warning}. It is not linked.`, anyway);
      this.parts.told.prepend(line);
    } else {
      this.chip(`fit ${fit}`, this.known ? "known" : "");
      this.parts.chip.title = this.known ? "The model knows this exam" : "This model has no threshold for the fit";
    }
  }

  async loadMasks() {
    if (!this.linked) return;
    const answer = await packed(`/api/exam/${this.id}/masks`);
    const hidden = Object.entries(answer.hidden).map(([id, box]) => ({
      id: Number(id), ...box,
      bits: unpackBits(answer.arrays[`hidden${id}`], box.shape.reduce((a, b) => a * b, 1)),
    }));
    this.labels = { data: answer.arrays.labels, hidden };
    this.millilitres = answer.millilitres;
    this.shares = answer.shares;
    if (!this.noted) for (const note of answer.notes) this.tell(note.startsWith(`${this.name}: `) ? note.slice(this.name.length + 2) : note);
    this.noted = true;
    this.slices = {};
    this.invalidate();
    emit("segmented", this);
  }

  // Whether what the model says about this exam means anything, or the user wants to see it nevertheless.
  get linked() {
    return Boolean(this.map) && (this.known !== false || this.shownAnyway);
  }

  // The atlas has no millimetres of its own: it is shown in those of an exam.
  setUnit(unit) {
    this.place = this.place.map((v, a) => (v / this.unit[a]) * unit[a]);
    this.unit = unit;
    this.map = new AtlasMap(unit);
    this.setAffine();
    this.slices = {};
    this.invalidate();
  }

  setAffine() {
    this.affine = this.own.map((row, r) => (r < 3 && this.unit ? row.map((v) => v * this.unit[r]) : row));
    this.inverse = inverse(this.affine);
    this.spacing = spacing(this.affine);
  }

  // Places of the page in what the server calls them, and back; they differ in the atlas alone.
  toServer(place) {
    return this.unit ? place.map((v, a) => v / this.unit[a]) : place;
  }

  fromServer(place) {
    return this.unit ? place.map((v, a) => v * this.unit[a]) : place;
  }

  value(place) {
    const [x, y, z] = apply(this.inverse, place).map(Math.round);
    const [D, H, W] = this.image.shape;
    if (x < 0 || y < 0 || z < 0 || x >= W || y >= H || z >= D) return null;
    const at = (z * H + y) * W + x;
    return { value: this.image.data[at], label: this.labels ? this.labels.data[at] : 0 };
  }

  // -- the crosshair ---------------------------------------------------------------------------------------------

  setPlace(place, found = true, reason = "", here = false) {
    this.place = place;
    this.found = found;
    this.reason = reason;
    if (!here) this.keepInView();
    this.status();
    this.invalidate();
  }

  lose(reason) {
    this.found = false;
    this.reason = reason;
    this.status();
    this.invalidate();
  }

  // Where the crosshair has left the inner part of an enlarged picture, the picture follows it.
  keepInView() {
    if (state.zoom <= 1) return;
    const index = apply(this.inverse, this.place);
    for (const [plane, view] of Object.entries(this.views)) {
      const { u, v } = PLANES[plane];
      const scale = this.scale(plane);
      for (const [axis, size] of [[u, view.width], [v, view.height]])
        if (Math.abs(index[axis] - this.focus[axis]) * this.spacing[axis] * scale > 0.35 * size) this.focus[axis] = index[axis];
    }
  }

  status() {
    const { status } = this.parts;
    status.classList.toggle("lost", !this.found);
    if (!this.image || !this.place) return;
    if (!this.found) {
      status.textContent = this.reason;
      status.title = this.reason;
      return;
    }
    // What says whether to believe comes before the place, which nobody needs in a hurry.
    const parts = [], told = [];
    const at = this.value(this.place);
    const structure = at?.label && state.model.structures.find((s) => s.id === at.label);
    const trust = structure && this.trust?.[structure.name];
    if (structure) parts.push(structure.name);
    if (at) parts.push(`${at.value}${state.model.intensity === "hu" ? " HU" : ""}`);
    if (trust && trust.trust !== null) {
      parts.push(trustWords(trust));
      told.push(trustSentence(trust));
    }
    const error = this.errorAt(this.place);
    if (error) {
      parts.push(`error ${error.error.toFixed(1)} mm (90 % < ${error.bound.toFixed(1)})`);
      told.push(`expected error of this place ${error.error.toFixed(1)} mm, in nine of ten places under ${error.bound.toFixed(1)} mm`);
    }
    const place = this.isAtlas ? this.toServer(this.place) : this.place;
    const sides = ["RL", "AP", "SI"];
    const words = place.map((v, a) =>
      this.isAtlas ? v.toFixed(3) : `${sides[a][v < 0 ? 1 : 0]} ${Math.abs(v).toFixed(1)}`);
    parts.push(this.isAtlas ? `x, y, z ${words.join("  ")}` : `${words.join("  ")} mm`);
    // A line breaks between parts, and within one only where it is wider than the panel.
    status.replaceChildren(...parts.flatMap((text) => [element("span", { text }), " "]));
    status.title = [parts.join(" · "), ...told].join("\n");
  }

  // -- drawing ---------------------------------------------------------------------------------------------------

  // How many pixels of the screen a millimetre has in a view.
  scale(plane) {
    const fits = Object.keys(this.views).filter((name) => this.views[name].width).map((name) => {
      const { u, v } = PLANES[name], view = this.views[name];
      const size = (axis) => (this.patient[axis][1] - this.patient[axis][0] + 1) * this.spacing[axis];
      return Math.min(view.width / size(u), view.height / size(v));
    });
    return (fits.length ? Math.min(...fits) : 1) * 0.98 * state.zoom;
  }

  invalidate() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.draw();
      emit("drawn", this);
    });
  }

  draw() {
    if (!this.image || !this.parts.root.isConnected) return;
    // All sizes first, as one scale serves all views.
    for (const view of Object.values(this.views)) {
      const { width, height } = view.canvas.parentElement.getBoundingClientRect();
      Object.assign(view, { width, height });
    }
    for (const plane of Object.keys(this.views)) this.drawView(plane);
  }

  drawView(plane) {
    const view = this.views[plane], { canvas } = view;
    const ratio = window.devicePixelRatio || 1;
    const box = { width: view.width, height: view.height };
    if (!box.width || !box.height) return;
    const [wide, high] = [Math.round(box.width * ratio), Math.round(box.height * ratio)];
    if (canvas.width !== wide) canvas.width = wide;
    if (canvas.height !== high) canvas.height = high;
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.fillStyle = "#000";
    context.fillRect(0, 0, box.width, box.height);
    const { u, v, w, letters } = PLANES[plane];
    const sizes = [this.image.shape[2], this.image.shape[1], this.image.shape[0]];
    const index = apply(this.inverse, this.place);
    const at = Math.min(Math.max(Math.round(index[w]), 0), sizes[w] - 1);
    const slice = this.slice(plane, at);
    const scale = this.scale(plane), du = this.spacing[u] * scale, dv = this.spacing[v] * scale;
    view.toScreen = (i) => [box.width / 2 + (this.focus[u] - i[u]) * du, box.height / 2 + (this.focus[v] - i[v]) * dv];
    view.toIndex = (x, y) => {
      const found = [0, 0, 0];
      found[u] = this.focus[u] - (x - box.width / 2) / du;
      found[v] = this.focus[v] - (y - box.height / 2) / dv;
      found[w] = at;
      return found;
    };
    view.perMm = scale;
    const left = box.width / 2 + (this.focus[u] - sizes[u] + 0.5) * du;
    const top = box.height / 2 + (this.focus[v] - sizes[v] + 0.5) * dv;
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = "medium";
    context.drawImage(slice.canvas, left, top, sizes[u] * du, sizes[v] * dv);
    if (state.outlines && slice.outlines) drawOutlines(context, slice.outlines, left + du / 2, top + dv / 2, du, dv);
    drawMarks(this, context, plane, view, at);
    drawCross(context, view.toScreen(index), this.found, box);
    drawWords(context, letters, `${plane} ${at + 1}/${sizes[w]}`, box);
  }

  // The picture of a slice and its outlines, made again only when something that they show has changed.
  slice(plane, at) {
    const made = (this.slices[plane] ||= { canvas: document.createElement("canvas"), key: "" });
    const key = `${at} ${state.version} ${this.paintVersion || 0} ${this.linked}`;
    if (made.key === key) return made;
    made.key = key;
    const layers = [];
    const { overlay, overlayOpacity } = state;
    if (overlay !== "none" && !this.isAtlas && this.linked) {
      const atlas = state.panels.find((panel) => panel.isAtlas)?.image || state.atlasImage;
      if (overlay === "coordinates" || atlas)
        layers.push({ kind: overlay, map: this.map, toMap: this.toMap(), atlas, opacity: overlayOpacity });
    } else if (overlay === "coordinates" && this.isAtlas) {
      layers.push({ kind: overlay, map: this.map, toMap: this.affine, opacity: overlayOpacity });
    }
    made.outlines = null;
    if (this.labels && this.linked) {
      const colours = new Map(state.model.structures.filter((s) => !state.hidden.has(s.id)).map((s) => [s.id, parseColour(s.colour)]));
      const layer = { kind: "labels", data: this.labels.data, hidden: this.labels.hidden, colours, opacity: state.maskOpacity };
      layers.push(layer);
      if (state.outlines) {
        const { ids, columns, rows } = sliceLabels(this.image.shape, plane, at, layer);
        made.outlines = outlines(ids, columns, rows);
      }
    }
    for (const [id, data] of this.painted) {
      const mark = state.marks.find((m) => m.id === id);
      if (mark) layers.push({ kind: "mask", data, colour: parseColour(mark.colour), opacity: 0.55 });
    }
    paintSlice(made.canvas, this.image, plane, at, state.window, layers);
    return made;
  }

  // From voxels of the image to those of the map of coordinates.
  toMap() {
    const columns = [[1, 0, 0], [0, 1, 0], [0, 0, 1]].map((e) => apply(this.affine, e));
    const zero = apply(this.map.inverse, apply(this.affine, [0, 0, 0]));
    const steps = columns.map((c) => apply(this.map.inverse, c).map((value, a) => value - zero[a]));
    return [0, 1, 2].map((r) => [steps[0][r], steps[1][r], steps[2][r], zero[r]]);
  }

  // Where a mark is in this exam, in the millimetres of the page.
  placeOf(mark) {
    if (mark.exam === this.id) return { found: true, at: mark.at, centre: mark.centre, axes: mark.axes };
    return mark.places[this.id] || null;
  }

  // -- the parts of the page -------------------------------------------------------------------------------------

  build() {
    const name = element("span", { className: "name", text: this.name, title: this.name });
    // Ten letters of the name stay readable; the chip gives way.
    name.style.minWidth = `${Math.min(10, this.name.length)}ch`;
    const chip = element("span", { className: "chip", text: this.isAtlas ? "" : "loading …" });
    chip.hidden = this.isAtlas;
    const close = element("button", { className: "close", text: "×", title: `Close ${this.name}` });
    close.setAttribute("aria-label", `Close ${this.name}`);
    close.addEventListener("click", () => emit("close", this));
    const told = element("div", { className: "told" });
    const views = element("div", { className: "views" });
    const status = element("div", { className: "status" });
    const root = element("section", { className: "panel" }, element("div", { className: "head" }, name, chip, close), told, views, status);
    root.dataset.exam = this.id;
    root.setAttribute("aria-label", this.name);
    this.parts = { root, name, chip, told, views, status };
    this.arrange();
  }

  // Show the planes that were chosen.
  arrange() {
    this.views = {};
    this.slices = {};
    const chosen = state.planes === "all" ? Object.keys(PLANES) : [state.planes];
    this.parts.views.replaceChildren(
      ...chosen.map((plane) => {
        const canvas = element("canvas");
        canvas.dataset.plane = plane;
        canvas.setAttribute("role", "img");
        canvas.setAttribute("aria-label", `${this.name}, ${plane}`);
        this.views[plane] = { canvas, width: 0, height: 0 };
        return element("div", { className: "view" }, canvas);
      }),
    );
    emit("arranged", this);
    this.invalidate();
  }

  chip(text, kind) {
    this.parts.chip.textContent = text;
    this.parts.chip.title = text;
    this.parts.chip.className = `chip ${kind}`;
  }

  tell(line) {
    this.parts.told.append(element("p", { text: line, title: line }));
  }

  fail(error) {
    this.chip("cannot be shown", "unknown");
    this.failed = error.message;
    this.parts.told.prepend(element("p", { className: "bad", text: error.message }));
    emit("failed", this);
  }
}
