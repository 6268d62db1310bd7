// The reader of the page, which older node takes for a module only in this way, as no
// package.json beside it says so.
import {readFileSync} from 'node:fs';

const source = readFileSync(new URL('../../pyg_c2f/cli/page/bundle.js', import.meta.url), 'base64');
const module = await import(`data:text/javascript;base64,${source}`);
export const {Bundle, BundleError} = module;
