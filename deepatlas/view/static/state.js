// What is shown, and who wants to know when it changes.

export const PRESETS = [
  { name: "soft tissue", width: 400, level: 40 },
  { name: "lung", width: 1500, level: -600 },
  { name: "bone", width: 1800, level: 400 },
  { name: "brain", width: 80, level: 40 },
  { name: "model", width: 512, level: 0 },
];

export const state = {
  session: null,
  model: null,
  panels: [],
  tool: "move",
  window: { width: 400, level: 40 },
  planes: "all",
  overlay: "none",
  overlayOpacity: 0.5,
  maskOpacity: 0.35,
  outlines: true,
  hidden: new Set(),
  zoom: 1,
  // Where the user is: a panel and a place in its millimetres.
  cursor: null,
  marks: [],
  selected: null,
  brush: { radius: 8, ball: false, erase: false },
  // Changes with whatever changes the pictures of all slices.
  version: 0,
};

const listeners = {};

export function on(event, listener) {
  (listeners[event] ||= []).push(listener);
}

export function emit(event, detail) {
  for (const listener of listeners[event] || []) listener(detail);
}

// Draw every panel again; `fresh` also makes the pictures of the slices again.
export function redraw(fresh = false) {
  if (fresh) state.version++;
  for (const panel of state.panels) panel.invalidate();
}

export function notify(line, { plain = false, key = line } = {}) {
  const box = document.getElementById("notices");
  for (const old of box.children) if (old.dataset.key === key) old.remove();
  const p = document.createElement("p");
  p.dataset.key = key;
  p.className = plain ? "plain" : "";
  p.append(line);
  const close = document.createElement("button");
  close.textContent = "Close";
  close.addEventListener("click", () => p.remove());
  p.append(close);
  box.append(p);
  if (plain) setTimeout(() => p.remove(), 6000);
}

export function element(tag, { text = "", ...properties } = {}, ...children) {
  const made = document.createElement(tag);
  if (text) made.textContent = text;
  Object.assign(made, properties);
  made.append(...children);
  return made;
}
