// Resizing as Pillow does it: a triangle or a cubic that grows with the reduction, so that every
// pixel counts; across and down one after the other, in integers, rounded in between. A canvas
// scales otherwise, and differently in each browser; this gives Python's pixels.

/** Fractional bits of the weights, as Pillow has them. */
const BITS = 22;

/** Rows of an image that are read at a time: the pixels of a photo exceed the limits of a canvas. */
const STRIP = 256;

/** @type {Record<string, {reach: number, at: (x: number) => number}>} */
const FILTERS = {
  bilinear: { reach: 1, at: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: { reach: 2, at: cubic },
};

/**
 * The pixels from `first` on that make one, and how much each counts.
 *
 * @typedef {{first: number, weights: Int32Array}} Tap
 */

/**
 * The cubic through four points, with a slope of -0.5 at one pixel.
 *
 * @param {number} x
 */
function cubic(x) {
  const a = -0.5;
  x = Math.abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

/**
 * Which pixels make a pixel, and how much each counts.
 *
 * @param {number} from Pixels of a side.
 * @param {number} to The same after resizing.
 * @param {string} interpolation
 * @returns {Tap[]}
 */
export function taps(from, to, interpolation) {
  const { reach, at } = FILTERS[interpolation];
  const scale = from / to;
  const wide = Math.max(scale, 1);
  const support = reach * wide;
  const all = [];
  for (let place = 0; place < to; place++) {
    const centre = (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const last = Math.min(from, Math.trunc(centre + support + 0.5));
    const shares = [];
    let total = 0;
    for (let x = first; x < last; x++) {
      const share = at((x - centre + 0.5) * (1 / wide));
      shares.push(share);
      total += share;
    }
    const weights = Int32Array.from(shares, (share) => {
      const exact = (total === 0 ? share : share / total) * 2 ** BITS;
      return Math.trunc(exact < 0 ? exact - 0.5 : exact + 0.5);
    });
    all.push({ first, weights });
  }
  return all;
}

/**
 * Resize an image that is read in strips.
 *
 * @param {(top: number, rows: number) => Uint8ClampedArray | Uint8Array} read Gives rows of the
 *   image: red, green, blue and one more byte for each pixel.
 * @param {number} width Of the image.
 * @param {number} height
 * @param {number} toWidth
 * @param {number} toHeight
 * @param {string} interpolation `bilinear` or `bicubic`.
 * @param {boolean} verticalFirst Whether images that lose height above all are resized down before
 *   across, as by Pillow from 13 on.
 * @returns {Uint8Array} Red, green, blue; row by row.
 */
export function resize(read, width, height, toWidth, toHeight, interpolation, verticalFirst) {
  const columns = taps(width, toWidth, interpolation);
  const rows = taps(height, toHeight, interpolation);
  if (verticalFirst && height > toHeight && height - toHeight > 2 * (width - toWidth)) {
    const out = new Uint8Array(toHeight * toWidth * 3);
    resizeHorizontally(verticallyInStrips(read, 4 * width, rows), width, toHeight, columns, out);
    return out;
  }
  const across = new Uint8Array(height * toWidth * 3);
  for (let top = 0; top < height; top += STRIP) {
    const count = Math.min(STRIP, height - top);
    resizeHorizontally(read(top, count), width, count, columns, across.subarray(top * toWidth * 3));
  }
  return resizeDown(across, toWidth * 3, rows, 0);
}

/**
 * @param {(top: number, rows: number) => Uint8ClampedArray | Uint8Array} read
 * @param {number} stride Bytes of a row.
 * @param {Tap[]} rows
 */
function verticallyInStrips(read, stride, rows) {
  const out = new Uint8Array(rows.length * stride);
  const end = (/** @type {Tap} */ { first, weights }) => first + weights.length;
  for (let row = 0; row < rows.length; ) {
    const top = rows[row].first;
    let after = row + 1;
    while (after < rows.length && end(rows[after]) - top <= STRIP) after++;
    const pixels = read(top, end(rows[after - 1]) - top);
    out.set(resizeDown(pixels, stride, rows.slice(row, after), top), row * stride);
    row = after;
  }
  return out;
}

/**
 * @param {Uint8ClampedArray | Uint8Array} pixels Four bytes each.
 * @param {number} width
 * @param {number} rows
 * @param {Tap[]} columns
 * @param {Uint8Array} out Three bytes each.
 */
function resizeHorizontally(pixels, width, rows, columns, out) {
  let to = 0;
  for (let row = 0; row < rows; row++) {
    const start = row * width;
    for (const { first, weights } of columns) {
      let red = 0;
      let green = 0;
      let blue = 0;
      let from = 4 * (start + first);
      for (let tap = 0; tap < weights.length; tap++, from += 4) {
        const weight = weights[tap];
        red += weight * pixels[from];
        green += weight * pixels[from + 1];
        blue += weight * pixels[from + 2];
      }
      out[to++] = rounded(red);
      out[to++] = rounded(green);
      out[to++] = rounded(blue);
    }
  }
}

/**
 * @param {Uint8ClampedArray | Uint8Array} pixels Rows of `stride` bytes.
 * @param {number} stride
 * @param {Tap[]} rows
 * @param {number} top Which row of the image is the first here.
 */
function resizeDown(pixels, stride, rows, top) {
  const out = new Uint8Array(rows.length * stride);
  const sums = new Float64Array(stride);
  rows.forEach(({ first, weights }, row) => {
    sums.fill(0);
    weights.forEach((weight, tap) => {
      const from = (first - top + tap) * stride;
      for (let x = 0; x < stride; x++) sums[x] += weight * pixels[from + x];
    });
    for (let x = 0; x < stride; x++) out[row * stride + x] = rounded(sums[x]);
  });
  return out;
}

/**
 * A sum of weighted values as a byte.
 *
 * @param {number} sum Below 2 ** 31 in size.
 */
function rounded(sum) {
  const value = (sum + 2 ** (BITS - 1)) >> BITS;
  return value < 0 ? 0 : value > 255 ? 255 : value;
}
