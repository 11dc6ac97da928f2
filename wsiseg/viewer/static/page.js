// The page: list of cases, classes, keys.

import { SlideView } from './view.js';
import { VolumeView } from './volume.js';
import { ReviewPanel } from './review.js';

const $ = id => document.getElementById(id);
const ask = async path => {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
};
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const area = mm2 => mm2 === null ? '' : mm2 >= 10 ? mm2.toFixed(0) : mm2 && mm2 < 0.001 ? '< 0.001' : mm2.toFixed(3);
const PLACE = 200; // level-0 pixels, at least, of a place that is looked at
const percent = share => share === null ? '' : `${(100 * share).toFixed(1)}\u00a0%`;

const slides = new SlideView($('slide'), { message: $('message'), cursor: $('cursor'), scale: $('scale'), curtain: $('curtain') });
const volumes = new VolumeView($('volume'), {
  message: $('message'), cursor: $('cursor'),
  grey: { box: $('grey'), channel: $('channel'), level: $('level'), width: $('width'), reset: $('usual'), cross: $('cross') },
});
const reviews = new ReviewPanel(slides, { told: verdicts => { cases[current].verdicts = verdicts; listCases(); } });
let view = slides;
let cases = [], current = -1, facts = null, on = new Set(), place = -1;

function colors() {
  view.recolor(facts.classes.filter(c => on.has(c.index)).map(c => [c.index, c.color]), $('outline').checked);
  for (const box of document.querySelectorAll('#classes input')) box.checked = on.has(Number(box.value));
}

function listCases() {
  $('cases').replaceChildren(...cases.map((one, number) => {
    const name = encodeURIComponent(one.name), layer = one.layers.includes('image') ? 'image' : 'mask';
    const src = one.kind === 'volume' ? `thumbnail/${name}` : `tiles/${layer}/${one.levels}/0/0/${name}`;
    const button = make('button', { onclick: () => show(number) },
      make('img', { src, alt: '', loading: 'lazy' }), make('span', { textContent: one.name }),
      make('small', { textContent: one.mean_iou === null ? 'no truth' : `mean IoU ${one.mean_iou.toFixed(3)}` }),
      make('small', { className: 'verdicts', textContent: Object.entries(one.verdicts ?? {}).map(([who, said]) => `${who}: ${said}`).join(', ') }));
    if (number === current) button.setAttribute('aria-current', 'true');
    return button;
  }));
}

function listClasses() {
  $('classes').tBodies[0].replaceChildren(...facts.classes.map(one => {
    const box = make('input', { type: 'checkbox', value: one.index, ariaLabel: one.name, onchange: () => toggle(one.index) });
    const chip = make('span', { className: 'chip' });
    chip.style.background = `rgb(${one.color})`;
    return make('tr', {}, make('td', {}, box), make('td', {}, chip, one.name), make('td', { textContent: percent(one.share) }),
      make('td', { textContent: area(one.area_mm2 ?? one.volume_ml) }),
      make('td', {}, make('button', { textContent: 'solo', onclick: () => only([one.index]) })));
  }));
}

function listLayers() {
  const names = facts.layers.filter(name => name !== 'image').sort((a, b) => (b === 'mask') - (a === 'mask'));
  $('layers').replaceChildren(make('legend', { textContent: 'Layer' }), ...names.map(name => {
    const radio = make('input', { type: 'radio', name: 'layer', value: name, checked: name === 'mask' });
    radio.onchange = () => view.update({ layer: name });
    return make('label', {}, radio, ` ${name}`);
  }));
  $('curtain-row').hidden = facts.kind === 'volume' || !facts.layers.includes('truth');
  $('unsure-row').hidden = !facts.unsure.length;
}

function only(indices) { on = new Set(indices); colors(); }
function everything() { only(facts.classes.map(c => c.index)); }
function toggle(index) { on.has(index) ? on.delete(index) : on.add(index); colors(); }
function flip(box) { box.checked = !box.checked; box.onchange(); }

function nextUnsure() {
  if (!facts.unsure.length) return;
  place = (place + 1) % facts.unsure.length;
  const found = facts.unsure[place];
  const more = facts.kind === 'volume' ? 0 : Math.max(0, (PLACE - found.width) / 2); // of a small place one sees where it is
  view.go(more ? { x: found.x - more, y: found.y - more, width: found.width + 2 * more, height: found.height + 2 * more } : found);
  $('unsure-at').textContent = `${place + 1} of ${facts.unsure.length}: ${(100 * found.confidence).toFixed(0)} % sure`;
}

async function show(number) {
  try {
    await open(number);
  } catch (error) { // of this case: the others can still be shown
    $('message').textContent = `${cases[current]?.name ?? 'This case'} cannot be shown: ${error.message}`;
    $('message').hidden = false;
    $('title').textContent = $('facts').textContent = '';
    for (const id of ['slide', 'scale', 'volume', 'review']) $(id).hidden = true;
    reviews.leave(); // what is drawn now must not go to the case before
  }
}

async function open(number) {
  current = (number + cases.length) % cases.length;
  listCases();
  facts = await ask(`api/case/${encodeURIComponent(cases[current].name)}`);
  place = -1;
  $('unsure-at').textContent = '';
  $('curtain-on').checked = false;
  $('title').textContent = facts.name;
  const volume = facts.kind === 'volume';
  const size = volume ? `${[...facts.shape].reverse().join(' × ')} voxels of ${[...facts.mm].reverse().join(' × ')} mm`
    : `${facts.width} × ${facts.height} px, ${facts.um[1]} µm`;
  for (const [id, hidden] of [['slide', volume], ['scale', volume], ['volume', !volume], ['grey', !volume], ['curtain', true], ['review', volume || facts.reviewable === false]]) $(id).hidden = hidden;
  $('unit').textContent = volume ? 'ml' : 'mm²';
  // Named for tests and for whoever opens the browser's console.
  view = window.wsisegViewer = volume ? volumes : slides;
  view.state.opacity = Number($('opacity').value);
  view.state.shown = $('shown').checked;
  $('facts').textContent = [facts.model, size, facts.mean_iou === null ? null : `mean IoU ${facts.mean_iou.toFixed(3)}`].filter(Boolean).join(' · ');
  document.title = `${facts.name} - wsiseg`;
  location.hash = encodeURIComponent(facts.name);
  listClasses();
  listLayers();
  await view.open(facts);
  if (!volume && facts.reviewable !== false) await reviews.open(facts); else reviews.leave();
  view.update({ layer: 'mask', curtain: null });
  // The background covers what one wants to see.
  only(facts.classes.filter(c => c.name !== 'background').map(c => c.index));
}

$('opacity').oninput = () => view.update({ opacity: Number($('opacity').value) });
$('shown').onchange = () => view.update({ shown: $('shown').checked });
$('outline').onchange = colors;
$('curtain-on').onchange = () => view.update({ curtain: $('curtain-on').checked ? 0.5 : null });
$('unsure').onclick = nextUnsure;
$('all').onclick = everything;
$('none').onclick = () => only([]);

const keys = {
  m: () => flip($('shown')), o: () => flip($('outline')), u: nextUnsure, h: () => view.home(), 0: everything,
  c: () => { if (!$('curtain-row').hidden) flip($('curtain-on')); },
  n: () => show(current + 1), p: () => show(current - 1), '+': () => view.zoom(1.5), '-': () => view.zoom(1 / 1.5),
  x: () => { if (view === volumes) flip($('cross')); },
  '[': () => opaque(-0.1), ']': () => opaque(0.1), '?': () => { $('help').open = !$('help').open; },
};
function opaque(by) { $('opacity').value = Number($('opacity').value) + by; $('opacity').oninput(); }

const steps = { ArrowUp: 1, ArrowDown: -1, PageUp: 10, PageDown: -10 }; // slices of a volume

document.addEventListener('keydown', event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches?.('input[type=text], input[type=number], textarea')) return;
  const digit = /^Digit([1-9])$/.exec(event.code);
  if (digit) {
    const chosen = facts.classes[Number(digit[1]) - 1];
    if (chosen) event.shiftKey ? only([chosen.index]) : toggle(chosen.index);
  } else if (view === volumes && steps[event.key] && !event.target.matches?.('input, select')) view.scroll(steps[event.key]);
  else if (keys[event.key.toLowerCase()]) keys[event.key.toLowerCase()]();
  else return;
  event.preventDefault();
}, true);

try {
  cases = await ask('api/cases');
  const wanted = decodeURIComponent(location.hash.slice(1));
  await show(Math.max(0, cases.findIndex(one => one.name === wanted)));
} catch (error) {
  $('message').textContent = `The viewer cannot be started: ${error.message}`;
  $('message').hidden = false;
}
