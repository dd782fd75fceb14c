// From the model's outputs to an answer.

/** @import { Answer, Box, Facts, Likely, Mask, Output, Outputs } from "./types.js" */

/**
 * @param {Facts} facts
 * @param {Outputs} outputs Of one image.
 * @returns {Answer}
 */
export function answerOf(facts, outputs) {
  if (facts.task === "detection") {
    const boxes = boxesOf(outputs);
    return { task: facts.task, boxes, full: boxes.length === outputs.scores.data.length };
  }
  if (facts.task === "segmentation") return { task: facts.task, mask: maskOf(outputs.mask) };
  const shares = Array.from(outputs.probabilities.data);
  return { task: facts.task, classes: sorted(shares.map((share, label) => ({ label, share }))) };
}

/**
 * @param {Likely[]} classes
 * @returns {Likely[]} The likeliest first.
 */
function sorted(classes) {
  return classes.sort((one, other) => other.share - one.share);
}

/**
 * @param {Outputs} outputs
 * @returns {Box[]} The likeliest first.
 */
function boxesOf({ boxes, scores, labels }) {
  return Array.from(labels.data, (label, place) => ({
    label,
    score: scores.data[place],
    corners: Array.from(boxes.data.subarray(4 * place, 4 * place + 4)),
  })).filter(({ label }) => label >= 0);
}

/**
 * @param {Output} output
 * @returns {Mask}
 */
function maskOf({ data, dims }) {
  const [height, width] = dims.slice(-2);
  const counts = new Map();
  for (const label of data) counts.set(label, (counts.get(label) ?? 0) + 1);
  const shares = [...counts].map(([label, count]) => ({ label, share: count / data.length }));
  return { labels: /** @type {Uint8Array} */ (data), width, height, shares: sorted(shares) };
}
