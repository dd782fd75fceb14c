// Threads need a page that is isolated from others, which a server says by two headers. Where it does
// not, a service worker adds them.

/** Remembers, for as long as the tab lives, that this has been tried. */
const TRIED = "mobilevit-isolation";

/** Milliseconds that the service worker may take; some browsers never say that they forbid it. */
const PATIENCE = 4000;

/**
 * Have the headers added, where they are missing and can be.
 *
 * @returns {Promise<boolean>} Whether the page is about to be loaded again.
 */
export async function isolated() {
  const workers = self.isSecureContext ? navigator.serviceWorker : undefined;
  if (self.crossOriginIsolated || !workers) return false;
  const late = new Promise((done) => setTimeout(done, PATIENCE, null));
  try {
    if (sessionStorage.getItem(TRIED)) return false;
    sessionStorage.setItem(TRIED, "yes");
    const begun = workers.register(new URL("../headers-worker.js", import.meta.url));
    const there = await Promise.race([begun.then((made) => made && workers.ready), late]);
    if (!there) return false;
  } catch {
    return false; // the browser forbids it, as in private windows: it will be one thread
  }
  location.reload();
  return true;
}

/**
 * What the page cannot have where it is, and why.
 *
 * @returns {string[]} Sentences.
 */
export function missing() {
  if (!self.isSecureContext) {
    return [
      "This page came by http from another machine. Browsers then give it no camera, no WebGPU and " +
        "no threads: expect a fraction of the speed. Serve it by https, or as localhost.",
    ];
  }
  if (self.crossOriginIsolated) return [];
  return [
    "One thread alone: the server does not send the headers Cross-Origin-Opener-Policy: same-origin " +
      "and Cross-Origin-Embedder-Policy: require-corp, and no service worker could add them.",
  ];
}
