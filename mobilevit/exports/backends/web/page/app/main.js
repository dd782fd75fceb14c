// The page: what happens when, and what is shown then.

import { answerOf } from "./answers.js";
import { MeasureView } from "./bench-view.js";
import { Camera } from "./camera.js";
import { checked, testPhoto } from "./check.js";
import { the } from "./dom.js";
import { draw } from "./drawing.js";
import { framed } from "./framing.js";
import { isolated, missing } from "./isolation.js";
import { LoadView } from "./load-view.js";
import { closed, decoded, fetched, handed } from "./images.js";
import { AnswerView } from "./answer-view.js";
import { about } from "./about.js";

/** @import { Answer, Facts, Frame, Image } from "./types.js" */
/** @import { Engine } from "./engine.js" */

/** Milliseconds between two sentences about the camera's images. */
const SPEECH = 4000;

/** What the page holds; for those who look at it from outside as well. */
export class Page {
  /** @param {Facts} facts */
  constructor(facts) {
    this.facts = facts;
    /** @type {Image | null} */
    this.image = null;
    /** @type {{frame: Frame, answer: Answer} | null} Of the image. */
    this.said = null;
    /** @type {Engine | null} */
    this.engine = null;
    /** @type {Camera | null} */
    this.camera = null;
    /** @type {"environment" | "user"} */
    this.facing = "environment";
    this.asked = 0;
    /** Counts starts and stops of cameras: one that opens late may not be wanted any more. */
    this.cameras = 0;
    this.canvas = the("canvas", HTMLCanvasElement);
    this.answers = new AnswerView(facts, () => this.redraw());
    this.bench = new MeasureView(facts, () => this.toMeasure());
    this.load = new LoadView(facts, (engine) => this.loaded(engine));
  }

  /** Connect buttons, keys, drops and pastes; show the test photo. */
  async start() {
    const on = (/** @type {string} */ id, /** @type {() => Promise<unknown>} */ act) =>
      the(id, HTMLElement).addEventListener("click", () => this.tried(act));
    on("camera", () => (this.camera ? Promise.resolve(this.stopCamera()) : this.startCamera()));
    on("switch", () => this.switchCamera());
    on("sample", () => this.showTestPhoto());
    const file = the("file", HTMLInputElement);
    file.addEventListener("change", () => {
      const [chosen] = file.files ?? [];
      if (chosen) this.tried(() => this.open(decoded(chosen, chosen.name)));
      file.value = ""; // or the same file could not be chosen again
    });
    the("url-form", HTMLFormElement).addEventListener("submit", (event) => {
      event.preventDefault();
      const address = the("url", HTMLInputElement).value;
      this.tried(() => this.open(fetched(address)));
    });
    this.#takeWhatIsHanded();
    addEventListener("resize", () => this.redraw());
    // A camera that nobody looks at is turned off.
    document.addEventListener("visibilitychange", () => document.hidden && this.stopCamera());
    the("sample", HTMLElement).hidden = !this.facts.test;
    if (this.facts.test) {
      this.image = await testPhoto(this.facts.test);
      this.redraw();
      this.canvas.setAttribute("aria-label", "The test photo");
    }
  }

  #takeWhatIsHanded() {
    const take = (/** @type {DataTransfer | null} */ given) => {
      const { blob, address } = handed(given);
      if (blob) this.tried(() => this.open(decoded(blob, blob.name)));
      else if (address) this.tried(() => this.open(fetched(address)));
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
   * Do something, and show its error if it has one.
   *
   * @param {() => Promise<unknown>} act
   */
  async tried(act) {
    const place = the("error", HTMLElement);
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
   * The model is there, or gone.
   *
   * @param {Engine | null} engine
   */
  async loaded(engine) {
    this.stopCamera();
    this.engine = engine;
    the("sources", HTMLFieldSetElement).disabled = !engine;
    this.bench.allow(Boolean(engine));
    if (!engine) return;
    const { test } = this.facts;
    if (test) {
      const photo = await testPhoto(test);
      const check = await checked(engine, this.facts, test, photo);
      closed(photo);
      this.load.showCheck(check);
      this.bench.check = check;
    }
    if (this.image) await this.ask(this.image);
  }

  async showTestPhoto() {
    if (this.facts.test) await this.open(testPhoto(this.facts.test));
  }

  /**
   * Show an image and what the model says of it.
   *
   * @param {Promise<Image>} coming
   */
  async open(coming) {
    const turn = ++this.asked;
    const image = await coming;
    if (turn !== this.asked) return closed(image); // another was opened meanwhile
    this.stopCamera();
    closed(this.image);
    this.image = image;
    this.said = null;
    this.redraw();
    await this.ask(image);
  }

  /** @param {Image} image */
  async ask(image) {
    if (!this.engine?.running) {
      throw new Error("Load the model first: then it can say what it sees in the image.");
    }
    const turn = ++this.asked;
    const begun = performance.now();
    const frame = framed(image, this.facts);
    const framing = performance.now() - begun;
    const { outputs, time } = await this.engine.run(frame);
    if (turn !== this.asked) return;
    this.said = { frame, answer: answerOf(this.facts, outputs) };
    this.answers.show(this.said.answer, { name: image.name, time, framing });
    this.redraw();
  }

  /** Draw the image, with its answer if there is one. */
  redraw() {
    if (!this.image) return;
    const { facts, said, answers } = this;
    const { choices } = answers;
    const drawn = said && { facts, region: said.frame.region, answer: said.answer, choices };
    draw(this.canvas, this.image, drawn);
  }

  /** What is measured: the model that is loaded, and the image that is shown. */
  toMeasure() {
    this.stopCamera();
    const { facts, engine, image } = this;
    if (!engine) return null;
    const { crop } = facts.preprocessing;
    const pixels = new Uint8Array(3 * crop * crop);
    const region = { x: 0, y: 0, width: crop, height: crop };
    const black = { pixels, width: crop, height: crop, region };
    return { engine, frame: image ? framed(image, facts) : black };
  }

  async startCamera() {
    const button = the("camera", HTMLButtonElement);
    button.disabled = true;
    const turn = ++this.cameras;
    let camera;
    try {
      camera = await Camera.opened(the("video", HTMLVideoElement), this.facing);
    } finally {
      button.disabled = false;
    }
    if (turn !== this.cameras) return camera.stop();
    this.camera = camera;
    button.setAttribute("aria-pressed", "true");
    button.textContent = "Stop the camera";
    try {
      the("switch", HTMLElement).hidden = !(await Camera.several());
      await this.#watch(camera);
    } finally {
      if (this.camera === camera) this.stopCamera();
    }
  }

  /** @param {Camera} camera */
  async #watch(camera) {
    let [shown, spoken] = [performance.now(), -SPEECH];
    let pace = 0;
    this.asked++;
    while (camera.on && this.engine) {
      const image = await camera.next();
      if (!image) return;
      if (!camera.on) return closed(image);
      const begun = performance.now();
      const frame = framed(image, this.facts);
      const framing = performance.now() - begun;
      const { outputs, time } = await this.engine.run(frame);
      if (!camera.on) return closed(image);
      closed(this.image);
      this.image = image;
      this.said = { frame, answer: answerOf(this.facts, outputs) };
      const now = performance.now();
      const lately = 1000 / (now - shown);
      pace = pace ? 0.9 * pace + 0.1 * lately : lately;
      shown = now;
      const aloud = now - spoken >= SPEECH;
      if (aloud) spoken = now;
      this.answers.show(this.said.answer, { name: image.name, time, framing, pace, quiet: !aloud });
      this.redraw();
    }
  }

  stopCamera() {
    this.cameras++;
    this.camera?.stop();
    this.camera = null;
    const button = the("camera", HTMLButtonElement);
    button.setAttribute("aria-pressed", "false");
    button.textContent = "Camera";
    the("switch", HTMLElement).hidden = true;
  }

  async switchCamera() {
    this.facing = this.facing === "user" ? "environment" : "user";
    this.stopCamera();
    await this.startCamera();
  }
}

/** Read what the folder says of its model, and start. */
async function started() {
  if (await isolated()) return null;
  const answer = await fetch("page.json", { cache: "no-cache" });
  if (!answer.ok) throw new Error(`page.json cannot be read: ${answer.status}`);
  /** @type {Facts} */
  const facts = await answer.json();
  about(facts);
  the("unstarted", HTMLElement).hidden = true;
  const main = document.querySelector("main");
  if (main) main.hidden = false;
  const page = new Page(facts);
  await page.load.start(missing());
  await page.start();
  return page;
}

/** The page, once it has started; null where it is about to be loaded again. */
export const ready = started().catch((/** @type {Error} */ error) => {
  const place = the("unstarted", HTMLElement);
  place.textContent = `This page cannot start: ${error.message}`;
  place.classList.add("bad");
  place.hidden = false;
  throw error;
});
