// Times the model on this device.

/** @import { PageInfo, Frame, RuntimeInfo } from "./types.js" */
/** @import { Check } from "./check.js" */

export const WARM_UP = 10;
export const RUNS = 100;

/**
 * A measurement, as it is copied to the clipboard.
 *
 * @typedef {object} Measurement
 * @property {string} model
 * @property {string} task
 * @property {string} weights
 * @property {string} precision
 * @property {string | null} quantize
 * @property {number[]} input Height and width in pixels.
 * @property {string} backend
 * @property {string} adapter The GPU; empty without one.
 * @property {number} threads
 * @property {number} warm_up Runs.
 * @property {number} runs
 * @property {number} median_ms
 * @property {number} p90_ms
 * @property {number} min_ms
 * @property {number} mean_ms
 * @property {number} frames_per_second Of the median.
 * @property {number} fetched_ms
 * @property {number} started_ms
 * @property {number | null} difference From Python's prediction.
 * @property {string} browser
 * @property {number} cores
 * @property {string} runtime
 * @property {string} mobilevit
 * @property {string} date
 */

/**
 * @param {number[]} times Milliseconds.
 * @returns {{median: number, p90: number, least: number, mean: number}}
 */
export function summary(times) {
  const sorted = [...times].sort((one, other) => one - other);
  const half = Math.floor(sorted.length / 2);
  return {
    median: sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2,
    p90: sorted[Math.ceil(0.9 * sorted.length) - 1],
    least: sorted[0],
    mean: sorted.reduce((sum, time) => sum + time, 0) / sorted.length,
  };
}

/**
 * @param {number[]} times Milliseconds of each run.
 * @param {Frame} frame
 * @param {PageInfo} info
 * @param {RuntimeInfo} running
 * @param {Check | null} check
 * @returns {Measurement}
 */
export function measurement(times, frame, info, running, check) {
  const { median, p90, least, mean } = summary(times);
  const rounded = (/** @type {number} */ value) => Number(value.toFixed(3));
  return {
    model: info.model,
    task: info.task,
    weights: info.weights,
    precision: info.precision,
    quantize: info.quantize,
    input: [frame.height, frame.width],
    backend: running.backend,
    adapter: running.adapter,
    threads: running.threads,
    warm_up: WARM_UP,
    runs: times.length,
    median_ms: rounded(median),
    p90_ms: rounded(p90),
    min_ms: rounded(least),
    mean_ms: rounded(mean),
    frames_per_second: rounded(1000 / median),
    fetched_ms: rounded(running.fetched),
    started_ms: rounded(running.started),
    difference: check && check.difference,
    browser: navigator.userAgent,
    cores: navigator.hardwareConcurrency,
    runtime: `${info.runtime.name} ${info.runtime.version}`,
    mobilevit: info.version,
    date: new Date().toISOString(),
  };
}

/**
 * The backend in words.
 *
 * @param {{backend: string, threads: number, adapter: string}} running
 */
export function describeBackend({ backend, threads, adapter }) {
  if (backend === "webgpu") return adapter ? `WebGPU (${adapter})` : "WebGPU";
  return `WebAssembly with SIMD, ${threads} thread${threads === 1 ? "" : "s"}`;
}
