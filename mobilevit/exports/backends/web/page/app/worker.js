// The worker that holds ONNX Runtime and the model. It handles one message after the other.

/** @import { Outputs, RuntimeInfo } from "./types.js" */

/** @type {any} ONNX Runtime's module. */
let ort;
/** @type {any} The model's session. */
let session;

const CALLS = { load, run, measure };

let turn = Promise.resolve();
self.onmessage = ({ data }) => {
  turn = turn.then(() => reply(data));
};

/** @param {{id: number, call: keyof typeof CALLS, options: any}} message */
async function reply({ id, call, options }) {
  try {
    const result = await CALLS[call](options, (progress) => self.postMessage({ id, progress }));
    self.postMessage({ id, result });
  } catch (error) {
    // Emscripten throws numbers when out of memory.
    self.postMessage({ id, error: error instanceof Error ? error.message : String(error) });
  }
}

/**
 * @param {{backend: "webgpu" | "wasm", threads: number, script: string, binary: string,
 *   model: string, side: number}} options
 * @param {(bytes: number) => void} progress
 * @returns {Promise<RuntimeInfo>}
 */
async function load({ backend, threads, script, binary, model, side }, progress) {
  const begun = performance.now();
  let bytes = 0;
  const count = (/** @type {number} */ more) => progress((bytes += more));
  const [module, wasm, weights] = await Promise.all([
    import(script),
    fetchBytes(binary, count).then(decompress),
    fetchBytes(model, count),
  ]);
  const fetchedAt = performance.now();
  ort = module;
  ort.env.logLevel = "error";
  ort.env.wasm.wasmBinary = wasm;
  ort.env.wasm.numThreads = threads;
  session = await ort.InferenceSession.create(weights, { executionProviders: [backend] });
  // The first run compiles GPU programs and allocates memory; it is part of starting.
  await run({ pixels: new Uint8Array(side * side * 3), width: side, height: side });
  return {
    backend,
    threads: ort.env.wasm.numThreads,
    adapter: backend === "webgpu" ? await adapterName() : "",
    fetched: fetchedAt - begun,
    started: performance.now() - fetchedAt,
  };
}

/**
 * @param {string} address
 * @param {(bytes: number) => void} count
 * @returns {Promise<Uint8Array>}
 */
async function fetchBytes(address, count) {
  const response = await fetch(address);
  if (!response.ok || !response.body) {
    throw new Error(`${address} cannot be read: ${response.status}`);
  }
  const parts = [];
  const reader = response.body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    count(value.length);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

/**
 * Decompress gzip, unless the browser has done so already.
 *
 * @param {Uint8Array} bytes
 * @returns {Promise<ArrayBuffer>}
 */
function decompress(bytes) {
  const stream = new Blob([/** @type {BlobPart} */ (bytes)]).stream();
  const packed = bytes[0] === 0x1f && bytes[1] === 0x8b;
  const plain = packed ? stream.pipeThrough(new DecompressionStream("gzip")) : stream;
  return new Response(plain).arrayBuffer();
}

/** The name of the GPU, as far as the browser gives it. */
async function adapterName() {
  const gpu = /** @type {any} */ (navigator).gpu;
  const info = (await gpu?.requestAdapter())?.info;
  const words = [info?.vendor, info?.architecture, info?.description];
  return words.filter(Boolean).join(" ") || "unnamed GPU";
}

/**
 * @param {{pixels: Uint8Array, width: number, height: number}} frame
 * @returns {Promise<{outputs: Outputs, time: number}>}
 */
async function run({ pixels, width, height }) {
  const image = new ort.Tensor("uint8", pixels, [1, height, width, 3]);
  const begun = performance.now();
  const results = await session.run({ image });
  const time = performance.now() - begun;
  /** @type {Outputs} */
  const outputs = {};
  for (const [name, { data, dims }] of Object.entries(results)) outputs[name] = { data, dims };
  return { outputs, time };
}

/**
 * @param {{pixels: Uint8Array, width: number, height: number, warmUp: number, runs: number}} options
 * @param {(done: number) => void} progress
 * @returns {Promise<number[]>}
 */
async function measure({ pixels, width, height, warmUp, runs }, progress) {
  const times = [];
  for (let done = -warmUp; done < runs; done++) {
    const { time } = await run({ pixels, width, height });
    if (done >= 0) times.push(time);
    if (done % 10 === 0) progress(Math.max(0, done));
  }
  return times;
}
