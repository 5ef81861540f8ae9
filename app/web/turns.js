/** A function that runs asynchronous work at most `places` at a time, the rest in order; it returns its result. */
export function turns(places) {
  const waiting = [];
  let free = places;
  return async (work) => {
    if (free > 0) free -= 1;
    else await new Promise((resolve) => waiting.push(resolve));
    try {
      return await work();
    } finally {
      if (waiting.length) waiting.shift()();
      else free += 1;
    }
  };
}
