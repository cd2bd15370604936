// Lists of images for the grid: a short one that is complete, and a long one that is fetched while scrolling.
import { get } from "../api.js";
import { pending } from "../shared.svelte.js";

const PAGE = 100;
const MOST_PAGES = 60;

/** A list whose images are all known. */
export class Whole {
  items = $state.raw([]);
  total = $derived(this.items.length);

  constructor(items) {
    this.items = items;
  }

  at(index) {
    return this.items[index];
  }

  ensure() {}

  refresh() {}

  relabel(ids, by, name) {
    this.items = this.items.map((item) => (ids.has(item.id) ? relabelled(item, by, name) : item));
  }
}

/** A list of any length, fetched in pages of a hundred. */
export class Paged {
  total = $state(null);
  problem = $state("");
  fitting = $state(false); // the order is not known yet
  pages = $state.raw(new Map());
  #asked = new Map();

  constructor(path, filters) {
    this.path = path;
    this.filters = filters;
    this.#fetch(0);
  }

  at(index) {
    return this.pages.get(Math.floor(index / PAGE))?.[index % PAGE];
  }

  /** Fetch what is missing between two positions, and cancel what scrolled out of view. */
  ensure(first, last) {
    const wanted = [];
    for (let page = Math.floor(first / PAGE); page <= Math.floor(last / PAGE); page += 1) wanted.push(page);
    for (const [page, controller] of this.#asked) if (!wanted.includes(page) && page !== 0) controller.abort();
    for (const page of wanted) if (!this.pages.has(page) && !this.#asked.has(page)) this.#fetch(page);
  }

  /** Fetch the visible part again; the old one stays until the answer arrives. */
  refresh(first, last) {
    const shown = new Map();
    for (let page = Math.floor(first / PAGE); page <= Math.floor(last / PAGE); page += 1) {
      if (this.pages.has(page)) shown.set(page, this.pages.get(page));
    }
    this.pages = shown;
    for (const page of shown.keys()) this.#fetch(page);
  }

  relabel(ids, by, name) {
    const pages = new Map();
    for (const [page, items] of this.pages) {
      const touched = items.some((item) => ids.has(item.id));
      pages.set(page, touched ? items.map((item) => (ids.has(item.id) ? relabelled(item, by, name) : item)) : items);
    }
    this.pages = pages;
  }

  async #fetch(page) {
    const controller = new AbortController();
    this.#asked.set(page, controller);
    try {
      const found = await get(this.path, { ...this.filters, start: page * PAGE, count: PAGE }, controller.signal);
      const pages = new Map(this.pages);
      pages.set(page, found.images.map((item) => (pending.has(item.id) ? relabelled(item, pending.get(item.id).by, pending.get(item.id).name) : item)));
      while (pages.size > MOST_PAGES) pages.delete(pages.keys().next().value);
      this.pages = pages;
      this.total = found.total;
      this.problem = "";
    } catch (error) {
      if (error.name !== "AbortError") {
        this.problem = error.message;
        this.fitting = error.code === "being_fitted";
        this.total ??= 0;
      }
    } finally {
      if (this.#asked.get(page) === controller) this.#asked.delete(page);
    }
  }
}

function relabelled(item, by, name) {
  const labels = { ...item.labels };
  if (name === null) delete labels[by];
  else labels[by] = name;
  return { ...item, labels };
}
