// Layers of class indices: fetched once as numbers, coloured here, so that no change of colours needs a new tile.

const TILE = 512, APRON = 1, KEPT = 600; // tiles of indices, a quarter of a megabyte each

const viridis = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];

export function confidenceColors() { // 1 to 255; 0 is where no network decided
  return Array.from({ length: 255 }, (_, n) => {
    const at = (n + 1) / 255 * (viridis.length - 1), low = Math.min(Math.floor(at), viridis.length - 2);
    return [n + 1, viridis[low].map((c, k) => Math.round(c + (at - low) * (viridis[low + 1][k] - c)))];
  });
}

// Of tiles that are painted: colour (RGBA) of each value, and whether only borders between classes are drawn.
export class Paint {
  constructor() {
    this.colors = new Uint32Array(256);
    this.outline = false;
  }

  set(values) { // [[index, [r, g, b]], ...]; all others are transparent
    this.colors.fill(0);
    for (const [index, [r, g, b]] of values) this.colors[index] = (255 << 24) | (b << 16) | (g << 8) | r;
  }

  draw(indices, context) {
    const image = context.createImageData(TILE, TILE), out = new Uint32Array(image.data.buffer);
    const side = TILE + APRON;
    for (let y = 0, to = 0; y < TILE; y++) {
      for (let x = 0, from = y * side; x < TILE; x++, from++, to++) {
        const value = indices[from];
        if (!this.outline) { out[to] = this.colors[value]; continue; }
        const right = indices[from + 1], below = indices[from + side];
        if (value !== right || value !== below) out[to] = this.colors[value] || this.colors[right] || this.colors[below];
      }
    }
    context.putImageData(image, 0, 0);
  }
}

// Grid of a case: whole tiles at every level, so that a pixel of any level lies where those that it stands for lie.
export function grid(facts) {
  const step = 2 ** facts.levels, up = n => Math.ceil(n / step) * step;
  return { width: up(facts.width), height: up(facts.height), tileSize: TILE, minLevel: 0, maxLevel: facts.levels };
}

const address = (facts, layer, level, x, y) =>
  `tiles/${layer}/${facts.levels - level}/${y}/${x}/${encodeURIComponent(facts.name)}`;

export function imageSource(facts) {
  return { ...grid(facts), getTileUrl: (level, x, y) => address(facts, 'image', level, x, y) };
}

async function indicesOf(url, signal) {
  const answer = await fetch(url, { signal });
  if (!answer.ok) throw new Error(await answer.text());
  const options = { colorSpaceConversion: 'none', premultiplyAlpha: 'none' };
  const bitmap = await createImageBitmap(await answer.blob(), options);
  const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext('2d', { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const { data } = context.getImageData(0, 0, bitmap.width, bitmap.height);
  return Uint8Array.from({ length: data.length / 4 }, (_, n) => data[4 * n]);
}

// A tile source whose tiles are painted; `failed` is told why one could not be had.
export function indexSource(facts, layer, paint, failed) {
  const kept = new Map();
  return {
    ...grid(facts),
    getTileUrl: (level, x, y) => address(facts, layer, level, x, y),
    getTileCacheKey: (level, x, y) => `${layer} ${facts.name} ${level} ${x} ${y}`,
    hasTransparency: () => true,
    downloadTileStart(job) {
      const stop = new AbortController();
      job.userData.stop = stop;
      (kept.has(job.src) ? Promise.resolve(kept.get(job.src)) : indicesOf(job.src, stop.signal)).then(indices => {
        kept.delete(job.src);
        kept.set(job.src, indices); // the newest last
        if (kept.size > KEPT) kept.delete(kept.keys().next().value);
        const canvas = document.createElement('canvas');
        canvas.width = canvas.height = TILE;
        const context = canvas.getContext('2d');
        paint.draw(indices, context);
        job.finish(context, null, 'context2d');
      }).catch(error => {
        if (error.name !== 'AbortError') failed(error.message);
        job.fail(error.message, null);
      });
    },
    downloadTileAbort(job) { job.userData.stop.abort(); },
    // Painted again with what is here already: called for each tile after the colours have changed.
    async repaint(tile, context) {
      paint.draw(kept.get(tile.getUrl()) ?? await indicesOf(tile.getUrl()), context);
    },
  };
}
