// Images from files, addresses and the clipboard: upright, or an error that says why not.

/** @import { Image } from "./types.js" */

/** An image that cannot be read; the message is for people. */
export class ImageError extends Error {}

/**
 * Decode an image. Its orientation is applied; colour profiles are not, as in Python.
 *
 * @param {Blob} blob
 * @param {string} name What to call it in messages.
 * @returns {Promise<Image>}
 * @throws {ImageError} It is none that this browser reads.
 */
export async function decoded(blob, name) {
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
      `${name}${type} is not an image that this browser can read: it is damaged, or of a kind ` +
        "that it does not know. JPEG, PNG and WebP are read everywhere.",
    );
  }
  return { image, width: image.width, height: image.height, name };
}

/**
 * Fetch an image from an address.
 *
 * @param {string} address
 * @returns {Promise<Image>}
 * @throws {ImageError} It cannot be had, or is none.
 */
export async function fetched(address) {
  let answer;
  try {
    answer = await fetch(address, { credentials: "omit", referrerPolicy: "no-referrer" });
  } catch {
    throw new ImageError(
      `${address} cannot be read: there is no way to it, or its server lets no other page read ` +
        "its images. Save the image and choose it as a file.",
    );
  }
  if (!answer.ok) throw new ImageError(`${address} cannot be read: ${answer.status}.`);
  return decoded(await answer.blob(), address);
}

/**
 * The first image among what was dropped or pasted.
 *
 * @param {DataTransfer | null} given
 * @returns {{blob: File | null, address: string}} A file, or an address, or neither.
 */
export function handed(given) {
  const files = [...(given?.files ?? [])];
  const blob = files.find((file) => file.type.startsWith("image/")) ?? files[0] ?? null;
  const text = (given?.getData("text/uri-list") || given?.getData("text/plain") || "").trim();
  const address = /^https?:\/\/\S+$/.test(text) ? text : "";
  return { blob, address };
}

/**
 * Let go of an image's memory.
 *
 * @param {Image | null} image
 */
export function closed(image) {
  if (image && image.image instanceof ImageBitmap) image.image.close();
}
