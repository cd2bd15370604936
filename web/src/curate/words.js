// What the filters of `frevl curate` are called on the page.

export const TITLES = {
  match: "Captions",
  label: "Labels",
  blind: "Given away by the text",
  text: "Texts",
  image: "Pictures",
  duplicate: "Copies",
  repeated: "The same line twice",
};

/** Say who decided what, to be put behind a word; nothing where nobody did. */
export function voices(said) {
  const words = { drop: "it goes", keep: "it stays", fix: "other label" };
  return Object.entries(said).map(([by, say]) => ` – ${by}: ${words[say] ?? say}`).join("");
}
