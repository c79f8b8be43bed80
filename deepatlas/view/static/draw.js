// Slices as pictures: the image in its window, structures, painted masks, coordinates as colours, the warped atlas.

// Every plane: the voxel axes that run across and down, and the one that is fixed. All run against the picture, so that
// the patient's right and front are on the left, and the front or the head at the top (radiological convention).
export const PLANES = {
  axial: { u: 0, v: 1, w: 2, letters: ["R", "L", "A", "P"] },
  coronal: { u: 0, v: 2, w: 1, letters: ["R", "L", "S", "I"] },
  sagittal: { u: 1, v: 2, w: 0, letters: ["A", "P", "S", "I"] },
};

const little = new Uint8Array(new Uint32Array([1]).buffer)[0] === 1;
const rgba = (r, g, b) => (little ? (255 << 24) | (b << 16) | (g << 8) | r : (r << 24) | (g << 16) | (b << 8) | 255) >>> 0;
const split = (c) => (little ? [c & 255, (c >> 8) & 255, (c >> 16) & 255] : [(c >>> 24) & 255, (c >>> 16) & 255, (c >>> 8) & 255]);
const GREYS = Uint32Array.from({ length: 256 }, (_, g) => rgba(g, g, g));
// What the overlay of the atlas has no value for, as in the reports.
const HIDDEN = [61, 61, 82];

export function parseColour(text) {
  return [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16));
}

// From int16 to grey as pixels, remade when the window changes.
const lut = { key: "", table: new Uint32Array(65536) };

function windowed({ width, level }) {
  const key = `${width} ${level}`;
  if (lut.key !== key) {
    const low = level - width / 2;
    for (let value = -32768; value < 32768; value++) {
      const grey = Math.round(((value - low) * 255) / width);
      lut.table[value & 65535] = GREYS[Math.min(255, Math.max(0, grey))];
    }
    lut.key = key;
  }
  return lut.table;
}

// How to walk through a slice: the first voxel, and the steps to the next pixel and the next row.
function walk(shape, plane, at) {
  const [D, H, W] = shape;
  const sizes = [W, H, D], steps = [1, W, W * H];
  const { u, v, w } = PLANES[plane];
  return {
    columns: sizes[u], rows: sizes[v],
    first: at * steps[w] + (sizes[u] - 1) * steps[u] + (sizes[v] - 1) * steps[v],
    across: -steps[u], down: -steps[v],
  };
}

// The picture of a slice in voxels, into `canvas`.
//   image {shape, data int16}; window {width, level}; layers in the order in which they lie on it:
//   {kind: "labels", data, colours: Map id -> [r, g, b], opacity, hidden: [{id, start, shape, bits}]}
//   {kind: "mask", data (0 or 1, of the whole image), colour, opacity}
//   {kind: "colours" | "atlas", map, atlas, opacity, window}
export function paintSlice(canvas, image, plane, at, window, layers) {
  const { columns, rows, first, across, down } = walk(image.shape, plane, at);
  if (canvas.width !== columns) canvas.width = columns;
  if (canvas.height !== rows) canvas.height = rows;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(columns, rows);
  const out = new Uint32Array(pixels.data.buffer);
  const table = windowed(window), data = image.data;
  for (let b = 0, n = 0; b < rows; b++)
    for (let a = 0, i = first + b * down; a < columns; a++, n++, i += across) out[n] = table[data[i] & 65535];
  for (const layer of layers) {
    if (!layer.opacity) continue;
    if (layer.kind === "labels") paintLabels(out, image.shape, plane, at, layer);
    else if (layer.kind === "mask") {
      for (let b = 0, n = 0; b < rows; b++)
        for (let a = 0, i = first + b * down; a < columns; a++, n++, i += across)
          if (layer.data[i]) out[n] = blend(out[n], layer.colour, layer.opacity);
    } else paintMap(out, image, plane, at, layer, table);
  }
  context.putImageData(pixels, 0, 0);
}

function blend(pixel, [r, g, b], share) {
  const [p, q, s] = split(pixel);
  return rgba(p + (r - p) * share, q + (g - q) * share, s + (b - s) * share);
}

// The ids of a slice that are shown, as [rows * columns] in the order of the picture.
export function sliceLabels(shape, plane, at, { data, colours, hidden = [] }) {
  const { columns, rows, first, across, down } = walk(shape, plane, at);
  const out = new Uint16Array(columns * rows);
  const shown = new Uint8Array(65536);
  for (const id of colours.keys()) shown[id] = 1;
  for (let b = 0, n = 0; b < rows; b++)
    for (let a = 0, i = first + b * down; a < columns; a++, n++, i += across) if (shown[data[i]]) out[n] = data[i];
  // What another structure hides is seen where that one is not shown.
  for (const part of hidden) {
    if (!colours.has(part.id)) continue;
    eachOfBox(shape, plane, at, part, (n) => { if (!out[n]) out[n] = part.id; });
  }
  return { ids: out, columns, rows };
}

// Call `seen` with the pixel of every voxel of a box mask in a slice.
function eachOfBox(shape, plane, at, { start, shape: size, bits }, seen) {
  const { u, v, w } = PLANES[plane];
  const first = [start[2], start[1], start[0]], extent = [size[2], size[1], size[0]];
  const steps = [1, size[2], size[2] * size[1]], whole = [shape[2], shape[1], shape[0]];
  const k = at - first[w];
  if (k < 0 || k >= extent[w]) return;
  for (let j = 0; j < extent[v]; j++)
    for (let i = 0; i < extent[u]; i++)
      if (bits[k * steps[w] + j * steps[v] + i * steps[u]])
        seen((whole[v] - 1 - first[v] - j) * whole[u] + whole[u] - 1 - first[u] - i);
}

function paintLabels(out, shape, plane, at, layer) {
  const { ids } = sliceLabels(shape, plane, at, layer);
  for (let n = 0; n < out.length; n++) if (ids[n]) out[n] = blend(out[n], layer.colours.get(ids[n]), layer.opacity);
}

export function paintBox(out, shape, plane, at, box, colour, opacity) {
  eachOfBox(shape, plane, at, box, (n) => { out[n] = blend(out[n], colour, opacity); });
}

// Coordinates as colours (red x, green y, blue z), or the atlas where these coordinates are in it.
function paintMap(out, image, plane, at, { kind, map, toMap, atlas, opacity }, table) {
  const { u, v, w } = PLANES[plane];
  const sizes = [image.shape[2], image.shape[1], image.shape[0]];
  const c = [0, 0, 0], index = [0, 0, 0], voxel = [0, 0, 0];
  voxel[w] = at;
  for (let b = 0, n = 0; b < sizes[v]; b++) {
    voxel[v] = sizes[v] - 1 - b;
    for (let a = 0; a < sizes[u]; a++, n++) {
      voxel[u] = sizes[u] - 1 - a;
      for (let r = 0; r < 3; r++)
        index[r] = toMap[r][0] * voxel[0] + toMap[r][1] * voxel[1] + toMap[r][2] * voxel[2] + toMap[r][3];
      const seen = map.flag(index) & 1;
      if (seen) map.sample(index, c);
      const within = seen && Math.abs(c[0]) <= 1 && Math.abs(c[1]) <= 1 && Math.abs(c[2]) <= 1;
      if (kind === "coordinates") {
        if (within) out[n] = blend(out[n], [127.5 * (c[0] + 1), 127.5 * (c[1] + 1), 127.5 * (c[2] + 1)], opacity);
      } else {
        const colour = within ? split(table[Math.round(sampleImage(atlas, c)) & 65535]) : HIDDEN;
        out[n] = blend(out[n], colour, opacity);
      }
    }
  }
}

// The value of a cubic image at a coordinate in [-1, 1], linearly.
function sampleImage({ shape: [D, H, W], data }, c) {
  const x = ((c[0] + 1) / 2) * (W - 1), y = ((c[1] + 1) / 2) * (H - 1), z = ((c[2] + 1) / 2) * (D - 1);
  const x0 = Math.min(Math.floor(x), W - 2), y0 = Math.min(Math.floor(y), H - 2), z0 = Math.min(Math.floor(z), D - 2);
  const fx = x - x0, fy = y - y0, fz = z - z0, i = (z0 * H + y0) * W + x0, s = W * H;
  const plane = (k) =>
    (data[k] * (1 - fx) + data[k + 1] * fx) * (1 - fy) + (data[k + W] * (1 - fx) + data[k + W + 1] * fx) * fy;
  return plane(i) * (1 - fz) + plane(i + s) * fz;
}

// The outlines of the ids of a slice as segments between the centres of pixels: Map id -> [x0, y0, x1, y1, …].
// Marching squares: a corner of a cell belongs to an id or does not, and lines run half-way between.
export function outlines(ids, columns, rows) {
  const found = new Map();
  // Pairs of the middles of a cell's edges (top, right, bottom, left) for each of its 16 cases.
  const CASES = [[], [3, 2], [2, 1], [3, 1], [1, 0], [3, 0, 1, 2], [2, 0], [3, 0], [0, 3], [0, 2], [0, 1, 2, 3], [0, 1], [1, 3], [1, 2], [2, 3], []];
  const MIDDLE = [[0.5, 0], [1, 0.5], [0.5, 1], [0, 0.5]];
  for (let y = -1; y < rows; y++)
    for (let x = -1; x < columns; x++) {
      const a = pixel(x, y), b = pixel(x + 1, y), c = pixel(x + 1, y + 1), d = pixel(x, y + 1);
      if (a === b && b === c && c === d) continue;
      for (const id of new Set([a, b, c, d])) {
        if (!id) continue;
        const edges = CASES[(a === id) * 8 + (b === id) * 4 + (c === id) * 2 + (d === id)];
        let list = found.get(id);
        if (!list) found.set(id, (list = []));
        for (const edge of edges) list.push(x + MIDDLE[edge][0], y + MIDDLE[edge][1]);
      }
    }
  return found;

  function pixel(x, y) {
    return x < 0 || y < 0 || x >= columns || y >= rows ? 0 : ids[y * columns + x];
  }
}

// Where the patient is, as the first and the last voxel (x, y, z): what is brighter than air.
export function patientBox({ shape, data }) {
  const [D, H, W] = shape;
  const counts = [new Uint32Array(W), new Uint32Array(H), new Uint32Array(D)];
  for (let z = 0, i = 0; z < D; z++)
    for (let y = 0; y < H; y++)
      for (let x = 0; x < W; x++, i++)
        if (data[i] > -250) { counts[0][x]++; counts[1][y]++; counts[2][z]++; }
  return counts.map((count) => {
    // A couch or a mask around the patient is thin.
    const enough = 0.04 * count.reduce((a, b) => Math.max(a, b), 0);
    let low = count.findIndex((n) => n > enough), high = count.length - 1;
    while (high > low && count[high] <= enough) high--;
    if (low < 0) return [0, count.length - 1];
    return [Math.max(0, low - 1), Math.min(count.length - 1, high + 1)];
  });
}
