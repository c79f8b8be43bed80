// What the page asks of its server. Every answer that is not good becomes an Error with one line for the reader.

const GONE = "deepatlas view has ended, or cannot be reached; start it again and open the address that it prints";

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", redirect: "error", ...options });
  } catch {
    const error = new Error(GONE);
    error.gone = true;
    throw error;
  }
  if (!response.ok) {
    let line = `the server answered ${response.status}`;
    try {
      line = (await response.json()).error || line;
    } catch {
      // It was no answer of this server's own.
    }
    throw new Error(line);
  }
  return response;
}

export const get = async (path) => (await ask(path)).json();

function posting(data) {
  return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(data) };
}

export const post = async (path, data) => (await ask(path, posting(data))).json();

const TYPES = {
  int16: Int16Array, uint8: Uint8Array, uint16: Uint16Array, int32: Int32Array, float32: Float32Array,
  // Decoded by `halves`: few browsers have half-precision arrays.
  float16: Uint16Array,
};

// A body of view/pack.py: its header, with the arrays in `arrays` in place of where they are.
export function unpack(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const arrays = {};
  for (const [name, { dtype, shape, at }] of Object.entries(header.arrays)) {
    const count = shape.reduce((a, b) => a * b, 1);
    const array = new TYPES[dtype](buffer, 4 + length + at, count);
    arrays[name] = dtype === "float16" ? halves(array) : array;
  }
  return { ...header, arrays };
}

export const packed = async (path) => unpack(await (await ask(path)).arrayBuffer());

let table = null;

// Half-precision numbers, given as their bits, as float32.
export function halves(bits) {
  if (!table) {
    table = new Float32Array(65536);
    for (let i = 0; i < 65536; i++) {
      const exponent = (i >> 10) & 31;
      const fraction = i & 1023;
      const sign = i & 0x8000 ? -1 : 1;
      if (exponent === 0) table[i] = sign * 2 ** -24 * fraction;
      else if (exponent === 31) table[i] = fraction ? NaN : sign * Infinity;
      else table[i] = sign * 2 ** (exponent - 15) * (1 + fraction / 1024);
    }
  }
  const out = new Float32Array(bits.length);
  for (let i = 0; i < out.length; i++) out[i] = table[bits[i]];
  return out;
}

// Let the browser keep a file of results; its name, and what has to be said about it.
export async function download(data) {
  const response = await ask("/api/download", posting(data));
  const name = /filename="([^"]+)"/.exec(response.headers.get("Content-Disposition") || "")?.[1] || "result";
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await response.blob());
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  return { name, note: decodeURIComponent(response.headers.get("X-DeepATLAS-Note") || "") };
}

// One bit a voxel, the highest first, as NumPy packs them, in base64.
export function bitsOf(text, count) {
  const bytes = atob(text);
  const out = new Uint8Array(count);
  for (let i = 0; i < count; i++) out[i] = (bytes.charCodeAt(i >> 3) >> (7 - (i & 7))) & 1;
  return out;
}

export function textOf(bits) {
  const bytes = new Uint8Array(Math.ceil(bits.length / 8));
  for (let i = 0; i < bits.length; i++) if (bits[i]) bytes[i >> 3] |= 128 >> (i & 7);
  let text = "";
  for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
  return btoa(text);
}

export function unpackBits(packedBits, count) {
  const out = new Uint8Array(count);
  for (let i = 0; i < count; i++) out[i] = (packedBits[i >> 3] >> (7 - (i & 7))) & 1;
  return out;
}
