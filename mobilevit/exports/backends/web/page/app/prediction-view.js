// The part of the page that lists a prediction, and its settings.

import { element, milliseconds, byId } from "./dom.js";
import { predictionList, predictionText } from "./results.js";

/** @import { Prediction, PageInfo } from "./types.js" */
/** @import { Settings } from "./drawing.js" */

/**
 * What is shown with a prediction.
 *
 * @typedef {object} Details
 * @property {string} name Of the image.
 * @property {number} time Milliseconds that the model took.
 * @property {number} framing Milliseconds that resizing and cropping took.
 * @property {number} [throughput] Images per second, of the camera.
 * @property {boolean} [quiet] Whether screen readers are not notified.
 */

export class PredictionView {
  /**
   * @param {PageInfo} info
   * @param {() => void} changed Called when a setting changes.
   */
  constructor(info, changed) {
    this.info = info;
    this.changed = changed;
    /** @type {Settings} */
    this.settings = { minScore: 0.3, opacity: 0.55 };
    /** @type {Prediction | null} */
    this.prediction = null;
    if (info.task === "detection") this.#slider("minScore", "Minimum score", 0.01);
    if (info.task === "segmentation") this.#slider("opacity", "Opacity of the mask", 0);
  }

  /**
   * @param {keyof Settings} setting
   * @param {string} label
   * @param {number} min
   */
  #slider(setting, label, min) {
    // Beside the label, not in it: a label belongs to the first of these that is inside.
    const value = element("output", { for: setting });
    const input = /** @type {HTMLInputElement} */ (
      element("input", { id: setting, type: "range", min: String(min), max: "1", step: "0.01" })
    );
    const say = () => {
      value.textContent = `${Math.round(100 * this.settings[setting])} %`;
      input.setAttribute("aria-valuetext", value.textContent);
    };
    input.value = String(this.settings[setting]);
    input.addEventListener("input", () => {
      this.settings[setting] = Number(input.value);
      say();
      this.#list();
      this.changed();
    });
    say();
    byId("controls", HTMLElement).append(element("label", { for: setting }, label), " ", value, input);
  }

  /**
   * @param {Prediction} prediction
   * @param {Details} details
   */
  show(prediction, { name, time, framing, throughput, quiet }) {
    this.prediction = prediction;
    const words = [`model ${milliseconds(time)}`, `resizing ${milliseconds(framing)}`];
    if (throughput) words.unshift(`${throughput.toFixed(1)} images/s`);
    byId("timing", HTMLElement).textContent = words.join(" · ");
    this.#list();
    if (quiet) return;
    const text = predictionText(prediction, this.info, this.settings);
    byId("spoken", HTMLElement).textContent = text;
    byId("canvas", HTMLElement).setAttribute("aria-label", `${name}: ${text}`);
  }

  /** Show no prediction, since there is another image or none. */
  clear() {
    this.prediction = null;
    for (const id of ["timing", "spoken"]) byId(id, HTMLElement).textContent = "";
    byId("canvas", HTMLElement).setAttribute("aria-label", "No prediction yet");
    byId("results", HTMLElement).replaceChildren(element("p", { class: "soft" }, "No prediction yet."));
  }

  #list() {
    if (!this.prediction) return;
    const list = predictionList(this.prediction, this.info, this.settings);
    byId("results", HTMLElement).replaceChildren(list);
  }
}
