// A prediction as a list, and in words.

import { element, percent } from "./dom.js";

/** @import { Prediction, PageInfo } from "./types.js" */
/** @import { Settings } from "./drawing.js" */

/** Classes in the list. */
const TOP = 5;

/** Kinds of objects in words. */
const SPOKEN = 6;

/**
 * @typedef {object} Row
 * @property {string} name
 * @property {string} value
 * @property {number} share Length of the bar.
 * @property {string} [colour]
 */

/**
 * A prediction as a list.
 *
 * @param {Prediction} prediction
 * @param {PageInfo} info
 * @param {Settings} settings
 * @returns {HTMLElement}
 */
export function predictionList(prediction, info, settings) {
  const rows = rowsOf(prediction, info, settings);
  if (!rows.length) {
    return element("p", { class: "soft" }, `No boxes with a score of ${percent(settings.minScore)} or more.`);
  }
  return element("ol", { class: "predictions" }, ...rows.map(rowOf));
}

/**
 * @param {Prediction} prediction
 * @param {PageInfo} info
 * @param {Settings} settings
 * @returns {Row[]}
 */
function rowsOf(prediction, info, settings) {
  if (prediction.task === "detection") {
    return prediction.boxes
      .filter(({ score }) => score >= settings.minScore)
      .map(({ label, score }) => ({
        name: info.classes[label],
        value: percent(score),
        share: score,
        colour: info.colours[label],
      }));
  }
  const masks = prediction.task === "segmentation";
  const shares = masks ? prediction.mask.shares : prediction.classes.slice(0, TOP);
  return shares.map(({ label, share }) => ({
    name: info.classes[label],
    value: percent(share),
    share,
    colour: masks ? info.colours[label] : undefined,
  }));
}

/** @param {Row} row */
function rowOf({ name, value, share, colour }) {
  const fill = element("span", { class: "fill" });
  fill.style.transform = `scaleX(${share})`;
  const swatch = [];
  if (colour) {
    swatch.push(element("span", { class: "swatch" }));
    swatch[0].style.background = colour;
  }
  return element(
    "li",
    {},
    fill,
    ...swatch,
    element("span", { class: "name" }, name),
    element("span", { class: "value" }, value),
  );
}

/**
 * A prediction in words, for screen readers.
 *
 * @param {Prediction} prediction
 * @param {PageInfo} info
 * @param {Settings} settings
 */
export function predictionText(prediction, info, settings) {
  if (prediction.task === "detection") {
    const counts = new Map();
    for (const { label, score } of prediction.boxes) {
      if (score >= settings.minScore) counts.set(label, (counts.get(label) ?? 0) + 1);
    }
    const kinds = [...counts].slice(0, SPOKEN);
    return kinds.map(([label, count]) => `${count} ${info.classes[label]}`).join(", ") || "no objects";
  }
  const shares = prediction.task === "segmentation" ? prediction.mask.shares : prediction.classes;
  return shares
    .slice(0, 3)
    .map(({ label, share }) => `${info.classes[label]} ${percent(share)}`)
    .join(", ");
}
