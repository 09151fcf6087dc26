// The elements of the page whose contrast is too low.
(() => {
    const parse = (text) => { const n = text.match(/[\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
    const light = ([r, g, b]) => {
        const part = (c) => { c /= 255; return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
        return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
    };
    const ratio = (a, b) => { const [x, y] = [light(a), light(b)]; return (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05); };
    const behind = (element) => {
        for (let at = element; at; at = at.parentElement) {
            const colour = parse(getComputedStyle(at).backgroundColor);
            if (colour[3] === 1) return colour;
        }
        return [255, 255, 255];
    };
    const poor = [];
    for (const element of document.querySelectorAll("body *")) {
        const style = getComputedStyle(element);
        const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
        if (own && element.getClientRects().length && !element.closest("script, style")) {
            const found = ratio(parse(style.color), behind(element));
            if (found < 4.5) poor.push(element.tagName + "." + element.className + " " + found.toFixed(2));
        }
        if (element.matches("path.kvm, path.count")) {
            const found = ratio(parse(style.fill), behind(element));
            if (found < 3) poor.push("path " + found.toFixed(2));
        }
    }
    const share = document.querySelector("td[style]");
    if (share) {
        const colour = document.createElement("i");
        colour.style.color = "var(--share)";
        share.append(colour);
        const found = ratio(parse(getComputedStyle(share).color), parse(getComputedStyle(colour).color));
        if (found < 4.5) poor.push("share " + found.toFixed(2));
    }
    return [...new Set(poor)].join(", ");
})()
