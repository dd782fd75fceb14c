// From the model's outputs to a prediction.

/** @import { Prediction, Box, PageInfo, ClassShare, Mask, Output, Outputs } from "./types.js" */

/**
 * @param {PageInfo} info
 * @param {Outputs} outputs Of one image.
 * @returns {Prediction}
 */
export function predictionOf(info, outputs) {
  if (info.task === "detection") {
    const boxes = boxesOf(outputs);
    return { task: info.task, boxes, full: boxes.length === outputs.scores.data.length };
  }
  if (info.task === "segmentation") return { task: info.task, mask: maskOf(outputs.mask) };
  const shares = Array.from(outputs.probabilities.data);
  return { task: info.task, classes: sorted(shares.map((share, label) => ({ label, share }))) };
}

/**
 * @param {ClassShare[]} classes
 * @returns {ClassShare[]} The most probable first.
 */
function sorted(classes) {
  return classes.sort((one, other) => other.share - one.share);
}

/**
 * @param {Outputs} outputs
 * @returns {Box[]} The most probable first.
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
