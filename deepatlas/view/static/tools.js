// What the pointer does in a view. One finger or the left button uses the tool; two fingers pan and zoom.
import { apply } from "./geometry.js";
import { PLANES } from "./draw.js";
import { maskOf, newName, putMark } from "./marks.js";
import { emit, on, redraw, state } from "./state.js";

const ZOOMS = [1, 12];
// How near to an edge of a box, in pixels of the screen, a pointer takes hold of it.
const NEAR_EDGE = 9;

// -- the place that all exams show ---------------------------------------------------------------------------------

// Move to a place of one exam, and to the same anatomy in all others.
export function moveTo(panel, place) {
  state.cursor = { panel: panel.id, place };
  panel.setPlace(place, true, "", true);
  linkOthers(panel);
  emit("moved", panel);
}

function linkOthers(panel) {
  const place = panel.place;
  const c = panel.linked ? panel.map.at(place) : null;
  for (const other of state.panels) {
    if (other === panel || !other.image) continue;
    // An exam that is not linked stays where it is, and says on its banner why.
    if (!other.linked) continue;
    if (!panel.linked) other.lose(`not linked to ${panel.name}`);
    else if (!c) other.lose(`outside the model's field of view in ${panel.name}`);
    else {
      const { place: there, found } = other.map.find(c);
      if (there === null) other.lose("this exam shows no body");
      else if (found) other.setPlace(there);
      else other.setPlace(there, false, `this place of ${panel.name} is not in this exam; the nearest is shown`);
    }
  }
}

// An exam whose coordinates have just become known follows.
on("mapped", (panel) => follow(panel));
on("shown", (panel) => follow(panel));

export function follow(panel) {
  const source = state.cursor && state.panels.find((p) => p.id === state.cursor.panel);
  // Also where the place was chosen in this exam, before it was linked.
  if (source && source.map) linkOthers(source);
  else if (!state.cursor && panel.linked && !panel.isAtlas) moveTo(panel, panel.place);
}

export function zoomBy(factor, panel = null, plane = null, x = 0, y = 0) {
  const before = state.zoom;
  state.zoom = Math.min(ZOOMS[1], Math.max(ZOOMS[0], before * factor));
  const view = panel && panel.views[plane];
  if (view && view.toIndex) {
    // What is under the pointer stays there.
    const held = view.toIndex(x, y);
    const { u, v } = PLANES[plane];
    for (const axis of [u, v]) panel.focus[axis] = held[axis] + ((panel.focus[axis] - held[axis]) * before) / state.zoom;
  }
  for (const other of state.panels) {
    if (!other.image) continue;
    if (state.zoom === 1) other.focus = other.patient.map(([low, high]) => (low + high) / 2);
    else if (other !== panel && state.zoom > before) {
      const index = apply(other.inverse, other.place);
      other.focus = other.focus.map((f, a) => index[a] + ((f - index[a]) * before) / state.zoom);
    }
  }
  redraw();
}

export function resetView() {
  state.zoom = 1;
  for (const panel of state.panels) if (panel.image) panel.focus = panel.patient.map(([low, high]) => (low + high) / 2);
  redraw();
}

export function scrollBy(panel, plane, steps) {
  const { w } = PLANES[plane];
  stepAlong(panel, w, steps);
}

export function stepAlong(panel, axis, steps) {
  const index = apply(panel.inverse, panel.place);
  const size = [panel.image.shape[2], panel.image.shape[1], panel.image.shape[0]][axis];
  index[axis] = Math.min(size - 1, Math.max(0, Math.round(index[axis]) + steps));
  moveTo(panel, apply(panel.affine, index));
}

// -- pointers ------------------------------------------------------------------------------------------------------

on("arranged", (panel) => {
  for (const [plane, view] of Object.entries(panel.views)) listen(panel, plane, view);
});

function listen(panel, plane, view) {
  const { canvas } = view;
  const pointers = new Map();
  let drag = null, pinch = null;
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  canvas.addEventListener("pointerdown", (event) => {
    if (!panel.image || !view.toIndex) return;
    event.preventDefault();
    state.active = { panel, plane };
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, at(event));
    if (pointers.size === 2) {
      drag?.cancel?.();
      drag = null;
      pinch = spread(pointers);
      return;
    }
    const tool = event.button === 1 || event.button === 2 || event.shiftKey ? "pan" : state.tool;
    drag = begin(tool, panel, plane, view, at(event), event);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!pointers.has(event.pointerId)) return;
    pointers.set(event.pointerId, at(event));
    if (pinch && pointers.size === 2) {
      const now = spread(pointers);
      pan(panel, plane, view, now.x - pinch.x, now.y - pinch.y);
      zoomBy(now.distance / Math.max(pinch.distance, 1), panel, plane, now.x, now.y);
      pinch = now;
    } else if (drag) drag.move(at(event), event);
  });
  const end = (event) => {
    if (!pointers.delete(event.pointerId)) return;
    if (drag && event.type === "pointerup") drag.end?.(at(event), event);
    else drag?.cancel?.();
    drag = null;
    if (pointers.size < 2) pinch = null;
  };
  canvas.addEventListener("pointerup", end);
  canvas.addEventListener("pointercancel", end);
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  let turned = 0;
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    if (!panel.image || !view.toIndex) return;
    state.active = { panel, plane };
    if (event.ctrlKey || event.metaKey) {
      zoomBy(Math.exp(-event.deltaY / 300), panel, plane, ...at(event));
      return;
    }
    // A trackpad sends many small steps, a wheel one large one.
    turned += event.deltaMode ? event.deltaY * 40 : event.deltaY;
    const steps = Math.trunc(turned / 40);
    turned -= steps * 40;
    if (steps) scrollBy(panel, plane, Math.max(-5, Math.min(5, -steps)));
  }, { passive: false });
}

function spread(pointers) {
  const [[x0, y0], [x1, y1]] = [...pointers.values()];
  return { x: (x0 + x1) / 2, y: (y0 + y1) / 2, distance: Math.hypot(x1 - x0, y1 - y0) };
}

function pan(panel, plane, view, dx, dy) {
  const { u, v } = PLANES[plane];
  panel.focus[u] += dx / (panel.spacing[u] * view.perMm);
  panel.focus[v] += dy / (panel.spacing[v] * view.perMm);
  panel.invalidate();
}

// A place within the image under the pointer.
function placeAt(panel, view, [x, y]) {
  const index = view.toIndex(x, y);
  const sizes = [panel.image.shape[2], panel.image.shape[1], panel.image.shape[0]];
  return apply(panel.affine, index.map((i, a) => Math.min(sizes[a] - 0.5001, Math.max(-0.5, i))));
}

function begin(tool, panel, plane, view, start, event) {
  if (tool === "move") {
    const move = (at, e) => {
      moveTo(panel, placeAt(panel, view, at));
      measure(e);
    };
    move(start, event);
    return { move };
  }
  if (tool === "pan") {
    let last = start;
    return { move: (at) => { pan(panel, plane, view, at[0] - last[0], at[1] - last[1]); last = at; } };
  }
  if (tool === "scroll") {
    let last = start[1];
    return {
      move: (at) => {
        const steps = Math.trunc((last - at[1]) / 6);
        if (steps) { scrollBy(panel, plane, steps); last -= steps * 6; }
      },
    };
  }
  if (tool === "window") {
    const { width, level } = state.window;
    return {
      move: (at) => emit("window", {
        width: Math.min(8000, Math.max(1, Math.round(width + (at[0] - start[0]) * 4))),
        level: Math.min(8000, Math.max(-2000, Math.round(level - (at[1] - start[1]) * 2))),
      }),
    };
  }
  if (tool === "point") {
    const place = placeAt(panel, view, start);
    moveTo(panel, place);
    putMark({ kind: "point", name: newName("point"), exam: panel.id, at: place });
    return { move: () => {} };
  }
  if (tool === "box") return beginBox(panel, plane, view, start);
  return beginPaint(panel, plane, view, start, event);
}

// How long it took from the event to the pictures of all panels, for benchmarks/bench_view.py.
function measure(event) {
  const began = event.timeStamp;
  requestAnimationFrame(() => requestAnimationFrame(() => {
    performance.measure("deepatlas-move", { start: began, end: performance.now() });
  }));
}

// -- boxes ---------------------------------------------------------------------------------------------------------

// A box is drawn along the axes of the image: its first and last voxel (fractional) along x, y and z.
function boxMark(panel, low, high) {
  const centre = low.map((v, a) => (v + high[a]) / 2);
  const half = low.map((v, a) => Math.max((high[a] - v) / 2, 0.5));
  return {
    centre: apply(panel.affine, centre),
    axes: [0, 1, 2].map((r) => [0, 1, 2].map((c) => panel.affine[r][c] * half[c])),
  };
}

function boxEnds(panel, mark) {
  const centre = apply(panel.inverse, mark.centre);
  const half = [0, 1, 2].map((c) => Math.hypot(...[0, 1, 2].map((r) => mark.axes[r][c])) / panel.spacing[c]);
  return [centre.map((v, a) => v - half[a]), centre.map((v, a) => v + half[a])];
}

function beginBox(panel, plane, view, start) {
  const { u, v, w } = PLANES[plane];
  const chosen = state.marks.find((m) => m.id === state.selected && m.kind === "box" && m.exam === panel.id);
  if (chosen) {
    const [low, high] = boxEnds(panel, chosen);
    const [x0, y0] = view.toScreen(high), [x1, y1] = view.toScreen(low);
    const near = [];
    const within = (value, a, b) => value > Math.min(a, b) - NEAR_EDGE && value < Math.max(a, b) + NEAR_EDGE;
    const inside = within(start[0], x0, x1) && within(start[1], y0, y1);
    if (inside && Math.abs(start[0] - x0) < NEAR_EDGE) near.push([high, u]);
    else if (inside && Math.abs(start[0] - x1) < NEAR_EDGE) near.push([low, u]);
    if (inside && Math.abs(start[1] - y0) < NEAR_EDGE) near.push([high, v]);
    else if (inside && Math.abs(start[1] - y1) < NEAR_EDGE) near.push([low, v]);
    if (near.length) {
      const before = { centre: chosen.centre, axes: chosen.axes };
      return {
        move: (at) => {
          const index = view.toIndex(...at);
          for (const [end, axis] of near) end[axis] = index[axis];
          Object.assign(chosen, boxMark(panel, low.map((a, k) => Math.min(a, high[k])), high.map((a, k) => Math.max(a, low[k]))));
          panel.invalidate();
        },
        end: () => putMark({ ...chosen }),
        cancel: () => { Object.assign(chosen, before); panel.invalidate(); },
      };
    }
  }
  const first = view.toIndex(...start);
  const mark = { kind: "box", name: newName("box"), exam: panel.id, places: {}, colour: "#ffffff", id: "drawing" };
  const remove = () => { state.marks = state.marks.filter((m) => m !== mark); panel.invalidate(); };
  return {
    move: (at) => {
      const index = view.toIndex(...at);
      const low = first.map((value, a) => Math.min(value, index[a])), high = first.map((value, a) => Math.max(value, index[a]));
      // As deep as it is wide and high on average, in millimetres.
      const depth = ((high[u] - low[u]) * panel.spacing[u] + (high[v] - low[v]) * panel.spacing[v]) / 4 / panel.spacing[w];
      low[w] -= depth;
      high[w] += depth;
      Object.assign(mark, boxMark(panel, low, high));
      if (!state.marks.includes(mark)) state.marks.push(mark);
      panel.invalidate();
    },
    end: (at) => {
      remove();
      if (Math.hypot(at[0] - start[0], at[1] - start[1]) < 6 || !mark.centre) return;
      const { centre, axes } = mark;
      putMark({ kind: "box", name: mark.name, exam: panel.id, centre, axes });
    },
    cancel: remove,
  };
}

// -- paint ---------------------------------------------------------------------------------------------------------

// The strokes of this page, for undo: the mark, and what it was before.
const strokes = [];

function beginPaint(panel, plane, view, start, event) {
  const { u, v, w } = PLANES[plane];
  const [D, H, W] = panel.image.shape, sizes = [W, H, D], steps = [1, W, W * H];
  const erase = state.brush.erase || event.altKey;
  let mark = state.marks.find((m) => m.id === state.selected && m.kind === "mask" && m.exam === panel.id);
  if (!mark && erase) return { move: () => {} };
  const data = mark && panel.painted.has(mark.id) ? panel.painted.get(mark.id).slice() : new Uint8Array(D * H * W);
  const before = mark ? mark.mask : null;
  const id = mark ? mark.id : "painting";
  if (!mark) {
    mark = { id, kind: "mask", name: newName("mask"), exam: panel.id, places: {}, colour: "#ffffff" };
    state.marks.push(mark);
  }
  const kept = panel.painted.get(id);
  panel.painted.set(id, data);
  const dab = (at) => {
    const centre = view.toIndex(...at);
    const reach = panel.spacing.map((s) => state.brush.radius / s);
    const low = [0, 0, 0], high = [0, 0, 0];
    for (const a of [0, 1, 2]) {
      const flat = a === w && !state.brush.ball;
      const middle = a === w ? Math.round(centre[w]) : centre[a];
      low[a] = Math.max(0, flat ? middle : Math.ceil(middle - reach[a]));
      high[a] = Math.min(sizes[a] - 1, flat ? middle : Math.floor(middle + reach[a]));
    }
    const value = erase ? 0 : 1;
    for (let k = low[w]; k <= high[w]; k++)
      for (let j = low[v]; j <= high[v]; j++)
        for (let i = low[u]; i <= high[u]; i++) {
          const d = ((i - centre[u]) / reach[u]) ** 2 + ((j - centre[v]) / reach[v]) ** 2 + ((k - Math.round(centre[w])) / reach[w]) ** 2;
          if (d <= 1) data[i * steps[u] + j * steps[v] + k * steps[w]] = value;
        }
    panel.paintVersion = (panel.paintVersion || 0) + 1;
    panel.invalidate();
  };
  let last = start;
  dab(start);
  const restore = () => {
    if (kept) panel.painted.set(id, kept);
    else panel.painted.delete(id);
    state.marks = state.marks.filter((m) => m.id !== "painting");
    panel.paintVersion++;
    panel.invalidate();
  };
  return {
    move: (at) => {
      // Without gaps, however fast the pointer is.
      const far = Math.hypot(at[0] - last[0], at[1] - last[1]);
      const every = Math.max(1, (state.brush.radius * view.perMm) / 3);
      for (let n = 1; n <= Math.ceil(far / every); n++) {
        const share = n / Math.ceil(far / every);
        dab([last[0] + (at[0] - last[0]) * share, last[1] + (at[1] - last[1]) * share]);
      }
      last = at;
    },
    end: () => {
      const mask = maskOf(data, panel.image.shape);
      restore();
      if (!mask && !before) return;
      const next = { kind: "mask", name: mark.name, exam: panel.id, mask };
      if (id !== "painting") Object.assign(next, { id, colour: mark.colour });
      if (mask) {
        if (kept || id !== "painting") { data.key = mask.bits; panel.painted.set(id, data); }
        putMark(next);
        strokes.push({ id: next.id, before, name: next.name, exam: panel.id, colour: next.colour });
      } else emit("delete", id);
    },
    cancel: restore,
  };
}

export function undo() {
  const stroke = strokes.pop();
  if (!stroke) return;
  if (!stroke.before) emit("delete", stroke.id);
  else if (state.marks.some((m) => m.id === stroke.id))
    putMark({ id: stroke.id, kind: "mask", name: stroke.name, exam: stroke.exam, mask: stroke.before, colour: stroke.colour });
}
