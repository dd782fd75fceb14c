// Whether this browser says what Python says: of the test photo, in the sense of Python's
// `mobilevit.exports.verify`.

import { answerOf } from "./answers.js";
import { framed, pixelsOf } from "./framing.js";
import { decoded } from "./images.js";

/** @import { Answer, Box, Expected, ExpectedBoxes, ExpectedMask, Facts, Frame } from "./types.js" */
/** @import { Mask, Image, Test } from "./types.js" */
/** @import { Engine } from "./engine.js" */

/** Of a quantised model: the least share of answers that must be the same. */
const LEAST_AGREEMENT = 0.9;

/** Levels, of 255, that a resized image may differ in. */
const MOST_LEVELS = 2;

/**
 * @typedef {object} Compared
 * @property {number} difference In probability, and in corners as shares of the image's sides.
 * @property {number} agreement Share of answers that are the same.
 */

/**
 * @typedef {Compared & {
 *   good: boolean, bound: number | null, levels: number, by: string,
 * }} Check
 * `levels`: how far the resized image's pixels are from Python's, of 255.
 */

/**
 * The test photo of the folder.
 *
 * @param {Test} test
 */
export async function testPhoto(test) {
  return decoded(await blobOf(test.photo), "the test photo");
}

/** @type {Map<string, Blob>} Files of the folder, which are fetched once: a page may lose its network. */
const held = new Map();

/** @param {string} path */
async function blobOf(path) {
  const known = held.get(path);
  if (known) return known;
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${path} cannot be read: ${answer.status}`);
  const blob = await answer.blob();
  held.set(path, blob);
  return blob;
}

/**
 * Run the model on the test photo and compare.
 *
 * @param {Engine} engine
 * @param {Facts} facts
 * @param {Test} test
 * @param {Image} photo
 * @returns {Promise<Check>}
 */
export async function checked(engine, facts, test, photo) {
  const [python, expected] = await Promise.all([
    blobOf(test.frame).then((blob) => decoded(blob, "the test photo's frame")),
    blobOf(test.answer).then(async (blob) => /** @type {Expected} */ (JSON.parse(await blob.text()))),
  ]);
  const frame = framed(photo, facts);
  const { outputs } = await engine.run(frame);
  const compared = compare(answerOf(facts, outputs), expected);
  const levels = levelsApart(frame, python);
  const { bound, by } = expected;
  const close = bound === null ? compared.agreement >= LEAST_AGREEMENT : compared.difference <= bound;
  return { ...compared, bound, levels, by, good: close && levels <= MOST_LEVELS };
}

/**
 * @param {Frame} frame
 * @param {Image} image
 */
function levelsApart(frame, image) {
  if (image.width !== frame.width || image.height !== frame.height) return 255;
  const pixels = pixelsOf(image);
  return frame.pixels.reduce((most, value, place) => {
    const other = pixels[4 * Math.floor(place / 3) + (place % 3)];
    return Math.max(most, Math.abs(value - other));
  }, 0);
}

/**
 * Compare an answer with Python's.
 *
 * @param {Answer} answer
 * @param {Expected} expected
 * @returns {Compared}
 */
export function compare(answer, expected) {
  if (answer.task === "detection" && expected.boxes) {
    return compareBoxes(answer, expected.boxes, expected.bound ?? 1);
  }
  if (answer.task === "segmentation" && expected.mask) {
    return compareMasks(answer.mask, expected.mask);
  }
  if (answer.task === "classification" && expected.probabilities) {
    const truth = expected.probabilities;
    const differences = answer.classes.map(({ label, share }) => Math.abs(share - truth[label]));
    const likeliest = truth.indexOf(Math.max(...truth));
    return {
      difference: largest(differences),
      agreement: answer.classes[0].label === likeliest ? 1 : 0,
    };
  }
  throw new Error(`the folder's answer is not one of ${answer.task}`);
}

/**
 * Every box must be one of the network's candidates. Which of two boxes is suppressed may hang on the
 * last digit of their overlap; so a box of Python's counts as there if one as likely, of its class,
 * overlaps it.
 *
 * @param {{boxes: Box[], full: boolean}} answer
 * @param {ExpectedBoxes} expected
 * @param {number} bound
 * @returns {Compared}
 */
function compareBoxes({ boxes, full }, { found, candidates, floors, overlap }, bound) {
  const differences = boxes.map(({ label, score, corners }) => {
    const values = [score, ...corners];
    return candidates
      .filter(([other]) => other === label)
      .map(([, ...truth]) => largest(values.map((value, i) => Math.abs(value - truth[i]))))
      .reduce((least, apart) => Math.min(least, apart), 1);
  });
  // Boxes at the edge of what is kept may be on either side of it.
  const floor = full ? Math.min(...boxes.map(({ score }) => score)) : 0;
  for (const [label, score, ...corners] of found) {
    const there = boxes.some(
      (box) =>
        box.label === label &&
        box.score >= score - bound &&
        overlapOf(box.corners, corners) >= overlap - bound,
    );
    if (!there && score > Math.max(floor, floors[label]) + bound) differences.push(score);
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
 * How much likelier Python holds a pixel's class than the class that this browser gives.
 *
 * @param {Mask} mask
 * @param {ExpectedMask} expected
 * @returns {Compared}
 */
function compareMasks(mask, expected) {
  if (mask.width !== expected.width || mask.height !== expected.height) {
    return { difference: 1, agreement: 0 };
  }
  const close = new Map(expected.close.map(([pixel, label, less]) => [`${pixel} ${label}`, less]));
  let [pixel, same, difference] = [0, 0, 0];
  for (let run = 0; run < expected.runs.length; run += 2) {
    for (let count = expected.runs[run + 1]; count > 0; count--, pixel++) {
      const label = mask.labels[pixel];
      if (label === expected.runs[run]) same++;
      // What is not listed is further away than the limit, which is over the bound.
      else difference = Math.max(difference, close.get(`${pixel} ${label}`) ?? 1);
    }
  }
  return { difference, agreement: same / mask.labels.length };
}

/** @param {number[]} values None of them negative. */
function largest(values) {
  // NaN is the largest: whatever it came from, it is not as Python says.
  return values.reduce((most, value) => (value <= most ? most : value), 0);
}
