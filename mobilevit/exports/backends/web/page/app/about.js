// What the page says of its model.

import { element, megabytes, the } from "./dom.js";

/** @import { Facts } from "./types.js" */

const TASKS = {
  classification: "says what an image shows",
  detection: "finds objects in an image",
  segmentation: "says of each pixel what it belongs to",
};

/** @param {Facts} facts */
export function about(facts) {
  const count = `${facts.classes.length} classes`;
  document.title = `${facts.model} in the browser`;
  the("name", HTMLElement).textContent = facts.model;
  the("about", HTMLElement).textContent =
    `A network that ${TASKS[facts.task]}, of ${count}. It runs on this device: no image leaves it.`;
  const { resize_mode: mode, resize, crop, interpolation } = facts.preprocessing;
  const framing = {
    crop: `short side ${resize} pixels, then the ${crop} × ${crop} in the middle`,
    stretch: `the whole image as ${crop} × ${crop} pixels`,
    shortest_edge: `the whole image in its shape, short side ${resize} pixels`,
  }[mode];
  /** @type {[string, string][]} */
  const pairs = [
    ["Task", facts.task],
    ["Input", `${framing}, ${interpolation}`],
    ["Model file", `${megabytes(facts.file.bytes)}, ${facts.quantize ?? facts.precision}`],
    ["Source", facts.source],
    ["Licence", facts.licence],
    ["Weights", facts.weights.slice(0, 16)],
    ["Made by", `MobileViT ${facts.version}, ${facts.runtime.name} ${facts.runtime.version}`],
    ["Classes", facts.classes.join(", ")],
  ];
  the("facts", HTMLElement).replaceChildren(
    ...pairs.flatMap(([term, value]) => [element("dt", {}, term), element("dd", {}, value)]),
  );
}
