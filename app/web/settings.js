// How images are classified, under the names of the API: top_k, coverage, kind. The address has what differs from the
// defaults, so that it can be shared.

import { copyButton } from "./copy.js";
import { description } from "./documents.js";
import { freshId, html } from "./elements.js";
import { level } from "./format.js";

const LISTED = 10; // classes, unless the visitor or the model wants fewer
const KINDS = ["thumbnails", "photographs"];
const PARSE = {
  top_k: (text) => (/^[1-9]\d{0,4}$/.test(text) ? Number(text) : null),
  coverage: (text) => (/^0?\.\d{1,6}$/.test(text) ? Number(text) : null),
  kind: (text) => (KINDS.includes(text) ? text : null),
};

let chosen = {};
let classes = LISTED;

/** The query of a request for a prediction. */
export function predictQuery() {
  return new URLSearchParams({ top_k: Math.min(LISTED, classes), ...chosen }).toString();
}

/** The query of a request for the class's activation map. */
export function explainQuery(classId) {
  return new URLSearchParams({ class_id: classId, ...(chosen.kind ? { kind: chosen.kind } : {}) }).toString();
}

/**
 * Reads the settings from the address and fills `place`, a details element, with their fields, once the model is known.
 * Calls `changed()` after the visitor's change, and `note(sentence)` if the address has what this model does not.
 */
export async function settings(place, { changed, note, announce }) {
  const asked = [...new URLSearchParams(location.search)].filter(([name]) => Object.hasOwn(PARSE, name));
  chosen = Object.fromEntries(asked.map(([name, text]) => [name, PARSE[name](text)]).filter(([, value]) => value));
  const model = await description();
  classes = model.classes.length;
  const levels = levelsOf(model);
  const byDefault = (model.calibration?.conformal ?? model.photographs?.calibration.conformal)?.default_coverage;
  if (chosen.top_k > classes) delete chosen.top_k;
  if (!levels.includes(chosen.coverage)) delete chosen.coverage;
  const unknown = asked.filter(([name]) => !Object.hasOwn(chosen, name)).map(([name, text]) => `${name}=${text}`);
  if (unknown.length) {
    note(`The address asks for ${unknown.join(" and ")}. This model does not have that, so its default is used.`);
    changed();
  }

  function set(name, value) {
    if (value === null) delete chosen[name];
    else chosen[name] = value;
    const query = new URLSearchParams(chosen).toString();
    history.replaceState(null, "", `${location.pathname}${query && "?"}${query}${location.hash}`);
    changed();
  }

  const others = levels.filter((each) => each !== byDefault);
  const fields = html("div", { class: "fields" });
  place.append(fields);
  fields.append(
    levels.length ? choice("Sets contain the true class", "coverage", others.map(often), often(byDefault)[1]) : "",
    model.data_set?.one_kind
      ? ""
      : choice(
          "Treat pictures as",
          "kind",
          KINDS.map((kind) => [kind, kind]),
          "their size suggests",
        ),
    number("Classes to list", "top_k"),
    copyButton("Copy link with these settings", {
      text: () => location.href,
      copied: () => announce("The link is copied."),
      refused: () => note("The browser does not let the page copy. The link is this page’s address."),
    }),
  );
  place.open = Object.keys(chosen).length > 0;
  place.hidden = false;

  function choice(text, name, options, standard) {
    const id = freshId(name);
    const select = html(
      "select",
      { id, change: () => set(name, PARSE[name](select.value)) },
      html("option", { value: "" }, standard),
      options.map(([value, shown]) => html("option", { value, selected: chosen[name] === value }, shown)),
    );
    return html("p", {}, html("label", { for: id }, text), select);
  }

  function number(text, name) {
    const id = freshId(name);
    const change = () => field.reportValidity() && set(name, PARSE[name](field.value));
    const field = html("input", { type: "number", id, min: 1, max: classes, change });
    field.placeholder = Math.min(LISTED, classes);
    field.value = chosen[name] ?? "";
    return html("p", {}, html("label", { for: id }, text), field);
  }
}

function often(coverage) {
  return [coverage, `${level(coverage)} of the time`];
}

/** The coverages that the model has for any kind of pictures. */
function levelsOf({ calibration, photographs }) {
  const conformal = [calibration?.conformal, photographs?.calibration.conformal];
  const coverages = conformal.flatMap((each) => each?.levels ?? []).map(({ coverage }) => coverage);
  return [...new Set(coverages)].sort((a, b) => a - b);
}
