// Draws an image and its prediction on the canvas.

/** @import { Prediction, Box, PageInfo, Mask, Image, Region } from "./types.js" */

/**
 * What the user can set.
 *
 * @typedef {object} Settings
 * @property {number} minScore Lowest score of a box that is shown.
 * @property {number} opacity Of a mask.
 */

/** The smallest width of an image, in CSS pixels, if the page is that wide. */
const MIN_WIDTH = 320;

/**
 * Draw an image as large as the page allows, and its prediction on it.
 *
 * @param {HTMLCanvasElement} canvas
 * @param {Image} image
 * @param {{info: PageInfo, region: Region, prediction: Prediction, settings: Settings} | null} overlay
 */
export function draw(canvas, image, overlay) {
  const available = canvas.parentElement?.clientWidth || MIN_WIDTH;
  // On a narrow screen the prediction, below it, is to be seen too.
  const tall = (matchMedia("(min-width: 50rem)").matches ? 0.7 : 0.4) * window.innerHeight;
  const shown = Math.min(Math.max(image.width, MIN_WIDTH), available, (tall * image.width) / image.height);
  const density = window.devicePixelRatio || 1;
  const scale = Math.max(1, Math.round(shown * density)) / image.width;
  canvas.width = Math.round(image.width * scale);
  canvas.height = Math.max(1, Math.round(image.height * scale));
  canvas.style.width = `${canvas.width / density}px`;
  const pen = canvas.getContext("2d");
  if (!pen) return;
  pen.fillStyle = "white"; // under transparent images
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.imageSmoothingQuality = "high";
  pen.drawImage(image.image, 0, 0, canvas.width, canvas.height);
  if (!overlay) return;
  const { region, prediction, info, settings } = overlay;
  const place = {
    x: region.x * scale,
    y: region.y * scale,
    width: region.width * scale,
    height: region.height * scale,
  };
  shade(pen, place);
  if (prediction.task === "segmentation") drawMask(pen, place, prediction.mask, info, settings.opacity);
  if (prediction.task === "detection") {
    const boxes = prediction.boxes.filter(({ score }) => score >= settings.minScore);
    // The most probable one last, over the others.
    for (const box of [...boxes].reverse()) drawBox(pen, place, box, info, density);
    /** @type {Region[]} */
    const taken = [];
    for (const box of boxes) drawName(pen, place, box, info, density, taken);
  }
}

/**
 * Darken what the model does not see.
 *
 * @param {CanvasRenderingContext2D} pen
 * @param {Region} seen
 */
function shade(pen, seen) {
  const { width, height } = pen.canvas;
  pen.fillStyle = "rgb(0 0 0 / 0.45)";
  pen.beginPath();
  pen.rect(0, 0, width, height);
  pen.rect(seen.x, seen.y, seen.width, seen.height);
  pen.fill("evenodd");
}

/**
 * @param {CanvasRenderingContext2D} pen
 * @param {Region} place
 * @param {Mask} mask
 * @param {PageInfo} info
 * @param {number} opacity
 */
function drawMask(pen, place, mask, info, opacity) {
  const layer = document.createElement("canvas");
  layer.width = mask.width;
  layer.height = mask.height;
  const layerPen = layer.getContext("2d");
  if (!layerPen) return;
  const image = layerPen.createImageData(mask.width, mask.height);
  const colours = info.colours.map((colour) => parseInt(colour.slice(1), 16));
  mask.labels.forEach((label, pixel) => {
    const colour = colours[label];
    image.data.set([colour >> 16, (colour >> 8) & 255, colour & 255, 255], 4 * pixel);
  });
  layerPen.putImageData(image, 0, 0);
  pen.save();
  pen.globalAlpha = opacity;
  pen.imageSmoothingEnabled = false;
  pen.drawImage(layer, place.x, place.y, place.width, place.height);
  pen.restore();
}

/**
 * @param {CanvasRenderingContext2D} pen
 * @param {Region} place
 * @param {Box} box
 * @param {PageInfo} info
 * @param {number} density Pixels of the canvas in one of CSS.
 */
function drawBox(pen, place, { label, corners }, info, density) {
  const [left, top, right, bottom] = [
    place.x + corners[0] * place.width,
    place.y + corners[1] * place.height,
    place.x + corners[2] * place.width,
    place.y + corners[3] * place.height,
  ];
  pen.lineWidth = 2 * density;
  pen.strokeStyle = info.colours[label];
  pen.strokeRect(left, top, right - left, bottom - top);
}

/**
 * Write a box's name at its corner, unless that would hide the name of a more probable one.
 *
 * @param {CanvasRenderingContext2D} pen
 * @param {Region} place
 * @param {Box} box
 * @param {PageInfo} info
 * @param {number} density Pixels of the canvas in one of CSS.
 * @param {Region[]} taken Where names are; the new one's place is added.
 */
function drawName(pen, place, { label, score, corners }, info, density, taken) {
  const [left, top] = [place.x + corners[0] * place.width, place.y + corners[1] * place.height];
  const colour = info.colours[label];
  const size = 12 * density;
  const text = `${info.classes[label]} ${Math.round(100 * score)} %`;
  pen.font = `${size}px system-ui, sans-serif`;
  pen.textBaseline = "middle";
  const wide = pen.measureText(text).width + size / 2;
  const high = 1.4 * size;
  const x = Math.max(0, Math.min(left, pen.canvas.width - wide));
  const y = top >= high ? top - high : top;
  const hides = taken.some(
    (one) => x < one.x + one.width && one.x < x + wide && y < one.y + one.height && one.y < y + high,
  );
  if (hides) return;
  taken.push({ x, y, width: wide, height: high });
  pen.fillStyle = colour;
  pen.fillRect(x, y, wide, high);
  pen.fillStyle = inkOn(colour);
  pen.fillText(text, x + size / 4, y + high / 2);
}

/**
 * Black or white, whichever can be read on a colour.
 *
 * @param {string} colour `#rrggbb`.
 */
export function inkOn(colour) {
  const value = parseInt(colour.slice(1), 16);
  const light = 0.3 * (value >> 16) + 0.59 * ((value >> 8) & 255) + 0.11 * (value & 255);
  return light > 140 ? "#000" : "#fff";
}
