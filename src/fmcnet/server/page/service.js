// The service that the page came from, and what every part of the page shares.

export const $ = (id) => document.getElementById(id);

/** gallery: what /v1/gallery answered; null before, and for a key that may only add. key: the API key. */
export const state = { gallery: null, key: "", may: [] };

class Refused extends Error {
  constructor(status, error) {
    super(error.do ? `${error.what} (${error.where}): ${error.do}.` : error.what);
    this.status = status;
    this.what = error.what;
  }
}

/** Ask the service. Addresses are relative, so that the page also works below a path of a proxy. */
export async function call(path, options = {}) {
  const headers = state.key ? { Authorization: `Bearer ${state.key}` } : {};
  let reply;
  try {
    reply = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, { what: "The service does not answer. Is it running?" });
  }
  if (reply.ok) return reply;
  let said = { what: `The service answered ${reply.status}.` };
  try {
    said = (await reply.json()).error ?? said;
  } catch { /* not from the service itself */ }
  if (reply.status === 401) {
    said = { what: state.key ? "This API key is not known." : "An API key is needed." };
    document.dispatchEvent(new CustomEvent("locked", { detail: said.what }));
  }
  throw new Refused(reply.status, said);
}

/** The live region, which screen readers read out. */
export function say(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

export const isPhone = () => matchMedia("(max-width: 800px)").matches;

export const count = (n, one, many = `${one}s`) => `${n.toLocaleString()} ${n === 1 ? one : many}`;

/** A name within a sentence: one of right-to-left letters looks as on a card, and does not reorder the numbers beside it. */
export const isolated = (name) => `\u2066${name.replace(/[\u2066-\u2069]/g, "")}\u2069`;

/** An element with text and properties. */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** Move keyboard and screen reader to the results; on a phone also the window. */
export function toAnswer() {
  $("answer").focus({ preventScroll: true });
  if (isPhone()) $("answer").scrollIntoView({ block: "start" });
}
