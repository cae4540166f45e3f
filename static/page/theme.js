// Sets the theme before the first paint, so that it does not flash. Not a module: those run only after the document.
{
  let theme = "auto";
  try {
    theme = localStorage.getItem("fast-embedding-theme") ?? "auto";
  } catch {
    // Storage is blocked: follow the system.
  }
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
}
