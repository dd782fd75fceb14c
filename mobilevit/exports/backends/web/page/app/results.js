// An answer as a list, and in words.

import { element, percent } from "./dom.js";

/** @import { Answer, Facts } from "./types.js" */
/** @import { Choices } from "./drawing.js" */

/** So many classes are listed. */
const TOP = 5;

/** So many kinds of objects are spoken. */
const SPOKEN = 6;

/**
 * @typedef {object} Row
 * @property {string} name
 * @property {string} value
 * @property {number} share Length of the bar.
 * @property {string} [colour]
 */

/**
 * An answer as a list.
 *
 * @param {Answer} answer
 * @param {Facts} facts
 * @param {Choices} choices
 * @returns {HTMLElement}
 */
export function listed(answer, facts, choices) {
  const rows = rowsOf(answer, facts, choices);
  if (!rows.length) {
    return element("p", { class: "soft" }, `Nothing with ${percent(choices.least)} or more.`);
  }
  return element("ol", { class: "answers" }, ...rows.map(rowOf));
}

/**
 * @param {Answer} answer
 * @param {Facts} facts
 * @param {Choices} choices
 * @returns {Row[]}
 */
function rowsOf(answer, facts, choices) {
  if (answer.task === "detection") {
    return answer.boxes
      .filter(({ score }) => score >= choices.least)
      .map(({ label, score }) => ({
        name: facts.classes[label],
        value: percent(score),
        share: score,
        colour: facts.colours[label],
      }));
  }
  const masks = answer.task === "segmentation";
  const likely = masks ? answer.mask.shares : answer.classes.slice(0, TOP);
  return likely.map(({ label, share }) => ({
    name: facts.classes[label],
    value: percent(share),
    share,
    colour: masks ? facts.colours[label] : undefined,
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
 * An answer in a sentence, for those who hear the page.
 *
 * @param {Answer} answer
 * @param {Facts} facts
 * @param {Choices} choices
 */
export function spoken(answer, facts, choices) {
  if (answer.task === "detection") {
    const counts = new Map();
    for (const { label, score } of answer.boxes) {
      if (score >= choices.least) counts.set(label, (counts.get(label) ?? 0) + 1);
    }
    const kinds = [...counts].slice(0, SPOKEN);
    return kinds.map(([label, count]) => `${count} ${facts.classes[label]}`).join(", ") || "nothing";
  }
  const likely = answer.task === "segmentation" ? answer.mask.shares : answer.classes;
  return likely
    .slice(0, 3)
    .map(({ label, share }) => `${facts.classes[label]} ${percent(share)}`)
    .join(", ");
}
