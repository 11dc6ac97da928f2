// The viewer in the output of a notebook's cell: a frame with the page, whose questions go to the kernel and back.

const FIRST = 6; // questions that are on their way at a time; others wait, and may be taken back until then

async function render({ model, el }) {
  const frame = document.createElement('iframe'), view = crypto.randomUUID(), queue = [];
  let going = 0;
  // Without an origin of its own: the page can do nothing in the notebook but ask.
  frame.setAttribute('sandbox', 'allow-scripts allow-modals allow-downloads');
  Object.assign(frame.style, { width: '100%', boxSizing: 'border-box', border: '1px solid #d6d9de', display: 'block' });

  const next = () => {
    while (queue.length && going < FIRST) {
      const { id, address, method, headers, body } = queue.shift();
      going += 1;
      model.send({ view, id, address, method, headers, body: body === null ? null : String(body) });
    }
  };
  const asked = ({ source, data }) => {
    if (source !== frame.contentWindow) return;
    if (data.stop) {
      const at = queue.findIndex(one => one.id === data.id);
      if (at >= 0) queue.splice(at, 1);
    } else queue.push(data);
    next();
  };
  const answered = (answer, buffers) => {
    if (answer.view !== view) return;
    if (answer.page) {
      frame.style.height = `${answer.height}px`;
      frame.srcdoc = answer.page;
      return;
    }
    going -= 1;
    next();
    const bytes = buffers[0], body = bytes ? new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength).slice().buffer : null;
    frame.contentWindow?.postMessage({ ...answer, body }, '*', body ? [body] : []);
  };
  model.on('msg:custom', answered);
  window.addEventListener('message', asked);
  el.append(frame);
  model.send({ view, open: true });
  return () => {
    model.off('msg:custom', answered);
    window.removeEventListener('message', asked);
  };
}

export default { render };
