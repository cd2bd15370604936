// What Curate lists of a filter or of the copies: asked for by what the link says, walked through with the arrows.
import { get } from "../api.js";

export class Listed {
  answer = $state.raw(null);
  problem = $state("");
  at = $state(0);
  items = $state([]); // the elements on the page
  #path;
  #asked = {};
  #latest = 0;

  constructor(path) {
    this.#path = path;
  }

  /** List what another link asks for, from its first entry. */
  open(asked) {
    this.#asked = asked;
    this.at = 0;
    return this.again();
  }

  /** Ask once more; an answer that a later one has overtaken is thrown away. */
  async again() {
    this.#latest += 1;
    const own = this.#latest;
    try {
      const found = await get(this.#path, this.#asked);
      if (own !== this.#latest) return;
      this.answer = found;
      this.problem = "";
    } catch (error) {
      if (own === this.#latest) this.problem = error.message;
    }
  }

  focus(index) {
    const { length } = this.items.filter(Boolean);
    if (!length) return;
    this.at = Math.max(0, Math.min(index, length - 1));
    this.items[this.at].focus();
    this.items[this.at].scrollIntoView({ block: "nearest" });
  }

  /** Move by an arrow; return whether the key was one. */
  moved(event) {
    if (event.key === "ArrowDown") this.focus(document.activeElement === this.items[this.at] ? this.at + 1 : this.at);
    else if (event.key === "ArrowUp") this.focus(this.at - 1);
    else return false;
    return true;
  }
}
