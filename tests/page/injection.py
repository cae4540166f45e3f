"""What an attacker would add to a document, for pages whose Content-Security-Policy must not let it work."""

INJECT = """async () => {
    const worked = [];
    window.ranScript = (what) => worked.push(what);
    const script = document.createElement("script");
    script.textContent = "window.ranScript('inline')";
    document.head.append(script);
    document.body.insertAdjacentHTML("beforeend", `<img alt="" src="data:," onerror="window.ranScript('handler')">`);
    const style = document.createElement("style");
    style.textContent = "body { outline: 7px solid red }";
    document.head.append(style);
    if (getComputedStyle(document.body).outlineWidth === "7px") worked.push("style");
    await new Promise((resolve) => setTimeout(resolve, 100));
    return worked;
}"""
"""Returns what of it worked."""
