/**
 * A function that runs asynchronous work and returns its result. It runs at most `concurrency` pieces of work at a
 * time; the others wait, and start in the order of their calls.
 */
export function limit(concurrency) {
  const queue = [];
  let free = concurrency;
  return async (work) => {
    if (free > 0) free -= 1;
    else await new Promise((resolve) => queue.push(resolve));
    try {
      return await work();
    } finally {
      if (queue.length) queue.shift()();
      else free += 1;
    }
  };
}
