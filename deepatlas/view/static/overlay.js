// What lies over the picture of a slice: outlines, the crosshair, points, boxes, and letters.
import { PLANES } from "./draw.js";
import { apply, cutBox } from "./geometry.js";
import { state } from "./state.js";

// The outlines of structures; `left` and `top` are the middle of the first voxel.
export function drawOutlines(context, found, left, top, du, dv) {
  context.lineWidth = 1.3;
  context.lineJoin = "round";
  for (const [id, list] of found) {
    const structure = state.model.structures.find((s) => s.id === id);
    context.strokeStyle = structure.colour;
    context.beginPath();
    for (let k = 0; k < list.length; k += 4) {
      context.moveTo(left + list[k] * du, top + list[k + 1] * dv);
      context.lineTo(left + list[k + 2] * du, top + list[k + 3] * dv);
    }
    context.stroke();
  }
}

// The crosshair, dashed where it is not the place that was asked for.
export function drawCross(context, [x, y], found, box) {
  context.lineWidth = 1;
  context.strokeStyle = found ? "#56b4e9c0" : "#ff6b57a0";
  context.setLineDash(found ? [] : [4, 4]);
  context.beginPath();
  // The place itself stays visible.
  const gap = 7;
  for (const [x0, y0, x1, y1] of [[0, y, x - gap, y], [x + gap, y, box.width, y], [x, 0, x, y - gap], [x, y + gap, x, box.height]]) {
    context.moveTo(x0, y0);
    context.lineTo(x1, y1);
  }
  context.stroke();
  context.setLineDash([]);
}

// Points and boxes that this slice shows.
export function drawMarks(panel, context, plane, view, at) {
  const { w } = PLANES[plane];
  for (const mark of state.marks) {
    const place = panel.placeOf(mark);
    if (!place || !place.found) continue;
    context.strokeStyle = context.fillStyle = mark.colour;
    context.lineWidth = mark.id === state.selected ? 2.5 : 1.6;
    if (mark.kind === "point") {
      const index = apply(panel.inverse, place.at);
      const away = Math.abs(index[w] - at) * panel.spacing[w];
      // Seen through a few slices, and weaker with the distance.
      if (away > Math.max(6, panel.spacing[w])) continue;
      const [x, y] = view.toScreen(index);
      context.globalAlpha = away <= panel.spacing[w] ? 1 : 0.45;
      context.beginPath();
      context.arc(x, y, 5, 0, 7);
      context.stroke();
      if (!place.preview) {
        context.beginPath();
        context.arc(x, y, 1.5, 0, 7);
        context.fill();
      }
      context.font = "12px system-ui, sans-serif";
      context.textAlign = "left";
      context.textBaseline = "bottom";
      context.fillText(mark.name, x + 7, y - 4);
      context.globalAlpha = 1;
    } else if (mark.kind === "box") {
      const cut = cutBox(panel.inverse, place.centre, place.axes, w, at);
      if (!cut.length) continue;
      context.beginPath();
      cut.forEach((corner, n) => {
        const [x, y] = view.toScreen(corner);
        if (n) context.lineTo(x, y);
        else context.moveTo(x, y);
      });
      context.closePath();
      context.stroke();
    }
  }
}

// The sides of the patient at the four edges, and below what is shown.
export function drawWords(context, letters, caption, box) {
  context.font = "600 12px system-ui, sans-serif";
  context.fillStyle = "#ffd866";
  context.strokeStyle = "#000";
  context.lineWidth = 3;
  const write = (text, x, y, align, base) => {
    context.textAlign = align;
    context.textBaseline = base;
    context.strokeText(text, x, y);
    context.fillText(text, x, y);
  };
  write(letters[0], 4, box.height / 2, "left", "middle");
  write(letters[1], box.width - 4, box.height / 2, "right", "middle");
  write(letters[2], box.width / 2, 4, "center", "top");
  write(letters[3], box.width / 2, box.height - 3, "center", "bottom");
  context.fillStyle = "#a0a0ac";
  context.font = "11px system-ui, sans-serif";
  write(caption, 4, box.height - 3, "left", "bottom");
}
