// Review of a slide: a verdict with a comment, and polygons of what the mask should have been.
// Every change is sent at once; what could not be stored is kept, shown and sent again.

const OSD = window.OpenSeadragon;
const SVG = 'http://www.w3.org/2000/svg';
const STEP = 3, RETRY = 3000; // screen pixels between corners of a line drawn by hand; ms
const $ = id => document.getElementById(id);
// A UUID (RFC 9562, version 4); browsers make one themselves only on pages of this machine or over https.
function id() {
  if (crypto.randomUUID) return crypto.randomUUID();
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = 0x40 | bytes[6] & 0x0f;
  bytes[8] = 0x80 | bytes[8] & 0x3f;
  const text = [...bytes].map(byte => byte.toString(16).padStart(2, '0')).join('');
  return [[0, 8], [8, 12], [12, 16], [16, 20], [20, 32]].map(([from, to]) => text.slice(from, to)).join('-');
}
const polygonsOf = geometry => geometry.type === 'Polygon' ? [geometry.coordinates] : geometry.coordinates;
const version = feature => feature?.properties.wsiseg.version ?? 0;

export class ReviewPanel {
  // `view` is the SlideView that is drawn over, `told` is called with a case's verdicts after each change.
  constructor(view, { told }) {
    Object.assign(this, { view, told, layers: {}, damaged: {}, hidden: new Set(), waiting: [], done: [], undone: [], selected: null, drawing: false, corners: [] });
    this.svg = document.createElementNS(SVG, 'svg');
    this.svg.id = 'drawing';
    view.osd.canvas.append(this.svg);
    for (const name of ['update-viewport', 'resize', 'open']) view.osd.addHandler(name, () => this.place());
    view.osd.addHandler('canvas-click', event => { if (event.quick && !this.drawing) this.pick(event.position); });
    for (const kind of ['down', 'move', 'up']) this.svg.addEventListener(`pointer${kind}`, event => this.pointer(kind, event));
    this.svg.addEventListener('dblclick', () => this.close());
    $('initials').value = localStorage.getItem('wsiseg-initials') ?? '';
    $('initials').onchange = () => { localStorage.setItem('wsiseg-initials', this.initials); this.reset(); this.show(); };
    for (const radio of document.getElementsByName('verdict')) radio.onchange = () => this.say();
    $('comment').onchange = () => this.say();
    $('draw').onclick = () => this.draw(!this.drawing);
    $('delete').onclick = () => this.remove();
    $('undo').onclick = () => this.back(this.done, this.undone);
    $('redo').onclick = () => this.back(this.undone, this.done);
    $('as-class').onchange = () => this.reclass();
    document.addEventListener('keydown', event => this.key(event), true);
    window.addEventListener('focus', () => { if (this.facts && !this.waiting.length) this.load(); });
    window.addEventListener('beforeunload', event => { if (this.waiting.length || this.corners.length) event.preventDefault(); });
  }

  get initials() { return $('initials').value.trim().toUpperCase(); }
  get own() { return this.layers[this.initials] ?? { wsiseg: { verdict: 'open', comment: '', version: 0 }, features: [] }; }
  set own(layer) { this.layers[this.initials] = layer; }
  find(name) { return this.own.features.find(one => one.id === name); }
  url(...parts) { return ['api/review', ...[this.facts.name, ...parts].map(encodeURIComponent)].join('/'); }

  async open(facts) {
    this.facts = facts;
    this.reset();
    this.hidden.clear();
    $('as-class').replaceChildren(...facts.classes.map(one => new Option(one.name, one.index)));
    $('as-class').value = facts.classes.find(one => one.name !== 'background')?.index ?? 0;
    for (const element of $('review').querySelectorAll('input, textarea, button, select')) element.disabled = facts.read_only;
    this.state(facts.read_only ? 'the viewer was started with --read-only' : '');
    await this.load();
  }

  // Another case is shown, which has no reviews. (`close` closes the polygon that is drawn.)
  leave() {
    if (!this.facts) return;
    this.reset();
    Object.assign(this, { layers: {}, facts: null });
    this.svg.replaceChildren();
  }

  reset() {
    this.draw(false);
    Object.assign(this, { done: [], undone: [], selected: null });
  }

  async load() {
    const answer = await fetch(this.url());
    if (!answer.ok) { this.state(await answer.text(), true); return; }
    const found = Object.entries(await answer.json());
    this.layers = Object.fromEntries(found.filter(([, layer]) => !layer.error));
    this.damaged = Object.fromEntries(found.filter(([, layer]) => layer.error).map(([initials, { error }]) => [initials, error]));
    this.show();
    if (found.some(([, layer]) => layer.error)) this.state(Object.values(this.damaged).join('\n'), true);
  }

  // Changes: shown at once as they will be stored, then sent.

  known() {
    if (this.initials) return true;
    this.state('first say who you are: your initials', true);
    $('initials').focus();
    return false;
  }

  say() {
    if (!this.known()) return;
    const { wsiseg, features } = this.own, verdict = document.querySelector('input[name=verdict]:checked')?.value ?? 'open';
    const said = { verdict, comment: $('comment').value };
    this.own = { wsiseg: { ...wsiseg, ...said, version: wsiseg.version + 1 }, features };
    this.send('PUT', [], { ...said, version: wsiseg.version });
  }

  // A polygon to be there with a class, or (polygons null) not to be there. Returns the change that undoes it.
  put({ name, polygons, index }) {
    const known = this.find(name), others = this.own.features.filter(one => one.id !== name);
    const before = { name, polygons: known ? polygonsOf(known.geometry) : null, index: this.indexOf(known) };
    if (polygons) {
      const { name: title, color } = this.facts.classes.find(one => one.index === index);
      const made = {
        id: name, geometry: { type: 'MultiPolygon', coordinates: polygons },
        properties: { classification: { name: title, color }, wsiseg: { version: version(known) + 1 } },
      };
      this.own = { ...this.own, features: known ? this.own.features.map(one => one === known ? made : one) : [...others, made] };
      this.send('PUT', [name], { polygons, index, version: version(known) });
    } else if (known) {
      this.own = { ...this.own, features: others };
      this.send('DELETE', [name], null, `?version=${version(known)}`);
    }
    return before;
  }

  change(wanted) {
    if (!this.known()) return false;
    this.done.push(this.put(wanted));
    this.undone = [];
    return true;
  }

  back(from, to) {
    if (from.length) to.push(this.put(from.pop()));
  }

  remove() {
    if (this.selected && this.change({ name: this.selected, polygons: null })) this.selected = null;
  }

  reclass() {
    const found = this.find(this.selected);
    if (found) this.change({ name: found.id, polygons: polygonsOf(found.geometry), index: Number($('as-class').value) });
  }

  indexOf(feature) {
    return this.facts.classes.find(one => one.name === feature?.properties.classification.name)?.index ?? 0;
  }

  send(method, parts, body, query = '') {
    this.show();
    this.waiting.push({ method, address: this.url(this.initials, ...parts) + query, initials: this.initials, body: body && JSON.stringify(body) });
    this.flush();
  }

  // One after the other, in order; `sending` is for whoever wants to wait.
  flush() { this.sending ??= this.sendAll().finally(() => { this.sending = null; }); return this.sending; }

  async sendAll() {
    while (this.waiting.length) {
      const { method, address, initials, body } = this.waiting[0];
      this.state('saving ...');
      let answer;
      try {
        answer = await fetch(address, { method, body, headers: body ? { 'Content-Type': 'application/json' } : {} });
      } catch {
        this.state('not saved: the viewer does not answer; it is tried again', true);
        setTimeout(() => this.flush(), RETRY);
        return;
      }
      this.waiting.shift();
      if (answer.ok) {
        const layer = await answer.json();
        if (!this.waiting.length) this.layers[initials] = layer; // else it lacks what is on its way
        this.state('saved');
      } else {
        const said = await answer.text();
        // Later changes were made of what is not there.
        this.waiting = [];
        Object.assign(this, { done: [], undone: [] });
        await this.load();
        this.state(answer.status === 409 ? `not saved: ${said}; shown is what is stored now` : `not saved: ${said}`, true);
      }
      this.show();
    }
  }

  state(text, bad = false) {
    $('review-state').textContent = text;
    $('review-state').classList.toggle('bad', bad);
    if (bad) $('review-state').scrollIntoView({ block: 'nearest' });
  }

  // What is shown

  show() {
    const { verdict, comment } = this.own.wsiseg;
    for (const radio of document.getElementsByName('verdict')) radio.checked = radio.value === verdict;
    if (document.activeElement !== $('comment')) $('comment').value = comment;
    $('reviewers').replaceChildren(...Object.entries(this.layers).map(([initials, layer]) => {
      const box = Object.assign(document.createElement('input'), { type: 'checkbox', checked: !this.hidden.has(initials) });
      box.onchange = () => { box.checked ? this.hidden.delete(initials) : this.hidden.add(initials); this.paint(); };
      const label = Object.assign(document.createElement('label'), { className: 'row' });
      label.append(box, `${initials}: ${layer.wsiseg.verdict}, ${layer.features.length} drawn`);
      return label;
    }));
    this.told(Object.fromEntries([...Object.entries(this.layers), ...Object.keys(this.damaged).map(who => [who, null])].map(([initials, layer]) => [initials, layer?.wsiseg.verdict ?? 'cannot be read'])));
    this.paint();
  }

  paint() {
    const draw = (d, color, more) => {
      const path = document.createElementNS(SVG, 'path');
      for (const [name, value] of Object.entries({ d, stroke: color, fill: color, 'fill-rule': 'evenodd', ...more })) path.setAttribute(name, value);
      return path;
    };
    const shapes = [];
    for (const [initials, layer] of Object.entries(this.layers)) {
      if (this.hidden.has(initials)) continue;
      for (const one of layer.features) {
        const rings = polygonsOf(one.geometry).flat();
        const shape = draw(rings.map(ring => `M${ring.join('L')}Z`).join(''), `rgb(${one.properties.classification.color})`, { 'data-id': one.id });
        if (initials !== this.initials) shape.setAttribute('stroke-dasharray', '6 4');
        if (one.id === this.selected) shape.classList.add('selected');
        shapes.push(shape);
      }
    }
    if (this.corners.length) shapes.push(draw(`M${this.corners.join('L')}`, '#000', { fill: 'none' }));
    this.group = document.createElementNS(SVG, 'g');
    this.group.append(...shapes);
    this.svg.replaceChildren(this.group);
    $('delete').disabled = !this.selected;
    this.place();
  }

  // Level-0 pixels to screen pixels.
  place() {
    const item = this.view.items.mask;
    if (!item || !this.group) return;
    const origin = item.imageToViewerElementCoordinates(new OSD.Point(0, 0)), one = item.imageToViewerElementCoordinates(new OSD.Point(1000, 0));
    this.group.setAttribute('transform', `translate(${origin.x} ${origin.y}) scale(${(one.x - origin.x) / 1000})`);
  }

  at(position) {
    const { x, y } = this.view.items.mask.viewerElementToImageCoordinates(position);
    const inside = (value, most) => Math.round(10 * Math.min(most, Math.max(0, value))) / 10;
    return [inside(x, this.facts.width), inside(y, this.facts.height)];
  }

  pick(position) {
    const [x, y] = this.at(position);
    const found = [...this.group.children].reverse().find(shape => this.find(shape.dataset.id) && shape.isPointInFill(new DOMPoint(x, y)));
    this.selected = found?.dataset.id ?? null;
    if (found) $('as-class').value = this.indexOf(this.find(this.selected));
    this.paint();
  }

  // Drawing: a click adds a corner, a line drawn by hand is closed when it is let go of.

  draw(on) {
    if (on && !this.known()) return;
    Object.assign(this, { drawing: on, corners: [], held: null });
    this.svg.classList.toggle('active', on);
    $('draw').setAttribute('aria-pressed', on);
    if (on) this.selected = null;
    this.paint();
  }

  pointer(kind, event) {
    if (!this.drawing || event.button > 0) return;
    event.stopPropagation();
    const box = this.svg.getBoundingClientRect(), here = new OSD.Point(event.clientX - box.left, event.clientY - box.top);
    if (kind === 'down') {
      this.svg.setPointerCapture(event.pointerId);
      this.held = { last: here, traced: false };
      this.corners.push(this.at(here));
    } else if (kind === 'move' && this.held && here.distanceTo(this.held.last) >= STEP) {
      this.held = { last: here, traced: true };
      this.corners.push(this.at(here));
    } else if (kind === 'up' && this.held) {
      const { traced } = this.held;
      this.held = null;
      if (traced && this.corners.length > 2) { this.close(); return; }
    }
    this.paint();
  }

  close() {
    const ring = this.corners.filter((corner, n, all) => !n || String(corner) !== String(all[n - 1]));
    if (ring.length < 3) return;
    this.corners = [];
    this.change({ name: id(), polygons: [[ring]], index: Number($('as-class').value) });
    this.paint();
  }

  key(event) {
    if (!this.facts || $('review').hidden || this.facts.read_only || event.target.matches?.('input[type=text], textarea')) return;
    const name = event.key.toLowerCase(), control = event.ctrlKey || event.metaKey;
    const act = control ? { z: () => (event.shiftKey ? $('redo') : $('undo')).click(), y: () => $('redo').click() }[name]
      : { d: () => this.draw(!this.drawing), enter: () => this.close(), delete: () => this.remove(), backspace: () => this.drawing ? this.corners.pop() : this.remove(),
          escape: () => this.corners.length ? this.draw(true) : this.draw(false) }[name];
    if (!act || (name === 'enter' && !this.drawing)) return;
    act();
    this.paint();
    event.preventDefault();
    event.stopPropagation();
  }
}
