// A volume: three slices through one voxel, with its mask upon them, coloured here.

import { Paint, confidenceColors } from './layers.js';

// Slices come as the array has them: later voxels lie further superior (z), anterior (y) and right (x). They are
// shown turned round on both sides, as radiologists look: the patient's right is on the left, the nose up or left.
const PLANES = [
  { name: 'axial', axis: 0, down: 1, across: 2, ends: { left: 'R', right: 'L', top: 'A', bottom: 'P' } },
  { name: 'coronal', axis: 1, down: 0, across: 2, ends: { left: 'R', right: 'L', top: 'S', bottom: 'I' } },
  { name: 'sagittal', axis: 2, down: 0, across: 1, ends: { left: 'A', right: 'P', top: 'S', bottom: 'I' } },
];
const ARRAYS = { uint8: Uint8Array, int16: Int16Array, uint16: Uint16Array, float32: Float32Array };
const KEPT_BYTES = 128 << 20;
const make = (tag, className) => Object.assign(document.createElement(tag), { className });
const within = (value, end) => Math.min(end - 1, Math.max(0, value));

// Slices that were fetched, the newest last.
class Slices {
  constructor() { this.kept = new Map(); this.bytes = 0; }

  async get(facts, layer, axis, index, channel) {
    const address = `slices/${layer}/${axis}/${index}/${channel}/${encodeURIComponent(facts.name)}`;
    let found = this.kept.get(address);
    if (!found) {
      const answer = await fetch(address);
      if (!answer.ok) throw new Error(await answer.text());
      found = new ARRAYS[layer === 'image' ? facts.dtype : 'uint8'](await answer.arrayBuffer());
      if (!this.kept.has(address)) this.bytes += found.byteLength;
    }
    this.kept.delete(address);
    this.kept.set(address, found);
    for (const [old, values] of this.kept) {
      if (this.bytes <= KEPT_BYTES || old === address) break;
      this.kept.delete(old);
      this.bytes -= values.byteLength;
    }
    return found;
  }
}

// One of the three slices: a canvas with a pixel a voxel, which the browser stretches to their size in mm.
class Plane {
  constructor(view, plane) {
    Object.assign(this, plane, { view, busy: false, values: {}, index: -1 });
    this.element = make('div', 'plane');
    this.canvas = make('canvas');
    this.lines = [make('div', 'line'), make('div', 'line')];
    this.title = make('span', 'title');
    this.letters = Object.keys(this.ends).map(side => make('span', `end ${side}`));
    this.element.append(this.canvas, ...this.lines, this.title, ...this.letters);
    this.element.addEventListener('wheel', event => view.wheel(event, this), { passive: false });
    this.element.addEventListener('pointerdown', event => view.press(event, this));
    this.element.addEventListener('pointermove', event => view.hover(event, this));
    this.element.addEventListener('pointerleave', () => view.say(''));
    this.element.addEventListener('contextmenu', event => event.preventDefault());
  }

  open({ shape, affine }) {
    [this.canvas.height, this.canvas.width] = [shape[this.down], shape[this.across]];
    this.values = {};
    this.index = -1;
    Object.values(this.ends).forEach((letter, n) => { this.letters[n].textContent = affine ? letter : ''; });
  }

  // Fetch what the voxel asks for; while one slice is on its way only the last one asked for is next.
  async load() {
    if (this.busy) return;
    this.busy = true;
    try {
      for (let wanted = this.wanted(); wanted.key !== this.key; wanted = this.wanted()) {
        const { facts, index, channel, key } = wanted;
        const get = layer => this.view.slices.get(facts, layer, this.axis, index, layer === 'image' ? channel : 0);
        const values = await Promise.all(facts.layers.map(get));
        if (facts !== this.view.facts) continue; // another case is open
        Object.assign(this, { key, index, values: Object.fromEntries(facts.layers.map((name, n) => [name, values[n]])) });
        this.draw();
        this.view.tell();
      }
    } catch (error) {
      this.view.failed(error.message);
    } finally {
      this.busy = false;
    }
  }

  wanted() {
    const { facts, voxel, channel } = this.view, index = voxel[this.axis];
    return { facts, index, channel, key: `${facts.name} ${index} ${channel}` };
  }

  draw() {
    const { width, height } = this.canvas, { window: [low, high], state } = this.view, { image, mask } = this.values;
    if (!mask) return;
    const marks = state.shown ? this.values[state.layer] ?? mask : null, { colors, outline } = this.view.paints[state.layer];
    const context = this.canvas.getContext('2d'), picture = context.createImageData(width, height), out = picture.data;
    const factor = 255 / Math.max(high - low, 1e-9), weight = state.opacity;
    for (let y = 0, from = 0, to = 4 * (width * height - 1); y < height; y++) {
      for (let x = 0; x < width; x++, from++, to -= 4) { // from the last voxel to the first: turned round
        const grey = image ? Math.min(255, Math.max(0, (image[from] - low) * factor)) : 0;
        let color = marks ? colors[marks[from]] : 0;
        if (marks && outline) {
          const value = marks[from], right = x + 1 < width ? marks[from + 1] : value, below = y + 1 < height ? marks[from + width] : value;
          color = value !== right || value !== below ? color || colors[right] || colors[below] : 0;
        }
        const share = color ? weight : 0;
        out[to] = grey + share * ((color & 255) - grey);
        out[to + 1] = grey + share * ((color >> 8 & 255) - grey);
        out[to + 2] = grey + share * ((color >> 16 & 255) - grey);
        out[to + 3] = 255;
      }
    }
    context.putImageData(picture, 0, 0);
  }

  // Where everything is in the element: after a change of the voxel, the zoom or the window.
  place() {
    const { facts, voxel, middle, scale, crosshair } = this.view, { clientWidth, clientHeight } = this.element;
    const at = (axis, voxels, size) => size / 2 + (middle[axis] - voxels * facts.mm[axis]) * scale;
    const [width, height] = [this.across, this.down].map(axis => facts.shape[axis] * facts.mm[axis] * scale);
    const left = at(this.across, facts.shape[this.across], clientWidth), top = at(this.down, facts.shape[this.down], clientHeight);
    Object.assign(this.canvas.style, { left: `${left}px`, top: `${top}px`, width: `${width}px`, height: `${height}px` });
    const [vertical, horizontal] = this.lines;
    vertical.style.left = `${at(this.across, voxel[this.across] + 0.5, clientWidth)}px`;
    horizontal.style.top = `${at(this.down, voxel[this.down] + 0.5, clientHeight)}px`;
    for (const line of this.lines) line.hidden = !crosshair;
    this.title.textContent = `${this.name} ${voxel[this.axis] + 1} of ${facts.shape[this.axis]}`;
  }

  // The voxel [z, y, x] under a pointer, on the slice that is shown.
  under(event) {
    const box = this.element.getBoundingClientRect(), { middle, scale, facts, voxel } = this.view, found = [...voxel];
    found[this.across] = Math.floor((middle[this.across] - (event.clientX - box.left - box.width / 2) / scale) / facts.mm[this.across]);
    found[this.down] = Math.floor((middle[this.down] - (event.clientY - box.top - box.height / 2) / scale) / facts.mm[this.down]);
    return found;
  }
}

export class VolumeView {
  constructor(element, { message, cursor, grey }) {
    Object.assign(this, { element, message, cursor, grey, slices: new Slices() });
    this.paints = { mask: new Paint(), confidence: new Paint(), truth: new Paint() };
    this.paints.confidence.set(confidenceColors());
    this.state = { layer: 'mask', opacity: 0.45, shown: true };
    Object.assign(this, { window: [0, 1], channel: 0, zoomed: 1, crosshair: true });
    this.planes = PLANES.map(plane => new Plane(this, plane));
    this.active = this.planes[0];
    this.here = make('div', 'here');
    element.append(...this.planes.map(plane => plane.element), this.here);
    new ResizeObserver(() => this.follow()).observe(element);
    grey.channel.onchange = () => this.choose(Number(grey.channel.value));
    grey.level.oninput = grey.width.oninput = () => this.contrast(Number(grey.level.value), Number(grey.width.value));
    grey.reset.onclick = () => this.choose(this.channel);
    grey.cross.onchange = () => { this.crosshair = grey.cross.checked; this.follow(); };
  }

  async open(facts) {
    Object.assign(this, { facts, voxel: [...facts.start], channel: 0 });
    this.message.hidden = true;
    this.failed = text => { this.message.textContent = text; this.message.hidden = false; };
    if (!facts.layers.includes('image')) this.failed('This result has no stored image: start the viewer with --images and the folder of the scans to see them.');
    this.grey.channel.replaceChildren(...facts.channels.map(({ name }, value) => Object.assign(document.createElement('option'), { textContent: name, value })));
    this.grey.channel.parentElement.hidden = facts.channels.length < 2;
    this.grey.box.hidden = !facts.channels.length;
    for (const plane of this.planes) plane.open(facts);
    this.choose(0);
    this.home();
    await this.load();
  }

  load() { return Promise.all(this.planes.map(plane => plane.load())); }

  redraw() { for (const plane of this.planes) plane.draw(); }

  // A channel of the image, with the window that is usual for it.
  choose(channel) {
    this.channel = channel;
    this.grey.channel.value = channel;
    const [low, high] = this.facts.channels[channel]?.window ?? [0, 1];
    this.contrast((low + high) / 2, high - low);
    this.load();
  }

  // Grey values as radiologists set them: what is mid-grey, and how much lies between black and white.
  contrast(level, width) {
    if (!Number.isFinite(level) || !(width > 0)) return;
    this.window = [level - width / 2, level + width / 2];
    for (const [input, value] of [[this.grey.level, level], [this.grey.width, width]])
      if (document.activeElement !== input) input.value = Number(value.toPrecision(4));
    this.redraw();
  }

  recolor(values, outline) {
    for (const name of ['mask', 'truth']) Object.assign(this.paints[name], { outline }).set(values);
    this.redraw();
  }

  update(change = {}) {
    Object.assign(this.state, change);
    this.redraw();
  }

  home() {
    this.zoomed = 1;
    this.middle = this.facts.shape.map((n, axis) => n * this.facts.mm[axis] / 2);
    this.follow();
  }

  zoom(factor) {
    const next = Math.min(64, Math.max(0.5, this.zoomed * factor)), by = next / this.zoomed;
    // The voxel of the crosshair stays where it is on the screen.
    this.middle = this.middle.map((mm, axis) => { const at = (this.voxel[axis] + 0.5) * this.facts.mm[axis]; return at + (mm - at) / by; });
    this.zoomed = next;
    this.follow();
  }

  // One scale for all three, so that what is as long looks as long.
  follow() {
    if (!this.facts) return;
    const fits = this.planes.flatMap(({ element, down, across }) => [[element.clientWidth, across], [element.clientHeight, down]])
      .map(([pixels, axis]) => pixels / (this.facts.shape[axis] * this.facts.mm[axis]));
    this.scale = 0.96 * this.zoomed * Math.min(...fits);
    for (const plane of this.planes) plane.place();
  }

  // Move the crosshair to a voxel; the views follow where it would not be seen.
  go({ z, y, x }) {
    this.voxel = [z, y, x].map((value, axis) => within(value, this.facts.shape[axis]));
    const { clientWidth, clientHeight } = this.element, seen = Math.min(clientWidth, clientHeight) / 4.5 / this.scale;
    this.middle = this.middle.map((mm, axis) => {
      const at = (this.voxel[axis] + 0.5) * this.facts.mm[axis];
      return this.zoomed > 1 && Math.abs(at - mm) > seen ? at : mm;
    });
    this.follow();
    this.tell();
    return this.load();
  }

  scroll(by, plane = this.active) {
    const [z, y, x] = this.voxel.map((value, axis) => value + (axis === plane.axis ? by : 0));
    return this.go({ z, y, x });
  }

  wheel(event, plane) {
    event.preventDefault();
    this.active = plane;
    if (event.ctrlKey) this.zoom(event.deltaY < 0 ? 1.25 : 0.8);
    else this.scroll(event.deltaY < 0 ? 1 : -1, plane);
    this.hover(event, plane);
  }

  // Left: the crosshair. Right: grey values. With Shift, or the wheel's button: the picture itself.
  press(event, plane) {
    event.preventDefault();
    this.active = plane;
    plane.element.setPointerCapture(event.pointerId);
    const [low, high] = this.window, start = { x: event.clientX, y: event.clientY, middle: [...this.middle] };
    const move = moved => {
      const dx = moved.clientX - start.x, dy = moved.clientY - start.y;
      if (event.button === 2) this.contrast((low + high) / 2 + dy * (high - low) / 300, (high - low) * Math.exp(dx / 200));
      else if (event.button === 1 || event.shiftKey) {
        this.middle[plane.across] = start.middle[plane.across] + dx / this.scale;
        this.middle[plane.down] = start.middle[plane.down] + dy / this.scale;
        this.follow();
      } else {
        const [z, y, x] = plane.under(moved);
        this.go({ z, y, x });
      }
    };
    plane.element.addEventListener('pointermove', move);
    for (const end of ['pointerup', 'pointercancel'])
      plane.element.addEventListener(end, () => plane.element.removeEventListener('pointermove', move), { once: true });
    if (event.button === 0 && !event.shiftKey) move(event);
  }

  say(text) { this.cursor.textContent = text; }

  hover(event, plane) {
    if (!this.facts || plane.index < 0) return;
    this.active = plane;
    const voxel = plane.under(event), { shape } = this.facts;
    voxel[plane.axis] = plane.index;
    if (voxel.some((value, axis) => value < 0 || value >= shape[axis])) { this.say(''); return; }
    this.say(this.told(voxel, plane.values, voxel[plane.down] * shape[plane.across] + voxel[plane.across]));
  }

  // What is under the crosshair, as soon as its slice is there.
  tell() {
    const [axial] = this.planes, [z, y, x] = this.voxel;
    if (axial.index === z) this.here.textContent = this.told(this.voxel, axial.values, y * this.facts.shape[2] + x).replace(' · ', '\n');
  }

  told([z, y, x], { mask, image, confidence, truth }, at) {
    const { classes, affine, mm } = this.facts, called = value => classes.find(one => one.index === value)?.name ?? 'no class';
    const said = [called(mask[at])];
    if (confidence?.[at]) said.push(`${(100 * confidence[at] / 255).toFixed(0)} % sure`);
    if (truth) said.push(`truth ${called(truth[at])}`);
    if (image) said.push(`value ${Number(image[at].toPrecision(6))}`);
    const mm3 = affine ? affine.slice(0, 3).map(row => row[0] * x + row[1] * y + row[2] * z + row[3])
      : [x, y, z].map((n, axis) => (n + 0.5) * mm[2 - axis]);
    const names = affine ? ['R', 'A', 'S'] : ['x', 'y', 'z'];
    return `${said.join(', ')} · ${names.map((name, n) => `${name} ${mm3[n].toFixed(1)}`).join(', ')} mm`;
  }
}
