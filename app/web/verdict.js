// What an answer means, in words: for which kind of pictures it promises what, and what was measured on that kind.

import { description, report } from "./documents.js";
import { html } from "./elements.js";
import { alternatives, count, decimal, level, percent } from "./format.js";

const MAX_NAMED = 6; // classes of a set; further ones are counted

/** The text of an answer that names a class: the plausible classes, and how often such a set is right. */
export function trust({ prediction_set: set, measured_on: kind }) {
  if (!kind)
    return paragraph("The model was not measured on pictures of this kind. Nothing is promised for this answer.");
  if (!set)
    return paragraph(
      later(
        description(),
        (model) => `The probabilities were measured on ${called(kind, model)}. There is no prediction set for them.`,
      ),
    );
  const { coverage, labels } = set;
  return paragraph(
    ...plausible(labels),
    later(
      description(),
      (model) =>
        `A set like this is made to contain the true class ${level(coverage)} of the time, ` +
        `for ${called(kind, model)} of the model’s classes.`,
    ),
    later(both(), ([whole, model]) => held(of(kind, whole, model), called(kind, model), coverage)),
    labels.length > 1 ? " A smaller set would do so less often." : "",
  );
}

/** The text of an answer that abstains. */
export function abstention({ measured_on: kind, ood_score: score, ood_threshold: threshold }) {
  return paragraph(
    "The model abstains: this picture is unlike those that it was trained on. It may show something else, or one of " +
      `its classes in an unusual way. The out-of-distribution score is ${decimal(score, 3)}. ` +
      `Above ${decimal(threshold, 3)} the model does not answer.`,
    later(both(), ([whole, model]) => abstained(of(kind, whole, model), called(kind, model))),
  );
}

function paragraph(...content) {
  return html("p", { class: "verdict" }, ...content);
}

function plausible(labels) {
  if (labels.length === 1) return ["Only ", html("strong", {}, labels[0]), " is plausible."];
  const named = labels.length > MAX_NAMED ? labels.slice(0, MAX_NAMED - 1) : labels;
  const others = labels.length - named.length;
  return [
    "It may be ",
    html("strong", {}, alternatives(others ? [...named, `one of ${others} others`] : named)),
    ".",
    later(description(), ({ classes }) => classes.length === labels.length && "No class can be ruled out."),
  ];
}

/** A place for a sentence from a document. It stays empty if the document cannot be had or does not say it. */
function later(document, sentence) {
  const place = html("span");
  document.then(
    (content) => {
      const text = sentence(content);
      if (text) place.textContent = ` ${text}`;
    },
    () => {}, // other parts of the page tell what is wrong
  );
  return place;
}

function both() {
  return Promise.all([report(), description()]);
}

/** What pictures of this kind are called. For a model of one kind, what was measured holds for pictures of any size. */
function called(kind, { data_set: set }) {
  return set?.one_kind ? "pictures" : kind;
}

/** The part of the report about this kind of pictures; older reports have none about photographs. */
function of(kind, whole, model) {
  return (called(kind, model) === "photographs" ? whole.photographs : whole) ?? {};
}

function held({ conformal, n }, kind, coverage) {
  const measured = conformal?.levels.find((each) => each.coverage === coverage);
  return measured && `Of ${count(n)} test ${kind}, ${percent(measured.served_coverage)} had theirs in it.`;
}

function abstained({ abstention: measured, n, others = measured?.others }, kind) {
  if (!measured) return null;
  const { kept, refused } = measured; // of photographs with intervals, of thumbnails the share alone
  const known = `It abstains from ${percent(1 - (kept.value ?? kept))} of ${count(n)} test ${kind} of its classes`;
  return refused ? `${known}, and from ${percent(refused.value)} of ${count(others)} of other things.` : `${known}.`;
}
