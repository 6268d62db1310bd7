// The page: search, picks and list. All lists are made here, from model.c2f.
import {Bundle} from './bundle.js';

const MOST_RESULTS = 8;
const LENGTH = 20;
const $ = (id) => document.getElementById(id);
const search = $('search');

let bundle;
let texts; // what the search looks at, made when it is first used
let picks = [];
let results = [];
let active = -1;

const label = (item) =>
  bundle.itemTitles?.[item] || bundle.itemIds?.[item] || `Item ${item}`;
const count = (number) => number.toLocaleString('en');
const plain = (text) => text.normalize('NFD').replace(/\p{M}/gu, '').toLowerCase();

function element(name, properties, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

// A row with the name of an item, and a button for it.
function row(item, word, act) {
  const button = element('button', {type: 'button', textContent: word});
  button.setAttribute('aria-label', `${word} ${label(item)}`);
  button.addEventListener('click', act);
  const node = element('li', {}, element('bdi', {textContent: label(item)}), button);
  node.dataset.item = item;
  return node;
}

// Fills a list anew, and leaves the focus where it was, or at the last row.
function fill(list, rows) {
  const buttons = [...list.querySelectorAll('button')];
  const at = buttons.indexOf(document.activeElement);
  list.replaceChildren(...rows);
  if (at < 0) return;
  const next = list.querySelectorAll('button');
  (next[Math.min(at, next.length - 1)] ?? search).focus();
}

// Bytes of the model and of all of the page as they came over the wire.
function bytes() {
  const size = (type) => performance.getEntriesByType(type)
    .map(({name, encodedBodySize}) => [name, encodedBodySize]);
  const all = [...size('navigation'), ...size('resource')];
  const sum = (rows) => rows.reduce((total, [, bytes]) => total + bytes, 0);
  return [sum(all.filter(([name]) => name.endsWith('/model.c2f'))), sum(all)];
}

function refuse(error) {
  $('message').textContent = `There is no list: ${error.message}.`;
  $('message').className = 'error';
  $('message').hidden = false;
}

function render() {
  let items = [];
  const before = performance.now();
  try {
    if (picks.length) ({items} = bundle.recommend(picks, LENGTH));
    $('message').hidden = true;
  } catch (error) {
    refuse(error);
  }
  const ms = performance.now() - before;

  fill($('picks'), picks.map((item) => row(item, 'Remove', () =>
    set(picks.filter((other) => other !== item)))));
  fill($('list'), items.map((item) => row(item, 'Add', () => set([...picks, item]))));
  $('clear').hidden = picks.length < 2;
  $('empty').hidden = picks.length > 0;

  const [model, page] = bytes();
  const made = picks.length ? `The best ${items.length} of` : 'Ready:';
  const took = picks.length ? `, in ${ms.toFixed(1)} ms` : '';
  $('status').textContent = `${made} ${count(bundle.numItems)} items${took}. ` +
    `${count(page)} bytes were loaded, ${count(model)} of them the model.`;
  Object.assign($('status').dataset, {bytes: model, pageBytes: page, ms,
    items: bundle.numItems});
}

function set(items) {
  picks = items;
  const here = location.pathname + location.search;
  history.replaceState(null, '', items.length ? `#picks=${items.join()}` : here);
  render();
}

// The picks of a link; what this model does not know is left out.
function fromHash() {
  const numbers = (/^#picks=([\d,]+)$/.exec(location.hash)?.[1] ?? '').split(',');
  const known = numbers.filter((text) => text && Number(text) < bundle.numItems);
  picks = [...new Set(known.map(Number))];
  render();
}

// Items with the words of the search: whole titles before beginnings before the rest.
function find(query) {
  texts ??= Array.from({length: bundle.numItems}, (_, item) => plain(
    bundle.itemTitles?.[item] || bundle.itemIds?.[item] || String(item)));
  const ranks = [[], [], [], []];
  texts.forEach((text, item) => {
    const at = text.indexOf(query);
    if (at < 0 || picks.includes(item)) return;
    const word = text.includes(` ${query}`);
    ranks[text === query ? 0 : at === 0 ? 1 : word ? 2 : 3].push(item);
  });
  return ranks.flat();
}

function show(items, total) {
  results = items;
  active = -1;
  $('results').replaceChildren(...items.map((item, i) => {
    const option = element('li', {id: `option-${i}`}, element('bdi',
      {textContent: label(item)}));
    option.setAttribute('role', 'option');
    option.setAttribute('aria-selected', 'false');
    option.dataset.item = item;
    option.addEventListener('click', () => pick(item));
    return option;
  }));
  $('results').hidden = !items.length;
  search.setAttribute('aria-expanded', String(items.length > 0));
  search.removeAttribute('aria-activedescendant');
  const more = total > items.length ? `, here are the first ${items.length}` : '';
  $('found').textContent = !search.value.trim() ? ''
    : total ? `${count(total)} found${more}` : 'Nothing found';
}

function look() {
  const query = plain(search.value.trim());
  const found = query ? find(query) : [];
  show(found.slice(0, MOST_RESULTS), found.length);
}

function close() {
  show([], 0);
  $('found').textContent = '';
}

function move(to) {
  const options = [...$('results').children];
  active = (to + options.length) % options.length;
  options.forEach((option, i) => option.setAttribute('aria-selected', i === active));
  options[active].scrollIntoView({block: 'nearest'});
  search.setAttribute('aria-activedescendant', options[active].id);
}

function pick(item) {
  search.value = '';
  close();
  set([...picks, item]);
  search.focus();
}

search.addEventListener('input', look);
search.addEventListener('focus', look);
search.addEventListener('blur', close);
search.addEventListener('keydown', (event) => {
  if (event.isComposing) return;
  const keys = {
    ArrowDown: () => (results.length ? move(active + 1) : look()),
    ArrowUp: () => results.length && move(Math.max(active, 0) - 1),
    Enter: () => results.length && pick(results[Math.max(active, 0)]),
    Escape: () => {
      if (!results.length) search.value = '';
      close();
    },
  };
  if (!keys[event.key]) return;
  event.preventDefault();
  keys[event.key]();
});
// A press on a result leaves the focus in the search.
$('results').addEventListener('mousedown', (event) => event.preventDefault());
$('clear').addEventListener('click', () => {
  set([]);
  search.focus();
});

try {
  bundle = await Bundle.load('model.c2f');
  const kind = bundle.itemTitles ? 'titles' : bundle.itemIds ? 'ids' : 'numbers';
  document.querySelector('label[for=search]').textContent =
    `Search the ${kind} of ${count(bundle.numItems)} items`;
  search.placeholder = `Such as ${label(0).slice(0, 40)}`;
  fromHash();
  window.addEventListener('hashchange', fromHash);
  $('app').hidden = false;
} catch (error) {
  refuse(error);
}
