// The address holds the state (run, view, filters), so that a view can be shared and Back works.

export const query = (parameters) => new URLSearchParams(Object.entries(parameters).filter(([, value]) => value !== "" && value !== null && value !== undefined));
export const state = () => Object.fromEntries(new URLSearchParams(location.search));
export const link = (parameters) => `/?${query(parameters)}`;
export function go(parameters) {
  history.pushState(null, "", link(parameters));
  dispatchEvent(new PopStateEvent("popstate")); // viewer.js shows it
}
