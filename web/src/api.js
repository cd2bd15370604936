// Requests to the service that this page came from; every failure becomes a message.

export class Refused extends Error {
  constructor(message, code = "") {
    super(message);
    this.code = code;
  }
}

async function answer(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The service does not answer. Is it still running? Everything it confirmed is saved.", "away");
  }
  if (response.ok) return response;
  let problem = {};
  try {
    problem = (await response.json()).error ?? {};
  } catch {
    // no JSON: something between the page and the service answered
  }
  throw new Refused(problem.message ?? `The service answered with ${response.status}.`, problem.code);
}

/** Leave out empty values, so that links stay short. */
export function query(given) {
  const kept = Object.entries(given).filter(([, value]) => value !== undefined && value !== null && value !== "");
  return new URLSearchParams(kept.map(([key, value]) => [key, String(value)])).toString();
}

export async function get(path, given = {}, signal = undefined) {
  const asked = query(given);
  return (await answer(asked ? `${path}?${asked}` : path, { signal })).json();
}

export async function post(path, body) {
  const headers = { "Content-Type": "application/json" };
  return (await answer(path, { method: "POST", headers, body: JSON.stringify(body) })).json();
}

/** Post a request with an id, which counts once: it is sent again if no answer came. */
export async function postSurely(path, body) {
  try {
    return await post(path, body);
  } catch (error) {
    if (error.code !== "away") throw error;
    await new Promise((resolve) => setTimeout(resolve, 500));
    return post(path, body);
  }
}

/** Send a file along, as a form. */
export async function send(path, body, name, file) {
  const form = new FormData();
  form.append("request", JSON.stringify(body));
  form.append(name, file);
  return (await answer(path, { method: "POST", body: form })).json();
}

/** Return whether an image is unavailable; undefined if the service does not answer or is too busy. */
export async function isGone(address) {
  try {
    const { ok, status } = await fetch(address);
    return ok ? false : status < 500 && status !== 429 ? true : undefined;
  } catch {
    return undefined;
  }
}

export const thumbnail = (image, side) => `/explore/thumbnail?${query({ image, side })}`;

export const requestId = () => Array.from(crypto.getRandomValues(new Uint8Array(8)), (one) => one.toString(16)).join("");
