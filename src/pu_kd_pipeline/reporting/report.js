"use strict";
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const part = (id) => document.getElementById(id);
  const all = (selector, root) => Array.from((root || document).querySelectorAll(selector));

  /* Images: each is in the page once, and copied to the other places where it is shown. */
  const sources = new Map();
  for (const image of all("img[data-picture]")) sources.set(image.dataset.picture, image.src);
  for (const image of all("img[data-copy]")) image.src = sources.get(image.dataset.copy);
  function markSmall(image) {
    image.classList.toggle("small", Math.max(image.naturalWidth, image.naturalHeight) <= data.small_px);
  }
  for (const image of all(".thumb img")) {
    if (image.complete) markSmall(image);
    image.addEventListener("load", () => markSmall(image));
  }

  /* The detail of an image: a click opens it, the arrow keys go through its row, Escape closes it. */
  const detail = part("detail");
  let row = [];
  let place = 0;

  function show(next) {
    if (next < 0 || next >= row.length) return;
    place = next;
    const thumb = row[place];
    const picture = part("detail-picture");
    picture.src = sources.get(thumb.dataset.number);
    picture.alt = thumb.querySelector("img").alt;
    const list = part("detail-facts");
    list.replaceChildren();
    for (const [name, text] of data.facts[Number(thumb.dataset.number)]) {
      const group = document.createElement("div");
      const term = document.createElement("dt");
      const value = document.createElement("dd");
      term.textContent = name;
      value.textContent = text;
      group.append(term, value);
      list.append(group);
    }
    part("detail-place").textContent = (place + 1) + " of " + row.length;
    part("previous").disabled = place === 0;
    part("next").disabled = place === row.length - 1;
  }

  if (detail) {
    document.addEventListener("click", (event) => {
      const thumb = event.target.closest(".thumb");
      if (!thumb) return;
      row = all(".thumb", thumb.closest(".thumbs"));
      show(row.indexOf(thumb));
      detail.showModal();
    });
    part("detail-picture").addEventListener("load", (event) => markSmall(event.target));
    part("previous").addEventListener("click", () => show(place - 1));
    part("next").addEventListener("click", () => show(place + 1));
    part("close").addEventListener("click", () => detail.close());
    detail.addEventListener("click", (event) => {
      if (event.target === detail) detail.close();
    });
    detail.addEventListener("keydown", (event) => {
      if (event.key === "ArrowLeft") show(place - 1);
      if (event.key === "ArrowRight") show(place + 1);
    });
    detail.addEventListener("close", () => row[place] && row[place].focus());
  }

  /* The cut of the score. */
  const cut = data.cut;
  const slider = part("threshold");
  const count = (number) => number.toLocaleString("en-US");
  const percent = (share) => (100 * share).toFixed(1) + "\u00a0%";

  function move() {
    const at = Number(slider.value);
    const passing = cut.passing[at];
    const sign = cut.is_strict ? "> " : "\u2265 ";
    const text = sign + cut.texts[at];
    part("cut-threshold").textContent = text;
    part("cut-passing").textContent = count(passing) + " (" + percent(passing / cut.n_pool) + ")";
    slider.setAttribute("aria-valuetext", text + ", " + count(passing) + " images pass");
    if (cut.relevant) {
      const hits = cut.relevant[at];
      part("cut-precision").textContent = passing ? percent(hits / passing) : "\u2013";
      part("cut-recall").textContent = cut.n_relevant ? percent(hits / cut.n_relevant) : "\u2013";
    }
    const x = cut.places[at];
    const shade = part("passing");
    shade.setAttribute("x", x);
    shade.setAttribute("width", 1 - x);
    part("cut-line").setAttribute("x1", x);
    part("cut-line").setAttribute("x2", x);
  }

  if (cut && slider) {
    slider.addEventListener("input", move);
    part("cut-reset").addEventListener("click", () => {
      slider.value = String(cut.start);
      move();
    });
    move();
  }

  /* Tables whose header cells sort them. */
  function sortBy(table, column, isAscending) {
    const key = (line) => line.children[column].dataset.key;
    const body = table.tBodies[0];
    const isNumber = all("tr", body).every((line) => key(line) === "" || line.children[column].dataset.kind === "number");
    const order = (a, b) => (isNumber ? Number(a) - Number(b) : a.localeCompare(b, "en", { numeric: true }));
    const lines = all("tr", body);
    lines.sort((first, second) => {
      const a = key(first);
      const b = key(second);
      /* What is not known comes last in either direction. */
      if (a === "" || b === "") return (a === "") - (b === "");
      return isAscending ? order(a, b) : order(b, a);
    });
    body.append(...lines);
    Array.from(table.tHead.rows[0].cells).forEach((cell, index) => {
      const sorted = isAscending ? "ascending" : "descending";
      cell.setAttribute("aria-sort", index === column ? sorted : "none");
    });
  }

  for (const table of all("table.sortable")) {
    all("th button", table.tHead).forEach((button) => {
      const cell = button.closest("th");
      button.addEventListener("click", () => {
        sortBy(table, cell.cellIndex, cell.getAttribute("aria-sort") !== "ascending");
      });
    });
  }

  /* Charts of several lines: a click on a name in the legend shows its line alone, and again all. */
  for (const plot of all(".plot")) {
    const lines = all("g[data-line]", plot);
    const names = all(".legend span", plot);
    if (lines.length < 3) continue;
    const choose = (name) => {
      const isChosen = name.getAttribute("aria-pressed") === "true";
      for (const other of names) other.setAttribute("aria-pressed", "false");
      if (!isChosen) name.setAttribute("aria-pressed", "true");
      for (const line of lines) {
        line.classList.toggle("faded", !isChosen && line.dataset.line !== name.dataset.line);
      }
    };
    for (const name of names) {
      name.setAttribute("role", "button");
      name.setAttribute("tabindex", "0");
      name.setAttribute("aria-pressed", "false");
      name.addEventListener("click", () => choose(name));
      name.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") {
          event.preventDefault();
          choose(name);
        }
      });
    }
  }

  /* Pairs of classes: a click shows their images. */
  for (const button of all("button[data-pair]")) {
    button.addEventListener("click", () => {
      const wasOpen = button.getAttribute("aria-expanded") === "true";
      for (const other of all("button[data-pair]")) other.setAttribute("aria-expanded", "false");
      for (const pair of all(".pair")) pair.hidden = true;
      if (wasOpen) return;
      button.setAttribute("aria-expanded", "true");
      part("pair-" + button.dataset.pair).hidden = false;
    });
  }

  /* The parameters as a file. */
  const save = part("save-parameters");
  if (save) {
    save.addEventListener("click", () => {
      const blob = new Blob([part("parameters-file").textContent], { type: "text/yaml" });
      const link = document.createElement("a");
      link.href = URL.createObjectURL(blob);
      link.download = "parameters.yml";
      document.body.append(link);
      link.click();
      link.remove();
      setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    });
  }
})();
