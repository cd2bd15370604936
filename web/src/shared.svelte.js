// What all parts of the page share: what the store holds, the labels, who labels, and where the link leads.
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
    // private windows keep nothing
  }
}

export const shared = $state({
  parts: null, // what works here
  overview: null,
  labels: null,
  problem: "",
  said: "",
  renamed: "", // what somebody called anew while this page was open
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

/** Return what a link asks for that searches for pictures like one, among those that are looked at. */
export function similarTo(image) {
  const { where, filters } = shared.place.asked;
  return { like: image, where, filters };
}

/** Change the link without a step in the history. */
export function replacePlace(tab, asked) {
  history.replaceState(null, "", linkTo(tab, asked));
}

let away = false;

/**
 * Say what went wrong, or what was done; the last sentence stands. What happens by itself, in the background, takes back only
 * that the service did not answer: what somebody did and could not be done stays to be read.
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
    if (told.length) shared.renamed = told.slice(0, 5).map(([name, now]) => `The class “${name}” is called “${now}” now.`).join(" ");
  }
  if (!shared.labels || found.version !== shared.labels.version) shared.labels = found;
}

let queue = Promise.resolve();
/** Labels that are on their way, by picture: what the service answers meanwhile does not know them yet. */
export const pending = new Map();

/** Label pictures, one request after the other; sent again under the same id if the answer was lost. */
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
  const what = images.length === 1 ? images[0] : `${images.length} pictures`;
  const written = await attempt(
    () => postSurely("/explore/label", body),
    name === null ? `No label any more: ${what}.` : `${name}: ${what}.`,
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

/** A share or probability in percent; one that is almost 0 or 1 is not rounded to what it is not. */
export function percent(value, digits = 1) {
  const least = 10 ** -digits;
  const shown = 100 * value;
  if (value < 1 && shown > 100 - least / 2) return `> ${(100 - least).toFixed(digits)} %`;
  if (value > 0 && shown < least / 2) return `< ${least.toFixed(digits)} %`;
  return `${shown.toFixed(digits)} %`;
}

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
