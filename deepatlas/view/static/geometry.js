// Places, voxels and coordinates. Places are RAS+ millimetres; matrices are four rows of four numbers.

export function apply(m, p) {
  return [0, 1, 2].map((r) => m[r][0] * p[0] + m[r][1] * p[1] + m[r][2] * p[2] + m[r][3]);
}

export function inverse(m) {
  const [[a, b, c, x], [d, e, f, y], [g, h, i, z]] = m;
  const A = e * i - f * h, B = f * g - d * i, C = d * h - e * g;
  const det = a * A + b * B + c * C;
  const rows = [
    [A / det, (c * h - b * i) / det, (b * f - c * e) / det],
    [B / det, (a * i - c * g) / det, (c * d - a * f) / det],
    [C / det, (b * g - a * h) / det, (a * e - b * d) / det],
  ];
  return [...rows.map((r) => [...r, -(r[0] * x + r[1] * y + r[2] * z)]), [0, 0, 0, 1]];
}

export function spacing(m) {
  return [0, 1, 2].map((c) => Math.hypot(m[0][c], m[1][c], m[2][c]));
}

// Solve a 3x3 system; null where it has no single solution.
function solve3(m, b) {
  const [[a, d, g], [e, f, h], [i, j, k]] = m;
  const A = f * k - h * j, B = h * i - e * k, C = e * j - f * i;
  const det = a * A + d * B + g * C;
  if (!(Math.abs(det) > 1e-12)) return null;
  return [
    (A * b[0] + (g * j - d * k) * b[1] + (d * h - g * f) * b[2]) / det,
    (B * b[0] + (a * k - g * i) * b[1] + (g * e - a * h) * b[2]) / det,
    (C * b[0] + (d * i - a * j) * b[1] + (a * f - d * e) * b[2]) / det,
  ];
}

const SEEN = 1, BODY = 2;
const STEPS = 12;

// The coordinates of an exam on a coarse grid: `coords` has three planes x, y, z of shape [D, H, W].
export class CoordinateMap {
  constructor({ shape, affine, unit_mm, arrays }) {
    this.shape = shape;
    this.affine = affine;
    this.inverse = inverse(affine);
    this.spacing = spacing(affine);
    this.coords = arrays.coords;
    this.flags = arrays.flags;
    this.unit = unit_mm || [100, 100, 100];
    this.count = shape[0] * shape[1] * shape[2];
    const body = [];
    for (let v = 0; v < this.count; v++) if ((this.flags[v] & (SEEN | BODY)) === (SEEN | BODY)) body.push(v);
    this.body = Int32Array.from(body);
    // In millimetres, so that nearness has a meaning.
    this.bodyPlaces = new Float32Array(3 * body.length);
    body.forEach((v, n) => {
      for (let a = 0; a < 3; a++) this.bodyPlaces[3 * n + a] = this.coords[a * this.count + v] * this.unit[a];
    });
  }

  // The coordinate at a fractional voxel (x, y, z), linearly, and constant beyond the outermost centres.
  sample(i, out = [0, 0, 0]) {
    const [D, H, W] = this.shape;
    const x = Math.min(Math.max(i[0], 0), W - 1), y = Math.min(Math.max(i[1], 0), H - 1);
    const z = Math.min(Math.max(i[2], 0), D - 1);
    const x0 = Math.min(Math.floor(x), Math.max(W - 2, 0)), y0 = Math.min(Math.floor(y), Math.max(H - 2, 0));
    const z0 = Math.min(Math.floor(z), Math.max(D - 2, 0));
    const fx = x - x0, fy = y - y0, fz = z - z0;
    const dx = W > 1 ? 1 : 0, dy = H > 1 ? W : 0, dz = D > 1 ? W * H : 0;
    const c = this.coords;
    for (let a = 0; a < 3; a++) {
      const v = a * this.count + (z0 * H + y0) * W + x0;
      const low = (c[v] * (1 - fx) + c[v + dx] * fx) * (1 - fy) + (c[v + dy] * (1 - fx) + c[v + dy + dx] * fx) * fy;
      const w = v + dz;
      const high = (c[w] * (1 - fx) + c[w + dx] * fx) * (1 - fy) + (c[w + dy] * (1 - fx) + c[w + dy + dx] * fx) * fy;
      out[a] = low * (1 - fz) + high * fz;
    }
    return out;
  }

  // The coordinate of a place; null where the network does not see the exam.
  at(place) {
    const i = apply(this.inverse, place);
    return this.flag(i) & SEEN ? this.sample(i) : null;
  }

  // The flags of the nearest voxel; 0 outside the grid.
  flag(i) {
    const [D, H, W] = this.shape;
    const [x, y, z] = i.map(Math.round);
    if (x < 0 || y < 0 || z < 0 || x >= W || y >= H || z >= D) return 0;
    return this.flags[(z * H + y) * W + x];
  }

  // Whether a voxel of the body is at most a voxel away.
  nearBody(i) {
    for (let z = -1; z <= 1; z++)
      for (let y = -1; y <= 1; y++)
        for (let x = -1; x <= 1; x++) if (this.flag([i[0] + x, i[1] + y, i[2] + z]) & BODY) return true;
    return false;
  }

  // Where a coordinate is: the place, how far from it the coordinates are in mm, and whether that counts as found.
  // From the nearest voxel of the body, damped Newton steps, as deepatlas.localize.points takes them.
  find(c) {
    if (!this.body.length) return { place: null, found: false, miss: Infinity };
    const wanted = c.map((v, a) => v * this.unit[a]);
    const [p, q, r] = wanted;
    const places = this.bodyPlaces;
    let best = Infinity, nearest = 0;
    for (let n = 0, k = 0; n < this.body.length; n++, k += 3) {
      const x = places[k] - p, y = places[k + 1] - q, z = places[k + 2] - r;
      const d = x * x + y * y + z * z;
      if (d < best) { best = d; nearest = n; }
    }
    const [D, H, W] = this.shape;
    const v = this.body[nearest];
    let index = [v % W, Math.floor(v / W) % H, Math.floor(v / (W * H))];
    const off = (i) => { const s = this.sample(i); return wanted.map((w, a) => w - s[a] * this.unit[a]); };
    let rest = off(index), miss = Math.hypot(...rest), damping = 1;
    for (let step = 0; step < STEPS && miss > 1e-3; step++) {
      const columns = [0, 1, 2].map((a) => {
        const low = [...index], high = [...index];
        low[a] -= 0.5; high[a] += 0.5;
        const s = this.sample(low), t = this.sample(high);
        return [0, 1, 2].map((b) => (t[b] - s[b]) * this.unit[b]);
      });
      const move = solve3([0, 1, 2].map((row) => columns.map((column) => column[row])), rest);
      if (!move) break;
      const length = Math.hypot(...move);
      const share = Math.min(1, 2 / Math.max(length, 1e-9)) * damping;
      const trial = move.map((m, a) => Math.min(Math.max(index[a] + m * share, 0), [W, H, D][a] - 1));
      const after = off(trial), far = Math.hypot(...after);
      if (far < miss) { index = trial; rest = after; miss = far; damping = Math.min(1, 2 * damping); }
      else damping /= 2;
    }
    const found = miss < Math.max(...this.spacing) && this.nearBody(index);
    return { place: apply(this.affine, index), found, miss };
  }
}

// The polygon in which a plane `voxel[w] = at` cuts a box: corners in voxels, given its centre and half-edges (columns).
export function cutBox(toVoxel, centre, axes, w, at) {
  const corners = [];
  for (let n = 0; n < 8; n++) {
    const s = [n & 1 ? 1 : -1, n & 2 ? 1 : -1, n & 4 ? 1 : -1];
    corners.push(apply(toVoxel, [0, 1, 2].map((r) => centre[r] + axes[r][0] * s[0] + axes[r][1] * s[1] + axes[r][2] * s[2])));
  }
  const cut = [];
  for (let n = 0; n < 8; n++)
    for (const bit of [1, 2, 4]) {
      if (n & bit) continue;
      const a = corners[n], b = corners[n | bit];
      const da = a[w] - at, db = b[w] - at;
      if (da === 0) cut.push(a);
      if (da * db < 0) cut.push([0, 1, 2].map((k) => a[k] + ((b[k] - a[k]) * da) / (da - db)));
    }
  if (cut.length < 3) return [];
  const [u, v] = [0, 1, 2].filter((k) => k !== w);
  const mu = cut.reduce((s, p) => s + p[u], 0) / cut.length, mv = cut.reduce((s, p) => s + p[v], 0) / cut.length;
  return cut.sort((a, b) => Math.atan2(a[v] - mv, a[u] - mu) - Math.atan2(b[v] - mv, b[u] - mu));
}

// The atlas lies in its own coordinates.
export class AtlasMap {
  constructor(unit) {
    this.unit = unit;
    this.spacing = unit.map((v) => v / 64);
    this.inverse = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]];
  }

  at(place) {
    const c = place.map((v, a) => v / this.unit[a]);
    return c.every((v) => Math.abs(v) <= 1.0001) ? c : null;
  }

  find(c) {
    const found = c.every((v) => Math.abs(v) <= 1.0001);
    return { place: c.map((v, a) => Math.min(1, Math.max(-1, v)) * this.unit[a]), found, miss: 0 };
  }

  // As the maps of exams, for places instead of voxels.
  flag(place) {
    return this.at(place) ? 3 : 0;
  }

  sample(place, out) {
    for (let a = 0; a < 3; a++) out[a] = place[a] / this.unit[a];
    return out;
  }
}
