// Answers as files to keep. They are made here; nothing is sent.

import { stateOf } from "./outcome.js";

const COLUMNS = {
  file: ({ file }) => file.name,
  bytes: ({ file }) => file.size,
  state: stateOf,
  label: ({ state, answer }) => (state === "answered" ? answer.predictions[0].label : null), // else it is no answer
  probability: ({ state, answer }) => (state === "answered" ? answer.predictions[0].probability : null),
  prediction_set: ({ state, answer }) => (state === "answered" ? answer.prediction_set?.labels.join("|") : null),
  coverage: ({ answer }) => answer?.prediction_set?.coverage,
  ood_score: ({ answer }) => answer?.ood_score,
  ood_threshold: ({ answer }) => answer?.ood_threshold,
  measured_on: ({ answer }) => answer?.measured_on,
  model: ({ answer }) => answer?.model.name,
  version: ({ answer }) => answer?.model.version,
  error: ({ failure }) => failure?.code,
  detail: ({ failure }) => failure?.message,
};

/** One line an image, for spreadsheets (RFC 4180, UTF-8 with a byte-order mark, without which Excel reads another). */
export function csv(outcomes) {
  const rows = outcomes.map((outcome) => Object.values(COLUMNS).map((value) => value(outcome)));
  return `\ufeff${[Object.keys(COLUMNS), ...rows].map((row) => `${row.map(cell).join(",")}\r\n`).join("")}`;
}

/** A cell. Spreadsheets would compute a text that begins like a formula; a file's name may be one. */
function cell(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return String(value);
  const safe = /^\s*[=+\-@＝＋－＠]/.test(value) || /^[\t\r\n]/.test(value) ? `'${value}` : value;
  return `"${safe.replaceAll('"', '""')}"`;
}

/** The answers as the service gave them, and the failures. */
export function json(outcomes) {
  const all = outcomes.map(({ file, state, answer, failure }) => ({
    file: file.name,
    bytes: file.size,
    state: stateOf({ state, answer }),
    ...(answer ? { answer } : { error: { code: failure.code, detail: failure.message } }),
  }));
  return `${JSON.stringify(all, null, 2)}\n`;
}

/** Hands the text to the visitor as a file, like a download. */
export function save(name, text) {
  const address = URL.createObjectURL(new Blob([text]));
  const link = document.createElement("a");
  link.href = address;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000); // browsers may read it after the click
}
