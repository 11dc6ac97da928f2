// In a notebook the page cannot reach the server by itself: what it asks for goes to the frame's parent, the widget,
// and from there to the kernel. Put before everything else, this stands in for `fetch` and for addresses of pictures.

{
  const waiting = new Map(), native = window.fetch.bind(window);
  let last = 0;

  window.addEventListener('message', ({ source, data }) => {
    const asked = source === window.parent && waiting.get(data.id);
    if (!asked) return;
    waiting.delete(data.id);
    if (data.failed) asked.reject(new TypeError(data.failed));
    else asked.resolve(new Response(data.status === 204 ? null : data.body, { status: data.status, headers: { 'Content-Type': data.type } }));
  });

  window.fetch = async (address, options = {}) => {
    if (/^(blob|data):/.test(address)) return native(address, options);
    const { method, headers, body } = new Request('http://kernel/', options), sent = body === null ? null : options.body;
    const id = ++last, answer = new Promise((resolve, reject) => {
      waiting.set(id, { resolve, reject });
      options.signal?.addEventListener('abort', () => {
        waiting.delete(id);
        window.parent.postMessage({ id, stop: true }, '*');
        reject(new DOMException('stopped', 'AbortError'));
      });
    });
    window.parent.postMessage({ id, address: String(address), method, headers: [...headers], body: sent }, '*');
    return answer;
  };

  const picture = Object.getOwnPropertyDescriptor(HTMLImageElement.prototype, 'src');
  Object.defineProperty(HTMLImageElement.prototype, 'src', {
    ...picture,
    set(address) {
      if (!address || /^(blob|data):/.test(address)) { picture.set.call(this, address); return; }
      window.fetch(address).then(async answer => {
        const url = answer.ok ? URL.createObjectURL(await answer.blob()) : 'data:,';
        this.addEventListener('load', () => URL.revokeObjectURL(url), { once: true });
        picture.set.call(this, url);
      }).catch(() => this.dispatchEvent(new Event('error')));
    },
  });

  // A frame without an origin has no storage: what a page keeps there lasts as long as the page.
  const kept = new Map();
  Object.defineProperty(window, 'localStorage', {
    value: { getItem: key => kept.get(key) ?? null, setItem: (key, value) => { kept.set(key, String(value)); }, removeItem: key => { kept.delete(key); } },
  });
}
