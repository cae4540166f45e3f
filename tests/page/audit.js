// What an audit of accessibility finds in the page that is open. Tests call these functions in the browser.

({
  // Lists visible controls and regions without a name for screen readers.
  unnamed: () => {
    const unnamedRoles = new Set(["none", "status", "alert"]);
    const named = (element) =>
      element.ariaLabel ||
      element.textContent.trim() ||
      element.title ||
      element.labels?.length ||
      (element.getAttribute("aria-labelledby") ?? "").split(" ").some((id) => document.getElementById(id)?.textContent);
    return [
      ...document.querySelectorAll(
        "button, a, input, select, textarea, summary, [role], canvas[tabindex], dialog, fieldset",
      ),
    ]
      .filter((element) => element.checkVisibility() && !element.closest("[aria-hidden=true]") && !unnamedRoles.has(element.role) && !named(element))
      .map((element) => element.outerHTML.slice(0, 120));
  },

  // Lists ids that are not unique, and references to elements that do not exist.
  brokenReferences: () => {
    const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
    const broken = ids.filter((id, at) => ids.indexOf(id) !== at);
    for (const name of ["for", "aria-controls", "aria-labelledby", "aria-describedby"]) {
      for (const element of document.querySelectorAll(`[${name}]`)) {
        broken.push(
          ...element
            .getAttribute(name)
            .split(" ")
            .filter((id) => !document.getElementById(id)),
        );
      }
    }
    return broken;
  },

  // Lists heading levels that follow a level more than one above.
  skippedHeadings: () => {
    const levels = [...document.querySelectorAll("h1, h2, h3, h4")]
      .filter((heading) => heading.checkVisibility())
      .map((heading) => Number(heading.tagName[1]));
    return levels.filter((level, at) => level > (levels[at - 1] ?? 0) + 1);
  },

  // Lists visible texts whose contrast is below that of WCAG AA.
  lowContrast: () => {
    const rgba = (text) => (text.match(/[\d.]+/g) ?? [0, 0, 0, 0]).map(Number);
    const linear = (part) => ((part /= 255) <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
    const over = (top, below) => [0, 1, 2].map((i) => top[i] * (top[3] ?? 1) + below[i] * (1 - (top[3] ?? 1)));
    const background = (element) => {
      if (!element) return rgba(getComputedStyle(document.body).backgroundColor);
      const own = rgba(getComputedStyle(element).backgroundColor);
      return (own[3] ?? 1) === 1 ? own : over(own, background(element.parentElement));
    };
    const low = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const element = walker.currentNode.parentElement;
      if (!walker.currentNode.textContent.trim() || !element.checkVisibility() || element.closest("script, option"))
        continue;
      const style = getComputedStyle(element);
      const below = background(element);
      const [lighter, darker] = [luminance(over(rgba(style.color), below)), luminance(below)].sort((a, b) => b - a);
      const ratio = (lighter + 0.05) / (darker + 0.05);
      const isLarge =
        parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 700);
      if (ratio < (isLarge ? 3 : 4.5))
        low.push(`${ratio.toFixed(2)} ${walker.currentNode.textContent.trim().slice(0, 60)}`);
    }
    return low;
  },

  // Adds up how much the layout has shifted since the page was opened (cumulative layout shift).
  layoutShift: () =>
    new Promise((resolve) => {
      let sum = 0;
      new PerformanceObserver((list) => {
        for (const entry of list.getEntries()) sum += entry.value;
      }).observe({ type: "layout-shift", buffered: true });
      setTimeout(() => resolve(sum), 100);
    }),

  // Returns the element that has the focus, and its outline.
  focusRing: () => {
    const element = document.activeElement;
    const shown = element.matches(".segments input") ? element.nextElementSibling : element;
    const { outlineStyle, outlineWidth } = getComputedStyle(shown);
    return [element.id || element.className || element.tagName, outlineStyle, outlineWidth];
  },
});
