// What became of one image: {file, state, answer, failure}, where `state` is busy, answered, abstained or failed.

/** As `state`, and "unsure" for an answer whose set has several classes. */
export function stateOf({ state, answer }) {
  return state === "answered" && answer.prediction_set?.labels.length > 1 ? "unsure" : state;
}

/** What became of several images, in a sentence. */
export function inWords(outcomes) {
  const number = (state) => outcomes.filter((outcome) => stateOf(outcome) === state).length;
  return (
    `${outcomes.length} images: ${number("answered")} answered, ${number("unsure")} unsure, ` +
    `${number("abstained")} abstained, ${number("failed")} failed.`
  );
}
