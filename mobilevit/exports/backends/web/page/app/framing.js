// From an image to the pixels that the model takes: resized and cut as Python's `Preprocessing`
// does it. What happens to values is inside the model.

import { resize } from "./resize.js";

/** @import { PageInfo, Frame, Image, Region } from "./types.js" */

/**
 * Half a number, a half rounded to even as Python's `round` does.
 *
 * @param {number} value
 */
function halved(value) {
  const half = Math.floor(value / 2);
  return value % 2 === 1 && half % 2 === 1 ? half + 1 : half;
}

/**
 * The centre of an image.
 *
 * @param {number} width
 * @param {number} height
 * @param {number} toWidth
 * @param {number} toHeight
 * @returns {Region}
 */
function centre(width, height, toWidth, toHeight) {
  const x = halved(width - toWidth);
  return { x, y: halved(height - toHeight), width: toWidth, height: toHeight };
}

/**
 * How an image of a size is frameImage: which part is resized to which size, and what is cut of that.
 *
 * @param {PageInfo} info
 * @param {number} width
 * @param {number} height
 * @returns {{from: Region, width: number, height: number, cut: Region}}
 */
export function plan(info, width, height) {
  const { resize_mode: mode, resize: short, crop } = info.preprocessing;
  const least = Math.min(width, height);
  const all = { x: 0, y: 0, width, height };
  if (mode !== "crop") {
    let [tall, wide] = [crop, crop];
    if (mode === "shortest_edge") {
      [tall, wide] = [height, width].map((side) => {
        const scaled = Math.min(Math.floor((side * short) / least), info.longest * short);
        return Math.floor(scaled / info.multiple) * info.multiple;
      });
    }
    return { from: all, width: wide, height: tall, cut: centre(wide, tall, wide, tall) };
  }
  // What would be cut off at last is not resized at all, or a strip would take gigabytes.
  const longest = info.longest * least;
  const from = centre(width, height, Math.min(width, longest), Math.min(height, longest));
  const long = Math.trunc((short * Math.max(from.width, from.height)) / least);
  const [wide, tall] = from.width <= from.height ? [short, long] : [long, short];
  return { from, width: wide, height: tall, cut: centre(wide, tall, crop, crop) };
}

/** @type {CanvasRenderingContext2D | null} */
let reader = null;

/**
 * Rows of an image as bytes: red, green, blue, 255; transparent parts on white, as in Python.
 *
 * @param {Image} image
 * @param {Region} region
 * @param {number} top Within the region.
 * @param {number} rows
 */
function rowsOf(image, region, top, rows) {
  // One canvas is kept: a camera's frames would need thousands.
  reader ??= document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  if (!reader) throw new Error("this browser gives no canvas to read pixels with");
  if (reader.canvas.width !== region.width || reader.canvas.height < rows) {
    reader.canvas.width = region.width;
    reader.canvas.height = rows;
  }
  reader.imageSmoothingEnabled = false;
  reader.fillStyle = "white";
  reader.fillRect(0, 0, region.width, rows);
  reader.drawImage(image.image, -region.x, -region.y - top);
  return reader.getImageData(0, 0, region.width, rows).data;
}

/**
 * All pixels of a small image: red, green, blue, 255.
 *
 * @param {Image} image
 */
export function pixelsOf(image) {
  const { width, height } = image;
  return rowsOf(image, { x: 0, y: 0, width, height }, 0, height);
}

/**
 * Frame an image.
 *
 * @param {Image} image
 * @param {PageInfo} info
 * @returns {Frame}
 */
export function frameImage(image, info) {
  const { from, width, height, cut } = plan(info, image.width, image.height);
  const resized = resize(
    (top, rows) => rowsOf(image, from, top, rows),
    from.width,
    from.height,
    width,
    height,
    info.preprocessing.interpolation,
    info.vertical_first,
  );
  const pixels = new Uint8Array(cut.width * cut.height * 3);
  for (let row = 0; row < cut.height; row++) {
    const start = 3 * ((cut.y + row) * width + cut.x);
    pixels.set(resized.subarray(start, start + 3 * cut.width), 3 * row * cut.width);
  }
  const [across, down] = [from.width / width, from.height / height];
  const region = {
    x: from.x + cut.x * across,
    y: from.y + cut.y * down,
    width: cut.width * across,
    height: cut.height * down,
  };
  return { pixels, width: cut.width, height: cut.height, region };
}
