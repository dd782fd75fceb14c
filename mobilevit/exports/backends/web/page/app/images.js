// Images from files, URLs and the clipboard, upright.

/** @import { Image } from "./types.js" */

/** An image that cannot be read; the message is shown to the user. */
export class ImageError extends Error {}

/**
 * Decode an image. Its orientation is applied; colour profiles are not, as in Python.
 *
 * @param {Blob} blob
 * @param {string} name For messages.
 * @returns {Promise<Image>}
 * @throws {ImageError} This browser cannot read it.
 */
export async function decodeImage(blob, name) {
  if (!blob.size) throw new ImageError(`${name} is empty.`);
  let image;
  try {
    image = await createImageBitmap(blob, {
      imageOrientation: "from-image",
      colorSpaceConversion: "none",
    });
  } catch {
    const type = blob.type ? ` (${blob.type})` : "";
    throw new ImageError(
      `${name}${type} is not an image that this browser can read: it is damaged, or in a format ` +
        "that is not supported. All browsers read JPEG, PNG and WebP.",
    );
  }
  return { image, width: image.width, height: image.height, name };
}

/**
 * Fetch an image from a URL.
 *
 * @param {string} address
 * @returns {Promise<Image>}
 * @throws {ImageError} It cannot be fetched, or is not an image.
 */
export async function fetchImage(address) {
  let response;
  try {
    response = await fetch(address, { credentials: "omit", referrerPolicy: "no-referrer" });
  } catch {
    throw new ImageError(
      `${address} cannot be read: it cannot be reached, or its server does not allow other pages ` +
        "to read its images. Save the image and select it as a file.",
    );
  }
  if (!response.ok) throw new ImageError(`${address} cannot be read: ${response.status}.`);
  return decodeImage(await response.blob(), address);
}

/**
 * The first image among what was dropped or pasted.
 *
 * @param {DataTransfer | null} data
 * @returns {{blob: File | null, address: string}} A file, or an address, or neither.
 */
export function transferred(data) {
  const files = [...(data?.files ?? [])];
  const blob = files.find((file) => file.type.startsWith("image/")) ?? files[0] ?? null;
  const text = (data?.getData("text/uri-list") || data?.getData("text/plain") || "").trim();
  const address = /^https?:\/\/\S+$/.test(text) ? text : "";
  return { blob, address };
}

/**
 * Free an image's memory.
 *
 * @param {Image | null} image
 */
export function release(image) {
  if (image && image.image instanceof ImageBitmap) image.image.close();
}
