// For servers whose headers cannot be chosen: this service worker adds those that let the page use
// threads. It keeps nothing, and looks at no requests but those to its own server.

const worker = /** @type {any} */ (self);

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
  if (!foreign && request.method === "GET") event.respondWith(answered(request));
});

/** @param {Request} request */
async function answered(request) {
  const response = await fetch(request);
  if (response.status === 0) return response; // a redirection, which the browser follows by itself
  const headers = new Headers(response.headers);
  for (const [name, value] of Object.entries(HEADERS)) headers.set(name, value);
  const { status, statusText } = response;
  // Statuses such as "not modified" allow no body.
  const body = [101, 204, 205, 304].includes(status) ? null : response.body;
  return new Response(body, { status, statusText, headers });
}
