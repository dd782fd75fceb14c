// The page: its state, and what its controls do.

import { predictionOf } from "./predictions.js";
import { MeasureView } from "./bench-view.js";
import { Camera } from "./camera.js";
import { runSelfTest, loadTestImage } from "./check.js";
import { byId } from "./dom.js";
import { draw } from "./drawing.js";
import { frameImage } from "./framing.js";
import { isolate, keep, missingFeatures } from "./isolation.js";
import { LoadView } from "./load-view.js";
import { decodeImage, fetchImage, release, transferred } from "./images.js";
import { PredictionView } from "./prediction-view.js";
import { about } from "./about.js";

/** @import { Prediction, PageInfo, Frame, Image } from "./types.js" */
/** @import { Engine } from "./engine.js" */

/** Milliseconds between announcements to screen readers while the camera is on. */
const SPEECH = 4000;

/** The state of the page. */
export class Page {
  /** @param {PageInfo} info */
  constructor(info) {
    this.info = info;
    /** @type {Image | null} */
    this.image = null;
    /** @type {{frame: Frame, prediction: Prediction} | null} Of the image. */
    this.result = null;
    /** @type {Engine | null} */
    this.engine = null;
    /** @type {Camera | null} */
    this.camera = null;
    /** @type {"environment" | "user"} */
    this.facing = "environment";
    this.requests = 0;
    /** Counts starts and stops of cameras, to recognise one that opened too late. */
    this.cameras = 0;
    this.canvas = byId("canvas", HTMLCanvasElement);
    this.predictions = new PredictionView(info, () => this.redraw());
    this.bench = new MeasureView(info, () => this.benchmarkTarget());
    this.load = new LoadView(info, (engine) => this.loaded(engine));
  }

  /** Connect buttons, keys, drops and pastes; show the test image. */
  async start() {
    const on = (/** @type {string} */ id, /** @type {() => Promise<unknown>} */ act) =>
      byId(id, HTMLElement).addEventListener("click", () => this.attempt(act));
    on("camera", () => (this.camera ? Promise.resolve(this.stopCamera()) : this.startCamera()));
    on("switch", () => this.switchCamera());
    on("sample", () => this.showTestImage());
    const file = byId("file", HTMLInputElement);
    file.addEventListener("change", () => {
      const [selected] = file.files ?? [];
      if (selected) this.attempt(() => this.open(decodeImage(selected, selected.name)));
      file.value = ""; // or the same file could not be selected again
    });
    byId("url-form", HTMLFormElement).addEventListener("submit", (event) => {
      event.preventDefault();
      const address = byId("url", HTMLInputElement).value;
      this.attempt(() => this.open(fetchImage(address)));
    });
    this.#connectDropAndPaste();
    addEventListener("resize", () => this.redraw());
    // The camera is turned off when the page is hidden.
    document.addEventListener("visibilitychange", () => document.hidden && this.stopCamera());
    byId("sample", HTMLElement).hidden = !this.info.test;
    if (this.info.test) {
      this.image = await loadTestImage(this.info.test);
      this.redraw();
      this.canvas.setAttribute("aria-label", "The test image");
    }
  }

  #connectDropAndPaste() {
    const take = (/** @type {DataTransfer | null} */ data) => {
      const { blob, address } = transferred(data);
      if (blob) this.attempt(() => this.open(decodeImage(blob, blob.name)));
      else if (address) this.attempt(() => this.open(fetchImage(address)));
    };
    document.addEventListener("paste", (event) => {
      const typing = event.target instanceof HTMLInputElement;
      if (!typing || event.clipboardData?.files.length) take(event.clipboardData);
    });
    const over = (/** @type {boolean} */ yes) => document.body.classList.toggle("dropping", yes);
    document.addEventListener("dragover", (event) => (event.preventDefault(), over(true)));
    document.addEventListener("dragleave", () => over(false));
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      over(false);
      take(event.dataTransfer);
    });
  }

  /**
   * Run an action, and show its error if it fails.
   *
   * @param {() => Promise<unknown>} act
   */
  async attempt(act) {
    const place = byId("error", HTMLElement);
    place.hidden = true;
    try {
      await act();
    } catch (error) {
      place.textContent = error instanceof Error ? error.message : String(error);
      place.hidden = false;
      place.scrollIntoView({ block: "nearest" });
    }
  }

  /**
   * The model was loaded, or unloaded.
   *
   * @param {Engine | null} engine
   */
  async loaded(engine) {
    this.stopCamera();
    this.engine = engine;
    byId("sources", HTMLFieldSetElement).disabled = !engine;
    this.bench.allow(Boolean(engine));
    if (!engine) return;
    const { test } = this.info;
    if (test) {
      const image = await loadTestImage(test);
      const check = await runSelfTest(engine, this.info, test, image);
      release(image);
      this.load.showCheck(check);
      this.bench.check = check;
    }
    if (this.image) await this.predict(this.image);
  }

  async showTestImage() {
    if (this.info.test) await this.open(loadTestImage(this.info.test));
  }

  /**
   * Show an image and the model's prediction.
   *
   * @param {Promise<Image>} loading
   */
  async open(loading) {
    const turn = ++this.requests;
    let image;
    try {
      image = await loading;
    } catch (error) {
      // No answer to an older image may stand for this one.
      if (turn === this.requests && !this.camera) this.#replace(null);
      throw error;
    }
    if (turn !== this.requests) return release(image); // another was opened meanwhile
    this.stopCamera();
    this.#replace(image);
    await this.predict(image);
  }

  /** @param {Image | null} image Shown in place of the current one, without a prediction yet. */
  #replace(image) {
    release(this.image);
    this.image = image;
    this.result = null;
    this.predictions.clear();
    if (image) return this.redraw();
    [this.canvas.width, this.canvas.height] = [16, 9];
    this.canvas.style.width = "";
  }

  /** On a narrow screen, scroll to the image and its prediction, which fit on it together. */
  #reveal() {
    const beside = matchMedia("(min-width: 50rem)").matches;
    if (!beside) byId("image", HTMLElement).scrollIntoView({ block: "start" });
  }

  /** @param {Image} image */
  async predict(image) {
    if (!this.engine?.running) {
      throw new Error("Load the model first.");
    }
    const turn = ++this.requests;
    const begun = performance.now();
    const frame = frameImage(image, this.info);
    const framing = performance.now() - begun;
    const { outputs, time } = await this.engine.run(frame);
    if (turn !== this.requests) return;
    this.result = { frame, prediction: predictionOf(this.info, outputs) };
    this.predictions.show(this.result.prediction, { name: image.name, time, framing });
    this.redraw();
    this.#reveal();
  }

  /** Draw the image, with its prediction if there is one. */
  redraw() {
    if (!this.image) return;
    const { info, result, predictions } = this;
    const { settings } = predictions;
    const overlay = result && {
      info,
      region: result.frame.region,
      prediction: result.prediction,
      settings,
    };
    draw(this.canvas, this.image, overlay);
  }

  /** What the benchmark runs: the loaded model, on the current image. */
  benchmarkTarget() {
    this.stopCamera();
    const { info, engine, image } = this;
    if (!engine) return null;
    const { crop } = info.preprocessing;
    const pixels = new Uint8Array(3 * crop * crop);
    const region = { x: 0, y: 0, width: crop, height: crop };
    const black = { pixels, width: crop, height: crop, region };
    return { engine, frame: image ? frameImage(image, info) : black };
  }

  async startCamera() {
    const button = byId("camera", HTMLButtonElement);
    button.disabled = true;
    const turn = ++this.cameras;
    let camera;
    try {
      camera = await Camera.open(byId("video", HTMLVideoElement), this.facing);
    } finally {
      button.disabled = false;
    }
    if (turn !== this.cameras) return camera.stop();
    this.camera = camera;
    button.setAttribute("aria-pressed", "true");
    button.textContent = "Stop the camera";
    try {
      byId("switch", HTMLElement).hidden = !(await Camera.hasSeveral());
      await this.#watch(camera);
    } finally {
      if (this.camera === camera) this.stopCamera();
    }
  }

  /** @param {Camera} camera */
  async #watch(camera) {
    let [shown, announced] = [performance.now(), -SPEECH];
    let [throughput, first] = [0, true];
    this.requests++;
    while (camera.on && this.engine) {
      const image = await camera.next();
      if (!image) return;
      if (!camera.on) return release(image);
      const begun = performance.now();
      const frame = frameImage(image, this.info);
      const framing = performance.now() - begun;
      const { outputs, time } = await this.engine.run(frame);
      if (!camera.on) return release(image);
      release(this.image);
      this.image = image;
      this.result = { frame, prediction: predictionOf(this.info, outputs) };
      const now = performance.now();
      const latest = 1000 / (now - shown);
      throughput = throughput ? 0.9 * throughput + 0.1 * latest : latest;
      shown = now;
      const announce = now - announced >= SPEECH;
      if (announce) announced = now;
      this.predictions.show(this.result.prediction, {
        name: image.name,
        time,
        framing,
        throughput,
        quiet: !announce,
      });
      this.redraw();
      if (first) this.#reveal();
      first = false;
    }
  }

  stopCamera() {
    this.cameras++;
    this.camera?.stop();
    this.camera = null;
    const button = byId("camera", HTMLButtonElement);
    button.setAttribute("aria-pressed", "false");
    button.textContent = "Camera";
    byId("switch", HTMLElement).hidden = true;
  }

  async switchCamera() {
    this.facing = this.facing === "user" ? "environment" : "user";
    this.stopCamera();
    await this.startCamera();
  }
}

/** Read the description of the model, and start. */
async function startPage() {
  if (await isolate()) return null;
  const response = await fetch("page.json", { cache: "no-cache" });
  if (!response.ok) throw new Error(`page.json cannot be read: ${response.status}`);
  /** @type {PageInfo} */
  const info = await response.json();
  about(info);
  byId("unstarted", HTMLElement).hidden = true;
  const main = document.querySelector("main");
  if (main) main.hidden = false;
  const page = new Page(info);
  await page.load.start(missingFeatures());
  await page.start();
  keep();
  return page;
}

/** The page, once it has started; null if it is about to be reloaded. */
export const ready = startPage().catch((/** @type {Error} */ error) => {
  const place = byId("unstarted", HTMLElement);
  place.textContent = `This page cannot start: ${error.message}`;
  place.classList.add("bad");
  place.hidden = false;
  throw error;
});
