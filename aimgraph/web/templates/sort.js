for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const way = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", way === 1 ? "ascending" : "descending");
      const key = (row) => row.cells[place].dataset.key ?? row.cells[place].textContent;
      const number = (row) => key(row) === "-inf" ? -Infinity : Number(key(row));
      const order = (a, b) => isNaN(number(a)) || isNaN(number(b)) ? key(a).localeCompare(key(b)) : Math.sign(number(a) - number(b)) || 0;
      body.append(...[...body.rows].sort((a, b) => way * order(a, b)));
    });
  });
}
