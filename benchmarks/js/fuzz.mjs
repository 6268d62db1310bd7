// Reads {path, lengths} as JSON from stdin: the file holds bundles one after the other,
// damaged ones too. Writes what each gives as JSON: the list of item 0, {error} where it
// is refused, or {crash} where anything else happens; and the most memory in MB.
import {readFileSync} from 'node:fs';
import {Bundle, BundleError} from './bundle.mjs';

const {path, lengths} = JSON.parse(readFileSync(0, 'utf-8'));
const content = new Uint8Array(readFileSync(path)).buffer;
let at = 0;
let memory = 0;
const results = lengths.map((length) => {
  const start = performance.now();
  const result = {};
  try {
    const bundle = new Bundle(new Uint8Array(content, at, length));
    Object.assign(result, bundle.recommend([0]));
    bundle.similarItems(0);
  } catch (error) {
    result[error instanceof BundleError ? 'error' : 'crash'] = error.message;
  }
  at += length;
  memory = Math.max(memory, process.memoryUsage().rss);
  return {...result, ms: performance.now() - start};
});
console.log(JSON.stringify({results, megabytes: memory / 1e6}));
