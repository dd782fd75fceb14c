// The description of the model.

import { element, megabytes, byId } from "./dom.js";

/** @import { PageInfo } from "./types.js" */

const TASKS = {
  classification: "classifies images",
  detection: "detects objects in images",
  segmentation: "classifies each pixel of an image",
};

/** @param {PageInfo} info */
export function about(info) {
  const count = `${info.classes.length} classes`;
  document.title = `${info.model} in the browser`;
  byId("name", HTMLElement).textContent = info.model;
  byId("about", HTMLElement).textContent =
    `A network that ${TASKS[info.task]}: ${count}. It runs on this device, and no image leaves it.`;
  const { resize_mode: mode, resize, crop, interpolation } = info.preprocessing;
  const framing = {
    crop: `short side ${resize} pixels, then a centre crop of ${crop} × ${crop}`,
    stretch: `stretched to ${crop} × ${crop} pixels`,
    shortest_edge: `short side ${resize} pixels, aspect ratio kept`,
  }[mode];
  /** @type {[string, string][]} */
  const pairs = [
    ["Task", info.task],
    ["Input", `${framing}, ${interpolation}`],
    ["Model file", `${megabytes(info.file.bytes)}, ${info.quantize ?? info.precision}`],
    ["Source", info.source],
    ["Licence", info.licence],
    ["Weights", info.weights.slice(0, 16)],
    ["Exported by", `MobileViT ${info.version}, ${info.runtime.name} ${info.runtime.version}`],
    ["Classes", info.classes.join(", ")],
  ];
  byId("info", HTMLElement).replaceChildren(
    ...pairs.flatMap(([term, value]) => [element("dt", {}, term), element("dd", {}, value)]),
  );
}
