// The part of the page that shows an answer as a list, and what people can choose there.

import { element, milliseconds, the } from "./dom.js";
import { listed, spoken } from "./results.js";

/** @import { Answer, Facts } from "./types.js" */
/** @import { Choices } from "./drawing.js" */

/**
 * What is known beside an answer.
 *
 * @typedef {object} Beside
 * @property {string} name Of the image.
 * @property {number} time Milliseconds that the model took.
 * @property {number} framing Milliseconds that resizing and cropping took.
 * @property {number} [pace] Images a second, of the camera.
 * @property {boolean} [quiet] Whether nothing is to be spoken.
 */

export class AnswerView {
  /**
   * @param {Facts} facts
   * @param {() => void} changed Hears when another choice was made.
   */
  constructor(facts, changed) {
    this.facts = facts;
    this.changed = changed;
    /** @type {Choices} */
    this.choices = { least: 0.3, opacity: 0.55 };
    /** @type {Answer | null} */
    this.answer = null;
    if (facts.task === "detection") this.#slider("least", "Boxes from", 0.01);
    if (facts.task === "segmentation") this.#slider("opacity", "Opacity of the colours", 0);
  }

  /**
   * @param {keyof Choices} choice
   * @param {string} label
   * @param {number} min
   */
  #slider(choice, label, min) {
    // Beside the label, not in it: a label belongs to the first of these that is inside.
    const value = element("output", { for: choice });
    const input = /** @type {HTMLInputElement} */ (
      element("input", { id: choice, type: "range", min: String(min), max: "1", step: "0.01" })
    );
    const say = () => {
      value.textContent = `${Math.round(100 * this.choices[choice])} %`;
      input.setAttribute("aria-valuetext", value.textContent);
    };
    input.value = String(this.choices[choice]);
    input.addEventListener("input", () => {
      this.choices[choice] = Number(input.value);
      say();
      this.#list();
      this.changed();
    });
    say();
    the("controls", HTMLElement).append(element("label", { for: choice }, label), " ", value, input);
  }

  /**
   * @param {Answer} answer
   * @param {Beside} beside
   */
  show(answer, { name, time, framing, pace, quiet }) {
    this.answer = answer;
    const words = [`model ${milliseconds(time)}`, `resizing ${milliseconds(framing)}`];
    if (pace) words.unshift(`${pace.toFixed(1)} images a second`);
    the("timing", HTMLElement).textContent = words.join(" · ");
    this.#list();
    if (quiet) return;
    const text = spoken(answer, this.facts, this.choices);
    the("spoken", HTMLElement).textContent = text;
    the("canvas", HTMLElement).setAttribute("aria-label", `${name}: ${text}`);
  }

  #list() {
    if (!this.answer) return;
    the("results", HTMLElement).replaceChildren(listed(this.answer, this.facts, this.choices));
  }
}
