"use strict";
// The theme: the system's until the button is pressed; what was chosen is kept where the browser keeps things.
(function () {
  const root = document.documentElement, button = document.getElementById("theme");
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  function kept(value) {
    try {
      if (value) localStorage.setItem("metaopt-theme", value);
      return localStorage.getItem("metaopt-theme");
    } catch (error) {
      return null;  // a page from disk may not be let
    }
  }
  function now() {
    return root.dataset.theme || (system.matches ? "dark" : "light");
  }
  function say() {
    button.textContent = now() === "dark" ? "Light theme" : "Dark theme";
  }
  const before = kept();
  if (before === "dark" || before === "light") root.dataset.theme = before;
  button.addEventListener("click", function () {
    root.dataset.theme = now() === "dark" ? "light" : "dark";
    kept(root.dataset.theme);
    say();
  });
  system.addEventListener("change", say);
  button.hidden = false;
  say();
})();

// Tables: a button in every column's header sorts by it, up and then down. What has no value stays at the end.
(function () {
  function words(cell) {
    const first = Array.from(cell.childNodes).filter(function (node) {
      return node.nodeName !== "SMALL" && node.nodeName !== "svg";
    });
    return first.map(function (node) { return node.textContent; }).join("").trim();
  }
  function value(cell) {
    if (!cell) return null;
    const text = (cell.dataset.sort || words(cell)).replace(/−/g, "-").replace(/∞/g, "Infinity")
      .replace(/^(-?)inf$/, "$1Infinity");
    if (text === "" || text === "–") return null;
    const plain = text.replace(/,(?=\d{3})/g, "").replace(/%$/, "");
    return plain !== "" && !isNaN(Number(plain)) ? Number(plain) : text.toLowerCase();
  }
  function order(a, b) {
    if (typeof a === "number" && typeof b === "number") return a < b ? -1 : a > b ? 1 : 0;
    return String(a).localeCompare(String(b), "en", {numeric: true});
  }
  document.querySelectorAll("table").forEach(function (table) {
    const heads = Array.from(table.querySelectorAll("thead th")), body = table.tBodies[0];
    if (!heads.length || body.rows.length < 2) return;
    heads.forEach(function (head, column) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", function () {
        const down = head.getAttribute("aria-sort") === "ascending";
        heads.forEach(function (other) { other.setAttribute("aria-sort", "none"); });
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = Array.from(body.rows).map(function (row) { return [value(row.cells[column]), row]; });
        rows.sort(function (a, b) {
          if (a[0] === null || b[0] === null) return (a[0] === null) - (b[0] === null);
          return down ? order(b[0], a[0]) : order(a[0], b[0]);
        });
        body.append(...rows.map(function (pair) { return pair[1]; }));
      });
    });
  });
})();

// Paths on a landscape: a slider draws them up to a step, and the button moves it. Nothing moves by itself.
(function () {
  const SECONDS = 8, still = window.matchMedia("(prefers-reduced-motion: reduce)");
  document.querySelectorAll(".moving").forEach(function (figure) {
    const player = figure.querySelector(".player"), button = player.querySelector("button");
    const slider = player.querySelector("input"), said = player.querySelector("output");
    const steps = figure.dataset.steps.split(" ").map(Number), last = steps.length - 1;
    const paths = Array.from(figure.querySelectorAll(".path")).map(function (line) {
      return {line: line, dot: line.nextElementSibling, points: line.getAttribute("points").split(" ")};
    });
    let playing = 0;  // which press of the button moves it; even: none
    function show(at) {
      paths.forEach(function (path) {
        const points = path.points.slice(0, at + 1), end = points[points.length - 1];
        path.line.setAttribute("points", points.join(" "));
        path.dot.setAttribute("points", end + " " + end);
      });
      slider.value = at;
      slider.setAttribute("aria-valuetext", said.textContent = "step " + steps[at].toLocaleString("en"));
    }
    function stop() {
      if (playing % 2) playing += 1;
      button.textContent = "Play";
    }
    button.addEventListener("click", function () {
      if (playing % 2) return stop();
      const mine = playing += 1, from = Number(slider.value) < last ? Number(slider.value) : 0;
      let begun = null;
      button.textContent = "Pause";
      requestAnimationFrame(function next(now) {
        if (playing !== mine) return;
        if (begun === null) begun = now;
        const at = Math.min(last, from + Math.floor((now - begun) / 1000 / SECONDS * last));
        show(at);
        if (at < last) requestAnimationFrame(next); else stop();
      });
    });
    slider.addEventListener("input", function () { stop(); show(Number(slider.value)); });
    still.addEventListener("change", stop);
    player.hidden = false;
    show(last);
  });
})();
