for (const part of document.querySelectorAll(".part")) {
  const at = (selector) => part.querySelector(selector);
  const data = (name) => document.getElementById(`${part.id}-${name}`);
  const details = JSON.parse(data("details").textContent);
  const panel = at(".panel"), hint = panel.firstElementChild, status = at(".count");
  const rows = [...part.querySelectorAll("[role=treeitem]")];
  const keyed = new Map(rows.map((row) => [row.id, row]));
  const parent = (row) => keyed.get(`${part.id}-${row.dataset.parent}`);
  const isOpen = (row) => row.getAttribute("aria-expanded") === "true";
  const isGroup = (row) => row.hasAttribute("aria-expanded");
  const first = rows.map((row) => isOpen(row));
  let chosen = null;

  const make = (tag, text, name) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (name) made.className = name;
    return made;
  };
  const list = (pairs) => {
    const made = make("dl");
    for (const [name, text] of pairs) made.append(make("dt", name), make("dd", text));
    return made;
  };
  const layOut = () => {
    for (const row of rows) {
      const above = parent(row);
      row.hidden = Boolean(above) && (above.hidden || !isOpen(above));
    }
  };
  const open = (row, way) => {
    if (isGroup(row)) row.setAttribute("aria-expanded", way);
  };
  const focus = (row) => {
    if (!row) return;
    for (const other of rows) other.tabIndex = other === row ? 0 : -1;
    row.focus({ preventScroll: true });
    row.scrollIntoView({ block: "nearest" });
  };
  const close = () => {
    const back = chosen;
    if (chosen) chosen.removeAttribute("aria-selected");
    chosen = null;
    panel.classList.remove("open");
    panel.replaceChildren(hint);
    if (back) focus(back);
  };
  const show = (row) => {
    if (chosen) chosen.removeAttribute("aria-selected");
    chosen = row;
    row.setAttribute("aria-selected", "true");
    const told = details[row.id.slice(part.id.length + 1)];
    const button = make("button", "×", "close");
    button.type = "button";
    button.setAttribute("aria-label", "Close details");
    button.addEventListener("click", close);
    const shown = [button, make("h4", told.title), make("div", told.about, "note"), list(told.facts)];
    for (const read of told.reads) {
      shown.push(make("h5", `reads ${read.title}`), make("code", read.equation, "equation"), list(read.shapes), list(read.facts));
    }
    if (told.remarks.length) {
      const remarks = make("ul");
      remarks.append(...told.remarks.map((text) => make("li", text)));
      shown.push(remarks);
    }
    panel.replaceChildren(...shown);
    panel.classList.add("open");
  };
  const reveal = (row) => {
    for (let above = parent(row); above; above = parent(above)) open(above, true);
    layOut();
  };
  const act = (row) => {
    if (isGroup(row)) {
      open(row, !isOpen(row));
      layOut();
    }
    show(row);
  };
  const step = (row, way) => {
    const seen = rows.filter((other) => !other.hidden);
    return seen[seen.indexOf(row) + way];
  };
  const keys = {
    ArrowDown: (row) => focus(step(row, 1)),
    ArrowUp: (row) => focus(step(row, -1)),
    Home: () => focus(rows.find((row) => !row.hidden)),
    End: () => focus(rows.findLast((row) => !row.hidden)),
    Enter: act,
    " ": act,
    Escape: close,
    ArrowRight: (row) => {
      if (isGroup(row) && !isOpen(row)) {
        open(row, true);
        layOut();
      } else if (isGroup(row)) focus(step(row, 1));
    },
    ArrowLeft: (row) => {
      if (isGroup(row) && isOpen(row)) {
        open(row, false);
        layOut();
      } else focus(parent(row));
    },
  };
  for (const row of rows) {
    row.addEventListener("click", () => {
      focus(row);
      act(row);
    });
    row.addEventListener("keydown", (event) => {
      if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      keys[event.key](row);
    });
  }
  panel.addEventListener("keydown", (event) => {
    if (event.key === "Escape") close();
  });

  const find = at(".find");
  find.addEventListener("input", () => {
    const text = find.value.trim().toLowerCase();
    const hits = rows.filter((row) => text && !isGroup(row) && row.dataset.find.includes(text));
    rows.forEach((row, place) => {
      open(row, first[place]);
      row.classList.toggle("hit", hits.includes(row));
    });
    hits.forEach(reveal);
    layOut();
    status.textContent = text ? `${hits.length} found` : "";
    if (hits.length) hits[0].scrollIntoView({ block: "nearest" });
  });
  find.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      find.value = "";
      find.dispatchEvent(new Event("input"));
    } else if (event.key === "Enter") {
      const hit = rows.find((row) => row.classList.contains("hit"));
      if (hit) {
        focus(hit);
        show(hit);
      }
    }
  });
  at(".all").addEventListener("click", () => {
    rows.forEach((row) => open(row, true));
    layOut();
  });
  at(".fold").addEventListener("click", () => {
    rows.forEach((row, place) => open(row, first[place]));
    layOut();
  });

  const filter = at(".filter"), lines = [...at("table.layers").tBodies[0].rows];
  filter.addEventListener("input", () => {
    const text = filter.value.trim().toLowerCase();
    for (const line of lines) line.hidden = !line.textContent.toLowerCase().includes(text);
    at(".shown").textContent = text ? `${lines.filter((line) => !line.hidden).length} of ${lines.length}` : "";
  });
  for (const button of part.querySelectorAll(".to")) {
    button.addEventListener("click", () => {
      const row = keyed.get(button.dataset.row);
      reveal(row);
      focus(row);
      row.scrollIntoView({ block: "center" });
      show(row);
    });
  }
  at(".save").addEventListener("click", (event) => {
    const source = document.getElementById(event.currentTarget.dataset.from).textContent;
    const link = make("a");
    link.href = URL.createObjectURL(new Blob([source], { type: "application/json" }));
    link.download = event.currentTarget.dataset.name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
  at(".copy").addEventListener("click", async (event) => {
    const source = document.getElementById(event.currentTarget.dataset.from);
    try {
      await navigator.clipboard.writeText(source.textContent);
      at(".done").textContent = "copied";
    } catch {
      getSelection().selectAllChildren(source);
      at(".done").textContent = "selected: copy it with your keyboard";
    }
  });
}
