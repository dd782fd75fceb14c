// The part of the page that measures.

import { measurement, describeBackend, RUNS, WARM_UP } from "./bench.js";
import { describe, element, milliseconds, byId } from "./dom.js";

/** @import { PageInfo, Frame } from "./types.js" */
/** @import { Check } from "./check.js" */
/** @import { Engine } from "./engine.js" */
/** @import { Measurement } from "./bench.js" */

export class MeasureView {
  /**
   * @param {PageInfo} info
   * @param {() => {engine: Engine, frame: Frame} | null} getTarget Returns what to measure.
   */
  constructor(info, getTarget) {
    this.info = info;
    this.getTarget = getTarget;
    /** @type {Check | null} */
    this.check = null;
    /** @type {Measurement[]} */
    this.measurements = [];
    this.button = byId("measure", HTMLButtonElement);
    this.copy = byId("copy", HTMLButtonElement);
    this.state = byId("bench-state", HTMLElement);
    this.button.addEventListener("click", () => this.#measure());
    this.copy.addEventListener("click", () => this.#copy());
  }

  /** @param {boolean} yes Whether a model is loaded. */
  allow(yes) {
    this.button.disabled = !yes;
  }

  async #measure() {
    const target = this.getTarget();
    if (!target?.engine.running) return;
    const { engine, frame } = target;
    this.button.disabled = true;
    this.state.textContent = "Warming up …";
    try {
      const times = await engine.measure(frame, WARM_UP, RUNS, (done) => {
        // Once only: a screen reader speaks each change.
        if (done === RUNS / 2) this.state.textContent = `${done} of ${RUNS} runs …`;
      });
      const one = measurement(times, frame, this.info, engine.running, this.check);
      this.measurements.push(one);
      this.#show(one);
    } catch (error) {
      this.state.textContent = `The measurement failed: ${/** @type {Error} */ (error).message}.`;
    } finally {
      this.button.disabled = false;
    }
  }

  /** @param {Measurement} one */
  #show(one) {
    const [height, width] = one.input;
    const frames = one.frames_per_second.toFixed(1);
    this.state.textContent =
      `${RUNS} runs: median ${milliseconds(one.median_ms)}, ${frames} frames/s.`;
    describe(byId("tiles", HTMLElement), [
      ["Median", milliseconds(one.median_ms)],
      ["p90", milliseconds(one.p90_ms)],
      ["Minimum", milliseconds(one.min_ms)],
      ["Frames/s", frames],
      ["Input", `${width} × ${height}`],
      ["Backend", describeBackend(one)],
    ]);
    const cells = [
      `${width} × ${height}`,
      milliseconds(one.median_ms),
      milliseconds(one.p90_ms),
      milliseconds(one.min_ms),
      frames,
    ].map((text) => element("td", {}, text));
    byId("rows", HTMLElement).append(
      element("tr", {}, element("th", { scope: "row" }, describeBackend(one)), ...cells),
    );
    byId("history", HTMLElement).hidden = this.measurements.length < 2;
    this.copy.disabled = false;
  }

  async #copy() {
    const text = JSON.stringify(this.measurements, null, 2);
    try {
      await navigator.clipboard.writeText(text);
      this.state.textContent = "Copied.";
    } catch {
      // Where the clipboard is not allowed, the text can be copied by hand.
      const area = element("textarea", { readonly: "", rows: "12", "aria-label": "Measurements" });
      area.textContent = text;
      this.state.replaceChildren("Copy this text: ", area);
      /** @type {HTMLTextAreaElement} */ (area).select();
    }
  }
}
