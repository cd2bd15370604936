// Titles of the filters of `frevl curate`.

export const TITLES = {
  match: "Captions",
  label: "Labels",
  blind: "Given away by the text",
  text: "Texts",
  image: "Images",
  duplicate: "Copies",
  repeated: "Repeated lines",
};

/** Return who decided what, to follow a word; empty if nobody did. */
export function voices(said) {
  const words = { drop: "drop", keep: "keep", fix: "relabel" };
  return Object.entries(said).map(([by, say]) => ` – ${by}: ${words[say] ?? say}`).join("");
}
