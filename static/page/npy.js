/** NumPy's .npy format, version 1.0: a header padded to 64 bytes, then the numbers in C order. */

const ALIGNMENT = 64;
const PREFIX = 10; // magic, version, and the length of the header

/** A .npy file of `bytes`, whose numbers are of NumPy's type `descr` (such as `<f4`) and fill `shape`. */
export function npyFile(bytes, descr, shape) {
  const sizes = shape.length === 1 ? `${shape[0]},` : shape.join(", ");
  const text = `{'descr': '${descr}', 'fortran_order': False, 'shape': (${sizes}), }`;
  const header = text.padEnd(Math.ceil((PREFIX + text.length + 1) / ALIGNMENT) * ALIGNMENT - PREFIX - 1) + "\n";
  const file = new Uint8Array(PREFIX + header.length + bytes.length);
  file.set([0x93, ...asciiBytes("NUMPY"), 1, 0, header.length & 0xff, header.length >> 8]);
  file.set(asciiBytes(header), PREFIX);
  file.set(bytes, PREFIX + header.length);
  return file;
}

function asciiBytes(text) {
  return Array.from(text, (character) => character.charCodeAt(0));
}
