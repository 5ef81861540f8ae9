// Tells the service what a picture really shows, where the service takes such feedback.

import { tellLabel } from "./api.js";
import { description } from "./documents.js";
import { freshId, html } from "./elements.js";
import { explainFailure } from "./faults.js";

const TAKEN = document.querySelector("meta[name=feedback]").content === "on";
const FORGOTTEN = "The service does not remember this answer any more. Classify the picture again.";

/** A question about the answer with this id, with buttons; null where the service takes no feedback. */
export function feedback({ requestId, answer, fileName, signal, announce }) {
  if (!TAKEN) return null;
  const { abstain, predictions } = answer;
  const [{ label: said }] = predictions;
  const id = freshId("true-class");
  const choice = html("select", { id, required: true }, html("option", { value: "" }, "…"));
  description().then(
    ({ classes }) =>
      choice.append(
        ...classes.filter((each) => abstain || each !== said).map((each) => html("option", { value: each }, each)),
      ),
    () => {}, // the next answer will show what is wrong
  );
  const form = html(
    "form",
    {
      class: "feedback",
      hidden: !abstain,
      submit: (event) => {
        event.preventDefault();
        tell(choice.value);
      },
    },
    html("label", { for: id }, "It is"),
    choice,
    html("button", { type: "submit", class: "quiet" }, "Send"),
  );
  const other = html("button", { type: "button", class: "quiet", "aria-expanded": "false", click: open }, "It is …");
  const fault = html("p", { class: "fault", hidden: true });
  const place = html(
    "div",
    { class: "feedback", role: "group", "aria-label": `What ${fileName} really shows` },
    abstain
      ? html("span", {}, "Do you know it?")
      : [
          html("span", {}, "Is that right?"),
          html("button", { type: "button", class: "quiet", click: () => tell(said) }, "Right"),
          other,
        ],
    form,
    fault,
  );
  let sending = false;

  function open() {
    form.hidden = !form.hidden;
    other.setAttribute("aria-expanded", String(!form.hidden));
    if (!form.hidden) choice.focus();
  }

  async function tell(label) {
    if (sending) return;
    sending = true;
    fault.hidden = true;
    try {
      await tellLabel(requestId, label, { signal });
      const thanks = html("p", { class: "hint", tabindex: "-1" }, `Noted: ${label}. Thank you.`);
      place.replaceChildren(thanks);
      thanks.focus(); // the button that had it is gone
      announce(thanks.textContent);
    } catch (failure) {
      if (signal.aborted) return;
      const { title, advice } = explainFailure(failure);
      const unknown = ["not_found", "invalid_parameter"].includes(failure.code); // too old, or another model's
      fault.textContent = unknown ? FORGOTTEN : `${title}. ${advice}`;
      fault.hidden = false;
      announce(fault.textContent);
    } finally {
      sending = false;
    }
  }

  return place;
}
