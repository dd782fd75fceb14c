// The model, as the page sees it. It runs in a worker, so that the page stays responsive.

/** @import { Build, Facts, Frame, Outputs, Running } from "./types.js" */

/** @typedef {"webgpu" | "wasm"} Backend */

/**
 * Which backends this browser has, the best first.
 *
 * @returns {Promise<Backend[]>}
 */
export async function backends() {
  // Type checkers do not all know WebGPU.
  const gpu = /** @type {any} */ (navigator).gpu;
  const adapter = await gpu?.requestAdapter().catch(() => null);
  return adapter ? ["webgpu", "wasm"] : ["wasm"];
}

/** Most threads that can be of use: those of WebAssembly need a page that is isolated. */
export function mostThreads() {
  return self.crossOriginIsolated ? Math.min(8, navigator.hardwareConcurrency || 1) : 1;
}

/** A model that is loaded, or being loaded. */
export class Engine {
  /** Start a worker; it waits for `load`. */
  constructor() {
    this.worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    /** @type {Map<number, {done: Function, failed: Function, progress: Function}>} */
    this.waiting = new Map();
    this.count = 0;
    /** @type {Running | null} */
    this.running = null;
    this.worker.onmessage = ({ data }) => this.#heard(data);
    this.worker.onerror = (event) => this.#broken(event.message || "the worker did not start");
  }

  /**
   * Fetch runtime and model, and run the model once.
   *
   * @param {Facts} facts
   * @param {Backend} backend
   * @param {number} threads
   * @param {(bytes: number) => void} progress Hears how many bytes have come.
   * @returns {Promise<Running>}
   */
  async load(facts, backend, threads, progress) {
    const build = facts.runtime[backend];
    const side = facts.preprocessing.crop;
    const address = (/** @type {string} */ path) => new URL(path, document.baseURI).href;
    this.running = await this.#ask(
      "load",
      {
        backend,
        threads,
        script: address(build.script),
        binary: address(build.binary),
        model: address(facts.file.path),
        side,
      },
      progress,
    );
    return /** @type {Running} */ (this.running);
  }

  /**
   * Run the model on an image.
   *
   * @param {Frame} frame
   * @returns {Promise<{outputs: Outputs, time: number}>} `time`: milliseconds.
   */
  run({ pixels, width, height }) {
    return this.#ask("run", { pixels, width, height });
  }

  /**
   * Run the model many times.
   *
   * @param {Frame} frame
   * @param {number} warmUp Runs that do not count.
   * @param {number} runs
   * @param {(done: number) => void} progress Hears how many runs are done.
   * @returns {Promise<number[]>} Milliseconds of each.
   */
  measure({ pixels, width, height }, warmUp, runs, progress) {
    return this.#ask("measure", { pixels, width, height, warmUp, runs }, progress);
  }

  /** End the worker, and with it all memory that the model took. */
  close() {
    this.worker.terminate();
    this.#broken("another model was loaded");
  }

  /**
   * @param {string} call
   * @param {object} given
   * @param {Function} progress
   * @returns {Promise<any>}
   */
  #ask(call, given, progress = () => {}) {
    const id = this.count++;
    return new Promise((done, failed) => {
      this.waiting.set(id, { done, failed, progress });
      this.worker.postMessage({ id, call, given });
    });
  }

  /** @param {{id: number, result?: any, error?: string, progress?: number}} message */
  #heard({ id, result, error, progress }) {
    const one = this.waiting.get(id);
    if (!one) return;
    if (progress !== undefined) {
      one.progress(progress);
      return;
    }
    this.waiting.delete(id);
    if (error === undefined) one.done(result);
    else one.failed(new Error(error));
  }

  /** @param {string} reason */
  #broken(reason) {
    for (const { failed } of this.waiting.values()) failed(new Error(reason));
    this.waiting.clear();
  }
}
