// Reads {path, calls} as JSON from stdin, where calls are [name, ...arguments] of a
// bundle, and writes what each gives, or {error}, as JSON. Scores are exact: JSON
// writes the shortest text that reads back as the same number.
import {readFileSync} from 'node:fs';
import {Bundle} from './bundle.mjs';

const {path, calls} = JSON.parse(readFileSync(0, 'utf-8'));
const content = new Uint8Array(readFileSync(path)).buffer;
const before = performance.now();
const bundle = new Bundle(content);
const decode = performance.now() - before;

const results = calls.map(([name, ...args]) => {
  const start = performance.now();
  try {
    return {...bundle[name](...args), ms: performance.now() - start};
  } catch (error) {
    return {error: error.message, kind: error.constructor.name};
  }
});
const {numItems, itemIds, itemTitles} = bundle;
console.log(JSON.stringify({numItems, itemIds, itemTitles, decode, results}));
