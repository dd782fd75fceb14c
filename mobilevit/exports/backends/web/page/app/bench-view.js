// The part of the page that measures.

import { measurement, named, RUNS, WARM_UP } from "./bench.js";
import { describe, element, milliseconds, the } from "./dom.js";

/** @import { Facts, Frame } from "./types.js" */
/** @import { Check } from "./check.js" */
/** @import { Engine } from "./engine.js" */
/** @import { Measurement } from "./bench.js" */

export class MeasureView {
  /**
   * @param {Facts} facts
   * @param {() => {engine: Engine, frame: Frame} | null} given Gives what is to be measured.
   */
  constructor(facts, given) {
    this.facts = facts;
    this.given = given;
    /** @type {Check | null} */
    this.check = null;
    /** @type {Measurement[]} */
    this.measurements = [];
    this.button = the("measure", HTMLButtonElement);
    this.copy = the("copy", HTMLButtonElement);
    this.state = the("bench-state", HTMLElement);
    this.button.addEventListener("click", () => this.#measure());
    this.copy.addEventListener("click", () => this.#copy());
  }

  /** @param {boolean} yes Whether there is something to measure. */
  allow(yes) {
    this.button.disabled = !yes;
  }

  async #measure() {
    const given = this.given();
    if (!given?.engine.running) return;
    const { engine, frame } = given;
    this.button.disabled = true;
    this.state.textContent = "Warming up …";
    try {
      const times = await engine.measure(frame, WARM_UP, RUNS, (done) => {
        // A screen reader would speak each of these.
        if (done === RUNS / 2) this.state.textContent = `${done} of ${RUNS} runs …`;
      });
      const one = measurement(times, frame, this.facts, given.engine.running, this.check);
      this.measurements.push(one);
      this.#show(one);
    } catch (error) {
      this.state.textContent = `It could not be measured: ${/** @type {Error} */ (error).message}.`;
    } finally {
      this.button.disabled = false;
    }
  }

  /** @param {Measurement} one */
  #show(one) {
    const [height, width] = one.input;
    const frames = one.frames_a_second.toFixed(1);
    this.state.textContent =
      `${RUNS} runs: ${milliseconds(one.median_ms)} in the middle, ${frames} frames a second.`;
    describe(the("tiles", HTMLElement), [
      ["Median", milliseconds(one.median_ms)],
      ["p90", milliseconds(one.p90_ms)],
      ["Minimum", milliseconds(one.min_ms)],
      ["Frames a second", frames],
      ["Input", `${width} × ${height}`],
      ["Runs on", named(one)],
    ]);
    const cells = [
      `${width} × ${height}`,
      milliseconds(one.median_ms),
      milliseconds(one.p90_ms),
      milliseconds(one.min_ms),
      frames,
    ].map((text) => element("td", {}, text));
    the("rows", HTMLElement).append(
      element("tr", {}, element("th", { scope: "row" }, named(one)), ...cells),
    );
    the("history", HTMLElement).hidden = this.measurements.length < 2;
    this.copy.disabled = false;
  }

  async #copy() {
    const text = JSON.stringify(this.measurements, null, 2);
    try {
      await navigator.clipboard.writeText(text);
      this.state.textContent = "Copied.";
    } catch {
      // Where the clipboard is forbidden, people copy by hand.
      const area = element("textarea", { readonly: "", rows: "12", "aria-label": "Measurements" });
      area.textContent = text;
      this.state.replaceChildren("Copy this text: ", area);
      /** @type {HTMLTextAreaElement} */ (area).select();
    }
  }
}
