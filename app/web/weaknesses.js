// What the model is bad at, in words, from its report.

import { kindsOfDamage } from "./charts/robustness.js";
import { alternatives, count, percent } from "./format.js";

const WORST = 3; // classes, pairs or kinds of damage that are named
const MIN_PHOTOGRAPHS = 30; // of a class: fewer say little about it

/** Sentences, the ones about everyday pictures last. Reports of older bundles yield fewer. */
export function weaknesses(report) {
  const { per_class: rows, robustness, photographs, abstention } = report;
  const sentences = [
    `Of test images, it finds ${worst(rows.map(({ label, recall, support }) => ({ label, recall, support })))}.`,
    confusions(report),
  ];
  if (robustness) sentences.push(damage(robustness));
  if (abstention?.refused)
    sentences.push(
      `It names a class for ${percent(1 - abstention.refused.value)} of pictures that show something else.`,
    );
  if (!photographs) return sentences.filter(Boolean);
  const known = photographs.per_class.filter(({ support }) => support >= MIN_PHOTOGRAPHS);
  if (known.length)
    sentences.push(
      `Of photographs, it finds ${worst(known.map(({ recall, ...row }) => ({ ...row, recall: recall.value })))}.`,
    );
  const few = rows.map(({ label }) => label).filter((label) => !known.some((row) => row.label === label));
  if (few.length)
    sentences.push(
      `How well it finds ${alternatives(few)} in photographs is not known: there were fewer than ${MIN_PHOTOGRAPHS}.`,
    );
  sentences.push(
    `It names a class for ${percent(1 - photographs.abstention.refused.value)} of photographs that show something else.`,
  );
  return sentences.filter(Boolean);
}

/** [{label, recall, support}] -> "cat least often (92.3 % of 1,000), then dog (94.6 %) and bird (95.9 %)" */
function worst(rows) {
  const [first, ...others] = rows.sort((a, b) => a.recall - b.recall).slice(0, WORST);
  const then = listed(others.map(({ label, recall }) => `${label} (${percent(recall)})`));
  return `${first.label} least often (${percent(first.recall)} of ${count(first.support)})${then && `, then ${then}`}`;
}

function confusions({ per_class: rows, confusion_matrix: matrix }) {
  const labels = new Map(rows.map(({ class_id: id, label }) => [id, label]));
  const pairs = matrix.flatMap((row, one) =>
    row.slice(0, one).map((_, other) => ({ one, other, images: matrix[one][other] + matrix[other][one] })),
  );
  const most = pairs
    .filter(({ images }) => images > 0)
    .sort((a, b) => b.images - a.images)
    .slice(0, WORST)
    .map(({ one, other, images }) => `${labels.get(other)} with ${labels.get(one)} (${count(images)} images)`);
  return most.length ? `Most often it confuses ${listed(most)}.` : null;
}

function damage(robustness) {
  const kinds = kindsOfDamage(robustness)
    .slice(0, WORST)
    .map(({ name, right }) => `${name} (${percent(right)})`);
  return (
    `Of artificially damaged images, it classifies ${percent(robustness.mean_accuracy)} correctly, ` +
    `without damage ${percent(robustness.clean_accuracy)}. Worst are ${listed(kinds)}.`
  );
}

function listed(items) {
  return new Intl.ListFormat("en-GB").format(items);
}
