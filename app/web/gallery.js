// All answers: their cards, a summary that filters them, and files to keep.

import { answerCard } from "./answer.js";
import { html } from "./elements.js";
import { csv, json, save } from "./export.js";
import { inWords, stateOf } from "./outcome.js";

const MAX_LARGE_CARDS = 6; // more are shown compactly
const OWN_GROUPS = { all: "All", unsure: "Unsure", abstained: "Abstained", failed: "Failed" };

/**
 * Fills `list` with cards, the newest first, and `summary` if there are several; `head` is shown with any card.
 * `options` are those of a card. Returns {add(files), again(), clear()}.
 */
export function gallery({ list, head, summary }, { announce, ...options }) {
  let cards = [];
  let chosen = "all"; // the key of a group
  const buttons = new Map(); // by the key of the group that they show
  const filters = html("div", { class: "filters", role: "group", "aria-label": "Show" });
  const coming = html("p", { class: "hint" });
  const keep = html(
    "div",
    { class: "keep" },
    html("button", { type: "button", class: "quiet", click: () => save("answers.csv", csv(ended())) }, "Save as CSV"),
    html(
      "button",
      { type: "button", class: "quiet", click: () => save("answers.json", json(ended())) },
      "Save as JSON",
    ),
  );
  summary.append(filters, keep, coming);

  const outcomes = () => cards.map((card) => card.outcome());
  const ended = () => outcomes().filter(({ state }) => state !== "busy");

  function add(files) {
    const changed = () => {
      update();
      tell(added);
    };
    const added = files.map((file) => {
      const removed = () => {
        cards = cards.filter((each) => each !== card);
        update();
      };
      const card = answerCard(file, { ...options, announce, changed, removed });
      return card;
    });
    cards = [...added, ...cards];
    chosen = "all";
    list.prepend(...added.map(({ item }) => item));
    update();
    for (const card of added) card.run();
    added[0].item.scrollIntoView({ block: "nearest" });
  }

  /** Tells screen readers what several images brought, once all have ended. */
  function tell(added) {
    if (added.length > 1 && added.every((card) => card.outcome().state !== "busy")) announce(inWords(outcomes()));
  }

  /** Classifies the images again, with other settings. What is no image stays none. */
  function again() {
    for (const card of cards) {
      const { state, failure } = card.outcome();
      if (state !== "failed" || failure.code === "invalid_parameter") card.run();
    }
  }

  function clear() {
    for (const card of [...cards]) card.dismiss();
  }

  function update() {
    const all = outcomes();
    const groups = grouped(all);
    const busy = all.filter(({ state }) => state === "busy").length;
    if (!groups.has(chosen) && busy === 0) chosen = "all"; // what is classified again may come back
    const shown = groups.get(chosen)?.members ?? all;
    for (const card of cards) card.item.hidden = !shown.includes(card.outcome());
    head.hidden = all.length === 0;
    summary.hidden = all.length < 2;
    list.classList.toggle("compact", all.length > MAX_LARGE_CARDS);
    keep.hidden = busy === all.length;
    coming.textContent = busy ? `${busy} of ${all.length} are still to come.` : "";
    const focused = document.activeElement;
    filters.replaceChildren(...[...groups].map(([key, group]) => filter(key, group)));
    if (filters.contains(focused)) focused.focus(); // what is moved loses the focus
  }

  function filter(key, { name, members }) {
    if (!buttons.has(key))
      buttons.set(key, html("button", { type: "button", class: "quiet", click: () => choose(key) }));
    const button = buttons.get(key);
    button.setAttribute("aria-pressed", String(key === chosen));
    button.textContent = `${name} ${members.length}`;
    return button;
  }

  function choose(key) {
    chosen = key === chosen ? "all" : key;
    update();
  }

  return { add, again, clear };
}

/**
 * What can be shown, as {name, members} by key: all, what needs a look, and each class, the most frequent first. A class
 * may have the name of one of the others. Its key has a prefix that theirs lack.
 */
function grouped(outcomes) {
  const groups = new Map([["all", { name: OWN_GROUPS.all, members: outcomes }]]);
  for (const state of ["unsure", "abstained", "failed"]) {
    const members = outcomes.filter((outcome) => stateOf(outcome) === state);
    if (members.length) groups.set(state, { name: OWN_GROUPS[state], members });
  }
  const classes = Map.groupBy(
    outcomes.filter(({ state }) => state === "answered"),
    ({ answer }) => answer.predictions[0].label,
  );
  const byNumber = [...classes].sort(([one, a], [two, b]) => b.length - a.length || one.localeCompare(two));
  for (const [label, members] of byNumber) groups.set(`class ${label}`, { name: nameOf(label), members });
  return groups;
}

/** The label, with the word "class" before it if it could be taken for a group of the page's own. */
function nameOf(label) {
  return Object.hasOwn(OWN_GROUPS, label.toLowerCase()) ? `class ${label}` : label;
}
