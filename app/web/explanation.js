// The activation map of an answer, on demand, in the place of the picture.

import { explain } from "./api.js";
import { freshId, html } from "./elements.js";
import { explainFailure } from "./faults.js";

/** A toggle, and once it is on the choice of the class; in `figure` the map takes the place of what is there. */
export function explanation({ file, predictions, figure, signal, announce }) {
  const map = html("img", { class: "map", alt: "", hidden: true });
  figure.append(map);
  const choiceId = freshId("class");
  const choice = html(
    "select",
    { id: choiceId, change: () => show() },
    predictions.map(({ label, class_id }) => html("option", { value: class_id }, label)),
  );
  const note = html("p", { class: "fault", hidden: true });
  const options = html(
    "div",
    { class: "map-options", hidden: true },
    html("label", { for: choiceId }, "What speaks for"),
    choice,
    html("span", { class: "scale", "aria-hidden": "true" }),
    html(
      "p",
      { class: "hint" },
      "Yellow speaks for it most, dark blue not at all. The map has few places: it shows regions, not outlines.",
    ),
    note,
  );
  const toggle = html(
    "button",
    { type: "button", class: "quiet", "aria-pressed": "false", click: () => switchTo(!on()) },
    "Where it looks",
  );
  const on = () => toggle.getAttribute("aria-pressed") === "true";
  let address = null;
  let asked = 0;

  function switchTo(wanted) {
    toggle.setAttribute("aria-pressed", String(wanted));
    options.hidden = !wanted;
    uncover(wanted && address !== null);
    if (wanted) show();
  }

  // The picture itself, or the sign that this browser cannot show it.
  function uncover(wanted) {
    for (const child of figure.children) child.hidden = (child === map) !== wanted;
  }

  async function show() {
    const label = choice.selectedOptions[0].text;
    asked += 1;
    const turn = asked;
    note.hidden = true;
    toggle.setAttribute("aria-busy", "true");
    try {
      const drawn = await explain(file, choice.value, { signal });
      if (turn !== asked) return;
      release();
      address = URL.createObjectURL(drawn);
      map.src = address;
      await map.decode();
      map.alt = `Activation map: where the model sees ${label} in ${file.name}`;
      if (on()) uncover(true);
      announce(`The activation map for ${label} is shown.`);
    } catch (failure) {
      if (signal.aborted || turn !== asked) return;
      const { title } = explainFailure(failure, file);
      note.textContent = title;
      note.hidden = false;
      announce(title);
    } finally {
      toggle.removeAttribute("aria-busy");
    }
  }

  function release() {
    if (address !== null) URL.revokeObjectURL(address);
  }
  signal.addEventListener("abort", release);
  return { toggle, options };
}
