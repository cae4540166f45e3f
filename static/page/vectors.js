/** Vectors of any number type as float32 in one flat array, and what is computed of them: cosine, neighbours, pairs. */

/** By `dtype`: bytes per number, NumPy's type, and how the page reads number `i` of a DataView. */
export const DTYPES = {
  float32: { bytes: 4, numpy: "<f4", read: (view, i) => view.getFloat32(4 * i, true) },
  float16: { bytes: 2, numpy: "<f2", read: (view, i) => halfToNumber(view.getUint16(2 * i, true)) },
  int8: { bytes: 1, numpy: "|i1", read: (view, i) => view.getInt8(i) },
  uint8: { bytes: 1, numpy: "|u1", read: (view, i) => view.getUint8(i) },
  binary: { bytes: 1, numpy: "|i1", read: (view, i) => view.getInt8(i) },
  ubinary: { bytes: 1, numpy: "|u1", read: (view, i) => view.getUint8(i) },
};

/** The number that the 16 bits of a float16 mean. */
export function halfToNumber(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

export function bytesOfBase64(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i += 1) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

/** The numbers of one vector as the service sent them, such as whole numbers for int8. */
export function numbersOf(bytes, dtype) {
  const { bytes: size, read } = DTYPES[dtype];
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return Array.from({ length: bytes.length / size }, (_, i) => read(view, i));
}

/** The `dimension` values that a vector stands for: int8 and uint8 between -1 and 1, bits as -1 and 1. */
export function valuesOf(bytes, dtype, dimension) {
  const numbers = numbersOf(bytes, dtype);
  if (dtype === "int8") return Float32Array.from(numbers, (x) => x / 127);
  if (dtype === "uint8") return Float32Array.from(numbers, (x) => (x - 128) / 127);
  if (dtype !== "binary" && dtype !== "ubinary") return Float32Array.from(numbers);
  const values = new Float32Array(dimension);
  const offset = dtype === "binary" ? 128 : 0;
  values.forEach((_, i) => {
    values[i] = ((numbers[i >> 3] + offset) >> (7 - (i & 7))) & 1 ? 1 : -1;
  });
  return values;
}

/** The vectors scaled to length 1. A vector of zeros stays one. */
export function unitVectors(vectors) {
  return vectors.map((vector) => {
    const length = Math.sqrt(dot(vector, vector));
    return length > 0 ? vector.map((x) => x / length) : vector;
  });
}

/** Cosines of all pairs of unit vectors, as a flat count × count array. A generator: run it with `inSlices` or `finish`. */
export function* cosines(units) {
  const count = units.length;
  const matrix = new Float32Array(count * count);
  for (let a = 0; a < count; a += 1) {
    for (let b = a; b < count; b += 1) {
      const cosine = dot(units[a], units[b]);
      matrix[a * count + b] = cosine;
      matrix[b * count + a] = cosine;
    }
    yield;
  }
  return matrix;
}

/** Cosines of one unit vector and each of many. */
export function cosinesTo(unit, units) {
  return Float32Array.from(units, (other) => dot(unit, other));
}

function dot(left, right) {
  let even = 0;
  let odd = 0; // two sums: the additions need not wait for each other
  const last = left.length - 1;
  for (let i = 0; i < last; i += 2) {
    even += left[i] * right[i];
    odd += left[i + 1] * right[i + 1];
  }
  return even + odd + (last % 2 === 0 ? left[last] * right[last] : 0);
}

/** Indexes and scores, best first; equal scores in the order of the texts. */
export function ranked(scores, limit = scores.length) {
  const order = Array.from(scores, (score, index) => ({ index, score }));
  return order.sort((a, b) => b.score - a.score || a.index - b.index).slice(0, limit);
}

/** The texts most similar to text `index`, without itself. */
export function neighbours(matrix, count, index, limit) {
  const row = matrix.subarray(index * count, (index + 1) * count);
  return ranked(row).filter((entry) => entry.index !== index).slice(0, limit);
}

/** The most similar pairs and the least similar ones. A generator, like `cosines`. */
export function* extremePairs(matrix, count, limit) {
  const best = [];
  const worst = [];
  for (let a = 0; a < count; a += 1) {
    for (let b = a + 1; b < count; b += 1) {
      const pair = { a, b, score: matrix[a * count + b] };
      insert(best, pair, limit, (left, right) => left.score > right.score);
      insert(worst, pair, limit, (left, right) => left.score < right.score);
    }
    yield;
  }
  return { best, worst };
}

function insert(list, pair, limit, isBefore) {
  if (list.length === limit && !isBefore(pair, list[limit - 1])) return;
  let place = list.length;
  while (place > 0 && isBefore(pair, list[place - 1])) place -= 1;
  list.splice(place, 0, pair);
  if (list.length > limit) list.pop();
}

/** For how many texts two models agree on the nearest neighbour. A generator, like `cosines`. */
export function* sharedNearest(left, right, count) {
  let shared = 0;
  for (let index = 0; index < count; index += 1) {
    if (nearest(left, count, index) === nearest(right, count, index)) shared += 1;
    yield;
  }
  return shared;
}

function nearest(matrix, count, index) {
  let best = -1;
  for (let other = 0; other < count; other += 1) {
    if (other !== index && (best < 0 || matrix[index * count + other] > matrix[index * count + best])) best = other;
  }
  return best;
}
