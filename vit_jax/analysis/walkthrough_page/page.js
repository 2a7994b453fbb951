// Shows one step at a time: by buttons, links, keys, or the address (#step-7). Without this script,
// all steps follow one another.
(() => {
  const root = document.documentElement;
  const steps = [...document.querySelectorAll("main > section")];
  const links = [...document.querySelectorAll("nav a")];
  const [previous, next] = document.querySelectorAll(".controls button");
  const nav = document.querySelector("nav");

  const current = () => Math.max(0, steps.findIndex((step) => `#${step.id}` === location.hash));

  const go = (index) => {
    const last = steps.length - 1;
    location.hash = steps[Math.min(Math.max(index, 0), last)].id;
  };

  const show = () => {
    const shown = current();
    steps.forEach((step, i) => step.classList.toggle("active", i === shown));
    links.forEach((link, i) => {
      if (i === shown) link.setAttribute("aria-current", "step");
      else link.removeAttribute("aria-current");
    });
    previous.disabled = shown === 0;
    next.disabled = shown === steps.length - 1;
    const position = `${shown + 1} / ${steps.length}`;
    document.querySelector(".position").textContent = position;
    document.querySelector(".progress").style.width = `${(100 * (shown + 1)) / steps.length}%`;
    const title = steps[shown].querySelector("h2").textContent;
    document.querySelector("[aria-live]").textContent = `Step ${position}: ${title}`;
    // Only the list scrolls, not the page.
    const link = links[shown];
    nav.scrollLeft = link.offsetLeft - nav.offsetLeft - nav.clientWidth / 2 + link.offsetWidth / 2;
    nav.scrollTop = link.offsetTop - nav.offsetTop - nav.clientHeight / 2;
  };

  const moves = {
    ArrowRight: () => current() + 1,
    ArrowLeft: () => current() - 1,
    Home: () => 0,
    End: () => steps.length - 1,
    // A presenter's remote control sends these: they scroll a step to its end first.
    PageDown: () => (isAtEnd() ? current() + 1 : null),
    PageUp: () => (scrollY <= 0 ? current() - 1 : null),
  };
  const isAtEnd = () => scrollY + innerHeight >= document.documentElement.scrollHeight - 2;
  document.addEventListener("keydown", (event) => {
    const move = moves[event.key];
    if (!move || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
    // The arrows scroll a wide table that has the focus.
    const box = event.target.closest ? event.target.closest(".scroll") : null;
    if (box && box.scrollWidth > box.clientWidth) return;
    const step = move();
    if (step === null) return;
    event.preventDefault();
    go(step);
  });
  previous.addEventListener("click", () => go(current() - 1));
  next.addEventListener("click", () => go(current() + 1));
  window.addEventListener("hashchange", show);
  root.classList.add("paged");
  show();
})();
