// The Playground: embed texts and look at what comes back.

/** Fill `root`, once. `api` is the module api.js, `state` the page's state (state.js). */
export function mount(root, { api, state }) {
  void api;
  void state;
  root.textContent = "";
}
