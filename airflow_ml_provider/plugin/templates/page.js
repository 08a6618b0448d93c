(() => {
  "use strict";
  const root = document.documentElement;
  const around = () => { try { return window.parent === window ? null : window.parent.document; } catch { return null; } };
  const outer = around();

  // Airflow has its theme as a class of its page; where this page stands alone, in what its browser keeps of Airflow.
  const kept = () => { try { return localStorage.getItem("theme") ?? ""; } catch { return ""; } };
  const dress = () => {
    const known = ["dark", "light"];
    const theme = outer ? known.find((each) => outer.documentElement.classList.contains(each)) : known.find((each) => each === kept());
    if (!theme) return;
    root.dataset.theme = theme;
    if (outer) root.style.setProperty("--back", getComputedStyle(outer.body).backgroundColor);
  };
  dress();
  if (outer) new MutationObserver(dress).observe(outer.documentElement, { attributes: true, attributeFilter: ["class"] });

  // Airflow's frame may open no tab. A link in the document around it may, and it is the same click.
  const leave = (event) => {
    const link = event.target.closest("a[data-leave]");
    if (!link || !outer || event.button > 1 || !/^https?:$/.test(link.protocol)) return;
    event.preventDefault();
    const door = outer.createElement("a");
    door.href = link.href;
    door.target = "_blank";
    door.rel = "noopener noreferrer";
    outer.body.append(door);
    door.click();
    door.remove();
  };
  document.addEventListener("click", leave);
  document.addEventListener("auxclick", leave);

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-copy]");
    if (!button) return;
    button.previousElementSibling.select();
    button.textContent = document.execCommand("copy") ? "Copied" : "Press Ctrl+C";
  });

  // What is opened is fetched then: the main part of a page of ours, read by the browser as a document in which nothing runs.
  const show = (place) => {
    if (place.dataset.fetched) return;
    place.dataset.fetched = "begun";
    const request = new XMLHttpRequest();
    const end = (...shown) => { place.replaceChildren(...shown); place.dataset.fetched = "ended"; };
    request.open("GET", place.dataset.page);
    request.responseType = "document";
    request.setRequestHeader("X-Part", "1");
    request.onload = () => {
      const found = request.response?.querySelector("main [data-part]") ?? request.response?.querySelector("main");
      end(...(found ? [document.importNode(found, true)] : ["It cannot be shown now."]));
    };
    request.onerror = () => end("It cannot be shown now.");
    request.send();
  };
  const open = (details) => {
    const place = details.querySelector(":scope > [data-page]");
    if (details.open && place) show(place);
  };
  document.addEventListener("toggle", (event) => { if (event.target.matches?.("details")) open(event.target); }, true);
  document.querySelectorAll("details[open]").forEach(open);
  document.querySelectorAll("[data-now]").forEach(show);

  // The address may name a step: it is opened.
  const wanted = location.hash ? document.getElementById(location.hash.slice(1)) : null;
  if (wanted?.matches("details")) wanted.open = true;
})();
