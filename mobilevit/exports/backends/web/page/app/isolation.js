// Threads need an isolated page, which two headers of the server make it. Where the server does not
// send them, a service worker adds them. The same worker keeps the page for times without network.

/** Session key: whether this has been tried in this tab. */
const TRIED = "mobilevit-isolation";

/** Milliseconds to wait for the service worker; some browsers that do not allow it never reject. */
const TIMEOUT = 4000;

/** The cache of the service worker. */
const CACHE = "mobilevit-page";

/** Start the service worker, where the browser allows it. */
function startWorker() {
  const { serviceWorker } = navigator;
  const begun = serviceWorker.register(new URL("../service-worker.js", import.meta.url));
  return begun.then((made) => made && serviceWorker.ready);
}

/** Keep this page for times without network: what was loaded so far; the worker keeps the rest. */
export async function keep() {
  if (!self.isSecureContext || !navigator.serviceWorker) return;
  try {
    await startWorker();
    const loaded = performance.getEntriesByType("resource").map(({ name }) => name);
    const own = loaded.filter((name) => name.startsWith(`${location.origin}/`));
    const cache = await caches.open(CACHE);
    await cache.addAll(new Set([location.href.replace(location.hash, ""), ...own]));
  } catch {
    // Not allowed, as in private windows, or the network is gone: the page works all the same.
  }
}

/**
 * Add the headers where they are missing, if possible.
 *
 * @returns {Promise<boolean>} Whether the page is about to be reloaded.
 */
export async function isolate() {
  const workers = self.isSecureContext ? navigator.serviceWorker : undefined;
  if (self.crossOriginIsolated || !workers) return false;
  const late = new Promise((done) => setTimeout(done, TIMEOUT, null));
  try {
    if (sessionStorage.getItem(TRIED)) return false;
    sessionStorage.setItem(TRIED, "yes");
    const there = await Promise.race([startWorker(), late]);
    if (!there) return false;
  } catch {
    return false; // not allowed, as in private windows: one thread has to do
  }
  location.reload();
  return true;
}

/**
 * Features that are not available, and why.
 *
 * @returns {string[]} Sentences.
 */
export function missingFeatures() {
  if (!self.isSecureContext) {
    return [
      "This page was loaded by http from another machine, so that browsers allow no camera, no WebGPU " +
        "and no threads: it is several times slower. Serve it by https, or on localhost.",
    ];
  }
  if (self.crossOriginIsolated) return [];
  return [
    "One thread only: the server does not send the headers Cross-Origin-Opener-Policy: same-origin " +
      "and Cross-Origin-Embedder-Policy: require-corp, and no service worker could add them.",
  ];
}
