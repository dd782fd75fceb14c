// The camera as a source of images.

import { ImageError } from "./images.js";

/** @import { Image } from "./types.js" */

/** @type {Record<string, string>} What a browser's refusals mean. */
const REASONS = {
  NotAllowedError: "this page may not use the camera. Allow it in the browser's settings of this page",
  NotFoundError: "there is none",
  NotReadableError: "another program uses it",
  OverconstrainedError: "there is none of this kind",
};

/** Milliseconds that a new image is waited for: a camera may stall. */
const LONGEST_WAIT = 100;

/** The same in browsers that do not tell when there is a new one. */
const UNTOLD_WAIT = 30;

/** A camera that is on. */
export class Camera {
  /**
   * @param {HTMLVideoElement} video Shows nothing; the page draws what the model has seen.
   * @param {MediaStream} stream
   */
  constructor(video, stream) {
    this.video = video;
    this.stream = stream;
    this.on = true;
    this.fresh = false;
    this.heard = () => {};
    this.tells = "requestVideoFrameCallback" in video;
    // Heard while the model runs, too: waiting for the next one after each run would halve the pace.
    const come = () => {
      this.fresh = true;
      this.heard();
      if (this.on) video.requestVideoFrameCallback(come);
    };
    if (this.tells) video.requestVideoFrameCallback(come);
  }

  /**
   * Turn a camera on.
   *
   * @param {HTMLVideoElement} video
   * @param {"environment" | "user"} facing Away from people, or to them.
   * @returns {Promise<Camera>}
   * @throws {ImageError} There is none, or it may not be used.
   */
  static async opened(video, facing) {
    if (!navigator.mediaDevices) {
      throw new ImageError(
        "The camera cannot be used: browsers give it to pages by https and on localhost alone. " +
          "Choose a photo instead; on a phone that can be a new one.",
      );
    }
    /** @type {MediaStream | undefined} */
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({
        video: { facingMode: facing, width: { ideal: 640 }, height: { ideal: 480 } },
      });
      video.srcObject = stream;
      await video.play();
      return new Camera(video, stream);
    } catch (error) {
      for (const track of stream?.getTracks() ?? []) track.stop();
      video.srcObject = null;
      const { name, message } = /** @type {DOMException} */ (error);
      throw new ImageError(`The camera cannot be used: ${REASONS[name] ?? message}.`);
    }
  }

  /**
   * Whether there is more than one to choose from.
   */
  static async several() {
    const devices = await navigator.mediaDevices.enumerateDevices();
    return devices.filter(({ kind }) => kind === "videoinput").length > 1;
  }

  /**
   * The newest image; one that was seen already is waited for to be followed by another.
   *
   * @returns {Promise<Image | null>} To be closed after use; null once the camera is off.
   */
  async next() {
    const { video } = this;
    if (!this.fresh) {
      await new Promise((done) => {
        this.heard = () => done(null);
        setTimeout(done, this.tells ? LONGEST_WAIT : UNTOLD_WAIT);
      });
    }
    this.fresh = false;
    // What is off has no image: without a source, or at once afterwards, it cannot be taken.
    const image = await createImageBitmap(video).catch((error) => {
      if (this.on) throw error;
    });
    if (!image) return null;
    return { image, width: image.width, height: image.height, name: "the camera" };
  }

  /** Turn it off. */
  stop() {
    this.on = false;
    for (const track of this.stream.getTracks()) track.stop();
    this.video.srcObject = null;
  }
}
