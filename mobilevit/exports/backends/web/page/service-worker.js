// Keeps the page for times without network, and adds the headers that let it use threads, for servers
// whose headers cannot be chosen. It looks at no requests but those to its own server.

const worker = /** @type {any} */ (self);

/** The cache, which the page fills with what was loaded ahead of this worker. */
const CACHE = "mobilevit-page";

const HEADERS = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "same-origin",
};

worker.addEventListener("install", () => worker.skipWaiting());
worker.addEventListener("activate", (/** @type {any} */ event) =>
  event.waitUntil(worker.clients.claim()),
);
worker.addEventListener("fetch", (/** @type {any} */ event) => {
  const { request } = event;
  const foreign = new URL(request.url).origin !== worker.location.origin;
  if (!foreign && request.method === "GET") event.respondWith(answered(event));
});

/**
 * The server's answer, or without network the latest one.
 *
 * @param {any} event
 */
async function answered(event) {
  const { request } = event;
  const cache = await caches.open(CACHE);
  try {
    const response = await fetch(request);
    // An opaque redirection is followed by the browser itself.
    if (response.status === 0) return response;
    // Without space the page works as before, but not without network.
    if (response.status === 200) event.waitUntil(cache.put(request, response.clone()).catch(() => {}));
    return isolated(response);
  } catch (error) {
    const kept = await cache.match(request, { ignoreVary: true });
    if (!kept) throw error;
    return isolated(kept);
  }
}

/**
 * With the headers of an isolated page.
 *
 * @param {Response} response
 */
function isolated(response) {
  const headers = new Headers(response.headers);
  for (const [name, value] of Object.entries(HEADERS)) headers.set(name, value);
  const { status, statusText } = response;
  // Statuses such as "not modified" allow no body.
  const body = [101, 204, 205, 304].includes(status) ? null : response.body;
  return new Response(body, { status, statusText, headers });
}
