// The slide with its layers: opacity, colours, curtain, scale bar, value under the cursor.

import { Paint, confidenceColors, imageSource, indexSource } from './layers.js';

const OSD = window.OpenSeadragon;
const roundLength = um => {
  const power = 10 ** Math.floor(Math.log10(um));
  return [5, 2, 1].map(m => m * power).find(length => length <= um) ?? power;
};

export class SlideView {
  constructor(element, { message, cursor, scale, curtain }) {
    Object.assign(this, { message, cursor, scale, curtain });
    this.paints = { mask: new Paint(), confidence: new Paint(), truth: new Paint() };
    this.paints.confidence.set(confidenceColors());
    this.state = { layer: 'mask', opacity: 0.45, shown: true, curtain: null };
    this.items = {};
    this.osd = OSD({
      element, drawer: 'canvas', prefixUrl: '', showNavigationControl: false, showNavigator: true, navigatorAutoFade: false, navigatorPosition: 'TOP_RIGHT',
      maxZoomPixelRatio: 16, visibilityRatio: 0.3, animationTime: 0.3, imageSmoothingEnabled: false, crossOriginPolicy: false,
      gestureSettingsMouse: { clickToZoom: false }, preserveImageSizeOnResize: true,
    });
    this.osd.addHandler('tile-invalidated', event => this.repaint(event));
    for (const name of ['update-viewport', 'resize', 'open']) this.osd.addHandler(name, () => this.follow());
    new OSD.MouseTracker({ element, moveHandler: event => this.hover(event.position), leaveHandler: () => this.say('') });
    curtain.addEventListener('pointerdown', event => this.drag(event));
  }

  async open(facts) {
    this.facts = facts;
    this.osd.world.removeAll();
    this.items = {};
    this.message.hidden = true;
    const failed = text => { this.message.textContent = text; this.message.hidden = false; };
    const clip = new OSD.Rect(0, 0, facts.width, facts.height);
    const add = (name, tileSource) => new Promise((success, error) => this.osd.addTiledImage({
      tileSource, clip, opacity: 0, error,
      success: ({ item }) => { this.items[name] = item; success(item); },
    }));
    if (facts.layers.includes('image')) (await add('image', imageSource(facts))).setOpacity(1);
    else failed('This result has no stored image: start the viewer with --images and the folder of the slides to see them.');
    for (const name of ['mask', 'truth', 'confidence'])
      if (facts.layers.includes(name)) await add(name, indexSource(facts, name, this.paints[name], failed));
    this.home(true);
    this.update();
  }

  async repaint(event) {
    const source = event.tiledImage.source;
    if (!source.repaint) return;
    const context = await event.getData('context2d');
    if (!context) return;
    await source.repaint(event.tile, context);
    await event.setData(context, 'context2d');
  }

  // After colours or classes have changed.
  async recolor(values, outline) {
    for (const name of ['mask', 'truth']) this.paints[name].set(values);
    for (const paint of Object.values(this.paints)) paint.outline = outline;
    this.paints.confidence.outline = false;
    await this.osd.requestInvalidate(true);
  }

  update(change = {}) {
    Object.assign(this.state, change);
    const { layer, opacity, shown, curtain } = this.state;
    for (const [name, item] of Object.entries(this.items)) {
      if (name === 'image') continue;
      const beside = curtain !== null && name === 'truth';
      item.setOpacity(shown && (name === layer || beside) ? opacity : 0);
    }
    this.curtain.hidden = curtain === null;
    this.follow();
  }

  // What depends on where the view is: the curtain's clips and the scale bar.
  follow() {
    const item = this.items.mask;
    if (!item) return;
    const { width, height } = this.facts, size = this.osd.viewport.getContainerSize();
    const left = this.state.curtain === null ? null
      : Math.min(width, Math.max(0, item.viewerElementToImageCoordinates(new OSD.Point(this.state.curtain * size.x, 0)).x));
    if (left !== this.left) {
      this.left = left;
      for (const [name, one] of Object.entries(this.items)) {
        if (name === 'image') continue;
        const [from, to] = left === null ? [0, width] : name === 'truth' ? [left, width] : [0, left];
        one.setClip(new OSD.Rect(from, 0, to - from, height));
      }
    }
    this.curtain.style.left = `${(this.state.curtain ?? 0) * 100}%`;
    const perPixel = this.facts.um[1] / item.viewportToImageZoom(this.osd.viewport.getZoom(true)), length = roundLength(perPixel * size.x / 5);
    this.scale.querySelector('span').textContent = length >= 1000 ? `${length / 1000} mm` : `${length} µm`;
    this.scale.querySelector('div').style.width = `${length / perPixel}px`;
  }

  home(now = false) { this.go({ x: 0, y: 0, width: this.facts.width, height: this.facts.height }, now); }

  // Show a rectangle in level-0 pixels.
  go({ x, y, width, height }, now = false) {
    this.osd.viewport.fitBounds(this.items.mask.imageToViewportRectangle(new OSD.Rect(x, y, width, height)), now);
  }

  zoom(factor) { this.osd.viewport.zoomBy(factor); }

  drag(event) {
    event.preventDefault();
    this.curtain.setPointerCapture(event.pointerId);
    const box = this.osd.element.getBoundingClientRect();
    const move = moved => this.update({ curtain: Math.min(1, Math.max(0, (moved.clientX - box.left) / box.width)) });
    this.curtain.addEventListener('pointermove', move);
    this.curtain.addEventListener('pointerup', () => this.curtain.removeEventListener('pointermove', move), { once: true });
  }

  say(text) { this.cursor.textContent = text; }

  hover(position) {
    if (!this.items.mask) return;
    const at = this.items.mask.viewerElementToImageCoordinates(position), { width, height, name } = this.facts;
    const [row, column] = [Math.floor(at.y), Math.floor(at.x)];
    this.asked = `${row} ${column}`;
    if (row < 0 || column < 0 || row >= height || column >= width) { this.say(''); return; }
    clearTimeout(this.waiting);
    const asked = this.asked;
    this.waiting = setTimeout(async () => {
      const found = await (await fetch(`api/at/${encodeURIComponent(name)}?row=${row}&column=${column}`)).json();
      if (asked !== this.asked) return; // the cursor went on
      const sure = found.confidence ? `, ${(100 * found.confidence).toFixed(0)} % sure` : '';
      this.say(`${found.name}${sure} · x ${found.um[1].toFixed(1)} µm, y ${found.um[0].toFixed(1)} µm`);
    }, 50);
  }
}
