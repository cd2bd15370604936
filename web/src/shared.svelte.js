// State shared by all parts of the page: the store, the labels, the labeller, and the current link.
import { get, post, postSurely, query, requestId } from "./api.js";

function remembered(key, otherwise) {
  try {
    return localStorage.getItem(key) || otherwise;
  } catch {
    return otherwise;
  }
}

export function remember(key, value) {
  try {
    localStorage.setItem(key, value);
  } catch {
    // private windows store nothing
  }
}

export const shared = $state({
  parts: null, // what this service offers
  overview: null,
  labels: null,
  problem: "",
  said: "",
  renamed: "", // classes that were renamed while this page was open
  by: remembered("frevl-by", "me"),
  place: { tab: "pictures", asked: {} },
});

const TABS = ["pictures", "ask", "teach", "map", "runs", "curate", "overview", "report"];

export function readPlace() {
  const [path, asked] = location.hash.replace(/^#\/?/, "").split("?");
  const opens = shared.parts?.opens ?? "pictures";
  shared.place = { tab: TABS.includes(path) ? path : opens, asked: Object.fromEntries(new URLSearchParams(asked)) };
}

export function linkTo(tab, asked = {}) {
  const found = query(asked);
  return `#/${tab}${found ? `?${found}` : ""}`;
}

export function go(tab, asked = {}) {
  location.hash = linkTo(tab, asked);
}

/** Return the link to images similar to one, among those that the filters leave. */
export function similarTo(image) {
  const { where, filters } = shared.place.asked;
  return { like: image, where, filters };
}

/** Change the link without adding to the history. */
export function replacePlace(tab, asked) {
  history.replaceState(null, "", linkTo(tab, asked));
}

let away = false;

/**
 * Report what went wrong, or what was done; the last message stays. Background requests clear only the message that the
 * service does not answer: the failure of something a person did stays visible.
 */
export async function attempt(work, done = "", { background = false } = {}) {
  try {
    const found = await work();
    if (!background || away) shared.problem = "";
    away = false;
    if (done) shared.said = done;
    return found;
  } catch (error) {
    if (error.name === "AbortError") return undefined;
    away = error.code === "away";
    shared.problem = error.message;
    return undefined;
  }
}

export async function refreshLabels() {
  const found = await get("/explore/labels");
  const before = shared.labels?.renamed;
  if (before) {
    const told = Object.entries(found.renamed).filter(([name, now]) => before[name] !== now);
    if (told.length) shared.renamed = told.slice(0, 5).map(([name, now]) => `The class “${name}” is now called “${now}”.`).join(" ");
  }
  if (!shared.labels || found.version !== shared.labels.version) shared.labels = found;
}

let queue = Promise.resolve();
/** Labels being sent, by image: answers of the service do not know them yet. */
export const pending = new Map();

/** Label images, one request after the other; repeated under the same id if the answer was lost. */
export function label(images, name) {
  const by = shared.by;
  const mark = { by, name };
  for (const image of images) pending.set(image, mark);
  const own = queue.then(() => send(images, name, by));
  const done = () => {
    for (const image of images) if (pending.get(image) === mark) pending.delete(image);
    if (!pending.size) return attempt(refreshLabels, "", { background: true });
  };
  queue = own.then(done, done);
  return own;
}

async function send(images, name, by) {
  const id = requestId();
  const body = { by, id, labels: images.map((image) => ({ image, label: name })) };
  const what = images.length === 1 ? images[0] : `${images.length} images`;
  const written = await attempt(
    () => postSurely("/explore/label", body),
    name === null ? `Removed the label of ${what}.` : `${name}: ${what}.`,
  );
  return Boolean(written);
}

export async function undo() {
  await queue;
  const found = await attempt(() => post("/explore/labels/undo", { by: shared.by }), "Undone.");
  if (found) await attempt(refreshLabels, "", { background: true });
  return found;
}

export const number = (value) => value.toLocaleString("en");

export const counted = (count) => `${number(count)} ${count === 1 ? "image" : "images"}`;

/** A share or probability in percent; values close to 0 or 1 are not rounded to them. */
export function percent(value, digits = 1) {
  const least = 10 ** -digits;
  const shown = 100 * value;
  if (value < 1 && shown > 100 - least / 2) return `> ${(100 - least).toFixed(digits)} %`;
  if (value > 0 && shown < least / 2) return `< ${least.toFixed(digits)} %`;
  return `${shown.toFixed(digits)} %`;
}

/** A percentage from 0 to 100 with its interval, if that is known. */
export const reached = (value, interval) =>
  `${percent(value / 100)}${interval ? ` (${interval[0].toFixed(1)} to ${interval[1].toFixed(1)})` : ""}`;

export const moment = (at) => new Date(at).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });

export function bytes(value) {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  let step = 0;
  while (value >= 1000 && step < units.length - 1) {
    value /= 1000;
    step += 1;
  }
  return `${step && value < 10 ? value.toFixed(1) : Math.round(value)} ${units[step]}`;
}
