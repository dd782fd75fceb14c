// Types that the modules share; for editors and type checkers only.

/**
 * How an image is resized; as Python's `Preprocessing`.
 *
 * @typedef {object} Preprocessing
 * @property {"crop" | "stretch" | "shortest_edge"} resize_mode
 * @property {number} resize Pixels of the short side before the crop.
 * @property {number} crop Pixels of the square's side.
 * @property {"bilinear" | "bicubic"} interpolation
 */

/**
 * One build of the runtime.
 *
 * @typedef {object} Build
 * @property {string} script URL of its module.
 * @property {string} binary URL of its WebAssembly, compressed by gzip.
 * @property {number} bytes Of both together.
 */

/**
 * The content of `page.json`.
 *
 * @typedef {object} PageInfo
 * @property {string} model
 * @property {"classification" | "detection" | "segmentation"} task
 * @property {string[]} classes In the order of the model's outputs.
 * @property {string[]} colours Of the classes, as CSS writes them.
 * @property {Preprocessing} preprocessing
 * @property {number} multiple With `shortest_edge`, sides are multiples of this.
 * @property {number} longest The largest ratio of long to short side.
 * @property {boolean} vertical_first See `resize.js`.
 * @property {boolean} dynamic Whether the model takes images of any size.
 * @property {"fp32" | "fp16"} precision
 * @property {string | null} quantize
 * @property {string} source Where the weights come from.
 * @property {string} weights Their digest.
 * @property {string} licence
 * @property {string} version Of MobileViT's library.
 * @property {{path: string, bytes: number}} file The model.
 * @property {{name: string, version: string, wasm: Build, webgpu: Build}} runtime
 * @property {Test | null} test Null if the folder has no test image.
 */

/**
 * URLs of the test image and of Python's results.
 *
 * @typedef {object} Test
 * @property {string} image
 * @property {string} frame The image as Python resizes and crops it.
 * @property {string} prediction See `Expected`.
 * @property {number} bytes Of all three.
 */

/**
 * Python's prediction for the test image.
 *
 * @typedef {object} Expected
 * @property {string} by Its source, such as `PyTorch 2.14`.
 * @property {number | null} tolerance Largest difference; null for a quantized model.
 * @property {number[]} [probabilities] Of classification.
 * @property {ExpectedBoxes} [boxes] Of detection.
 * @property {ExpectedMask} [mask] Of segmentation.
 */

/**
 * @typedef {object} ExpectedBoxes
 * @property {number} overlap IoU above which a more probable box of a class suppresses another.
 * @property {number[]} floors Of each class: boxes with lower scores can be missing.
 * @property {number[][]} found Boxes: label, score, x1, y1, x2, y2.
 * @property {number[][]} candidates The same before suppression.
 */

/**
 * @typedef {object} ExpectedMask
 * @property {number} height
 * @property {number} width
 * @property {number[]} runs Class, number of pixels, class, number of pixels, ...
 * @property {number} limit Classes whose gap to the highest probability is larger are not listed.
 * @property {number[][]} close Pixel, another class, how much less probable it is.
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
 * A decodeImage image.
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
 * The model's outputs by name; see `mobilevit export`.
 *
 * @typedef {Record<string, Output>} Outputs
 */

/**
 * @typedef {{label: number, share: number}} ClassShare
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
 * @property {ClassShare[]} shares Of its classes, the largest first.
 */

/**
 * @typedef {{task: "classification", classes: ClassShare[]}
 *  | {task: "detection", boxes: Box[], full: boolean}
 *  | {task: "segmentation", mask: Mask}} Prediction
 * `full`: whether all boxes of the output are in use.
 */

/**
 * The runtime of a loaded model.
 *
 * @typedef {object} RuntimeInfo
 * @property {"webgpu" | "wasm"} backend
 * @property {number} threads Of WebAssembly.
 * @property {string} adapter Name of the GPU; empty without one.
 * @property {number} fetched Milliseconds of fetching.
 * @property {number} started Milliseconds from then to the end of the first run.
 */

export {};
