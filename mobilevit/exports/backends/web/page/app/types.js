// Shapes of what the modules hand to each other; for editors and type checkers alone.

/**
 * How an image gets its size; the same words as Python's `Preprocessing`.
 *
 * @typedef {object} Rule
 * @property {"crop" | "stretch" | "shortest_edge"} resize_mode
 * @property {number} resize Pixels of the short side before the crop.
 * @property {number} crop Pixels of the square's side.
 * @property {"bilinear" | "bicubic"} interpolation
 */

/**
 * One build of the runtime.
 *
 * @typedef {object} Build
 * @property {string} script Address of its module.
 * @property {string} binary Address of its WebAssembly, compressed by gzip.
 * @property {number} bytes Of both together.
 */

/**
 * What `page.json` says of the model.
 *
 * @typedef {object} Facts
 * @property {string} model
 * @property {"classification" | "detection" | "segmentation"} task
 * @property {string[]} classes In the order of the model's outputs.
 * @property {string[]} colours Of the classes, as CSS writes them.
 * @property {Rule} preprocessing
 * @property {number} multiple Sides of `short` are whole multiples of this.
 * @property {number} longest No image is longer than so many times its short side.
 * @property {boolean} tall_down See `resize.js`.
 * @property {boolean} dynamic Whether the model takes images of any size.
 * @property {"fp32" | "fp16"} precision
 * @property {string | null} quantize
 * @property {string} source Where the weights come from.
 * @property {string} weights Their digest.
 * @property {string} licence
 * @property {string} version Of MobileViT's library.
 * @property {{path: string, bytes: number}} file The model.
 * @property {{name: string, version: string, wasm: Build, webgpu: Build}} runtime
 * @property {Test | null} test Null where the folder has no test photo.
 */

/**
 * Addresses of the test photo and of what Python makes of it.
 *
 * @typedef {object} Test
 * @property {string} photo
 * @property {string} frame The photo as Python resizes and crops it.
 * @property {string} answer See `Expected`.
 * @property {number} bytes Of all three.
 */

/**
 * Python's answer of the test photo.
 *
 * @typedef {object} Expected
 * @property {string} by Who gave it, such as `PyTorch 2.14`.
 * @property {number | null} bound How far answers may differ; null of a quantised model.
 * @property {number[]} [probabilities] Of classification.
 * @property {ExpectedBoxes} [boxes] Of detection.
 * @property {ExpectedMask} [mask] Of segmentation.
 */

/**
 * @typedef {object} ExpectedBoxes
 * @property {number} overlap Above which a likelier box of the same class suppresses another.
 * @property {number[]} floors For each class: boxes below may be there or not.
 * @property {number[][]} found Boxes: label, score, x1, y1, x2, y2.
 * @property {number[][]} candidates The same before suppression.
 */

/**
 * @typedef {object} ExpectedMask
 * @property {number} height
 * @property {number} width
 * @property {number[]} runs Class, number of pixels, class, number of pixels, ...
 * @property {number} limit Classes less likely than a pixel's likeliest by more are not listed.
 * @property {number[][]} close Pixel, another class, how much less likely it is.
 */

/**
 * A part of an image, in its pixels.
 *
 * @typedef {{x: number, y: number, width: number, height: number}} Region
 */

/**
 * An image as the model takes it.
 *
 * @typedef {object} Frame
 * @property {Uint8Array} pixels Red, green, blue; row by row.
 * @property {number} width
 * @property {number} height
 * @property {Region} region The part of the image that it shows.
 */

/**
 * A decoded image.
 *
 * @typedef {object} Image
 * @property {CanvasImageSource} image Upright.
 * @property {number} width
 * @property {number} height
 * @property {string} name
 */

/**
 * @typedef {object} Output
 * @property {Float32Array | Uint8Array | Int32Array} data
 * @property {readonly number[]} dims
 */

/**
 * What the model gives, by name; see `mobilevit export`.
 *
 * @typedef {Record<string, Output>} Outputs
 */

/**
 * @typedef {{label: number, share: number}} Likely
 * `share`: a probability, or a class's share of the pixels.
 */

/**
 * @typedef {object} Box
 * @property {number} label
 * @property {number} score
 * @property {number[]} corners x1, y1, x2, y2 as shares of the frame's sides.
 */

/**
 * @typedef {object} Mask
 * @property {Uint8Array | Int32Array} labels Row by row.
 * @property {number} width
 * @property {number} height
 * @property {Likely[]} shares Of the classes in it, the largest first.
 */

/**
 * @typedef {{task: "classification", classes: Likely[]}
 *  | {task: "detection", boxes: Box[], full: boolean}
 *  | {task: "segmentation", mask: Mask}} Answer
 * `full`: whether the model had no place for more boxes.
 */

/**
 * What runs the model, once it is loaded.
 *
 * @typedef {object} Running
 * @property {"webgpu" | "wasm"} backend
 * @property {number} threads Of WebAssembly.
 * @property {string} adapter The GPU in words; empty without one.
 * @property {number} fetched Milliseconds that fetching took.
 * @property {number} started Milliseconds from there to the end of the first run.
 */

export {};
