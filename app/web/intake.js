// The ways an image comes in: dropped, pasted, picked, photographed, or one of the samples.

const MOST = 60; // images at once; whoever has more wants the API

/** `take(files)` for what came; `refuse(sentence)` for what could not be taken. */
export function listen({ take, refuse }) {
  const some = (files) => {
    take(files.slice(0, MOST));
    if (files.length > MOST) refuse(`The first ${MOST} of ${files.length} images were taken.`);
  };
  picker("choose", "files", some);
  picker("photograph", "camera", some);
  pasting(some, refuse);
  dropping(some, refuse);
  for (const button of document.querySelectorAll("[data-sample]")) {
    button.addEventListener("click", () => sample(button.dataset.sample, some, refuse));
  }
}

function picker(buttonId, inputId, take) {
  const input = document.getElementById(inputId);
  document.getElementById(buttonId).addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    take([...input.files]);
    input.value = ""; // so that the same file can be picked again
  });
}

function pasting(take, refuse) {
  document.addEventListener("paste", (event) => {
    if (event.target.closest?.("input, textarea")) return;
    const files = [...event.clipboardData.files];
    if (files.length) {
      event.preventDefault();
      take(files);
    } else refuse("What you pasted is no image. Copy the image itself, not its address or its page.");
  });
}

function dropping(take, refuse) {
  let depth = 0; // entering a child is told before leaving its parent
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
    else refuse("What you dropped is no file. Save the image first, then drop it here.");
  });
}

async function sample(name, take, refuse) {
  try {
    const response = await fetch(`assets/web/samples/${name}`);
    if (!response.ok) throw new Error(`HTTP status ${response.status}`);
    take([new File([await response.blob()], name, { type: "image/png" })]);
  } catch {
    refuse("The sample could not be loaded: the service cannot be reached.");
  }
}
