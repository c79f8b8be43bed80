// What the tests ask the page: its state and its pixels. Nothing is changed by it.
globalThis.T = {
  async moveTo(name, place) {
    const tools = await import('/tools.js');
    tools.moveTo(await T.panel(name), place);
  },
  async frame(name, plane) {
    const r = (await T.panel(name)).views[plane].canvas.getBoundingClientRect();
    return [r.x, r.y, r.right, r.bottom];
  },
  // How many pixels are coloured, and not grey.
  async ink(name, plane) {
    const { data } = await T.pixels(name, plane);
    let n = 0;
    for (let i = 0; i < data.length; i += 4)
      if (Math.max(data[i], data[i + 1], data[i + 2]) - Math.min(data[i], data[i + 1], data[i + 2]) > 25) n++;
    return n;
  },
  // What lies beyond the left or the right edge of the page.
  beyond() {
    return Array.from(document.querySelectorAll('button, select, canvas, input')).filter((e) => {
      const r = e.getBoundingClientRect();
      return r.width && (r.right > innerWidth + 1 || r.left < -1);
    }).map((e) => e.outerHTML);
  },
  async state() { return (await import('/state.js')).state },
  async panel(name) { return (await T.state()).panels.find(p => p.name === name) },
  async ready() {
    const s = await T.state();
    return s.panels.length > 0 && s.panels.every(p => p.failed || (p.known === false && !p.shownAnyway) || p.labels ||
      (p.map && s.model && !s.model.structures.length)) && s.panels.every(p => p.views[Object.keys(p.views)[0]].toScreen || p.failed);
  },
  async drawn() { for (let n = 0; n < 3; n++) await new Promise(r => requestAnimationFrame(r)); return true },
  async screen(name, plane, place) {
    const p = await T.panel(name), g = await import('/geometry.js'), view = p.views[plane];
    const [x, y] = view.toScreen(g.apply(p.inverse, place)), box = view.canvas.getBoundingClientRect();
    return [box.x + x, box.y + y];
  },
  async place(name) { const p = await T.panel(name); return {place: p.place, found: p.found, reason: p.reason} },
  async pixels(name, plane) {
    const { canvas } = (await T.panel(name)).views[plane];
    // A copy, as reading the canvas itself often would make its drawing slow.
    const copy = document.createElement('canvas');
    Object.assign(copy, { width: canvas.width, height: canvas.height });
    const context = copy.getContext('2d', { willReadFrequently: true });
    context.drawImage(canvas, 0, 0);
    const { data, width, height } = context.getImageData(0, 0, copy.width, copy.height);
    return { data, width, height };
  },
  async grey(name, plane) {
    const { data, width, height } = await T.pixels(name, plane);
    let sum = 0;
    for (let n = 0; n < data.length; n += 4) sum += data[n] + data[n + 1] + data[n + 2];
    return sum / (3 * width * height);
  },
  // The middle of the pixels of one colour, in millimetres of the panel.
  async middle(name, plane, [r, g, b]) {
    const { data, width, height } = await T.pixels(name, plane);
    let x = 0, y = 0, n = 0;
    for (let k = 0, i = 0; k < width * height; k++, i += 4)
      if (Math.abs(data[i] - r) + Math.abs(data[i + 1] - g) + Math.abs(data[i + 2] - b) < 24) { x += k % width; y += Math.floor(k / width); n++ }
    const p = await T.panel(name), ratio = width / p.views[plane].width;
    const place = n ? (await import('/geometry.js')).apply(p.affine, p.views[plane].toIndex(x / n / ratio, y / n / ratio)) : null;
    return { count: n, place, x: x / n / width, y: y / n / height };
  },
  async marks() { return (await T.state()).marks.map(m => ({...m, text: ''})) },
  async carried() {
    const s = await T.state();
    return s.marks.length > 0 && s.marks.every(m => s.panels.every(p => p.id === m.exam || !p.map || p.failed || (m.places[p.id] && !m.places[p.id].preview)));
  },
};
true
