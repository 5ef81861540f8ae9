// Takes images that a visitor drops, pastes, picks or photographs, and the samples.

const MAX_IMAGES = 60; // at once; the API suits more

/** Calls `take(files)` with the images, `refuse(sentence)` if there are none, and `note(sentence)` if some are left. */
export function listen({ take, refuse, note }) {
  const takeFirst = (files) => {
    take(files.slice(0, MAX_IMAGES));
    if (files.length > MAX_IMAGES)
      note(`These are the first ${MAX_IMAGES} of your ${files.length} images. Add the others in further steps.`);
  };
  picker("choose", "files", takeFirst);
  picker("photograph", "camera", takeFirst);
  pasting(takeFirst, refuse);
  dropping(takeFirst, refuse);
  for (const button of document.querySelectorAll("[data-sample]")) {
    button.addEventListener("click", () => sample(button.dataset.sample, takeFirst, refuse));
  }
}

function picker(buttonId, inputId, take) {
  const input = document.getElementById(inputId);
  document.getElementById(buttonId).addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    take([...input.files]);
    input.value = ""; // otherwise picking the same file again would not be a change
  });
}

function pasting(take, refuse) {
  document.addEventListener("paste", (event) => {
    if (event.target.closest?.("input, textarea")) return;
    const files = [...event.clipboardData.files];
    if (files.length) {
      event.preventDefault();
      take(files);
    } else refuse("The clipboard holds no image. Copy the image itself, not its address or its page.");
  });
}

function dropping(take, refuse) {
  let depth = 0; // browsers report entering a child before leaving its parent
  const mark = (over) => document.body.classList.toggle("dragging", over);
  document.addEventListener("dragenter", (event) => {
    event.preventDefault();
    depth += 1;
    mark(true);
  });
  document.addEventListener("dragleave", () => {
    depth -= 1;
    mark(depth > 0);
  });
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    depth = 0;
    mark(false);
    const files = [...event.dataTransfer.files];
    if (files.length) take(files);
    else refuse("The dropped item is not a file. Save the image first, then drop the file here.");
  });
}

async function sample(name, take, refuse) {
  try {
    const response = await fetch(`assets/web/samples/${name}`);
    if (!response.ok) throw new Error(`HTTP status ${response.status}`);
    take([new File([await response.blob()], name, { type: "image/png" })]);
  } catch {
    refuse("The sample could not be loaded. The service cannot be reached.");
  }
}
