/**
 * Principal components of vectors from the matrix of their dot products: for few vectors of many numbers, that is less
 * work than from the vectors. Lanczos' method, with full orthogonalisation: it converges faster than power iteration.
 */

const MAX_STEPS = 64;
const NOTHING = 1e-6; // a component with less of the diagonal than this is rounding error

/**
 * Two principal components of `count` vectors, given the flat matrix of their dot products. A generator: run it with
 * `inSlices` or `finish`.
 *
 * Returns `x` and `y` (coordinates), `explained` (shares of the variance), and what `place` needs. Signs are fixed: in
 * each component, the coordinate of largest magnitude is positive. Components without variance are 0.
 */
export function* pca(gram, count) {
  const means = rowMeans(gram, count);
  const centred = yield* centre(gram, count, means);
  let trace = 0;
  let diagonal = 0;
  for (let i = 0; i < count; i += 1) {
    trace += centred[i * count + i];
    diagonal += gram[i * count + i];
  }
  const threshold = NOTHING * diagonal;
  const { basis, small } = yield* lanczos(centred, count, 1e-9 * diagonal);
  const { values, vectors } = yield* jacobi(small);
  const order = values.map((_, i) => i).sort((a, b) => values[b] - values[a]);
  const components = [0, 1].map((rank) => {
    const column = order[rank];
    return component(basis, values[column] ?? 0, vectors.map((row) => row[column]), count, threshold);
  });
  const explained = components.map(({ value }) => (trace > threshold ? Math.min(value / trace, 1) : 0));
  const [x, y] = components.map(({ value, unit }) => unit.map((u) => u * Math.sqrt(value)));
  return { x, y, explained, components, means };
}

/** Coordinates of one more vector, given its dot products with all vectors of the analysis. */
export function place({ components, means }, dots) {
  const mean = dots.reduce((sum, dot) => sum + dot, 0) / dots.length;
  const total = means.reduce((sum, value) => sum + value, 0) / means.length;
  return components.map(({ value, unit }) => {
    if (value === 0) return 0;
    let sum = 0;
    for (let i = 0; i < dots.length; i += 1) sum += unit[i] * (dots[i] - mean - means[i] + total);
    return sum / Math.sqrt(value);
  });
}

function rowMeans(gram, count) {
  const means = new Float64Array(count);
  for (let i = 0; i < count; i += 1) {
    let sum = 0;
    for (let j = 0; j < count; j += 1) sum += gram[i * count + j];
    means[i] = sum / count;
  }
  return means;
}

function* centre(gram, count, means) {
  const total = means.reduce((sum, value) => sum + value, 0) / count;
  const centred = new Float64Array(count * count);
  for (let i = 0; i < count; i += 1) {
    for (let j = 0; j < count; j += 1) centred[i * count + j] = gram[i * count + j] - means[i] - means[j] + total;
    yield;
  }
  return centred;
}

/** An orthonormal basis of a space that contains the largest components, and the matrix within it (tridiagonal). */
function* lanczos(matrix, count, nothing) {
  const steps = Math.min(MAX_STEPS, count);
  const small = Array.from({ length: steps }, () => new Float64Array(steps));
  const next = randomNumbers();
  const basis = [];
  let vector = orthogonal(Float64Array.from({ length: count }, next), basis);
  for (let step = 0; step < steps; step += 1) {
    basis.push(scaled(vector));
    const product = new Float64Array(count);
    for (let i = 0; i < count; i += 1) product[i] = dot(basis[step], matrix, i * count);
    small[step][step] = dot(product, basis[step]);
    vector = orthogonal(product, basis);
    const length = Math.sqrt(dot(vector, vector));
    if (step + 1 === steps) break;
    if (length > nothing) small[step][step + 1] = small[step + 1][step] = length;
    else vector = orthogonal(Float64Array.from({ length: count }, next), basis); // go on in the rest of the space
    yield;
  }
  return { basis, small };
}

/** Numbers between -1 and 1 that look random and are the same every time. */
function randomNumbers() {
  let seed = 12345;
  return () => {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    return seed / 2 ** 31 - 1;
  };
}

/** `vector` without its share in each of `basis`: Gram-Schmidt, twice for accuracy. */
function orthogonal(vector, basis) {
  for (let pass = 0; pass < 2; pass += 1) {
    for (const other of basis) {
      const share = dot(vector, other);
      for (let i = 0; i < vector.length; i += 1) vector[i] -= share * other[i];
    }
  }
  return vector;
}

function scaled(vector) {
  const length = Math.sqrt(dot(vector, vector));
  return length > 0 ? vector.map((x) => x / length) : vector;
}

function component(basis, value, weights, count, threshold) {
  const unit = new Float64Array(count);
  if (!(value > threshold)) return { value: 0, unit };
  basis.forEach((vector, b) => {
    for (let i = 0; i < count; i += 1) unit[i] += weights[b] * vector[i];
  });
  const largest = unit.reduce((most, u) => Math.max(most, Math.abs(u)), 0);
  const decides = unit.find((u) => Math.abs(u) > largest * (1 - 1e-4)); // the first one of equals
  if (decides < 0) for (let i = 0; i < count; i += 1) unit[i] = -unit[i];
  return { value, unit };
}

/** All eigenvalues and eigenvectors (columns) of a small symmetric matrix, by Jacobi's rotations. */
function* jacobi(matrix) {
  const a = matrix.map((row) => Float64Array.from(row));
  const size = a.length;
  const vectors = a.map((_, i) => Float64Array.from(a, (__, j) => (i === j ? 1 : 0)));
  const nothing = 1e-15 * Math.max(...a.map((row, i) => Math.abs(row[i])));
  for (let hasRotated = true, sweep = 0; hasRotated && sweep < 30; sweep += 1) {
    hasRotated = false;
    for (let p = 0; p < size; p += 1) {
      for (let q = p + 1; q < size; q += 1) {
        if (Math.abs(a[p][q]) <= nothing) continue;
        rotate(a, vectors, p, q);
        hasRotated = true;
      }
      yield;
    }
  }
  return { values: a.map((row, i) => row[i]), vectors };
}

function rotate(a, vectors, p, q) {
  const theta = (a[q][q] - a[p][p]) / (2 * a[p][q]);
  const t = (theta < 0 ? -1 : 1) / (Math.abs(theta) + Math.sqrt(theta * theta + 1));
  const c = 1 / Math.sqrt(t * t + 1);
  const s = t * c;
  for (const row of a) turn(row, p, row, q, c, s);
  for (let k = 0; k < a.length; k += 1) turn(a[p], k, a[q], k, c, s);
  for (const row of vectors) turn(row, p, row, q, c, s);
}

function turn(left, i, right, j, c, s) {
  const x = left[i];
  const y = right[j];
  left[i] = c * x - s * y;
  right[j] = s * x + c * y;
}

/** Sum of `left[i] * right[start + i]`. Both are Float64Arrays: mixed types would run at half the speed. */
function dot(left, right, start = 0) {
  let even = 0;
  let odd = 0; // two sums: the additions need not wait for each other
  const last = left.length - 1;
  for (let i = 0; i < last; i += 2) {
    even += left[i] * right[start + i];
    odd += left[i + 1] * right[start + i + 1];
  }
  return even + odd + (last % 2 === 0 ? left[last] * right[start + last] : 0);
}
