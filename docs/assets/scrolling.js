// What scrolls sideways can be reached by keyboard: wide tables and formulas. The theme wraps tables when it starts.
const scrolling = new ResizeObserver((entries) => {
  for (const { target } of entries)
    target.scrollWidth > target.clientWidth ? target.setAttribute("tabindex", "0") : target.removeAttribute("tabindex");
});
document$.subscribe(() => requestAnimationFrame(() => {
  document.querySelectorAll(".md-typeset__scrollwrap, math[display=block]").forEach((one) => scrolling.observe(one));
}));
