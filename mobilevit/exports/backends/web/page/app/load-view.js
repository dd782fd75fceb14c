// The part of the page that loads the model. It waits for a click, since runtime and model are
// megabytes, which can cost money on a phone.

import { describeBackend } from "./bench.js";
import { element, megabytes, small, byId } from "./dom.js";
import { backends, Engine, maxThreads } from "./engine.js";

/** @import { PageInfo } from "./types.js" */
/** @import { Backend } from "./engine.js" */
/** @import { Check } from "./check.js" */

const NAMES = { webgpu: "WebGPU", wasm: "WebAssembly" };

/** On phones, more threads would include slow cores, which the others wait for. */
const DEFAULT_THREADS = 4;

export class LoadView {
  /**
   * @param {PageInfo} info
   * @param {(engine: Engine | null) => Promise<void>} loaded Called with every model that was
   *   loaded, and with null before another is loaded.
   */
  constructor(info, loaded) {
    this.info = info;
    this.loaded = loaded;
    this.backend = byId("backend", HTMLSelectElement);
    this.threads = byId("threads", HTMLSelectElement);
    this.button = byId("load-button", HTMLButtonElement);
    this.progress = byId("progress", HTMLProgressElement);
    this.state = byId("state", HTMLElement);
    this.check = byId("check", HTMLElement);
    /** @type {Engine | null} */
    this.engine = null;
    byId("load-form", HTMLFormElement).addEventListener("submit", (event) => {
      event.preventDefault();
      this.#load();
    });
    for (const one of [this.backend, this.threads]) {
      one.addEventListener("change", () => this.#showSize());
    }
  }

  /**
   * List what this browser supports.
   *
   * @param {string[]} warnings Sentences.
   */
  async start(warnings) {
    const options = (await backends()).map((one) => new Option(NAMES[one], one));
    this.backend.replaceChildren(...options);
    const most = maxThreads();
    const counts = [1, 2, 3, 4, 6, 8].filter((count) => count <= most);
    this.threads.replaceChildren(...counts.map((count) => new Option(String(count))));
    this.threads.value = String(Math.min(DEFAULT_THREADS, counts[counts.length - 1]));
    byId("warnings", HTMLElement).replaceChildren(...warnings.map((one) => element("li", {}, one)));
    this.#showSize();
  }

  /** Show what a click would load. */
  #showSize() {
    const backend = /** @type {Backend} */ (this.backend.value);
    const { file, runtime, test } = this.info;
    const build = runtime[backend];
    const testBytes = test ? test.bytes : 0;
    byId("threads-label", HTMLElement).hidden = backend !== "wasm";
    this.button.textContent = this.engine ? "Load again" : "Load";
    byId("load-summary", HTMLElement).textContent = this.engine ? "Change the backend" : "Backend";
    byId("load-size", HTMLElement).textContent =
      `Loads ${megabytes(build.bytes + file.bytes + testBytes)}: ${megabytes(file.bytes)} of model, ` +
      `${megabytes(build.bytes)} of ${runtime.name} ${runtime.version} for ${NAMES[backend]}, ` +
      `${megabytes(testBytes)} of test image. Nothing is loaded later.`;
  }

  async #load() {
    const backend = /** @type {Backend} */ (this.backend.value);
    const { info } = this;
    this.engine?.close();
    this.engine = null;
    await this.loaded(null);
    const controls = [this.button, this.backend, this.threads];
    for (const one of controls) one.disabled = true;
    this.check.textContent = "";
    this.#setState("Loading …");
    const total = info.runtime[backend].bytes + info.file.bytes;
    this.progress.hidden = false;
    this.progress.value = 0;
    const engine = new Engine();
    try {
      const threads = Number(this.threads.value);
      const running = await engine.load(info, backend, threads, (bytes) => {
        this.progress.value = Math.min(1, bytes / total);
        this.progress.setAttribute("aria-valuetext", `${megabytes(bytes)} of ${megabytes(total)}`);
        if (bytes >= total) this.#setState("Starting …");
      });
      this.engine = engine;
      const seconds = (/** @type {number} */ time) => `${(time / 1000).toFixed(1)}\u00a0s`;
      this.#setState(
        `Runs on ${describeBackend(running)}. Loaded in ${seconds(running.fetched)}, started in ` +
          `${seconds(running.started)}.`,
      );
      byId("load-details", HTMLDetailsElement).open = false;
      await this.loaded(engine);
    } catch (error) {
      engine.close();
      this.#showError(backend, /** @type {Error} */ (error));
    } finally {
      this.progress.hidden = true;
      for (const one of controls) one.disabled = false;
      this.#showSize();
    }
  }

  /**
   * @param {Backend} backend
   * @param {Error} error
   */
  #showError(backend, error) {
    const others = backend === "webgpu" ? " Select WebAssembly and load again." : "";
    this.#setState(`${NAMES[backend]} cannot run the model: ${error.message}.${others}`, "bad");
  }

  /**
   * @param {string} text
   * @param {string} kind
   */
  #setState(text, kind = "") {
    this.state.textContent = text;
    this.state.className = kind;
  }

  /**
   * Show whether this browser agrees with Python.
   *
   * @param {Check} check
   */
  showCheck({ good, tolerance, difference, agreement, levels, by }) {
    const result =
      tolerance === null
        ? `the same prediction in ${(100 * agreement).toFixed(1)} %`
        : `largest difference ${small(difference)} (tolerance ${tolerance})`;
    const pixels = levels ? `; resized pixels differ by up to ${levels} of 255` : "";
    this.check.textContent = good
      ? `✓ Agrees with ${by} on the test image: ${result}${pixels}.`
      : `✗ Disagrees with ${by} on the test image: ${result}${pixels}. ` +
        "Do not trust its predictions in this browser; try the other backend." +
        (levels > 2 ? " Some browsers change pixels to prevent fingerprinting." : "");
    this.check.className = good ? "good" : "notice bad";
  }
}
