// Whether this browser's prediction for the test image agrees with Python's, by the measures of
// `mobilevit.exports.verify`.

import { predictionOf } from "./predictions.js";
import { frameImage, pixelsOf } from "./framing.js";
import { decodeImage } from "./images.js";

/** @import { Prediction, Box, Expected, ExpectedBoxes, ExpectedMask, PageInfo, Frame } from "./types.js" */
/** @import { Mask, Image, Test } from "./types.js" */
/** @import { Engine } from "./engine.js" */

/** Of a quantized model: the share of predictions that must be the same. */
const MIN_AGREEMENT = 0.9;

/** Levels, of 255, that a resized image may differ in. */
const MAX_LEVELS = 2;

/**
 * @typedef {object} Compared
 * @property {number} difference In probability, and in corners as shares of the image's sides.
 * @property {number} agreement Share of predictions that are the same.
 */

/**
 * @typedef {Compared & {
 *   good: boolean, tolerance: number | null, levels: number, by: string,
 * }} Check
 * `levels`: the largest difference of the resized image's pixels from Python's, of 255.
 */

/**
 * The test image of the folder.
 *
 * @param {Test} test
 */
export async function loadTestImage(test) {
  return decodeImage(await blobOf(test.image), "the test image");
}

/** @type {Map<string, Blob>} Files of the folder, fetched once: the network can be lost later. */
const cache = new Map();

/** @param {string} path */
async function blobOf(path) {
  const known = cache.get(path);
  if (known) return known;
  const response = await fetch(path);
  if (!response.ok) throw new Error(`${path} cannot be read: ${response.status}`);
  const blob = await response.blob();
  cache.set(path, blob);
  return blob;
}

/**
 * Run the model on the test image and compare.
 *
 * @param {Engine} engine
 * @param {PageInfo} info
 * @param {Test} test
 * @param {Image} image
 * @returns {Promise<Check>}
 */
export async function runSelfTest(engine, info, test, image) {
  const [pythonFrame, expected] = await Promise.all([
    blobOf(test.frame).then((blob) => decodeImage(blob, "the test image's frame")),
    blobOf(test.prediction).then(async (blob) => /** @type {Expected} */ (JSON.parse(await blob.text()))),
  ]);
  const frame = frameImage(image, info);
  const { outputs } = await engine.run(frame);
  const compared = compare(predictionOf(info, outputs), expected);
  const levels = levelDifference(frame, pythonFrame);
  const { tolerance, by } = expected;
  const close = tolerance === null ? compared.agreement >= MIN_AGREEMENT : compared.difference <= tolerance;
  return { ...compared, tolerance, levels, by, good: close && levels <= MAX_LEVELS };
}

/**
 * @param {Frame} frame
 * @param {Image} image
 */
function levelDifference(frame, image) {
  if (image.width !== frame.width || image.height !== frame.height) return 255;
  const pixels = pixelsOf(image);
  return frame.pixels.reduce((most, value, place) => {
    const other = pixels[4 * Math.floor(place / 3) + (place % 3)];
    return Math.max(most, Math.abs(value - other));
  }, 0);
}

/**
 * Compare a prediction with Python's.
 *
 * @param {Prediction} prediction
 * @param {Expected} expected
 * @returns {Compared}
 */
export function compare(prediction, expected) {
  if (prediction.task === "detection" && expected.boxes) {
    return compareBoxes(prediction, expected.boxes, expected.tolerance ?? 1);
  }
  if (prediction.task === "segmentation" && expected.mask) {
    return compareMasks(prediction.mask, expected.mask);
  }
  if (prediction.task === "classification" && expected.probabilities) {
    const truth = expected.probabilities;
    const differences = prediction.classes.map(({ label, share }) => Math.abs(share - truth[label]));
    const expectedLabel = truth.indexOf(Math.max(...truth));
    return {
      difference: largest(differences),
      agreement: prediction.classes[0].label === expectedLabel ? 1 : 0,
    };
  }
  throw new Error(`the folder's prediction is not for ${prediction.task}`);
}

/**
 * Every box must be one of the network's candidates. Which of two boxes is suppressed can depend on
 * the last digit of their overlap; so a box of Python's counts as found if one as probable of its
 * class overlaps it.
 *
 * @param {{boxes: Box[], full: boolean}} prediction
 * @param {ExpectedBoxes} expected
 * @param {number} tolerance
 * @returns {Compared}
 */
function compareBoxes({ boxes, full }, { found, candidates, floors, overlap }, tolerance) {
  const differences = boxes.map(({ label, score, corners }) => {
    const values = [score, ...corners];
    return candidates
      .filter(([other]) => other === label)
      .map(([, ...truth]) => largest(values.map((value, i) => Math.abs(value - truth[i]))))
      .reduce((least, apart) => Math.min(least, apart), 1);
  });
  // Boxes whose score is at the threshold can be on either side of it.
  const floor = full ? Math.min(...boxes.map(({ score }) => score)) : 0;
  for (const [label, score, ...corners] of found) {
    const isFound = boxes.some(
      (box) =>
        box.label === label &&
        box.score >= score - tolerance &&
        overlapOf(box.corners, corners) >= overlap - tolerance,
    );
    if (!isFound && score > Math.max(floor, floors[label]) + tolerance) differences.push(score);
  }
  const agreement = boxes[0]?.label === found[0]?.[0] ? 1 : 0;
  return { difference: largest(differences), agreement };
}

/**
 * Intersection over union.
 *
 * @param {number[]} one Corners.
 * @param {number[]} other
 */
function overlapOf(one, other) {
  const wide = Math.min(one[2], other[2]) - Math.max(one[0], other[0]);
  const high = Math.min(one[3], other[3]) - Math.max(one[1], other[1]);
  const shared = Math.max(0, wide) * Math.max(0, high);
  const area = (/** @type {number[]} */ box) => (box[2] - box[0]) * (box[3] - box[1]);
  return shared / (area(one) + area(other) - shared || 1);
}

/**
 * By how much less probable Python holds this browser's class of a pixel than its own.
 *
 * @param {Mask} mask
 * @param {ExpectedMask} expected
 * @returns {Compared}
 */
function compareMasks(mask, expected) {
  if (mask.width !== expected.width || mask.height !== expected.height) {
    return { difference: 1, agreement: 0 };
  }
  const close = new Map(expected.close.map(([pixel, label, gap]) => [`${pixel} ${label}`, gap]));
  let [pixel, same, difference] = [0, 0, 0];
  for (let run = 0; run < expected.runs.length; run += 2) {
    for (let count = expected.runs[run + 1]; count > 0; count--, pixel++) {
      const label = mask.labels[pixel];
      if (label === expected.runs[run]) same++;
      // Classes that are not listed are beyond the limit, which is above the tolerance.
      else difference = Math.max(difference, close.get(`${pixel} ${label}`) ?? 1);
    }
  }
  return { difference, agreement: same / mask.labels.length };
}

/** @param {number[]} values None of them negative. */
function largest(values) {
  // NaN is the largest: it never agrees with Python.
  return values.reduce((most, value) => (value <= most ? most : value), 0);
}
