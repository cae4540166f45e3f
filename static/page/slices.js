/** Long computations as generators: they yield often, and run in slices so that the page keeps reacting. */

const SLICE_MS = 12;

/** Run a generator to its end at once, and return its result. For short work and for tests. */
export function finish(work) {
  for (;;) {
    const step = work.next();
    if (step.done) return step.value;
  }
}

/** Run a generator in slices of a few milliseconds, and return its result. Rejects with an AbortError if aborted. */
export async function inSlices(work, signal) {
  for (;;) {
    signal?.throwIfAborted();
    const end = performance.now() + SLICE_MS;
    let step = work.next();
    while (!step.done && performance.now() < end) step = work.next();
    await nextTask(); // also at the end: what follows begins in a task of its own
    if (step.done) return step.value;
  }
}

/** Resolves in a task of its own: timers wait at least 4 ms when nested, messages do not. */
export function nextTask() {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}
