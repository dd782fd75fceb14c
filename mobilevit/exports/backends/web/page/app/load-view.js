// The part of the page that loads the model. It waits for a click: runtime and model are megabytes,
// which on a phone may cost money.

import { named } from "./bench.js";
import { element, megabytes, small, the } from "./dom.js";
import { backends, Engine, mostThreads } from "./engine.js";

/** @import { Facts } from "./types.js" */
/** @import { Backend } from "./engine.js" */
/** @import { Check } from "./check.js" */

const NAMES = { webgpu: "WebGPU", wasm: "WebAssembly" };

/** Threads unless people choose: on phones, more would be slow cores that the others wait for. */
const USUAL_THREADS = 4;

export class LoadView {
  /**
   * @param {Facts} facts
   * @param {(engine: Engine | null) => Promise<void>} loaded Hears of every model that is there, and
   *   of null before another is loaded.
   */
  constructor(facts, loaded) {
    this.facts = facts;
    this.loaded = loaded;
    this.backend = the("backend", HTMLSelectElement);
    this.threads = the("threads", HTMLSelectElement);
    this.button = the("load-button", HTMLButtonElement);
    this.progress = the("progress", HTMLProgressElement);
    this.state = the("state", HTMLElement);
    this.check = the("check", HTMLElement);
    /** @type {Engine | null} */
    this.engine = null;
    the("load-form", HTMLFormElement).addEventListener("submit", (event) => {
      event.preventDefault();
      this.#load();
    });
    for (const one of [this.backend, this.threads]) {
      one.addEventListener("change", () => this.#offer());
    }
  }

  /**
   * Offer what this browser has.
   *
   * @param {string[]} warnings Sentences.
   */
  async start(warnings) {
    const options = (await backends()).map((one) => new Option(NAMES[one], one));
    this.backend.replaceChildren(...options);
    const most = mostThreads();
    const counts = [1, 2, 3, 4, 6, 8].filter((count) => count <= most);
    this.threads.replaceChildren(...counts.map((count) => new Option(String(count))));
    this.threads.value = String(Math.min(USUAL_THREADS, counts[counts.length - 1]));
    the("warnings", HTMLElement).replaceChildren(...warnings.map((one) => element("li", {}, one)));
    this.#offer();
  }

  /** Say what a click would load. */
  #offer() {
    const backend = /** @type {Backend} */ (this.backend.value);
    const { file, runtime, test } = this.facts;
    const build = runtime[backend];
    const photo = test ? test.bytes : 0;
    the("threads-label", HTMLElement).hidden = backend !== "wasm";
    this.button.textContent = this.engine ? "Load again" : "Load";
    the("load-summary", HTMLElement).textContent = this.engine ? "Run it otherwise" : "What it runs on";
    the("load-size", HTMLElement).textContent =
      `Loads ${megabytes(build.bytes + file.bytes + photo)}: ${megabytes(file.bytes)} of model, ` +
      `${megabytes(build.bytes)} of ${runtime.name} ${runtime.version} for ${NAMES[backend]}, ` +
      `${megabytes(photo)} of test photo. Nothing after that.`;
  }

  async #load() {
    const backend = /** @type {Backend} */ (this.backend.value);
    const { facts } = this;
    this.engine?.close();
    this.engine = null;
    await this.loaded(null);
    const controls = [this.button, this.backend, this.threads];
    for (const one of controls) one.disabled = true;
    this.check.textContent = "";
    this.#say("Loading …");
    const total = facts.runtime[backend].bytes + facts.file.bytes;
    this.progress.hidden = false;
    this.progress.value = 0;
    const engine = new Engine();
    try {
      const threads = Number(this.threads.value);
      const running = await engine.load(facts, backend, threads, (bytes) => {
        this.progress.value = Math.min(1, bytes / total);
        this.progress.setAttribute("aria-valuetext", `${megabytes(bytes)} of ${megabytes(total)}`);
        if (bytes >= total) this.#say("Starting …");
      });
      this.engine = engine;
      const seconds = (/** @type {number} */ time) => `${(time / 1000).toFixed(1)}\u00a0s`;
      this.#say(
        `Runs on ${named(running)}. Loaded in ${seconds(running.fetched)}, started in ` +
          `${seconds(running.started)}.`,
      );
      the("load-details", HTMLDetailsElement).open = false;
      await this.loaded(engine);
    } catch (error) {
      engine.close();
      this.#failed(backend, /** @type {Error} */ (error));
    } finally {
      this.progress.hidden = true;
      for (const one of controls) one.disabled = false;
      this.#offer();
    }
  }

  /**
   * @param {Backend} backend
   * @param {Error} error
   */
  #failed(backend, error) {
    const others = backend === "webgpu" ? " Choose WebAssembly, and load again." : "";
    this.#say(`${NAMES[backend]} cannot run the model: ${error.message}.${others}`, "bad");
  }

  /**
   * @param {string} text
   * @param {string} kind
   */
  #say(text, kind = "") {
    this.state.textContent = text;
    this.state.className = kind;
  }

  /**
   * Say whether this browser says what Python says.
   *
   * @param {Check} check
   */
  showCheck({ good, bound, difference, agreement, levels, by }) {
    const apart =
      bound === null
        ? `the same in ${(100 * agreement).toFixed(1)} %`
        : `differs by ${small(difference)} at most (bound ${bound})`;
    const pixels = levels ? `; resized pixels differ by ${levels} of 255 at most` : "";
    this.check.textContent = good
      ? `✓ Says what ${by} says of the test photo: ${apart}${pixels}.`
      : `✗ Does not say what ${by} says of the test photo: ${apart}${pixels}. ` +
        "Do not trust its answers in this browser; try the other choice of what it runs on." +
        (levels > 2 ? " Some browsers change pixels to protect people from being recognised." : "");
    this.check.className = good ? "good" : "notice bad";
  }
}
