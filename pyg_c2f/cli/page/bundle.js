// Recommends from a bundle of pyg_c2f. Format and order of sums: docs/bundle.md.
//   const {items, scores} = (await Bundle.load(url)).recommend([3, 17], 10);

export class BundleError extends Error {}

function need(ok, what, mend = 'download it again') {
  if (!ok) throw new BundleError(`bundle: ${what}; ${mend}`);
}

function crc32(bytes) {
  let crc = -1;
  for (const byte of bytes) {
    crc ^= byte;
    for (let i = 0; i < 8; i++) crc = (crc >>> 1) ^ (-(crc & 1) & 0xedb88320);
  }
  return ~crc;
}

// Checks and decodes; takes memory only for counts that can be true.
function decode(buffer) {
  const view = new DataView(buffer);
  const bytes = new Uint8Array(buffer).subarray(0, -4); // without the checksum
  const last = bytes.length;
  let [at, end, part] = [0, last, 'header'];

  const check = (ok, what = 'breaks a rule') => ok || need(ok, `${part} ${what}`);
  const skip = (length) => {
    check(length <= end - at, 'is too short');
    return (at += length) - length;
  };
  const u32 = () => view.getUint32(skip(4), true);
  const f32 = () => {
    const x = view.getFloat32(skip(4), true);
    check(Number.isFinite(x), 'has NaN or infinity');
    return x;
  };

  // Packed numbers below a bound; the checksum leaves four bytes to read.
  function packed(n, bound) {
    const bits = 32 - Math.clz32(bound - 1) || 1;
    const mask = 2 ** bits - 1;
    const from = skip(Math.ceil((n * bits) / 8));
    const out = new Uint32Array(n).map((_, i) => {
      const byte = from + Math.floor((i * bits) / 8);
      const shift = (i * bits) & 7;
      const high = (bytes[byte + 4] << 1) << (31 - shift);
      return ((view.getUint32(byte, true) >>> shift) | high) & mask;
    });
    check(!(bytes[at - 1] >> (((n * bits - 1) & 7) + 1)), 'is padded with ones');
    check(out.every((x) => x < bound), 'has a code too high');
    return out;
  }

  // The columns, codes looked up.
  function table(n, columns = 1) {
    const size = u32();
    check(size && size <= 65536);
    const values = Array.from({length: columns}, () => new Float32Array(size).map(f32));
    const codes = new Float32Array(packed(n, size));
    return values.map((column) => codes.map((code) => column[code]));
  }

  // Row i has the entries start[i] to start[i + 1].
  function matrix(rows, width) {
    const [n, bits] = [u32(), u32()];
    check(bits < 32);
    const step = 2 ** bits;
    const low = packed(bits && n, step); // without bits, n may be a lie
    const size = u32();
    const high = skip(size);
    const [value] = table(n);
    const start = new Uint32Array(rows + 1);
    const col = new Uint32Array(n);
    let [j, row, first, before] = [0, 0, 0, -1]; // places need 52 bits
    for (let bit = 0; bit < 8 * size; bit++) {
      if (!((bytes[high + ((bit / 8) | 0)] >> (bit & 7)) & 1)) continue;
      const place = (bit - j) * step + (low[j] | 0);
      check(j < n && place > before && place < rows * width);
      for (; place >= first + width; first += width) start[++row] = j;
      col[j++] = place - first;
      before = place;
    }
    check(j === n);
    start.fill(n, row + 1);
    return {width, start, col, value};
  }

  // Ones, as many in each row.
  const ones = (rows, each, width, col) => ({
    width,
    start: new Uint32Array(rows + 1).map((_, i) => i * each),
    col,
    value: new Float32Array(rows * each).fill(1),
  });

  function texts(n) {
    const utf8 = new TextDecoder('utf-8', {fatal: true, ignoreBOM: true});
    let out = [];
    try {
      out = utf8.decode(bytes.subarray(skip(end - at), end)).split('\0');
    } catch {}
    check(out.length === n, `is not ${n} texts in UTF-8`);
    return out;
  }

  function section(tag, needed, read, ...sizes) {
    part = `section ${tag}`;
    const found = String.fromCharCode(...bytes.subarray(at, at + 4)) === tag;
    check(found || !needed, 'is missing or misplaced');
    if (!found) return null;
    [at, end] = [at + 4, last];
    end = u32() + at;
    check(end <= last, 'is cut off');
    const content = read(...sizes);
    check(at === end, 'is too long');
    for (; at % 4; at++) check(!bytes[at]);
    return content;
  }

  need(u32() === 0x42463243, 'this is none', 'is it the right file?');
  const version = u32();
  need(version === 1, `version ${version}`, 'use a newer reader');
  check(u32() === last + 4, 'tells another length');
  need(view.getInt32(last, true) === crc32(bytes), 'wrong checksum');
  const [N, D, C, F, L] = [12, 16, 20, 24, 28].map(u32);
  const a = f32();
  check(N && N <= 2 ** 26 && D && C && C <= 65536 && Math.max(D, F) <= 4096);
  check(F ? L <= 64 && F % L === 0 : !L);
  const [weight, scale] = section('ITEM', true, table, N, 2);
  const links = section('LINK', true, matrix, N, C);
  const coarse = section('COAR', C !== D, matrix, C, D);
  check(!coarse || C * D <= 2 ** 24);
  const fine = F ? section('FINE', true, matrix, F, D) : ones(0, 0, D);
  const codes = F ? section('CODE', true, packed, N * L, F / L) : [];
  const levels = ones(N, L, F, codes.map((code, e) => code + (e % L) * (F / L)));
  const bias = section('BIAS', false, table, N)?.[0];
  const itemIds = section('NAME', false, texts, N);
  const itemTitles = section('TITL', false, texts, N);
  need(at === last, 'an unknown section');
  const numberOf = new Map(itemIds?.map((id, i) => [id, i]));
  need(!itemIds || numberOf.size === N, 'an id repeats');
  return {
    numItems: N, itemIds, itemTitles, numberOf,
    a, weight, scale, links, coarse, levels, fine, bias,
  };
}

// n^a, by operations that all machines round alike, unlike Math.pow.
function power(n, a) {
  if (a < 0) return 1 / power(n, -a);
  let [p, x, rest] = [1, n, Math.floor(a)];
  for (; rest; rest = Math.floor(rest / 2), x *= x) if (rest % 2) p *= x;
  for (x = n, rest = a % 1; rest; rest %= 1) {
    x = Math.sqrt(x);
    if ((rest *= 2) >= 1) p *= x;
  }
  return p;
}

// sums + M x
function times({start, col, value}, x, sums = new Float64Array(start.length - 1)) {
  return sums.map((sum, i) => {
    for (let e = start[i]; e < start[i + 1]; e++) sum += value[e] * x[col[e]];
    return sum;
  });
}

// x M, of all rows or some
function left(x, {width, start, col, value}, rows) {
  const out = new Float64Array(width);
  x.forEach((factor, r) => {
    const i = rows ? rows[r] : r;
    if (!factor) return;
    for (let e = start[i]; e < start[i + 1]; e++) out[col[e]] += factor * value[e];
  });
  return out;
}

// The sum of features
function features({links, coarse, levels, fine}, items, weights) {
  const x = left(weights, links, items);
  const y = left(left(weights, levels, items), fine);
  return (coarse ? left(x, coarse) : x).map((value, d) => value + y[d]);
}

// x times all items' features
function products({links, coarse, levels, fine}, x) {
  return times(levels, times(fine, x), times(links, coarse ? times(coarse, x) : x));
}

/** Made of a file's content; itemIds and itemTitles may be null. */
export class Bundle {
  static async load(url = 'model.c2f') {
    const response = await fetch(url);
    need(response.ok, `${url}: status ${response.status}`, 'is it there?');
    return new Bundle(await response.arrayBuffer());
  }

  constructor(data) {
    Object.assign(this, decode(new Uint8Array(data).buffer));
  }

  /** Items are numbers, or original ids as strings; they come back as given. */
  recommend(history, k = 20, {excludeSeen = true, candidates = null} = {}) {
    const {a, weight, scale, bias} = this;
    const rows = this.#find(history);
    const weights = rows.map((i) => weight[i]);
    const n = power(rows.length, a);
    const keys = products(this, features(this, rows, weights)).map((dot, j) => {
      const key = scale[j] * (dot / 4);
      return bias ? key + bias[j] * n : key;
    });
    const unit = power(rows.length, -a);
    need(keys.every((key) => Number.isFinite(key * unit)), 'a score is not finite');
    const seen = new Set(excludeSeen ? rows : []);
    const among = candidates && new Set(this.#find(candidates));
    const allowed = (j) => !seen.has(j) && (!among || among.has(j));
    return this.#best(keys, k, allowed, history[0], (j) => keys[j] * unit);
  }

  /** The items with the highest cosine to one, without itself. */
  similarItems(item, k = 20) {
    const [i] = this.#find([item]);
    const x = (j) => features(this, [j], [1]);
    this.lengths ??= Float64Array.from(this.weight, (_, j) => Math.hypot(...x(j)));
    const both = this.lengths.map((y) => y * this.lengths[i]);
    const keys = products(this, x(i)).map((y, j) => (both[j] ? y / both[j] : -2));
    return this.#best(keys, k, (j) => j !== i, item, (j) => both[j] && keys[j]);
  }

  // Distinct numbers, rising.
  #find(ids) {
    need(ids?.length && typeof ids !== 'string', 'no items', 'give an array');
    const numbers = Array.from(ids, (id) => {
      const j = this.numberOf.get(id) ?? Number(id);
      const known = j in this.weight && this.#named([j], id)[0] === id;
      need(known && typeof id === typeof ids[0], `no item ${id}`, 'mend the call');
      return j;
    });
    return [...new Set(numbers)].sort((i, j) => i - j);
  }

  #named(items, like) {
    if (typeof like === 'number') return items;
    return items.map((j) => this.itemIds?.[j] ?? String(j));
  }

  // Best of the allowed; of equal ones the lower.
  #best(keys, k, allowed, like, score) {
    need(Number.isInteger(k) && k > 0, `k is ${k}`, 'ask for 1 or more');
    const better = (i, j) => keys[j] - keys[i] || i - j;
    let [top, least] = [[], -Infinity];
    keys.forEach((key, j) => {
      if (key <= least || !allowed(j) || top.push(j) < 2 * k) return;
      top = top.sort(better).slice(0, k);
      least = keys[top[k - 1]];
    });
    top = top.sort(better).slice(0, k);
    return {items: this.#named(top, like), scores: top.map(score)};
  }
}
