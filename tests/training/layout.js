(() => {
  // Facts about the layout of an open page, as JSON. Each list is empty on a good page.
  const width = document.documentElement.clientWidth;
  const facts = { overflow: document.documentElement.scrollWidth - width, outside: [], clipped: [], small: [], scrolled: [], overlapping: [], cut: [] };
  const name = (e) => `${e.tagName.toLowerCase()}.${e.getAttribute("class") || ""} ${(e.textContent || "").trim().slice(0, 40)}`;
  for (const element of document.body.querySelectorAll("*")) {
    const style = getComputedStyle(element), box = element.getBoundingClientRect();
    if (!box.width || !box.height || style.visibility === "hidden") continue;
    const isDrawn = element instanceof SVGElement;
    if (box.right > width + 1 || box.left < -1) facts.outside.push(name(element));
    const ownText = [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (ownText && !isDrawn) {
      if (parseFloat(style.fontSize) < 11) facts.small.push(name(element));
      const range = document.createRange();
      range.selectNodeContents(element);
      const inner = range.getBoundingClientRect();
      for (let around = element; around !== document.body; around = around.parentElement) {
        const s = getComputedStyle(around), b = around.getBoundingClientRect();
        if (s.overflowX !== "visible" && inner.right > b.right + 1) facts.clipped.push(name(element));
        if (s.overflowY !== "visible" && inner.bottom > b.bottom + 1) facts.clipped.push(name(element));
      }
      const cell = element.closest("td, th");
      if (cell && inner.width > 0) {
        const c = cell.getBoundingClientRect();
        if (inner.right > c.right + 2 || inner.left < c.left - 2 || inner.bottom > c.bottom + 2 || inner.top < c.top - 2) facts.cut.push(name(element));
      }
    }
    if (!isDrawn && element.scrollWidth > element.clientWidth + 1 && style.overflowX !== "visible") facts.scrolled.push(name(element));
  }
  for (const svg of document.querySelectorAll("svg")) {
    const frame = svg.getBoundingClientRect(), boxes = [];
    if (!frame.width) continue;
    for (const text of svg.querySelectorAll("text")) {
      const box = text.getBoundingClientRect();
      if (!box.width) continue;
      const scale = Math.hypot(text.getScreenCTM().a, text.getScreenCTM().b);
      const pixels = parseFloat(getComputedStyle(text).fontSize) * scale;
      if (pixels < 11) facts.small.push(`${text.textContent} ${pixels.toFixed(1)}`);
      if (box.right > frame.right + 2 || box.left < frame.left - 2 || box.bottom > frame.bottom + 2 || box.top < frame.top - 2) facts.cut.push(name(text));
      for (const other of boxes) {
        const x = Math.min(box.right, other.box.right) - Math.max(box.left, other.box.left);
        const y = Math.min(box.bottom, other.box.bottom) - Math.max(box.top, other.box.top);
        if (x > 2 && y > 4) facts.overlapping.push(`${text.textContent} | ${other.text}`);
      }
      boxes.push({ box, text: text.textContent });
    }
  }
  return facts;
})()
