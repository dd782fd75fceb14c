// Pictures from files, addresses and the clipboard: upright, or an error that says why not.

/** @import { Picture } from "./types.js" */

/** A picture that can not be read; the message is for people. */
export class PictureError extends Error {}

/**
 * Decode a picture. Its orientation is applied; colour profiles are not, as in Python.
 *
 * @param {Blob} blob
 * @param {string} name What to call it in messages.
 * @returns {Promise<Picture>}
 * @throws {PictureError} It is none that this browser reads.
 */
export async function decoded(blob, name) {
  if (!blob.size) throw new PictureError(`${name} is empty.`);
  let image;
  try {
    image = await createImageBitmap(blob, {
      imageOrientation: "from-image",
      colorSpaceConversion: "none",
    });
  } catch {
    const type = blob.type ? ` (${blob.type})` : "";
    throw new PictureError(
      `${name}${type} is not a picture that this browser can read: it is damaged, or of a kind ` +
        "that it does not know. JPEG, PNG and WebP are read everywhere.",
    );
  }
  return { image, width: image.width, height: image.height, name };
}

/**
 * Fetch a picture from an address.
 *
 * @param {string} address
 * @returns {Promise<Picture>}
 * @throws {PictureError} It can not be had, or is none.
 */
export async function fetched(address) {
  let answer;
  try {
    answer = await fetch(address, { credentials: "omit", referrerPolicy: "no-referrer" });
  } catch {
    throw new PictureError(
      `${address} can not be read: there is no way to it, or its server lets no other page read ` +
        "its pictures. Save the picture and choose it as a file.",
    );
  }
  if (!answer.ok) throw new PictureError(`${address} can not be read: ${answer.status}.`);
  return decoded(await answer.blob(), address);
}

/**
 * The first picture among what was dropped or pasted.
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
 * Let go of a picture's memory.
 *
 * @param {Picture | null} picture
 */
export function closed(picture) {
  if (picture && picture.image instanceof ImageBitmap) picture.image.close();
}
