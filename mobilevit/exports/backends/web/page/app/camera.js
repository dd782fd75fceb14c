// The camera as a source of images.

import { ImageError } from "./images.js";

/** @import { Image } from "./types.js" */

/** @type {Record<string, string>} What a browser's refusals mean. */
const REASONS = {
  NotAllowedError: "this page is not allowed to. Allow it in the browser's settings of this page",
  NotFoundError: "there is no camera",
  NotReadableError: "another program uses it",
  OverconstrainedError: "there is no such camera",
};

/** Milliseconds to wait for a new image: a camera can stall. */
const MAX_WAIT = 100;

/** The same in browsers that do not notify of new images. */
const POLL_WAIT = 30;

/** A camera that is on. */
export class Camera {
  /**
   * @param {HTMLVideoElement} video Not visible; the page draws the images that the model has seen.
   * @param {MediaStream} stream
   */
  constructor(video, stream) {
    this.video = video;
    this.stream = stream;
    this.on = true;
    this.fresh = false;
    this.notify = () => {};
    this.notifies = "requestVideoFrameCallback" in video;
    // Also while the model runs: to wait after each run would halve the throughput.
    const onFrame = () => {
      this.fresh = true;
      this.notify();
      if (this.on) video.requestVideoFrameCallback(onFrame);
    };
    if (this.notifies) video.requestVideoFrameCallback(onFrame);
  }

  /**
   * Turn a camera on.
   *
   * @param {HTMLVideoElement} video
   * @param {"environment" | "user"} facing Away from the user, or towards them.
   * @returns {Promise<Camera>}
   * @throws {ImageError} There is none, or the page is not allowed to use it.
   */
  static async open(video, facing) {
    if (!navigator.mediaDevices) {
      throw new ImageError(
        "The camera cannot be used: browsers allow it only by https and on localhost. " +
          "Select an image instead; on a phone that can be a new photo.",
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
   * Whether there is more than one camera.
   */
  static async hasSeveral() {
    const devices = await navigator.mediaDevices.enumerateDevices();
    return devices.filter(({ kind }) => kind === "videoinput").length > 1;
  }

  /**
   * The newest image; waits for one that has not been returned yet.
   *
   * @returns {Promise<Image | null>} To be released after use; null once the camera is off.
   */
  async next() {
    const { video } = this;
    if (!this.fresh) {
      await new Promise((done) => {
        this.notify = () => done(null);
        setTimeout(done, this.notifies ? MAX_WAIT : POLL_WAIT);
      });
    }
    this.fresh = false;
    // It fails if the camera was turned off meanwhile, which is not an error.
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
