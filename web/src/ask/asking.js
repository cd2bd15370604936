// What a run can be asked, and the requests for it, through the documented routes of the service only.
import { post, send } from "../api.js";

/** What can be asked, in words. `of` says which runs answer it. */
export const KINDS = {
  ask: { title: "Ask", button: "Ask", picture: true, words: "Question or statement", of: (run) => answers(run, "image", "text") },
  label: { title: "Label an image", button: "Label", picture: true, words: "", of: (run) => answers(run, "image") },
  read: { title: "Label a text", button: "Label", picture: false, words: "Text", of: (run) => answers(run, "text") },
  search: { title: "Search", button: "Search", picture: true, words: "Text", of: (run) => run.searches },
  match: { title: "Match", button: "Match", picture: true, words: "Statements or captions, one per line", of: (run) => run.task === "matching" },
};

const answers = (run, ...sides) => run.task === "classification" && run.reads.join() === sides.join();

/** The kinds that the runs can do; those of the first run come first. */
export function kindsOf(runs) {
  const found = Object.keys(KINDS).filter((kind) => runs.some(KINDS[kind].of));
  const first = (kind) => (runs.length && KINDS[kind].of(runs[0]) ? 0 : 1);
  return found.sort((one, other) => first(one) - first(other));
}

const lines = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);

/** Return what is missing before a request is sent; an empty string if nothing is. */
export function missing(kind, { text, image, file }, limits) {
  const { picture, words } = KINDS[kind];
  const has = Boolean(image || file);
  const longest = Math.max(0, ...(kind === "match" ? lines(text) : [text]).map((one) => one.length));
  if (kind === "search") {
    if (has && text.trim()) return "Type a text or choose an image, not both.";
    if (!has && !text.trim()) return "Type a text or choose an image.";
  } else if (picture && !has) return "Choose an image first.";
  else if (words && !text.trim()) return kind === "ask" ? "Type a question first." : "Type a text first.";
  if (longest > limits.text_characters) return `A text can have at most ${limits.text_characters} characters; this one has ${longest}.`;
  if (file && file.size > limits.body_bytes - 4096) return `${file.name || "The image"} is too large: ${Math.ceil(file.size / 1e6)} MB; the limit is ${Math.floor(limits.body_bytes / 1e6)} MB.`;
  return "";
}

/** Ask one run; what comes back is the service's own answer. */
export async function request(kind, run, { text, image, file, level, k, where, find }) {
  const picture = image ? { image } : file ? { upload: "picture" } : {};
  let path = "/v1/score";
  let body;
  if (kind === "search") {
    path = "/v1/search";
    body = { model: run.name, ...(text.trim() ? { text: text.trim() } : picture), k, find: text.trim() ? "images" : find, stages: true };
    if (where) body.where = where;
  } else {
    const texts = kind === "match" ? lines(text) : kind === "label" ? [null] : [text.trim()];
    const pairs = texts.map((one) => ({ ...(KINDS[kind].picture ? picture : {}), ...(one === null ? {} : { text: one }) }));
    body = { model: run.name, pairs, doubt: run.doubt };
    if (run.sets) body.sets = level;
  }
  const sent = file && !image && (body.upload || body.pairs?.[0].upload);
  const said = sent ? await send(path, body, "picture", file) : await post(path, body);
  return { ...said, texts: body.pairs?.map((pair) => pair.text) };
}

/** The service's message about an uploaded image, without the name that the page gave it. */
export const inWords = (error) => error.message.replace("The upload 'picture'", "The image");
