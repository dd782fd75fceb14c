// The model. It runs in a worker, so that the page stays responsive.

/** @import { Build, PageInfo, Frame, Outputs, RuntimeInfo } from "./types.js" */

/** @typedef {"webgpu" | "wasm"} Backend */

/**
 * The backends that this browser supports, the fastest first.
 *
 * @returns {Promise<Backend[]>}
 */
export async function backends() {
  // Type checkers do not all know WebGPU.
  const gpu = /** @type {any} */ (navigator).gpu;
  const adapter = await gpu?.requestAdapter().catch(() => null);
  return adapter ? ["webgpu", "wasm"] : ["wasm"];
}

/** The largest useful number of threads; WebAssembly has threads only in isolated pages. */
export function maxThreads() {
  return self.crossOriginIsolated ? Math.min(8, navigator.hardwareConcurrency || 1) : 1;
}

/** A model that is loaded, or being loaded. */
export class Engine {
  /** Start a worker; it waits for `load`. */
  constructor() {
    this.worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    /** @type {Map<number, {done: Function, failed: Function, progress: Function}>} */
    this.pending = new Map();
    this.count = 0;
    /** @type {RuntimeInfo | null} */
    this.running = null;
    this.worker.onmessage = ({ data }) => this.#received(data);
    this.worker.onerror = (event) => this.#fail(event.message || "the worker did not start");
  }

  /**
   * Fetch runtime and model, and run the model once.
   *
   * @param {PageInfo} info
   * @param {Backend} backend
   * @param {number} threads
   * @param {(bytes: number) => void} progress Called with the number of bytes received.
   * @returns {Promise<RuntimeInfo>}
   */
  async load(info, backend, threads, progress) {
    const build = info.runtime[backend];
    const side = info.preprocessing.crop;
    const address = (/** @type {string} */ path) => new URL(path, document.baseURI).href;
    this.running = await this.#ask(
      "load",
      {
        backend,
        threads,
        script: address(build.script),
        binary: address(build.binary),
        model: address(info.file.path),
        side,
      },
      progress,
    );
    return /** @type {RuntimeInfo} */ (this.running);
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
   * @param {number} warmUp Runs that are not timed.
   * @param {number} runs
   * @param {(done: number) => void} progress Called with the number of runs done.
   * @returns {Promise<number[]>} Milliseconds of each.
   */
  measure({ pixels, width, height }, warmUp, runs, progress) {
    return this.#ask("measure", { pixels, width, height, warmUp, runs }, progress);
  }

  /** Stop the worker, which frees the model's memory. */
  close() {
    this.worker.terminate();
    this.#fail("another model was loaded");
  }

  /**
   * @param {string} call
   * @param {object} options
   * @param {Function} progress
   * @returns {Promise<any>}
   */
  #ask(call, options, progress = () => {}) {
    const id = this.count++;
    return new Promise((done, failed) => {
      this.pending.set(id, { done, failed, progress });
      this.worker.postMessage({ id, call, options });
    });
  }

  /** @param {{id: number, result?: any, error?: string, progress?: number}} message */
  #received({ id, result, error, progress }) {
    const one = this.pending.get(id);
    if (!one) return;
    if (progress !== undefined) {
      one.progress(progress);
      return;
    }
    this.pending.delete(id);
    if (error === undefined) one.done(result);
    else one.failed(new Error(error));
  }

  /** @param {string} reason */
  #fail(reason) {
    for (const { failed } of this.pending.values()) failed(new Error(reason));
    this.pending.clear();
  }
}
